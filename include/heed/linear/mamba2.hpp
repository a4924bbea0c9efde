// Mamba-2's state-space duality: a scalar decay per token, A_h·Δ_t, and inputs times Δ_t.
//
//   S_t = e^(Δ_t·A_h)·S_{t−1} + Δ_t·B_t·x_tᵀ,  y_t = S_tᵀ·C_t (+ D_h·x_t)
//
// Dao, Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
// State Space Duality", 2024. In the words of attention: C is the query, B the key, x the value; B
// and C may be shared by groups of heads.
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// Log decay Δ_t·A_h.
template <class Step, class Rate>
struct step_decay {
  static constexpr decay_kind kind = decay_kind::token;
  detail::token_values<Step> steps;  // Δ [B, H, L, 1], at least 0
  tensor_view<const Rate, 1> rates;  // A [H], at most 0

  void check(const char*, const detail::gate_shape& shape,
             const engine::batch_layout& tokens) const {
    steps.check_shape("dt", shape);
    detail::head_values<Rate>{rates}.check("A", shape, tokens);
    for (index_t s = 0; s < tokens.sequences; ++s) {
      const engine::rows_of_sequence rows = tokens.at(s);
      for (index_t h = 0; h < steps.values.extent(1); ++h) {
        for (index_t t = rows.begin; t < rows.begin + rows.count; ++t) {
          const double step = widen<double>(steps.values(rows.batch, h, t, 0));
          if (step < 0) {
            raise(message("dt: step ") << step << " at batch " << rows.batch << ", head " << h
                                       << ", token " << t << " is below 0");
          }
        }
      }
    }
  }
  template <class Backend, class Real>
  void load(const detail::token_run& at, index_t keys, Real* to, index_t row) const {
    steps.template load<Backend, Real>(at, keys, to, row);
    const Real rate = widen<Real>(rates(at.head / (at.heads / rates.extent(0))));
    for (index_t t = 0; t < at.count; ++t) to[t] *= rate;
  }
};

// x [B, H, L, P], dt [B, H, L] (or [B, H, L, 1]), A [H], B and C [B, G, L, N], y [B, H, L, P];
// states [B, H, N, P]. Further modifiers and errors are those of linear::attention.
template <class Backend = backend::native, viewable X, viewable Dt, viewable A, viewable B,
          viewable C, viewable Y, class... Modifiers>
void mamba2(const X& x, const Dt& dt, const A& a, const B& b, const C& c, Y&& y,
            const Modifiers&... modifiers) {
  using Step = typename read_view<Dt>::value_type;
  using Rate = typename read_view<A>::value_type;
  const strength steps(dt);
  attention<Backend>(c, b, x, y, step_decay<Step, Rate>{{steps.values}, read_view_of(a)}, steps,
                     modifiers..., scale{1});
}

// y[b, h, t, :] += D[h]·x[b, h, t, :]
template <viewable X, viewable D, viewable Y>
void add_skip(const X& x, const D& d, Y&& y) {
  const auto from = read_view_of(x).template lifted<4>();
  const auto to = output_view_of(y).template lifted<4>();
  const auto factor = read_view_of(d);
  detail::check_data("x", from);
  detail::require_shape("D", factor, {from.extent(1)});
  detail::require_shape("y", to, from.extents());
  using T = typename decltype(to)::value_type;
  for (index_t b = 0; b < from.extent(0); ++b) {
    for (index_t h = 0; h < from.extent(1); ++h) {
      for (index_t t = 0; t < from.extent(2); ++t) {
        for (index_t p = 0; p < from.extent(3); ++p) {
          T& sum = to(b, h, t, p);
          sum = narrow<T>(widen<double>(sum) +
                          widen<double>(factor(h)) * widen<double>(from(b, h, t, p)));
        }
      }
    }
  }
}

}  // namespace linear
HEED_NAMESPACE_END
