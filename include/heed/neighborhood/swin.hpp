// Window attention of the Swin Transformer, plain and shifted: the grid, rolled by −shift, is cut
// into windows that attend to themselves,
//
//   s_ij = scale·q[b, h, i]·k[b, h', j] + table[i − j, h] + m(i, j)
//   out[b, h, i, :] = Σ_j softmax_j(s_ij) v[b, h', j, :],   j in the window of i
//   m = mask_value (−100, as published) where the roll made i and j neighbours, else 0
//
//   q [B, Hq, N, D], k [B, Hkv, N, D], v [B, Hkv, N, Dv], out [B, Hq, N, Dv], tokens row-major in
//   their unrolled places; table [Π(2w − 1), Hq], as Swin stores it: entry of query − key, each
//   axis counted from −(w − 1)
//
//   neighborhood::windows<2> which{.grid = {56, 56}, .window = {7, 7}, .shift = {3, 3}};
//   neighborhood::swin<2>(q, k, v, out, which, table);
//
// Nothing is rolled, padded or copied: windows are lists of rows. Three axes are Video Swin's.
//
// Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
#pragma once

#include "../dense/attention.hpp"
#include "detail/window_plan.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

// Attention within windows. before(lists, memory) gives the score that comes before the bias.
template <int N, class Backend, class Q, class K, class V, class Out, class Table, class Before,
          class... Modifiers>
void attend_windows(const Q& q, const K& k, const V& v, const Out& out, const windows<N>& which,
                    const Table& table, const Before& before, const Modifiers&... modifiers) {
  using Real = accumulator<typename Q::value_type, typename K::value_type, typename V::value_type,
                           typename Out::value_type>;
  static_assert((... && window_option<Modifiers>),
                "heed::neighborhood: windows take options of the call (scale, sink, lse_to, on, "
                "scratch, count_tiles), no masks, scores or lengths");
  const index_t batches = q.extent(0), heads = q.extent(1);
  check_tokens(which.blocks(), batches, q, k, v, out);
  check_lse<Real>({batches, heads, q.extent(2)}, modifiers...);
  if (batches * heads == 0) return;
  thread_workspace memory_of_thread;
  workspace& memory = workspace_of(memory_of_thread, modifiers...);
  const window_plan<N, Real> plan(which, batches, heads, table, memory);
  const tile_lists& lists = plan.lists();
  const auto first = before(lists, memory.inner());
  attend_lists<Real>(
      lists, heads, memory.inner().inner(),
      [&](const auto&... options) {
        std::apply(
            [&](const auto&... kept) {
              heed::attention<Backend>(lists.queries(q), lists.keys(k), lists.keys(v),
                                       lists.queries(out), kept..., options...);
            },
            std::tuple_cat(first, std::make_tuple(plan.bias()), options_of_call(modifiers)...));
      },
      modifiers...);
}

}  // namespace detail

// Modifiers: sink, scale, lse_to, on, scratch, count_tiles. Raises invalid_argument before anything
// is written when the windows, operands, table or modifiers do not fit.
template <int N, class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class T, class... Modifiers>
void swin(const Q& q, const K& k, const V& v, Out&& out, const windows<N>& which,
          const tensor_view<T, 2>& table, const Modifiers&... modifiers) {
  which.check();
  const auto queries = read_view_of(q).template lifted<4>();
  index_t entries = 1;
  for (index_t w : which.window) entries *= 2 * w - 1;
  if (table.extent(0) != entries || table.extent(1) != queries.extent(1)) {
    raise(message("swin: table is [")
          << table.extent(0) << ", " << table.extent(1) << "], must be [" << entries << ", "
          << queries.extent(1) << "]");
  }
  detail::attend_windows<N, Backend>(
      queries, read_view_of(k).template lifted<4>(), read_view_of(v).template lifted<4>(),
      output_view_of(out).template lifted<4>(), which,
      [&](index_t entry, index_t head) { return widen<accumulator<T>>(table(entry, head)); },
      [](const detail::tile_lists&, workspace&) { return std::tuple<>(); }, modifiers...);
}

}  // namespace neighborhood
HEED_NAMESPACE_END
