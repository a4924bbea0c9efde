// score{f}: a user's own function of a score and its position, as a score functor.
//
//   score{[](auto s, auto p) { return s - 0.1f * (p.q - p.k); }}                      vectorised
//   score{[](float s, heed::position p) { return p.k == 0 ? s + 1 : s; }}             key by key
//   score{f, [](auto s, auto p) { … }}     with ∂f/∂s at (s, p), which gradients need
//
// A generic function is called with packs of keys only (a single key is a pack of one), so that its
// body compiles for one kind of type and rounds the same way everywhere. The operators, and
// heed::select, abs, min, max, exp, log, tanh and lookup, are there for packs. A function that
// takes one float or one heed::position is called for each key in turn.
#pragma once

#include "../core/pack.hpp"
#include "../core/position.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class F, class Real, int N>
concept takes_score_packs = requires(const F& f, pack<Real, N> s, const pack_position<Real, N>& p) {
  pack<Real, N>(f(s, p));
};

// A user's function on one score, and on a pack of them.
template <class F, class S>
HEED_INLINE S call_score(const F& function, S s, const position& p) {
  if constexpr (takes_score_packs<F, S, 1>) {
    pack_position<S, 1> at;
    at.batch = p.batch;
    at.head = p.head;
    at.q = p.q;
    at.k = pack<integer_of<S>, 1>(p.k);
    at.queries = p.queries;
    at.keys = p.keys;
    at.first_key = p.k;
    return pack<S, 1>(function(pack<S, 1>(s), at))[0];
  } else {
    return static_cast<S>(function(s, p));
  }
}
template <class F, class Real, int N>
HEED_INLINE pack<Real, N> call_score(const F& function, pack<Real, N> s,
                                     const pack_position<Real, N>& p) {
  if constexpr (takes_score_packs<F, Real, N>) {
    return pack<Real, N>(function(s, p));
  } else {
    pack<Real, N> result = s;
    for (int lane = 0; lane < p.valid; ++lane) {
      const position at{p.batch, p.head, p.q, p.k[lane], p.queries, p.keys};
      result.v[lane] = static_cast<Real>(function(s[lane], at));
    }
    return result;
  }
}

struct no_derivative {};

}  // namespace detail

template <class F, class Derivative = detail::no_derivative>
class score {
  template <class G>
  static constexpr void check_function() {
    // Not asked of functions that take packs: it would compile a generic body for a single key.
    if constexpr (!detail::takes_score_packs<G, float, 1>) {
      static_assert(
          requires(const G& g, float s, const position& p) { static_cast<float>(g(s, p)); },
          "heed: score{f} needs f(score, position) that returns a score and does not change f");
    }
  }

 public:
  explicit score(F function) : function_(static_cast<F&&>(function)) { check_function<F>(); }
  score(F function, Derivative derivative)
      : function_(static_cast<F&&>(function)), derivative_(static_cast<Derivative&&>(derivative)) {
    check_function<F>();
    check_function<Derivative>();
  }

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    return detail::call_score(function_, s, p);
  }

  // ∂f/∂s at the score before f.
  template <class S, class P>
  requires(!std::is_same_v<Derivative, detail::no_derivative>) HEED_INLINE S
      derivative(S s, const P& p)
  const { return detail::call_score(derivative_, s, p); }

 private:
  F function_;
  [[no_unique_address]] Derivative derivative_{};
};
template <class F>
score(F) -> score<F>;
template <class F, class Derivative>
score(F, Derivative) -> score<F, Derivative>;

HEED_NAMESPACE_END
