// Luong's multiplicative scores:
//
//   dot      score_ij = q_i · k_j            attention(q, k, v, out, scale{1})
//   general  score_ij = q_i · W_h k_j        luong_attention(q, w, k, v, out)
//   concat   score_ij = w · tanh(W [q; k])   additive_attention on the two projections of q and k
//
//   q [B, Hq, Lq, Dq], W [Hq|1, Dq, Dk] or [Dq, Dk], k [B, Hkv, Lk, Dk], v and out as in attention
//
// W meets the queries, once for each: q·W is kept for the call, in the type of the sums. Masks,
// lengths and options are those of heed::attention; scores are not scaled unless the call has a
// heed::scale. The paper's local attention is a window mask around each query's predicted place.
//
// Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation",
// EMNLP 2015.
#pragma once

#include "../dense/attention.hpp"

HEED_NAMESPACE_BEGIN

template <class Backend = backend::native, viewable Q, viewable W, readable K, readable V,
          viewable Out, class... Modifiers>
void luong_attention(const Q& q, const W& w, const K& k, const V& v, Out&& out,
                     const Modifiers&... modifiers) {
  const auto queries = view_of(q).template lifted<4>();
  const auto weights = view_of(w).template lifted<3>();
  const auto keys = read_view_of(k).template lifted<4>();
  using Real =
      accumulator<typename decltype(queries)::value_type, typename decltype(weights)::value_type,
                  typename decltype(keys)::value_type, typename read_view<V>::value_type,
                  typename decltype(output_view_of(out))::value_type>;
  const index_t heads = queries.extent(1), depth = queries.extent(3), width = keys.extent(3);
  detail::check_operand(detail::erase("q", queries));
  detail::check_operand(detail::erase("w", weights));
  if (weights.extent(0) != 1) {
    detail::require_equal("w", "head count", weights.extent(0), "q", heads);
  }
  detail::require_equal("w", "depth of queries", weights.extent(1), "q", depth);
  detail::require_equal("w", "depth of keys", weights.extent(2), "k", width);

  const scratch* named = detail::find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  workspace& memory = named != nullptr ? named->memory : memory_of_thread.get();
  const std::array<index_t, 4> shape{queries.extent(0), heads, queries.extent(2), width};
  const index_t count = shape[0] * heads * shape[2] * width;
  detail::bump counted;
  counted.take<Real>(count);
  detail::bump taken(memory.reserve(counted.bytes()));
  const tensor_view<Real, 4> projected(taken.take<Real>(count), shape);
  for (index_t b = 0; b < shape[0]; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      for (index_t i = 0; i < shape[2]; ++i) {
        const auto* from = queries.row(b, h, i);
        Real* to = projected.row(b, h, i);
        for (index_t d = 0; d < width; ++d) to[d] = 0;
        for (index_t p = 0; p < depth; ++p) {
          const Real factor = widen<Real>(from[p]);
          const auto* row = weights.row(weights.extent(0) == 1 ? 0 : h, p);
          for (index_t d = 0; d < width; ++d) to[d] += factor * widen<Real>(row[d]);
        }
      }
    }
  }
  const scratch inner(memory.inner());
  // The caller's scale, if any, comes first and counts.
  attention<Backend>(tensor_view<const Real, 4>(projected), k, v, out, inner, modifiers...,
                     scale{1});
}

HEED_NAMESPACE_END
