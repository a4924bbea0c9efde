// Blocked local attention with a halo (HaloNet): the image is cut into blocks of queries, and each
// block attends to itself and the halo around it,
//
//   s_ij = scale·q_i·k_j + q_i·height_rel[y_j − y_i] + q_i·width_rel[x_j − x_i]
//   out_i = Σ_j softmax_j(s_ij) v_j,   j in the block of i grown by `halo` on every side
//
// Keys beyond the border are zero and take part in the softmax, as published. Relative logits are
// not scaled; their tables [2·(block + 2·halo) − 1, D] are indexed by the place of the key in its
// window minus that of the query in its block. A block of 1×1 is stand-alone self-attention.
//
//   k [B, Hkv, H·W, D], v [B, Hkv, H·W, Dv]; q [B, Hq, H·W / s², D] and out [B, Hq, H·W / s², Dv],
//   where s = query_stride: queries of every s-th row and column, attention that downsamples
//
// Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", CVPR
// 2021; Ramachandran et al., "Stand-Alone Self-Attention in Vision Models", NeurIPS 2019.
#pragma once

#include <cstring>

#include "../dense/attention.hpp"
#include "detail/halo_plan.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

// logits[row, a window's rows and then its columns] = q·height_rel, q·width_rel. The tables come
// transposed, [depth, entries]: sums then run along the window.
template <class Real, class Q>
void relative_logits(const halo_blocks& which, const tile_lists& lists, const Q& q,
                     const Real* height_rel, const Real* width_rel, Real* to) {
  const coordinates<2> window = which.window();
  const auto rows = lists.queries(q);
  const index_t columns = which.queries()[1];
  for (index_t s = 0; s < rows.extent(0); ++s) {
    for (index_t h = 0; h < rows.extent(1); ++h) {
      for (index_t i = 0; i < rows.extent(2); ++i) {
        const auto* row = rows.row(s, h, i);
        for (std::size_t a = 0; a < 2; ++a) {
          const index_t n = window[a], place = a == 0 ? i / columns : i % columns;
          const Real* entries = (a == 0 ? height_rel : width_rel) + n - 1 - place;
          for (index_t k = 0; k < n; ++k) to[k] = 0;
          for (index_t d = 0; d < rows.extent(3); ++d, entries += 2 * n - 1) {
            const Real x = widen<Real>(row[d]);
            for (index_t k = 0; k < n; ++k) to[k] += x * entries[k];
          }
          to += n;
        }
      }
    }
  }
}

template <class Real, class R>
void transpose_table(const tensor_view<R, 2>& table, Real* to) {
  for (index_t d = 0; d < table.extent(1); ++d) {
    for (index_t i = 0; i < table.extent(0); ++i) *to++ = widen<Real>(table(i, d));
  }
}

}  // namespace detail

// Modifiers: sink, scale, lse_to, on, scratch, count_tiles. Raises invalid_argument before anything
// is written when the blocks, operands, tables or modifiers do not fit.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class R, class... Modifiers>
void halo(const Q& queries, const K& keys, const V& values, Out&& result, const halo_blocks& which,
          const tensor_view<R, 2>& height_rel, const tensor_view<R, 2>& width_rel,
          const Modifiers&... modifiers) {
  using namespace detail;
  static_assert((... && window_option<Modifiers>),
                "heed::neighborhood::halo: blocks take options of the call (scale, sink, lse_to, "
                "on, scratch, count_tiles), no masks, scores or lengths");
  const auto q = read_view_of(queries).template lifted<4>();
  const auto k = read_view_of(keys).template lifted<4>();
  const auto v = read_view_of(values).template lifted<4>();
  const auto out = output_view_of(result).template lifted<4>();
  using key_type = typename decltype(k)::value_type;
  using value_type = typename decltype(v)::value_type;
  using Real = accumulator<typename decltype(q)::value_type, key_type, value_type,
                           typename decltype(out)::value_type>;
  const index_t batches = q.extent(0), heads = q.extent(1), depth = q.extent(3);
  which.check();
  check_halo(which, q, k, v, out);
  check_table("height_rel", height_rel.extents(), 2 * which.window()[0] - 1, depth);
  check_table("width_rel", width_rel.extents(), 2 * which.window()[1] - 1, depth);
  check_lse<Real>({batches, heads, q.extent(2)}, modifiers...);
  if (batches * heads == 0) return;

  thread_workspace memory_of_thread;
  workspace& memory = workspace_of(memory_of_thread, modifiers...);
  const halo_plan<Real> plan(which, batches, memory);
  const tile_lists& lists = plan.lists();
  Real *logits = nullptr, *height = nullptr, *width = nullptr;
  key_type* zero_key = nullptr;
  value_type* zero_value = nullptr;
  const auto lay_out = [&](heed::detail::bump& from) {
    logits = from.take<Real>(lists.sequences() * heads * lists.most_queries * plan.logits());
    height = from.take<Real>(height_rel.size());
    width = from.take<Real>(width_rel.size());
    zero_key = from.take<key_type>(depth);
    zero_value = from.take<value_type>(v.extent(3));
  };
  heed::detail::bump counted;
  lay_out(counted);
  heed::detail::bump taken(memory.inner().reserve(counted.bytes()));
  lay_out(taken);
  transpose_table(height_rel, height);
  transpose_table(width_rel, width);
  relative_logits(which, lists, q, height, width, logits);
  std::memset(static_cast<void*>(zero_key), 0, static_cast<std::size_t>(depth) * sizeof(key_type));
  std::memset(static_cast<void*>(zero_value), 0,
              static_cast<std::size_t>(v.extent(3)) * sizeof(value_type));
  // Keys beyond the border: the same zero row for all of them.
  const auto beyond = [&](const auto* zero, const auto& like) {
    using T = std::remove_reference_t<decltype(*zero)>;
    return tensor_view<T, 4>(
        zero, {lists.sequences(), like.extent(1), plan.most_beyond(), like.extent(3)},
        {0, 0, 0, 1});
  };
  const sources all(source(lists.keys(k), lists.keys(v), key_lengths(lists.key_lengths()),
                           plan.score(logits, heads, false)),
                    source(beyond(zero_key, k), beyond(zero_value, v),
                           key_lengths(plan.beyond_lengths()), plan.score(logits, heads, true)));
  attend_lists<Real>(
      lists, heads, memory.inner().inner(),
      [&](const auto&... options) {
        std::apply(
            [&](const auto&... kept) {
              heed::attention<Backend>(lists.queries(q), all, lists.queries(out), kept...,
                                       options...);
            },
            std::tuple_cat(options_of_call(modifiers)...));
      },
      modifiers...);
}

}  // namespace neighborhood
HEED_NAMESPACE_END
