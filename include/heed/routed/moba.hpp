// MoBA (Lu et al., "Mixture of Block Attention for Long-Context LLMs", 2025): every query routes to
// the blocks of keys whose mean is nearest,
//
//   gate(i, n) = q_i·mean(K_n)      for blocks in the past; the own block is always chosen
//   out_i      = causal attention over the topk highest blocks, the own one counted among them
//
//   moba(q, k, v, out, chunk, topk, heed::lse_to{lse}, …)
//
// q [B, Hq, L, D], k and v [B, Hkv, L, D]; every query head routes for itself.
#pragma once

#include "../mask/causal.hpp"
#include "../sparse/estimate.hpp"
#include "../sparse/select.hpp"
#include "dispatch.hpp"

HEED_NAMESPACE_BEGIN
namespace routed {

template <viewable Q, viewable K, executor E = const serial>
sparse::block_list moba_list(const Q& q, const K& k, index_t chunk, index_t topk, E&& runner = {}) {
  const sparse::top_k keep(topk);
  const call_shape call = sparse::lists::shape_of(q, k);
  sparse::table gates =
      sparse::product_scores(q, sparse::pooled_means(k, chunk, runner).view(), 1.0, runner);
  sparse::make_causal(gates.view(), {1, chunk, call.queries, call.keys}, true);
  const sparse::table& final_gates = gates;
  return sparse::select(final_gates.view(), keep, 1, chunk, runner);
}

template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void moba(const Q& q, const K& k, const V& v, Out&& out, index_t chunk, index_t topk,
          const Modifiers&... modifiers) {
  serial on_this_thread;
  const on<serial> here(on_this_thread);
  auto& runner = heed::detail::pick<heed::detail::picks_executor>(here, modifiers...).runner;
  routed::attention<Backend>(q, k, v, out, moba_list(q, k, chunk, topk, runner), causal{},
                             modifiers...);
}

}  // namespace routed
HEED_NAMESPACE_END
