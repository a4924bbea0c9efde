// Lightning attention: causal linear attention without scale or normaliser, fading by a slope per
// head.
//
//   S_t = e^(−slope_h)·S_{t−1} + k_t·v_tᵀ,  out_t = S_tᵀ·q_t
//
// Qin et al., "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large
// Language Models", 2024; "Various Lengths, Constant Speed", 2024. MiniMax-01 applies SiLU to q, k
// and v before, and a norm and a gate behind.
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// log decay −slope
template <class T>
struct slope_decay {
  static constexpr decay_kind kind = decay_kind::token;
  tensor_view<const T, 1> slopes;

  void check(const char*, const detail::gate_shape& shape, const engine::batch_layout&) const {
    detail::check_data("slopes", slopes);
    detail::require_divides("slopes", slopes.extent(0), "the state's", shape.heads);
    for (index_t h = 0; h < slopes.extent(0); ++h) {
      if (widen<double>(slopes(h)) < 0) {
        raise(message("slopes: slope ")
              << widen<double>(slopes(h)) << " of head " << h << " is below 0");
      }
    }
  }
  template <class Backend, class Real>
  void load(const detail::token_run& at, index_t, Real* to, index_t) const {
    const Real slope = widen<Real>(slopes(at.head / (at.heads / slopes.extent(0))));
    for (index_t t = 0; t < at.count; ++t) to[t] = -slope;
  }
};

// slopes [H], at least 0. Shapes, element types, further modifiers and errors are otherwise those
// of linear::attention.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Slopes, class... Modifiers>
void lightning(const Q& q, const K& k, const V& v, Out&& out, const Slopes& slopes,
               const Modifiers&... modifiers) {
  using T = typename read_view<Slopes>::value_type;
  attention<Backend>(q, k, v, out, modifiers..., slope_decay<T>{read_view_of(slopes)}, scale{1});
}

}  // namespace linear
HEED_NAMESPACE_END
