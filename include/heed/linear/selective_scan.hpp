// Mamba's selective scan: a diagonal state per channel, with a decay per channel and state.
//
//   h[d, n] ← e^(Δ_t[d]·A[d, n])·h[d, n] + Δ_t[d]·B_t[n]·x_t[d]
//   y_t[d] = Σ_n C_t[n]·h[d, n]
//
// Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023. Every channel
// is a head whose values have depth 1: keys B, queries C, values x, and a decay per channel of the
// keys that is computed where it is needed. Skip (D·x) and gate (SiLU(z)) are the layer's.
#pragma once

#include "mamba2.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// Log decay Δ_t[d]·A[d, n].
template <class Step, class Rate>
struct diagonal_decay {
  static constexpr decay_kind kind = decay_kind::channel;
  detail::token_values<Step> steps;  // [B, D, L, 1]
  tensor_view<const Rate, 2> rates;  // [D, N]

  void check(const char*, const detail::gate_shape& shape,
             const engine::batch_layout& tokens) const {
    detail::check_data("A", rates);
    detail::require_equal("A", "channels", rates.extent(0), "those of x,", shape.heads);
    detail::require_equal("A", "states", rates.extent(1), "those of B,", shape.keys);
    detail::require_equal("dt", "channels", steps.values.extent(1), "those of x,", shape.heads);
    const Rate zero[1] = {};
    const tensor_view<const Rate, 1> no_rates(zero, {1});
    step_decay<Step, Rate>{steps, no_rates}.check("dt", shape, tokens);
    for (index_t d = 0; d < rates.extent(0); ++d) {
      if (const index_t n = detail::first_above_zero(rates.row(d), rates.extent(1)); n >= 0) {
        raise(message("A: rate ") << widen<double>(rates(d, n)) << " of channel " << d << ", state "
                                  << n << " is above 0");
      }
    }
  }
  template <class Backend, class Real>
  void load(const detail::token_run& at, index_t keys, Real* to, index_t row) const {
    using vectors = backend::vectors<Backend, Real>;
    for (index_t t = 0; t < at.count; ++t) {
      const Real step = widen<Real>(steps.values(at.batch, at.head, at.token + t, 0));
      vectors::load_row(rates.row(at.head), keys, to + t * row);
      vectors::scale(to + t * row, row, step, to + t * row);
    }
  }
};

// x, dt, y [B, L, D] (or [L, D]), A [D, N] at most 0, dt at least 0, b and c [B, L, N]; states
// [B, D, N, 1]. Further modifiers and errors are those of linear::attention.
template <class Backend = backend::native, viewable X, viewable Dt, viewable A, viewable B,
          viewable C, viewable Y, class... Modifiers>
void selective_scan(const X& x, const Dt& dt, const A& a, const B& b, const C& c, Y&& y,
                    const Modifiers&... modifiers) {
  // [B, L, D] as [B, D, L, 1], and [B, L, N] as [B, 1, L, N]
  const auto per_channel = [](const auto& z) {
    using T = typename std::remove_cvref_t<decltype(z)>::element_type;
    return tensor_view<T, 4>(z.data(), {z.extent(0), z.extent(2), z.extent(1), 1},
                             {z.stride(0), 1, z.stride(1), 1});
  };
  const auto shared = [](const auto& z) {
    using T = typename std::remove_cvref_t<decltype(z)>::element_type;
    return tensor_view<T, 4>(z.data(), {z.extent(0), 1, z.extent(1), z.extent(2)},
                             {z.stride(0), 0, z.stride(1), 1});
  };
  using Step = typename read_view<Dt>::value_type;
  using Rate = typename read_view<A>::value_type;
  const auto steps = per_channel(read_view_of(dt).template lifted<3>());
  attention<Backend>(shared(read_view_of(c).template lifted<3>()),
                     shared(read_view_of(b).template lifted<3>()),
                     per_channel(read_view_of(x).template lifted<3>()),
                     per_channel(output_view_of(y).template lifted<3>()),
                     diagonal_decay<Step, Rate>{{steps}, read_view_of(a)}, strength(steps),
                     modifiers..., scale{1});
}

}  // namespace linear
HEED_NAMESPACE_END
