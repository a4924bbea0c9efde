// RWKV-6: reads see the state before their token, and the token itself by a learned bonus.
//
//   out_t = (S_{t−1} + diag(u)·k_t·v_tᵀ)ᵀ·r_t,  S_t = diag(e^w_t)·S_{t−1} + k_t·v_tᵀ
//
// Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024.
// (With w constant over time it is RWKV-5.)
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// w [B, H, L, D]: natural logarithms of the decays, at most 0; u [H, D]. No scale. Otherwise as
// linear::attention.
template <class Backend = backend::native, viewable R, viewable K, viewable V, viewable Out,
          viewable W, viewable U, class... Modifiers>
void rwkv6(const R& r, const K& k, const V& v, Out&& out, const W& w, const U& u,
           const Modifiers&... modifiers) {
  attention<Backend>(r, k, v, out, channel_decay(w), bonus(u), modifiers..., scale{1});
}

}  // namespace linear
HEED_NAMESPACE_END
