// Neighborhood attention: every token of an N-dimensional grid attends to the tokens around it.
//
//   s_ij = scale·q[b, h, i]·k[b, h', j] + bias[h, j − i]
//   out[b, h, i, :] = Σ_j softmax_j(s_ij) v[b, h', j, :],   j in the neighborhood of i
//   (pattern.hpp)
//
//   q   [B, Hq, N, D]       N = product of the grid's extents, tokens row-major; Hkv divides Hq
//   k   [B, Hkv, N, D]      float, double, Eigen::half, Eigen::bfloat16, in any combination
//   v   [B, Hkv, N, Dv]
//   out [B, Hq, N, Dv]
//
//   neighborhood::attention<2>(q, k, v, out, {.grid = {56, 56}, .window = {7, 7}});
//   neighborhood::pattern<2> wide{.grid = {56, 56}, .window = {7, 7}, .dilation = {4, 4}};
//   neighborhood::attention<2>(q, k, v, out, wide, neighborhood::relative_bias{table});
//
// Work and memory are linear in N. The grid is cut into tiles of queries; the keys that a tile sees
// are gathered as one list, and all tiles together are the sequences of one attention call.
//
// Hassani et al., "Neighborhood Attention Transformer", CVPR 2023; Hassani and Shi, "Dilated
// Neighborhood Attention Transformer", 2022; Hassani, Hwu and Shi, "Faster Neighborhood Attention",
// NeurIPS 2024 (tiles with their halo); Hassani et al., "Generalized Neighborhood Attention", 2025.
#pragma once

#include "../dense/attention.hpp"
#include "detail/modifiers.hpp"
#include "detail/tile_plan.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {

// A learned bias per relative position: table [H|1, 2w₀ − 1, …, 2w − 1], any element type, in
// natural units. Entry w − 1 of an axis is the query's own place, entries behind it are keys with
// larger coordinates; distances count places, not coordinates, where the pattern is dilated.
template <element T, int Rank>
struct relative_bias {
  tensor_view<const T, Rank> table;

  explicit relative_bias(const tensor_view<const T, Rank>& entries) : table(entries) {}
};
template <class T, int Rank>
relative_bias(const tensor_view<T, Rank>&) -> relative_bias<std::remove_const_t<T>, Rank>;

namespace detail {

template <class M>
inline constexpr bool is_relative_bias = false;
template <class T, int Rank>
inline constexpr bool is_relative_bias<relative_bias<T, Rank>> = true;
template <class M>
struct picks_bias : std::bool_constant<is_relative_bias<M>> {};

template <int N, class T, int Rank>
void check_bias(const pattern<N>& which, index_t heads, const relative_bias<T, Rank>& bias) {
  static_assert(Rank == N + 1, "heed: the table of a relative_bias is [heads, one axis per axis]");
  if (bias.table.extent(0) != 1 && bias.table.extent(0) != heads) {
    raise(message("relative_bias: head axis has extent ")
          << bias.table.extent(0) << ", call has " << heads << " heads");
  }
  for (int a = 0; a < N; ++a) {
    const index_t window = which.window[static_cast<std::size_t>(a)];
    if (bias.table.extent(a + 1) != 2 * window - 1) {
      raise(message("relative_bias: axis ")
            << a + 1 << " has extent " << bias.table.extent(a + 1) << ", a window of " << window
            << " needs " << 2 * window - 1);
    }
  }
}

// What a modifier becomes in the call over lists, in a tuple of one or none.
template <class Plan, class M>
auto in_lists(const Plan& plan, const call_shape& shape, const M& modifier) {
  if constexpr (is_relative_bias<M>) {
    return std::make_tuple(plan.bias());
  } else if constexpr (mask_function<M> || is_lse_to<M> || std::is_same_v<M, scratch>) {
    return std::tuple<>();
  } else if constexpr (score_function<M>) {
    return std::tuple<score_of_tokens<M>>({modifier, plan.lists(), shape});
  } else {
    return std::tuple<const M&>(modifier);
  }
}
template <class M>
auto masks_among(const M& modifier) {
  if constexpr (mask_function<M>) {
    return std::tuple<const M&>(modifier);
  } else {
    return std::tuple<>();
  }
}
template <class... Masks>
auto mask_in_lists(const tile_mask& tiles, const tile_lists& lists, const call_shape& shape,
                   const std::tuple<const Masks&...>& own) {
  if constexpr (sizeof...(Masks) == 0) {
    return tiles;
  } else {
    return tile_masks<Masks...>{tiles, lists, shape, own};
  }
}

}  // namespace detail

// Modifiers, in any order: relative_bias, masks (and-ed) and scores (applied in the order written),
// whose positions are tokens of the grid, sink, scale, lse_to, on, scratch, count_tiles. Masks and
// scores of the caller are asked key by key. Raises invalid_argument before anything is written
// when the pattern, operands or modifiers do not fit. Results are bit-identical on any executor.
template <int N, class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void attention(const Q& queries, const K& keys, const V& values, Out&& result,
               const pattern<N>& which, const Modifiers&... modifiers) {
  using namespace detail;
  static_assert((... && (mask_function<Modifiers> || score_function<Modifiers> ||
                         is_relative_bias<Modifiers> || window_option<Modifiers>)),
                "heed::neighborhood::attention: a modifier is neither a mask, a score, a "
                "relative_bias nor an option such as heed::scale; lengths and ragged batches do "
                "not apply, every sequence is the whole grid");
  const auto q = read_view_of(queries).template lifted<4>();
  const auto k = read_view_of(keys).template lifted<4>();
  const auto v = read_view_of(values).template lifted<4>();
  const auto out = output_view_of(result).template lifted<4>();
  using query_type = typename decltype(q)::value_type;
  using key_type = typename decltype(k)::value_type;
  using value_type = typename decltype(v)::value_type;
  using out_type = typename decltype(out)::value_type;
  using Real = accumulator<query_type, key_type, value_type, out_type>;
  using Tiles = typename Backend::template tiles<Real, query_type, out_type, key_type, value_type>;

  which.check();
  check_tokens(which, q.extent(0), q, k, v, out);
  const index_t batches = q.extent(0), heads = q.extent(1), tokens = which.tokens();
  const auto bias = first_of<picks_bias>(modifiers...);
  index_t bias_heads = 0;
  if constexpr (!std::is_null_pointer_v<decltype(bias)>) {
    check_bias(which, heads, *bias);
    bias_heads = bias->table.extent(0);
  }
  check_lse<Real>({batches, heads, tokens}, modifiers...);
  if (batches * heads == 0) return;

  thread_workspace memory_of_thread;
  workspace& memory = workspace_of(memory_of_thread, modifiers...);
  const tile_plan<N, Real> plan(which, batches, Tiles::strip_rows, bias_heads, memory);
  if constexpr (!std::is_null_pointer_v<std::remove_const_t<decltype(bias)>>) {
    plan.lay_bias([&](index_t head, const coordinates<N>& distance) {
      index_t at = head * bias->table.stride(0);
      for (int a = 0; a < N; ++a) {
        at += distance[static_cast<std::size_t>(a)] * bias->table.stride(a + 1);
      }
      return widen<Real>(bias->table.data()[at]);
    });
  }
  const tile_lists& lists = plan.lists();
  const call_shape shape{batches, heads, tokens, tokens};
  const auto mask =
      mask_in_lists(plan.mask(), lists, shape, std::tuple_cat(masks_among(modifiers)...));
  attend_lists<Real>(
      lists, heads, memory.inner().inner(),
      [&](const auto&... options) {
        std::apply(
            [&](const auto&... kept) {
              heed::attention<Backend>(lists.queries(q), lists.keys(k), lists.keys(v),
                                       lists.queries(out), mask, kept...,
                                       key_lengths(lists.key_lengths()),
                                       query_lengths(lists.query_lengths()), options...);
            },
            std::tuple_cat(in_lists(plan, shape, modifiers)...));
      },
      modifiers...);
}

}  // namespace neighborhood
HEED_NAMESPACE_END
