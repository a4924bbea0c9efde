// Relative position embeddings in the scores: every query is multiplied with the embedding of its
// distance to the key,
//
//   score = scale · (q_i · k_j  +  (q_i + v_h) · e_h[clamp(j − i − first, 0, N − 1)])
//
// on the axis of the keys, the last query at the last key (i = aligned_q).
//
//   table  [H|1, N, D], or [N, D] for all heads; entry t is for keys at distance first + t, and the
//          two at the ends are for whatever lies beyond. A table that is stored by descending
//          distance is a view with a negative stride.
//   bias   v [H|1, D], or [D]; may be left out
//
// shaw, music_transformer and transformer_xl (files of these names) are this with their own tables.
//
// No array of L × L products or L × L × D embeddings exists: a strip of R query rows meets the 64
// keys of a step at R + 63 distances, so a product of the strip with that many rows of the table
// has all it needs, and row r takes its 64 columns from column R − 1 − r on. (Huang et al., "Music
// Transformer", 2019, skew a whole L × L product in this way.) The cost is about that of q·k;
// memory beside the operands depends on the size of a block and not on L.
#pragma once

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/rows.hpp"
#include "../core/score_term.hpp"
#include "../core/tensor_view.hpp"
#include "detail/term_strip.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class Term, class Tiles>
class relative_worker;

}  // namespace detail

template <element T, element Bias = T>
class relative_embedding : public detail::term_base {
 public:
  template <class Tiles>
  using worker = detail::relative_worker<relative_embedding, Tiles>;

  template <class U, int Rank>
  relative_embedding(tensor_view<U, Rank> table, index_t first_distance) : first_(first_distance) {
    static_assert(Rank == 2 || Rank == 3, "heed: relative embeddings have 2 or 3 axes");
    static_assert(std::is_same_v<std::remove_const_t<U>, T>);
    const tensor_view<const T, 3> lifted = table.template lifted<3>();
    if (lifted.data() == nullptr && !lifted.empty()) {
      raise("relative_embedding: data of the table is null");
    }
    if (lifted.extent(1) == 0) raise("relative_embedding: the table has no entries");
    // Sums of distances and positions must not overflow.
    constexpr index_t largest = index_t{1} << 40;
    if (first_distance < -largest || first_distance > largest || lifted.extent(1) > largest) {
      raise(message("relative_embedding: ")
            << lifted.extent(1) << " distances from " << first_distance << " on are out of range");
    }
    table_ = lifted;
  }
  template <class U, int Rank, class V, int BiasRank>
  relative_embedding(tensor_view<U, Rank> table, index_t first_distance,
                     tensor_view<V, BiasRank> query_bias)
      : relative_embedding(table, first_distance) {
    bias_ = detail::head_rows<Bias>("relative_embedding", "bias", query_bias);
  }

  void check(const call_shape& shape) const {
    const index_t heads = table_.extent(0), depth = table_.extent(2);
    if (heads != 1 && heads != shape.heads) {
      raise(message("relative_embedding: table has ")
            << heads << " heads, call has " << shape.heads);
    }
    if (depth != shape.depth) {
      raise(message("relative_embedding: table has depth ")
            << depth << ", queries have " << shape.depth);
    }
    bias_.check("relative_embedding", shape);
  }

  // Distances of the table's first and last entry.
  index_t first_distance() const { return first_; }
  index_t last_distance() const { return first_ + entries() - 1; }
  index_t entries() const { return table_.extent(1); }
  // Heads that are told apart: 0 for all where they share one table.
  index_t table_head(index_t head) const { return table_.extent(0) == 1 ? 0 : head; }
  bool shared_by_heads() const { return table_.extent(0) == 1; }
  strided_rows<T> rows(index_t head, index_t entry) const {
    return {table_.row(table_head(head), entry), table_.stride(1)};
  }
  const detail::head_rows<Bias>& bias() const { return bias_; }

 private:
  tensor_view<const T, 3> table_;
  index_t first_;
  detail::head_rows<Bias> bias_;
};

template <class U, int Rank>
relative_embedding(tensor_view<U, Rank>, index_t) -> relative_embedding<std::remove_const_t<U>>;
template <class U, int Rank, class V, int BiasRank>
relative_embedding(tensor_view<U, Rank>, index_t, tensor_view<V, BiasRank>)
    -> relative_embedding<std::remove_const_t<U>, std::remove_const_t<V>>;

namespace detail {

// Many rows: the table is cut into panels of 64 entries, which are packed and multiplied as steps
// of 64 keys are; those that the strips of a block meet are kept. Few rows: the table is read where
// it lies.
template <class Term, class Tiles>
class relative_worker {
 public:
  using real = typename Tiles::real;

  relative_worker(const Term& term, const term_sizes& sizes, bump& memory)
      : term_(term), strip_(sizes, memory) {
    // A strip's distances in a step, and what whole panels have in front and behind.
    band_stride_ = (sizes.strip_rows + 63 + 2 * panel + 15) / 16 * 16;
    band_ = memory.take<real>(strip_.height() * band_stride_);
    // Twice what a block of neighbouring steps meets, for blocks of steps that are far apart.
    kept_ = 2 * (sizes.block_keys + sizes.item_rows) / panel + 2;
    if (kept_ > (term.entries() - 1) / panel + 1) kept_ = (term.entries() - 1) / panel + 1;
    panels_ = memory.take<real>(kept_ * Tiles::key_step_size(sizes.depth));
    which_ = memory.take<index_t>(kept_);
  }

  template <class Tile>
  void add(const Tile& tile) {
    if (strip_.fill(tile, term_.bias(), tile.sign)) band_first_ = -1;
    for (int first = 0; first < tile.rows;) {
      // One query of many heads that share the table: all rows have the same distances.
      const bool same_place = tile.queries == 1 && term_.shared_by_heads();
      const int rows = same_place ? tile.rows - first : rows_of_same_head(tile, first);
      add_rows(tile, first, rows, same_place ? 0 : 1);
      first += rows;
    }
  }

 private:
  using vector = pack<real, Tiles::lanes>;

  index_t clamped(index_t entry) const {
    const index_t last = term_.entries() - 1;
    return entry < 0 ? 0 : entry > last ? last : entry;
  }

  // Rows [first, first + rows) of the strip, whose queries are `step` apart.
  template <class Tile>
  void add_rows(const Tile& tile, int first, int rows, index_t step) {
    const auto row = tile.row_at(tile.first_row + first);
    // Entry of the first row and the step's first key, were the table endless.
    const index_t origin = tile.first_key - (row.q + tile.alignment()) - term_.first_distance();
    const index_t low = clamped(origin - step * (rows - 1));
    const index_t end = clamped(origin + tile.count - 1) + 1;
    keep(first, rows, low);
    if (band_end_ < end) {
      if (tile.in_place) {
        multiply_in_place(tile, first, rows, row.head, end);
      } else {
        multiply_panels(tile, first, rows, row.head, end);
      }
    }
    for (int r = 0; r < rows; ++r) {
      add_row(band_ + (first + r) * band_stride_, origin - step * r, tile.count,
              tile.scores + (first + r) * tile.stride);
    }
  }

  // Entries from `low` on that the band has from the step before move to its front.
  void keep(int first, int rows, index_t low) {
    const index_t moved = low - band_low_, kept = band_end_ - low;
    if (band_first_ != first || moved < 0 || kept <= 0) {
      band_first_ = first, band_low_ = band_end_ = low;
      return;
    }
    if (moved == 0) return;
    for (int r = 0; r < rows; ++r) {
      real* band = band_ + (first + r) * band_stride_;
      index_t c = 0;
      for (; c < kept; c += vector::size) store_pack(band + c, load_pack<vector>(band + c + moved));
    }
    band_low_ = low;
  }

  template <class Tile>
  void multiply_in_place(const Tile& tile, int first, int rows, index_t head, index_t end) {
    strip_.prepared.forget();
    Tiles::score_rows(strip_.row(first), rows, strip_.prepared, term_.rows(head, band_end_),
                      static_cast<int>(end - band_end_), tile.depth,
                      band_ + first * band_stride_ + (band_end_ - band_low_), band_stride_);
    band_end_ = end;
  }

  // Whole panels, until they reach `end`.
  template <class Tile>
  void multiply_panels(const Tile& tile, int first, int rows, index_t head, index_t end) {
    index_t at = band_end_ / panel;
    if (band_low_ == band_end_) band_low_ = at * panel;
    for (; band_end_ < end; ++at) {
      const index_t left = term_.entries() - at * panel;
      const int entries = static_cast<int>(left < panel ? left : panel);
      const real* packed = packed_panel(tile, head, at, entries);
      for (int r = 0; r < rows; r += Tiles::strip_rows) {
        // Whole strips are multiplied: rows behind these are computed when their turn comes.
        Tiles::score(strip_.row(first + r),
                     rows - r < Tiles::strip_rows ? rows - r : Tiles::strip_rows, packed,
                     tile.depth, entries,
                     band_ + (first + r) * band_stride_ + (at * panel - band_low_), band_stride_);
      }
      band_end_ = at * panel + entries;
    }
  }

  template <class Tile>
  const real* packed_panel(const Tile& tile, index_t head, index_t at, int entries) {
    if (head_ != term_.table_head(head)) {
      head_ = term_.table_head(head);
      for (index_t i = 0; i < kept_; ++i) which_[i] = -1;
    }
    const index_t place = at % kept_;
    real* packed = panels_ + place * Tiles::key_step_size(tile.depth);
    if (which_[place] != at) {
      which_[place] = at;
      Tiles::pack_keys(term_.rows(head, at * panel), entries, tile.depth, packed);
    }
    return packed;
  }

  // s[c] += band of entry clamp(origin + c)
  HEED_INLINE void add_row(const real* band, index_t origin, int count, real* s) const {
    const index_t last = term_.entries() - 1;
    const auto within = [&](index_t c) {
      return static_cast<int>(c < 0 ? 0 : c > count ? count : c);
    };
    const int begin = within(-origin), end = within(last + 1 - origin);
    if (begin == 0 && end == count) return add_run(band + (origin - band_low_), 64, s);
    if (begin > 0) add_same(band[0 - band_low_], begin, s);
    if (begin < end) add_run(band + (origin + begin - band_low_), end - begin, s + begin);
    if (end < count) add_same(band[last - band_low_], count - end, s + end);
  }
  HEED_INLINE static void add_run(const real* from, int count, real* s) {
    int c = 0;
    for (; c + vector::size <= count; c += vector::size) {
      store_pack(s + c, load_pack<vector>(s + c) + load_pack<vector>(from + c));
    }
    for (; c < count; ++c) s[c] += from[c];
  }
  HEED_INLINE static void add_same(real value, int count, real* s) {
    int c = 0;
    for (; c + vector::size <= count; c += vector::size) {
      store_pack(s + c, load_pack<vector>(s + c) + vector(value));
    }
    for (; c < count; ++c) s[c] += value;
  }

  static constexpr index_t panel = Tiles::step_keys;

  const Term& term_;
  term_strip<Tiles> strip_;
  real* band_;    // [rows][entries]
  real* panels_;  // [kept] of 64 packed entries; panel p lies at p % kept
  index_t* which_;
  index_t band_stride_, kept_;
  index_t head_ = -1;  // of the panels
  // What the band holds: rows from strip row `band_first_` on, entries [band_low_, band_end_).
  int band_first_ = -1;
  index_t band_low_ = 0, band_end_ = 0;
};

}  // namespace detail

HEED_NAMESPACE_END
