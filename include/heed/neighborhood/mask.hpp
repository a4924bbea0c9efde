// The mask of a neighborhood, for heed::attention over all tokens of the grid:
//
//   const heed::neighborhood::mask<2> near{{.grid = {8, 16}, .window = {7, 7}}};
//   heed::attention(q, k, v, out, near);
//
// Query and key i are token i of the grid (pattern.hpp). It composes with every other mask and
// score; neighborhood::attention, which gathers the few keys that a tile of queries sees, is much
// faster where it does. Tiles are decided 64 keys at a time; keys are limited by the first axis.
#pragma once

#include <cstdint>

#include "../mask/algebra.hpp"
#include "pattern.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {

template <int N>
class mask {
 public:
  explicit mask(const pattern<N>& which) : pattern_(which) { which.check(); }

  HEED_INLINE bool operator()(const position& p) const {
    const coordinates<N> q = pattern_.at(p.q), k = pattern_.at(p.k);
    for (int a = 0; a < N; ++a) {
      const auto i = static_cast<std::size_t>(a);
      if (!pattern_.along(a).sees(q[i], k[i])) return false;
    }
    return true;
  }

  // Keys first.k, first.k + 1, …, `count` of them: a bit for each, run by run of the last axis.
  std::uint64_t bits(const position& first, int count) const {
    const coordinates<N> q = pattern_.at(first.q);
    coordinates<N> k = pattern_.at(first.k);
    constexpr std::size_t last = static_cast<std::size_t>(N) - 1;
    std::uint64_t result = 0;
    for (int c = 0; c < count;) {
      const index_t left = pattern_.grid[last] - k[last];
      const int run = left < count - c ? static_cast<int>(left) : count - c;
      bool seen = true;
      for (int a = 0; a + 1 < N && seen; ++a) {
        const auto i = static_cast<std::size_t>(a);
        seen = pattern_.along(a).sees(q[i], k[i]);
      }
      if (seen) result |= run_bits(q[last], k[last], run) << c;
      c += run;
      k[last] = 0;
      for (std::size_t a = last; a-- > 0;) {
        if (++k[a] < pattern_.grid[a]) break;
        k[a] = 0;
      }
    }
    return result;
  }

  // Keys between the first and the last row of the first axis that some query of the tile sees.
  key_ranges visible_keys(const tile_extent& t) const {
    if (t.q_begin >= t.q_end) return {};
    const axis outer = pattern_.along(0);
    const index_t row = pattern_.tokens() / outer.extent;
    index_t begin = outer.extent, end = 0;
    for (index_t q = t.q_begin / row; q <= (t.q_end - 1) / row; ++q) {
      const index_t remainder = q % outer.dilation;
      const key_interval seen = outer.window_of(q / outer.dilation, outer.places(remainder));
      begin = min(begin, seen.begin * outer.dilation + remainder);
      end = max(end, (seen.end - 1) * outer.dilation + remainder + 1);
    }
    return key_ranges(max(begin * row, t.k_begin), min(end * row, t.k_end));
  }

  void check(const call_shape& shape) const {
    pattern_.check_length("q", shape.queries);
    pattern_.check_length("k", shape.keys);
  }

 private:
  // Bits of coordinates k, k + 1, …, `count` of them, on the last axis.
  HEED_INLINE std::uint64_t run_bits(index_t q, index_t k, int count) const {
    const axis inner = pattern_.along(N - 1);
    const index_t d = inner.dilation, remainder = q % d;
    const key_interval seen = inner.window_of(q / d, inner.places(remainder));
    std::uint64_t result = 0;
    for (index_t place = seen.begin; place < seen.end; ++place) {
      const index_t at = place * d + remainder - k;
      if (at >= 0 && at < count) result |= std::uint64_t{1} << at;
    }
    return result;
  }

  pattern<N> pattern_;
};

}  // namespace neighborhood
HEED_NAMESPACE_END
