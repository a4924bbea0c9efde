// Which tokens of an N-dimensional grid a token attends to: the index function of neighborhood
// attention, axis by axis.
//
// Tokens lie row-major on the grid. Along one axis of extent L, with window w, stride s, dilation
// d, coordinates with the same remainder mod d are a group of n = ⌈(L − remainder) / d⌉ places.
// Place i belongs to the stride group of leader l, and sees w neighbouring places:
//
//   not causal   l = min(⌊i/s⌋·s + ⌊s/2⌋, n − 1),   [l − ⌊w/2⌋, l − ⌊w/2⌋ + w) shifted into [0, n)
//   causal       l = min(⌊i/s⌋·s + s − 1, n − 1),   [max(l − w + 1, 0), i + 1)
//
// A token sees a key when it does so along every axis. With s = 1 this is a sliding window that is
// shifted, not cut, at the borders; with s = w blocks that attend to themselves.
//
// Hassani et al., "Neighborhood Attention Transformer", CVPR 2023; Hassani and Shi, "Dilated
// Neighborhood Attention Transformer", 2022; Hassani et al., "Generalized Neighborhood Attention",
// 2025 (stride), whose masks these are bit by bit.
#pragma once

#include <array>

#include "../core/error.hpp"
#include "../core/position.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {

template <int N>
using coordinates = std::array<index_t, static_cast<std::size_t>(N)>;

// One axis of the grid.
struct axis {
  index_t extent = 0;
  index_t window = 1;
  index_t stride = 1;
  index_t dilation = 1;
  bool causal = false;

  // Places of the dilation group that begins at coordinate `remainder`.
  HEED_INLINE index_t places(index_t remainder) const {
    return (extent - remainder + dilation - 1) / dilation;
  }
  // Places [begin, end) of its group of n that place i sees.
  HEED_INLINE key_interval window_of(index_t i, index_t n) const {
    const index_t leader = min(i / stride * stride + (causal ? stride - 1 : stride / 2), n - 1);
    if (causal) return {max(leader - window + 1, index_t{0}), i + 1};
    const index_t begin = min(max(leader - window / 2, index_t{0}), n - window);
    return {begin, begin + window};
  }
  // Whether the coordinate q sees the coordinate k.
  HEED_INLINE bool sees(index_t q, index_t k) const {
    const index_t remainder = q % dilation;
    if (k % dilation != remainder) return false;
    const key_interval seen = window_of(q / dilation, places(remainder));
    const index_t place = k / dilation;
    return seen.begin <= place && place < seen.end;
  }
};

// A grid and the window along each of its axes, first axis outermost.
//
//   neighborhood::pattern<2>{.grid = {56, 56}, .window = {7, 7}}
//   neighborhood::pattern<3>{.grid = {8, 16, 16}, .window = {4, 5, 5}, .causal = {true}}
template <int N>
struct pattern {
  static_assert(N >= 1, "heed: a neighborhood has at least one axis");

  coordinates<N> grid{};
  coordinates<N> window{};
  coordinates<N> stride = ones();
  coordinates<N> dilation = ones();
  std::array<bool, static_cast<std::size_t>(N)> causal{};

  constexpr axis along(int a) const {
    const auto i = static_cast<std::size_t>(a);
    return {grid[i], window[i], stride[i], dilation[i], causal[i]};
  }
  constexpr index_t tokens() const {
    index_t product = 1;
    for (index_t extent : grid) product *= extent;
    return product;
  }
  // Row-major number of a token, and back.
  HEED_INLINE index_t token(const coordinates<N>& at) const {
    index_t number = 0;
    for (std::size_t a = 0; a < at.size(); ++a) number = number * grid[a] + at[a];
    return number;
  }
  HEED_INLINE coordinates<N> at(index_t token) const {
    coordinates<N> result;
    for (std::size_t a = result.size(); a-- > 0; token /= grid[a]) result[a] = token % grid[a];
    return result;
  }

  // Raises where the numbers do not make a neighborhood.
  HEED_NOINLINE void check() const {
    index_t product = 1;
    for (std::size_t i = 0; i < grid.size(); ++i) {
      const auto refuse = [&](const char* what, index_t value, const char* why, index_t bound) {
        raise(message("neighborhood: ")
              << what << " " << value << " of axis " << i << why << bound);
      };
      if (grid[i] < 1) refuse("grid extent", grid[i], " is less than ", 1);
      if (window[i] < 1) refuse("window", window[i], " is less than ", 1);
      if (stride[i] < 1) refuse("stride", stride[i], " is less than ", 1);
      if (dilation[i] < 1) refuse("dilation", dilation[i], " is less than ", 1);
      if (window[i] > grid[i]) refuse("window", window[i], " is over the grid extent ", grid[i]);
      if (stride[i] > window[i]) refuse("stride", stride[i], " is over the window ", window[i]);
      if (dilation[i] > grid[i] / window[i]) {
        raise(message("neighborhood: window ")
              << window[i] << " of axis " << i << " with dilation " << dilation[i]
              << " is over the grid extent " << grid[i]);
      }
      if (__builtin_mul_overflow(product, grid[i], &product) || product > index_t{0x7fffff00}) {
        raise("neighborhood: grid has more than 2147483392 tokens");
      }
    }
  }
  // Raises unless the grid has as many tokens as an operand is long.
  HEED_NOINLINE void check_length(const char* operand, index_t length) const {
    if (tokens() == length) return;
    raise(message(operand) << ": length " << length << " differs from the grid's " << tokens()
                           << " tokens");
  }

 private:
  static constexpr coordinates<N> ones() {
    coordinates<N> result{};
    for (index_t& x : result) x = 1;
    return result;
  }
};

}  // namespace neighborhood
HEED_NAMESPACE_END
