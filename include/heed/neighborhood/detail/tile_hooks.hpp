// The mask and the relative position bias of tiles, as look-ups that were prepared once per kind of
// tile: all inner tiles of a grid share one table.
#pragma once

#include <tuple>

#include "../../core/element.hpp"
#include "tile_lists.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

// 64 keys of a query's list per word.
struct tile_mask {
  const std::uint64_t* const* of_sequence = nullptr;  // [sequences] → [queries][words]
  index_t words = 0;                                  // of a query

  HEED_INLINE std::uint64_t bits(const position& first, int) const {
    return of_sequence[first.batch][first.q * words + first.k / 64];
  }
  HEED_INLINE bool operator()(const position& p) const {
    return (bits(p, 1) >> (p.k % 64) & 1) != 0;
  }
};

// Marks what each query of a tile sees; pattern is [queries][words], all clear.
template <int N>
void mark_visible(const pattern<N>& which, const axis_tile (&own)[N], index_t words,
                  std::uint64_t* pattern) {
  constexpr std::size_t last = static_cast<std::size_t>(N) - 1;
  const coordinates<N> box = keys_of<N>(own);
  for_each_place<N>(queries_of<N>(own), [&](const coordinates<N>& place) {
    coordinates<N> begin, counts;
    for (int a = 0; a < N; ++a) {
      const auto i = static_cast<std::size_t>(a);
      const axis along = which.along(a);
      const key_interval seen =
          along.window_of(own[a].begin + place[i], along.places(own[a].remainder));
      begin[i] = seen.begin - own[a].key_begin;
      counts[i] = seen.end - seen.begin;
    }
    const index_t run = counts[last];
    counts[last] = 1;
    for_each_place<N>(counts, [&](const coordinates<N>& at) {
      index_t key = 0;
      for (std::size_t a = 0; a <= last; ++a) key = key * box[a] + begin[a] + at[a];
      for (index_t i = 0; i < run; ++i, ++key) {
        pattern[key / 64] |= std::uint64_t{1} << (key % 64);
      }
    });
    pattern += words;
  });
}

// The same with the caller's masks, which are asked for the keys that are left.
template <class... Masks>
struct tile_masks {
  tile_mask tiles;
  tile_lists lists;
  call_shape shape;
  std::tuple<const Masks&...> own;

  std::uint64_t bits(const position& first, int count) const {
    std::uint64_t seen = tiles.bits(first, count);
    if (count < 64) seen &= (std::uint64_t{1} << count) - 1;
    position p = first;
    for (std::uint64_t left = seen; left != 0; left &= left - 1) {
      const int key = __builtin_ctzll(left);
      p.k = first.k + key;
      if (!own_see(p)) seen &= ~(std::uint64_t{1} << key);
    }
    return seen;
  }
  bool operator()(const position& p) const { return tiles(p) && own_see(p); }
  void check(const call_shape&) const {
    std::apply([&](const auto&... mask) { (check_modifier(mask, shape), ...); }, own);
  }

 private:
  HEED_INLINE bool own_see(const position& p) const {
    const position at = lists.of_tokens(p);
    return std::apply([&](const auto&... mask) { return (static_cast<bool>(mask(at)) && ...); },
                      own);
  }
};

// The bias of a table [H|1, 2w₀ − 1, …] in the order in which a list has its keys. A query's row
// holds (distance along the first axis, place of the key across it): keys of the next layer of the
// box are as far apart as entries of the next distance, so that the row runs along the keys. Rows
// depend on the query's place across the first axis and on the tile's kind along the other axes.
template <class Real>
struct tile_bias {
  struct row {
    index_t first = 0;  // entry of the row's beginning
    index_t shift = 0;  // from a key's place in the list to its place in the row
  };
  // Zeros around a row, so that a pack that reaches out of it reads memory that exists.
  static constexpr index_t margin = 32;

  const Real* entries = nullptr;
  index_t head_step = 0;             // 0: one table for all heads
  const row* const* rows = nullptr;  // [sequences] → [queries]
  index_t row_size = 0;              // without margins, of the longest row

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    const row& of = rows[p.batch][p.q];
    const Real* from = entries + p.head * head_step + of.first;
    // What lies out of the table lies out of the window too: any score will do.
    if constexpr (is_pack<S>) {
      static_assert(S::size <= margin);
      const index_t at = p.first_key + of.shift;
      if (at <= -S::size || at >= row_size) return s;
      return s + load_pack<S>(from + at);
    } else {
      const index_t at = p.k + of.shift;
      return at < 0 || at >= row_size ? s : s + static_cast<S>(from[at]);
    }
  }
};

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
