// From scores to weights and to gradients of scores, a row of a tile at a time: what the five
// products of the backward tile loop leave to do.
#pragma once

#include <tuple>

#include "../core/softmax_state.hpp"
#include "hooks.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// ∂score/∂s on one value, scalar or pack.
template <class S, class Score, class P>
HEED_INLINE S apply_derivative(const Score& score, S s, const P& p) {
  return apply_score([&score](auto value, const auto& at)
                         HEED_LAMBDA_INLINE -> decltype(score.derivative(
                                                value, at)) { return score.derivative(value, at); },
                     s, p);
}

// What the elementwise step knows about a row of scores.
template <class Real>
struct row_terms {
  Real scale;     // of q·k
  Real exponent;  // log2(e)·lse
  Real delta;     // δ
};

// p ← P and ds ← dS of `count` keys from first.k on, where p comes with q·k and ds with dP. Keys
// whose bit is clear get 0. The derivatives taken are those of the scores from number From on: dS
// is the gradient of what enters the score of that number. Keys from `end` on do not exist.
template <std::size_t From, class Lanes, class Real, int N, class Scores>
HEED_INLINE void gradient_row(const Scores& scores, Real* p, Real* ds, const row_terms<Real>& row,
                              position first, int count, index_t end, const std::uint64_t* bits) {
  using S = std::conditional_t<N == 1, Real, pack<Real, (N > 1 ? N : 2)>>;
  constexpr Real log2_e = softmax_state<Real>::log2_e;
  const S scale(row.scale), exponent(row.exponent), delta(row.delta);
  for (int c = 0; c < count; c += N, first.k += N) {
    S value, slope(Real(1)), change, weight;
    if constexpr (N == 1) {
      value = p[c] * scale, change = ds[c];
    } else {
      value = load_pack<S>(p + c) * scale, change = load_pack<S>(ds + c);
    }
    if constexpr (std::tuple_size_v<Scores> != 0) {
      const auto at = [&]() HEED_LAMBDA_INLINE {
        if constexpr (N == 1) {
          return first;
        } else {
          return pack_at<Real, N>(first, end);
        }
      }();
      [&]<std::size_t... I>(std::index_sequence<I...>) HEED_LAMBDA_INLINE {
        const auto step = [&](auto number, const auto& score) HEED_LAMBDA_INLINE {
          if constexpr (decltype(number)::value >= From) {
            slope = slope * apply_derivative(score, value, at);
          }
          value = apply_score(score, value, at);
        };
        (step(std::integral_constant<std::size_t, I>{}, std::get<I>(scores)), ...);
      }
      (std::make_index_sequence<std::tuple_size_v<Scores>>{});
    }
    value = value * S(log2_e) - exponent;
    if constexpr (requires {
                    { Lanes::exp2(value) } -> std::same_as<S>;
                  }) {
      weight = Lanes::exp2(value);
    } else {
      weight = exp2(value);
    }
    change = weight * (change - delta) * slope;
    if (bits != nullptr) {
      if constexpr (N == 1) {
        if ((*bits >> c & 1) == 0) weight = change = 0;
      } else {
        const auto seen = from_bits<Real, N>(*bits >> c);
        weight = select(seen, weight, S(Real(0)));
        change = select(seen, change, S(Real(0)));
      }
    }
    if constexpr (N == 1) {
      p[c] = weight, ds[c] = change;
    } else {
      store_pack(p + c, weight), store_pack(ds + c, change);
    }
  }
}

}  // namespace engine
HEED_NAMESPACE_END
