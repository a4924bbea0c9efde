// The gradient of a bias: dS, summed over the axes along which the bias is broadcast.
//
// A sweep of its own over the tiles of backward_loop.hpp, with two products per tile, cut by the
// elements of the bias: an item has some of them to itself, and adds up everything that they were
// added to, in a fixed order. Many heads, batches or rows that share a bias never meet.
#pragma once

#include "backward_loop.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// A wanted gradient of what is added to the scores in front of number From: the sum of dS over the
// axes that have extent 1 in view [B|1, Hq|1, Lq|1, Lk|1].
template <std::size_t From, class T>
struct bias_gradient {
  tensor_view<T, 4> view;
};

// Tiles of rows of an item, where the bias has rows but no keys.
inline constexpr index_t bias_tiles = 8;

// Elements of an item: a block of keys with all rows, or some rows.
template <std::size_t From, class T>
index_t bias_region(const bias_gradient<From, T>& wanted, index_t block_steps, index_t tile_rows) {
  const index_t queries = wanted.view.extent(2), keys = wanted.view.extent(3);
  if (keys > 1) return queries * min(block_steps * 64, keys);
  return queries > 1 ? min(bias_tiles * tile_rows, queries) : 1;
}

template <class Tile, class Problem, std::size_t From, class T>
class bias_sweep {
 public:
  using Real = typename Problem::real;

  bias_sweep(const Problem& problem, const bias_gradient<From, T>& wanted, index_t block_steps,
             const row_statistics<Real>& all_rows)
      : problem_(problem), wanted_(wanted), all_(all_rows), block_(block_steps * Tile::step_keys) {
    const index_t queries = wanted.view.extent(2), keys = wanted.view.extent(3);
    if (keys > 1) {
      keys_ = min(block_, keys), rows_ = queries, along_ = ceil_div(keys, block_);
    } else if (queries > 1) {
      rows_ = min(bias_tiles * Tile::tile_rows, queries);
      along_ = ceil_div(queries, bias_tiles * Tile::tile_rows);
    }
  }

  index_t items() const { return wanted_.view.extent(0) * wanted_.view.extent(1) * along_; }

  // One item, over `region` for its sums.
  void run_item(index_t item, Tile& worker, Real* region) const {
    const auto& view = wanted_.view;
    const index_t batches = view.extent(0), heads = view.extent(1);
    const index_t queries = view.extent(2), keys = view.extent(3);
    const index_t along = item % along_, head = item / along_ % heads;
    const index_t batch = item / along_ / heads;
    const bool by_rows = keys <= 1 && queries > 1;
    const index_t first_key = keys > 1 ? along * block_ : 0;
    const index_t first_tile = by_rows ? along * bias_tiles : 0;
    const index_t row_stride = queries > 1 ? keys_ : 0, key_stride = keys > 1 ? 1 : 0;
    std::fill(region, region + rows_ * keys_, Real(0));
    const index_t last_sequence = batches > 1 ? batch + 1 : problem_.queries.sequences;
    const index_t last_head = heads > 1 ? head + 1 : problem_.heads();
    for (index_t s = batches > 1 ? batch : 0; s < last_sequence; ++s) {
      const index_t key_count = problem_.keys.at(s).count;
      const index_t last_key = keys > 1 ? min(first_key + block_, key_count) : key_count;
      const index_t last_tile = by_rows ? min(first_tile + bias_tiles, tiles_of(s)) : tiles_of(s);
      for (index_t h = heads > 1 ? head : 0; h < last_head; ++h) {
        for (index_t key = first_key; key < last_key; key += block_) {
          const index_t count = min(block_, last_key - key);
          worker.load_keys(problem_, s, h / problem_.group(), key, count);
          Real* of_tile = region;
          worker.template for_each_tile<From>(
              h, first_tile, last_tile, all_.from(problem_.row_number(s, h)),
              [&](index_t first) {
                of_tile = region + (first - first_tile * Tile::tile_rows) * row_stride;
              },
              [&](index_t step, index_t row, index_t last_row, int from, int to, bool) {
                for (index_t r = row; r < last_row; ++r) {
                  const Real* d_s = worker.score_gradients(r);
                  Real* sums = of_tile + r * row_stride +
                               (key - first_key + step * Tile::step_keys) * key_stride;
                  for (int c = from; c < to; ++c) sums[c * key_stride] += d_s[c];
                }
              });
        }
      }
    }
    const index_t first_row = first_tile * Tile::tile_rows;
    for (index_t r = 0; r < rows_ && first_row + r < queries; ++r) {
      for (index_t c = 0; c < keys_ && first_key + c < keys; ++c) {
        view(batch, head, first_row + r, first_key + c) = narrow<T>(region[r * keys_ + c]);
      }
    }
  }

 private:
  index_t tiles_of(index_t sequence) const {
    return ceil_div(problem_.queries.at(sequence).count, Tile::tile_rows);
  }

  const Problem& problem_;
  const bias_gradient<From, T>& wanted_;
  row_statistics<Real> all_;
  index_t block_;                            // keys that a worker holds
  index_t along_ = 1, rows_ = 1, keys_ = 1;  // items along keys or rows; an item's elements
};

}  // namespace engine
HEED_NAMESPACE_END
