// The tiles of one call: their lists, patterns and biases, in scratch memory.
//
// The last axis of the grid is the first of the tiles: they are long along it, so that the rows of
// a tile and of its keys are a few streams through memory.
#pragma once

#include "tile_hooks.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

template <int N, class Real>
class tile_plan {
 public:
  using bias_row = typename tile_bias<Real>::row;

  // `bias_heads` tables are laid out: 0 where there is no bias. Memory is held until the plan is
  // no longer used; calls in between get memory.inner().inner().
  tile_plan(const pattern<N>& which, index_t batches, index_t strip, index_t bias_heads,
            workspace& memory)
      : which_(last_axis_first(which)), tiles_(which_, choose_tile<N>(which_, strip), memory) {
    index_t step = 1;
    for (int a = N; a-- > 0; step *= which.grid[static_cast<std::size_t>(a)]) {
      steps_[static_cast<std::size_t>((a + 1) % N)] = step;
    }
    lists_.batches = batches;
    lists_.tiles = tiles_.all;
    lists_.most_queries = tiles_.most_queries;
    lists_.most_keys = tiles_.most_keys;
    lists_.tokens = which.tokens();
    words_ = (tiles_.most_keys + 63) / 64;
    for (int a = 1; a < N; ++a) {
      index_t queries = 0, keys = 0;
      for (index_t i = 0; i < tiles_.counts[a]; ++i) {
        queries = max(queries, tiles_.tiles[a][i].size);
        keys = max(keys, tiles_.tiles[a][i].key_size);
      }
      sections_ *= tiles_.kinds[a];
      section_queries_ *= queries;
      section_keys_ *= keys;
    }
    row_size_ = (2 * which_.window[0] - 1) * section_keys_;
    bias_heads_ = bias_heads;
    const auto lay_out = [&](heed::detail::bump& from) { take(from); };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory.inner().reserve(counted.bytes()));
    lay_out(taken);
    list_tiles();
  }

  const tile_lists& lists() const { return lists_; }
  tile_mask mask() const { return {mask_of_, words_}; }
  tile_bias<Real> bias() const {
    return {entries_, bias_heads_ == 1 ? 0 : head_size(), bias_of_, row_size_};
  }

  // Lays out table(head, distances along the axes of the grid), each counted from that of the
  // farthest key in front, in [0, 2w − 2].
  template <class Table>
  void lay_bias(const Table& table) const {
    const index_t size = bias_heads_ * head_size();
    for (index_t i = 0; i < size; ++i) entries_[i] = 0;
    for (index_t i = 0; i < sections_; ++i) done_[i] = 0;
    tiles_.for_each([&](index_t, const axis_tile(&own)[N]) {
      unsigned char& done = done_[section_of(own)];
      if (done == 0) lay_section(table, own);
      done = 1;
    });
  }

 private:
  void take(heed::detail::bump& from) {
    const bool biased = bias_heads_ > 0;
    lists_.take(from);
    mask_of_ = from.take<const std::uint64_t*>(lists_.sequences());
    patterns_ = from.take<std::uint64_t>(tiles_.all_kinds * tiles_.most_queries * words_);
    done_ = from.take<unsigned char>(tiles_.all_kinds);
    bias_of_ = from.take<const bias_row*>(biased ? lists_.sequences() : 0);
    bias_rows_ = from.take<bias_row>(biased ? tiles_.all_kinds * tiles_.most_queries : 0);
    entries_ = from.take<Real>(bias_heads_ * head_size());
  }

  // Axis a of the grid is axis (a + 1) mod N of the tiles.
  static pattern<N> last_axis_first(const pattern<N>& which) {
    pattern<N> rotated;
    for (std::size_t a = 0; a < which.grid.size(); ++a) {
      const std::size_t to = (a + 1) % which.grid.size();
      rotated.grid[to] = which.grid[a];
      rotated.window[to] = which.window[a];
      rotated.stride[to] = which.stride[a];
      rotated.dilation[to] = which.dilation[a];
      rotated.causal[to] = which.causal[a];
    }
    return rotated;
  }
  // Kind of a tile along all axes but the first.
  index_t section_of(const axis_tile (&own)[N]) const {
    index_t kind = 0;
    for (int a = 1; a < N; ++a) kind = kind * tiles_.kinds[a] + own[a].kind;
    return kind;
  }
  index_t padded_row() const { return row_size_ + 2 * tile_bias<Real>::margin; }
  index_t head_size() const { return sections_ * section_queries_ * padded_row(); }
  static index_t queries_across(const axis_tile (&own)[N]) {
    index_t count = 1;
    for (int a = 1; a < N; ++a) count *= own[a].size;
    return count;
  }
  static index_t keys_across(const axis_tile (&own)[N]) {
    index_t count = 1;
    for (int a = 1; a < N; ++a) count *= own[a].key_size;
    return count;
  }

  void list_tiles() {
    for (index_t i = 0; i < tiles_.all_kinds; ++i) done_[i] = 0;
    const index_t words = tiles_.most_queries * words_;
    for (index_t i = 0; i < tiles_.all_kinds * words; ++i) patterns_[i] = 0;
    tiles_.for_each([&](index_t tile, const axis_tile(&own)[N]) {
      lists_.query_counts[tile] =
          list_box(own, queries_of<N>(own), &axis_tile::begin,
                   lists_.query_rows + tile * lists_.most_queries, lists_.most_queries);
      lists_.key_counts[tile] =
          list_box(own, keys_of<N>(own), &axis_tile::key_begin,
                   lists_.key_rows + tile * lists_.most_keys, lists_.most_keys);
      const index_t kind = tiles_.kind_of(own);
      std::uint64_t* pattern = patterns_ + kind * words;
      bias_row* rows = bias_heads_ > 0 ? bias_rows_ + kind * tiles_.most_queries : nullptr;
      if (done_[kind] == 0) {
        mark_visible<N>(which_, own, words_, pattern);
        if (rows != nullptr) place_rows(own, lists_.query_counts[tile], rows);
      }
      done_[kind] = 1;
      for (index_t b = 0; b < lists_.batches; ++b) {
        mask_of_[b * tiles_.all + tile] = pattern;
        if (rows != nullptr) bias_of_[b * tiles_.all + tile] = rows;
      }
    });
    lists_.repeat();
  }

  // Tokens of a box of places that begins at `begin`; the rest of the list repeats the last one.
  index_t list_box(const axis_tile (&own)[N], const coordinates<N>& extents,
                   index_t axis_tile::*begin, index_t* rows, index_t length) const {
    index_t count = 0;
    for_each_place<N>(extents, [&](const coordinates<N>& at) {
      index_t token = 0;
      for (std::size_t a = 0; a < at.size(); ++a) {
        token += ((own[a].*begin + at[a]) * which_.dilation[a] + own[a].remainder) * steps_[a];
      }
      rows[count++] = token;
    });
    for (index_t i = count; i < length; ++i) rows[i] = rows[count - 1];
    return count;
  }

  // Where the bias rows of a tile's queries are.
  void place_rows(const axis_tile (&own)[N], index_t queries, bias_row* rows) const {
    const index_t across = queries_across(own), layer = keys_across(own);
    for (index_t q = 0; q < queries; ++q) {
      const index_t first_distance =
          own[0].key_begin - (own[0].begin + q / across) + which_.window[0] - 1;
      rows[q] = {(section_of(own) * section_queries_ + q % across) * padded_row() +
                     tile_bias<Real>::margin,
                 first_distance * layer};
    }
  }

  template <class Table>
  void lay_section(const Table& table, const axis_tile (&own)[N]) const {
    coordinates<N> queries = queries_of<N>(own), keys = keys_of<N>(own);
    queries[0] = 1;
    keys[0] = 2 * which_.window[0] - 1;
    for (index_t head = 0; head < bias_heads_; ++head) {
      Real* row = entries_ + head * head_size() +
                  section_of(own) * section_queries_ * padded_row() + tile_bias<Real>::margin;
      for_each_place<N>(queries, [&](const coordinates<N>& q) {
        Real* to = row;
        for_each_place<N>(keys, [&](const coordinates<N>& k) {
          coordinates<N> distance;  // along the axes of the grid
          distance[N - 1] = k[0];
          bool inside = true;
          for (std::size_t a = 1; a < k.size(); ++a) {
            const index_t d = own[a].key_begin + k[a] - own[a].begin - q[a] + which_.window[a] - 1;
            inside = inside && d >= 0 && d <= 2 * which_.window[a] - 2;
            distance[a - 1] = d;
          }
          if (inside) *to = static_cast<Real>(table(head, distance));
          ++to;
        });
        row += padded_row();
      });
    }
  }

  pattern<N> which_;        // last axis first
  coordinates<N> steps_{};  // from a token to its neighbour along each of its axes
  grid_tiles<N> tiles_;
  tile_lists lists_;
  index_t words_ = 0;                               // of 64 keys, of a query
  index_t sections_ = 1;                            // kinds across the first axis
  index_t section_queries_ = 1, section_keys_ = 1;  // of one of them at most
  index_t row_size_ = 0, bias_heads_ = 0;
  const std::uint64_t** mask_of_ = nullptr;  // [sequences]
  std::uint64_t* patterns_ = nullptr;        // [kinds, most_queries, words]
  unsigned char* done_ = nullptr;            // [kinds]
  const bias_row** bias_of_ = nullptr;       // [sequences]
  bias_row* bias_rows_ = nullptr;            // [kinds, most_queries]
  Real* entries_ = nullptr;                  // [heads, sections, section queries, padded row]
};

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
