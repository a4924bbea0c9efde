// What may follow the operands of a linear attention call, beside a feature map.
//
//   decays       head_decay, token_decay, channel_decay, or a policy of a method's own
//   writes       strength, delta
//   normaliser   normalized
//   states       initial_state, final_state
//   reads        bonus
//   the call     chunk, bidirectional, and heed::scale, on, scratch, key_lengths, query_lengths,
//                ragged
#pragma once

#include <cmath>

#include "../core/view_of.hpp"
#include "../dense/options.hpp"
#include "detail/gates.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// ---- decays: S ← diag(e^g)·S before each write; g ≤ 0, natural logarithms -----------------------
// Gates have as many heads as the state, or a number that divides it. Element types are float,
// double, half or bfloat16. A gate per token may be [B, H, L], or [B, H, L, 1] with any strides.

// One g per head, [H].
template <class T>
struct head_decay : detail::head_values<T> {
  static constexpr decay_kind kind = decay_kind::token;
  template <viewable X>
  explicit head_decay(const X& logs) : detail::head_values<T>{read_view_of(logs)} {}
};
template <viewable X>
head_decay(const X&) -> head_decay<typename read_view<X>::value_type>;

// One g per token, [B, H, L].
template <class T>
struct token_decay : detail::token_values<T> {
  static constexpr decay_kind kind = decay_kind::token;
  template <viewable X>
  explicit token_decay(const X& logs)
      : detail::token_values<T>{detail::one_per_token(read_view_of(logs))} {}
};
template <viewable X>
token_decay(const X&) -> token_decay<typename read_view<X>::value_type>;

// One g per token and channel of the keys, [B, H, L, D], D the number of features.
template <class T>
struct channel_decay : detail::channel_values<T> {
  static constexpr decay_kind kind = decay_kind::channel;
  template <viewable X>
  explicit channel_decay(const X& logs)
      : detail::channel_values<T>{read_view_of(logs).template lifted<4>()} {}
};
template <viewable X>
channel_decay(const X&) -> channel_decay<typename read_view<X>::value_type>;

// ---- writes -------------------------------------------------------------------------------------

// S += β_t·k·vᵀ, β [B, H, L].
template <class T>
struct strength : detail::token_values<T> {
  template <viewable X>
  explicit strength(const X& of_tokens)
      : detail::token_values<T>{detail::one_per_token(read_view_of(of_tokens))} {}
};
template <viewable X>
strength(const X&) -> strength<typename read_view<X>::value_type>;

// The delta rule: S += β_t·k·(v − Sᵀk)ᵀ after decay, β [B, H, L]; without β, 1.
template <class T = float>
struct delta : detail::token_values<T> {
  bool has_values = false;
  delta() = default;
  template <viewable X>
  explicit delta(const X& of_tokens)
      : detail::token_values<T>{detail::one_per_token(read_view_of(of_tokens))}, has_values(true) {}
};
template <viewable X>
delta(const X&) -> delta<typename read_view<X>::value_type>;
delta()->delta<float>;

// ---- reads --------------------------------------------------------------------------------------

// o_t = (S_{t−1} + diag(u)·k_t·v_tᵀ)ᵀ·q_t: reads see the state before their token, and the token
// itself through u [H, D].
template <class T>
struct bonus {
  tensor_view<const T, 2> values;
  template <viewable X>
  explicit bonus(const X& u) : values(read_view_of(u).template lifted<2>()) {}
};
template <viewable X>
bonus(const X&) -> bonus<typename read_view<X>::value_type>;

// ---- normalisers: out = (Sᵀq)·f(z·q), z the (decayed) sum of keys -------------------------------

template <class F>
struct normalized {
  F f;
  explicit constexpr normalized(F function) : f(function) {}
};

// f(d) = 1 / (d + ε)
struct sum_of_weights {
  double epsilon = 1e-6;
  template <class Real>
  Real operator()(Real d) const {
    return Real(1) / (d + static_cast<Real>(epsilon));
  }
};
// f(d) = 1 / max(d, ε)
struct clamped_sum_of_weights {
  double epsilon = 1e-6;
  template <class Real>
  Real operator()(Real d) const {
    return Real(1) / max(d, static_cast<Real>(epsilon));
  }
};

// ---- states -------------------------------------------------------------------------------------
// S [B, H, D, Dv], z [B, H, D] (with a normaliser), B the number of sequences, D of features. Both
// may be the same memory.

template <class T>
struct initial_state {
  tensor_view<const T, 4> s;
  tensor_view<const T, 3> z;
  template <viewable X>
  explicit initial_state(const X& state) : s(read_view_of(state).template lifted<4>()) {}
  template <viewable X, viewable Z>
  initial_state(const X& state, const Z& key_sum)
      : s(read_view_of(state).template lifted<4>()),
        z(read_view_of(key_sum).template lifted<3>()) {}
};
template <viewable X, class... Z>
initial_state(const X&, const Z&...) -> initial_state<typename read_view<X>::value_type>;

template <class T>
struct final_state {
  tensor_view<T, 4> s;
  tensor_view<T, 3> z;
  template <viewable X>
  explicit final_state(X&& state) : s(output_view_of(state).template lifted<4>()) {}
  template <viewable X, viewable Z>
  final_state(X&& state, Z&& key_sum)
      : s(output_view_of(state).template lifted<4>()),
        z(output_view_of(key_sum).template lifted<3>()) {}
};
template <viewable X, class... Z>
final_state(X&&, Z&&...)
    -> final_state<typename decltype(output_view_of(std::declval<X&>()))::value_type>;

// ---- the call -----------------------------------------------------------------------------------

// Tokens that are worked on at once: 1 is the recurrence, the whole length the quadratic form; the
// results agree up to rounding. The default is 32, or the whole sequence where that is shorter:
// pairs within a chunk cost chunk·(D + Dv) multiply-adds per token, half of them useful, the state
// 2·D·Dv whatever the chunk is, and 32 rows are enough to keep the vector units busy. Larger chunks
// were never faster for D up to 256 (bench/linear.cpp).
struct chunk {
  index_t tokens;
  explicit constexpr chunk(index_t count) : tokens(count) {}
};

// Every query reads every key, as in dense attention without a mask. Only for sums without decay.
struct bidirectional {};

}  // namespace linear
HEED_NAMESPACE_END
