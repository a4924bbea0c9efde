// Blocks of queries with their halo of keys, as lists: keys of the image, and keys beyond its
// border.
#pragma once

#include "../../core/element.hpp"
#include "modifiers.hpp"
#include "tiling.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {

// An image of grid[0]×grid[1] keys, cut into blocks that see `halo` more keys on every side; of a
// block's rows and columns every query_stride-th has a query.
struct halo_blocks {
  coordinates<2> grid{};
  coordinates<2> block{};
  coordinates<2> halo{};
  index_t query_stride = 1;

  // Keys that a block sees, and queries that it has.
  constexpr coordinates<2> window() const {
    return {block[0] + 2 * halo[0], block[1] + 2 * halo[1]};
  }
  constexpr coordinates<2> queries() const {
    return {block[0] / query_stride, block[1] / query_stride};
  }
  constexpr pattern<2> keys_grid() const { return {grid, block}; }
  constexpr pattern<2> queries_grid() const {
    return {{grid[0] / query_stride, grid[1] / query_stride}, queries()};
  }

  HEED_NOINLINE void check() const {
    for (std::size_t a = 0; a < 2; ++a) {
      if (grid[a] < 1 || block[a] < 1 || grid[a] % block[a] != 0) {
        raise(message("halo: block ")
              << block[a] << " of axis " << a << " does not divide the grid extent " << grid[a]);
      }
      if (halo[a] < 0 || halo[a] > grid[a]) {
        raise(message("halo: halo ")
              << halo[a] << " of axis " << a << " must lie in [0, " << grid[a] << "]");
      }
      if (query_stride < 1 || block[a] % query_stride != 0) {
        raise(message("halo: query_stride ")
              << query_stride << " does not divide the block " << block[a] << " of axis " << a);
      }
    }
    keys_grid().check();
  }
};

namespace detail {

HEED_NOINLINE inline void check_table(const char* name, const std::array<index_t, 2>& extents,
                                      index_t entries, index_t depth) {
  if (extents[0] == entries && extents[1] == depth) return;
  raise(message(name) << ": table is [" << extents[0] << ", " << extents[1] << "], must be ["
                      << entries << ", " << depth << "]");
}

template <class Q, class K, class V, class Out>
void check_halo(const halo_blocks& which, const Q& q, const K& k, const V& v, const Out& out) {
  check_tokens_of(which.queries_grid(), "q", q, q.extent(0));
  check_tokens_of(which.keys_grid(), "k", k, q.extent(0));
  check_tokens_of(which.keys_grid(), "v", v, q.extent(0));
  check_tokens_of(which.queries_grid(), "out", out, q.extent(0));
}

// s plus the logits of the key's row and column in the window.
template <class Real>
struct halo_score {
  using integer = integer_of<Real>;
  const Real* logits = nullptr;  // [sequences, heads, queries, rows and columns of a window]
  const integer *rows = nullptr, *columns = nullptr;  // [sequences, keys]
  index_t heads = 0, queries = 0, width = 0, keys = 0;

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    const Real* own = logits + ((p.batch * heads + p.head) * queries + p.q) * width;
    if constexpr (is_pack<S>) {
      const index_t key = p.batch * keys + p.first_key;
      using places = typename S::integer_pack;
      return s + lookup(own, load_pack<places>(rows + key)) +
             lookup(own, load_pack<places>(columns + key));
    } else {
      const index_t key = p.batch * keys + p.k;
      return s + static_cast<S>(own[rows[key]]) + static_cast<S>(own[columns[key]]);
    }
  }
};

template <class Real>
class halo_plan {
 public:
  using integer = integer_of<Real>;

  halo_plan(const halo_blocks& which, index_t batches, workspace& memory) : which_(which) {
    for (std::size_t a = 0; a < 2; ++a) blocks_[a] = which.grid[a] / which.block[a];
    lists_.batches = batches;
    lists_.tiles = blocks_[0] * blocks_[1];
    lists_.most_queries = which.queries()[0] * which.queries()[1];
    keys_ = lists_.most_keys = which.window()[0] * which.window()[1];
    lists_.tokens = which.queries_grid().tokens();
    const auto lay_out = [&](heed::detail::bump& from) {
      lists_.take(from);
      beyond_counts_ = from.take<index_t>(lists_.sequences());
      // Packs of keys read up to 64 places behind the last.
      for (auto** places : {&rows_, &columns_, &beyond_rows_, &beyond_columns_}) {
        *places = from.take<integer>(lists_.sequences() * keys_ + 64);
      }
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory.reserve(counted.bytes()));
    lay_out(taken);
    for (auto* places : {rows_, columns_, beyond_rows_, beyond_columns_}) {
      for (index_t i = 0; i < lists_.sequences() * keys_ + 64; ++i) places[i] = 0;
    }
    list_blocks();
  }

  const tile_lists& lists() const { return lists_; }
  index_t logits() const { return which_.window()[0] + which_.window()[1]; }
  index_t most_beyond() const { return most_beyond_; }
  std::span<const index_t> beyond_lengths() const {
    return as_span(beyond_counts_, lists_.sequences());
  }
  halo_score<Real> score(const Real* logits_of_queries, index_t heads, bool beyond) const {
    return {logits_of_queries,
            beyond ? beyond_rows_ : rows_,
            beyond ? beyond_columns_ : columns_,
            heads,
            lists_.most_queries,
            logits(),
            keys_};
  }

 private:
  void list_blocks() {
    for (index_t s = 0; s < lists_.sequences(); ++s) {
      const index_t tile = s % lists_.tiles;
      const coordinates<2> block{tile / blocks_[1], tile % blocks_[1]};
      index_t* to = lists_.query_rows + s * lists_.most_queries;
      const coordinates<2> queries = which_.queries();
      for_each_place<2>(queries, [&](const coordinates<2>& at) {
        *to++ = which_.queries_grid().token(
            {block[0] * queries[0] + at[0], block[1] * queries[1] + at[1]});
      });
      lists_.query_counts[s] = lists_.most_queries;
      index_t inside = 0, beyond = 0;
      for_each_place<2>(which_.window(), [&](const coordinates<2>& at) {
        const index_t y = block[0] * which_.block[0] - which_.halo[0] + at[0];
        const index_t x = block[1] * which_.block[1] - which_.halo[1] + at[1];
        const auto row = static_cast<integer>(at[0]);
        const auto column = static_cast<integer>(which_.window()[0] + at[1]);
        if (y >= 0 && y < which_.grid[0] && x >= 0 && x < which_.grid[1]) {
          rows_[s * keys_ + inside] = row;
          columns_[s * keys_ + inside] = column;
          lists_.key_rows[s * keys_ + inside++] = y * which_.grid[1] + x;
        } else {
          beyond_rows_[s * keys_ + beyond] = row;
          beyond_columns_[s * keys_ + beyond++] = column;
        }
      });
      lists_.key_counts[s] = inside;
      beyond_counts_[s] = beyond;
      most_beyond_ = max(most_beyond_, beyond);
      for (index_t i = inside; i < keys_; ++i) {
        lists_.key_rows[s * keys_ + i] = lists_.key_rows[s * keys_];
      }
    }
  }

  halo_blocks which_;
  coordinates<2> blocks_{};
  tile_lists lists_;
  index_t keys_ = 0, most_beyond_ = 0;
  index_t* beyond_counts_ = nullptr;              // [sequences]
  integer *rows_ = nullptr, *columns_ = nullptr;  // [sequences, keys]: places in a row of logits
  integer *beyond_rows_ = nullptr, *beyond_columns_ = nullptr;
};

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
