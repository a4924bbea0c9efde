// Retention: linear attention whose state fades by a constant factor per head.
//
//   S_t = γ_h·S_{t−1} + k_t·v_tᵀ,  out_t = S_tᵀ·q_t / √D,   γ_h = 1 − 2^(−5 − h)
//
// Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei, "Retentive Network: A Successor to Transformer for
// Large Language Models", 2023. Rotary positions, group norm and gate are the layer's.
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// log γ_h of the paper, h the head of the state.
struct retention_decay {
  static constexpr decay_kind kind = decay_kind::token;
  void check(const char*, const detail::gate_shape&, const engine::batch_layout&) const {}
  template <class Backend, class Real>
  void load(const detail::token_run& at, index_t, Real* to, index_t) const {
    const double log = std::log1p(-std::exp2(-5.0 - static_cast<double>(at.head)));
    for (index_t t = 0; t < at.count; ++t) to[t] = static_cast<Real>(log);
  }
};

// Shapes, element types, further modifiers and errors are those of linear::attention; another decay
// (head_decay of log γ) takes the place of the paper's.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void retention(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, modifiers..., retention_decay{});
}

}  // namespace linear
HEED_NAMESPACE_END
