// Gated linear attention: what the state keeps is decided per token.
//
//   gla          S_t = diag(e^g_t)·S_{t−1} + k_t·v_tᵀ    g_t per channel of the keys
//   simple_gla   S_t = e^g_t·S_{t−1} + k_t·v_tᵀ          g_t one number
//   out_t = S_tᵀ·q_t / √D
//
// Yang, Wang, Shen, Panda, Kim, "Gated Linear Attention Transformers with Hardware-Efficient
// Training", 2024; the scalar gate as in Mamba-2 and "mLSTM"-like layers (flash-linear-attention's
// simple GLA).
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// gates [B, H, L, D]: natural logarithms of the decays, at most 0. Otherwise as linear::attention.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Gates, class... Modifiers>
void gla(const Q& q, const K& k, const V& v, Out&& out, const Gates& gates,
         const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, channel_decay(gates), modifiers...);
}

// gates [B, H, L] (or [B, H, L, 1]): natural logarithms of the decays, at most 0.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Gates, class... Modifiers>
void simple_gla(const Q& q, const K& k, const V& v, Out&& out, const Gates& gates,
                const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, token_decay(gates), modifiers...);
}

}  // namespace linear
HEED_NAMESPACE_END
