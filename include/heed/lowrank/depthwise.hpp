// Depthwise convolution of the values, the local branch beside a low-rank attention:
//
//   out[t] += bias + Σ_{r, c} w[r, c]·v[t + (r − R/2, c − C/2)]      element by element of the
//   depth
//
//   v, out [B, H, L, D], tokens on a grid; w [H, D|1, R, C], R and C odd; bias [H, D|1]
//
// Tokens beyond the grid, or behind a sequence, count as zeros. On a sequence with w [H, R]: Xiong
// et al., "Nyströmformer", AAAI 2021. On a grid of 3 × 3 and a filter per channel: Han et al.,
// "Agent Attention", ECCV 2024.
#pragma once

#include <algorithm>

#include "mean_pool.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {

// The filters, as a modifier of a method. Query heads have filters of their own; query head h reads
// value head h / (Hq / Hkv).
template <element T>
class depthwise {
 public:
  // One filter along the sequence for each head: weights [H, R].
  explicit depthwise(const tensor_view<const T, 2>& weights)
      : weights_(weights.data(), {weights.extent(0), 1, weights.extent(1), 1},
                 {weights.stride(0), 0, 1, 1}) {}
  // Filters on a grid: weights [H, D|1, R, C]. Without a grid the tokens are a sequence, and C
  // is 1.
  explicit depthwise(const tensor_view<const T, 4>& weights, grid on = {})
      : weights_(weights), grid_(on) {}
  depthwise(const tensor_view<const T, 4>& weights, grid on, const tensor_view<const T, 2>& bias)
      : weights_(weights), grid_(on), bias_(bias), biased_(true) {}

  const tensor_view<const T, 4>& weights() const { return weights_; }
  grid grid_of(index_t length) const { return grid_.size() > 0 ? grid_ : grid{length}; }
  index_t taps() const { return weights_.extent(2) * weights_.extent(3); }
  T weight(index_t head, index_t d, index_t tap) const {
    const index_t channel = weights_.extent(1) == 1 ? 0 : d;
    return weights_(head, channel, tap / weights_.extent(3), tap % weights_.extent(3));
  }
  bool biased() const { return biased_; }
  T bias(index_t head, index_t d) const { return bias_(head, bias_.extent(1) == 1 ? 0 : d); }

  // Raises where the filters do not fit values of this shape for `heads` query heads.
  void check(index_t heads, index_t queries, index_t length, index_t depth) const {
    heed::detail::check_operand(heed::detail::erase("depthwise weights", weights_));
    heed::detail::check_operand(heed::detail::erase("depthwise bias", bias_));
    check_channels("depthwise weights", weights_.extent(0), weights_.extent(1), heads, depth);
    if (biased_) check_channels("depthwise bias", bias_.extent(0), bias_.extent(1), heads, depth);
    for (int axis = 2; axis < 4; ++axis) {
      if (weights_.extent(axis) % 2 == 0) {
        raise(message("depthwise weights: extent ") << weights_.extent(axis) << " of axis " << axis
                                                    << " is even, only odd filters have a middle");
      }
    }
    heed::detail::require_equal("depthwise: q", "length", queries, "v", length);
    detail::check_filled("depthwise: v", length, grid_of(length));
  }

 private:
  static void check_channels(const char* name, index_t own_heads, index_t channels, index_t heads,
                             index_t depth) {
    heed::detail::require_equal(name, "head count", own_heads, "q", heads);
    if (channels != 1 && channels != depth) {
      raise(message(name) << ": channel count " << channels << " is neither 1 nor v's depth "
                          << depth);
    }
  }

  tensor_view<const T, 4> weights_;
  grid grid_;
  tensor_view<const T, 2> bias_;
  bool biased_ = false;
};
template <class T, int Rank, class... More>
depthwise(const tensor_view<T, Rank>&, const More&...) -> depthwise<std::remove_const_t<T>>;

namespace detail {

// No convolution.
struct no_depthwise {
  void check(index_t, index_t, index_t, index_t) const {}
};

template <class M>
inline constexpr bool is_depthwise = false;
template <class T>
inline constexpr bool is_depthwise<depthwise<T>> = true;
template <class M>
struct picks_depthwise : std::bool_constant<is_depthwise<M>> {};

// out = from + convolution(v); from is out itself or Real sums of the same shape. Rows behind
// `queries` stay as they are, values behind `keys` are not read (both per batch entry, or null).
// `taps` has H·(R·C + 1)·D numbers.
template <class Real, class W, class From, class V, class Out, class Executor>
void add_convolution(const depthwise<W>& filter, const tensor_view<From, 4>& from,
                     const tensor_view<V, 4>& v, const tensor_view<Out, 4>& out,
                     const index_t* queries, const index_t* keys, Real* taps, Executor& executor) {
  constexpr index_t piece = 16;     // tokens of an item
  constexpr index_t columns = 256;  // that are summed at a time, on the stack
  const index_t heads = out.extent(1), length = out.extent(2), depth = out.extent(3);
  const index_t group = v.extent(1) > 0 ? heads / v.extent(1) : 1;
  const index_t rows = filter.weights().extent(2), width = filter.weights().extent(3);
  const index_t count = filter.taps();
  for (index_t h = 0; h < heads; ++h) {
    for (index_t tap = 0; tap <= count; ++tap) {  // the last one is the bias
      for (index_t d = 0; d < depth; ++d) {
        taps[(h * (count + 1) + tap) * depth + d] =
            tap < count       ? widen<Real>(filter.weight(h, d, tap))
            : filter.biased() ? widen<Real>(filter.bias(h, d))
                              : Real(0);
      }
    }
  }
  const grid on = filter.grid_of(length);
  const auto token = [&](index_t batch, index_t head, index_t at, index_t limit) {
    const Real* of_head = taps + head * (count + 1) * depth;
    for (index_t first = 0; first < depth; first += columns) {
      const index_t channels = std::min(columns, depth - first);
      Real sum[columns];
      const From* start = from.row(batch, head, at) + first;
      const Real* bias = of_head + count * depth + first;
      for (index_t d = 0; d < channels; ++d) sum[d] = widen<Real>(start[d]) + bias[d];
      for (index_t r = 0; r < rows; ++r) {
        const index_t row = at / on.columns + r - rows / 2;
        if (row < 0 || row >= on.rows) continue;
        for (index_t c = 0; c < width; ++c) {
          const index_t column = at % on.columns + c - width / 2;
          const index_t other = row * on.columns + column;
          if (column < 0 || column >= on.columns || other >= limit) continue;
          const V* value = v.row(batch, head / group, other) + first;
          const Real* weight = of_head + (r * width + c) * depth + first;
          for (index_t d = 0; d < channels; ++d) sum[d] += weight[d] * widen<Real>(value[d]);
        }
      }
      Out* to = out.row(batch, head, at) + first;
      for (index_t d = 0; d < channels; ++d) to[d] = narrow<Out>(sum[d]);
    }
  };
  const index_t pieces = (length + piece - 1) / piece;
  executor.run(out.extent(0) * heads * pieces, [&](index_t item, int) {
    const index_t head = item / pieces % heads, batch = item / pieces / heads;
    const index_t begin = item % pieces * piece;
    const index_t last = queries != nullptr ? queries[batch] : length;
    for (index_t at = begin; at < std::min(begin + piece, length); ++at) {
      if (at >= last) {
        // Attention wrote zeros there, perhaps into `from`.
        for (index_t d = 0; d < depth; ++d) out(batch, head, at, d) = narrow<Out>(Real(0));
      } else {
        token(batch, head, at, keys != nullptr ? keys[batch] : length);
      }
    }
  });
}

// Runs attend(view, scratch) into out, or, where out cannot hold Real sums, into scratch memory,
// and adds the convolution of v.
template <class Real, class Filter, class V, class Out, class Attend, class... Modifiers>
void plus_convolution(const Filter& filter, const tensor_view<V, 4>& v,
                      const tensor_view<Out, 4>& out, const index_t* queries, const index_t* keys,
                      const scratch& own, const Attend& attend, const Modifiers&... modifiers) {
  if constexpr (std::is_same_v<Filter, no_depthwise>) {
    attend(out, own);
  } else {
    constexpr bool in_place = std::is_same_v<Out, Real>;
    composed::call_memory memory(own);
    Real* taps = nullptr;
    tensor_view<Real, 4> sums;
    memory.carve([&](heed::detail::bump& take) {
      taps = take.template take<Real>(out.extent(1) * (filter.taps() + 1) * out.extent(3));
      sums = take_view<Real>(take, in_place ? 0 : out.extent(0), out.extent(1), out.extent(2),
                             out.extent(3));
    });
    if constexpr (in_place) sums = out;
    attend(sums, memory.inner());
    composed::with_executor(
        [&](auto& executor) {
          add_convolution(filter, sums, v, out, queries, keys, taps, executor);
        },
        modifiers...);
  }
}

// What the methods of chained attentions take beside their own options.
template <class M>
inline constexpr bool is_chain_option =
    is_depthwise<M> || is_option_of_both<M>::value || std::is_same_v<M, scratch>;

}  // namespace detail
}  // namespace lowrank
HEED_NAMESPACE_END
