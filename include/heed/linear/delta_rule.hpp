// Delta rules: a write replaces what the state holds for its key, instead of adding to it.
//
//   S̄_t = diag(e^g_t)·S_{t−1},  S_t = S̄_t + β_t·k_t·(v_t − S̄_tᵀk_t)ᵀ,  out_t = S_tᵀ·q_t / √D
//
//   delta_rule                 g = 0      Schlag, Irie, Schmidhuber, "Linear Transformers Are
//                                         Secretly Fast Weight Programmers", 2021; chunks: Yang et
//                                         al., "Parallelizing Linear Transformers with the Delta
//                                         Rule over Sequence Length", 2024
//   gated_delta_rule           g_t one number per token   Yang, Kautz, Hatamizadeh, "Gated Delta
//                                         Networks: Improving Mamba2 with Delta Rule", 2024
//   kimi_delta_attention       g_t per channel of the keys   "Kimi Linear: An Expressive, Efficient
//                                         Attention Architecture", 2025
//
// The state stays bounded where |k| ≤ 1 and 0 ≤ β ≤ 2: models normalise q and k, for which
// linear::l2_normalized{} is a modifier (with heed::scale{1/√D}, since a map sets the scale to 1).
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// beta [B, H, L] (or [B, H, L, 1]). Otherwise as linear::attention.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Beta, class... Modifiers>
void delta_rule(const Q& q, const K& k, const V& v, Out&& out, const Beta& beta,
                const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, delta(beta), modifiers...);
}

// gates [B, H, L] like beta: natural logarithms of the decays, at most 0.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Beta, viewable Gates, class... Modifiers>
void gated_delta_rule(const Q& q, const K& k, const V& v, Out&& out, const Beta& beta,
                      const Gates& gates, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, delta(beta), token_decay(gates), modifiers...);
}

// gates [B, H, L, D]: natural logarithms of the decays, at most 0.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Beta, viewable Gates, class... Modifiers>
void kimi_delta_attention(const Q& q, const K& k, const V& v, Out&& out, const Beta& beta,
                          const Gates& gates, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, delta(beta), channel_decay(gates), modifiers...);
}

}  // namespace linear
HEED_NAMESPACE_END
