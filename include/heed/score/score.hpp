// score{f}: a user's own function of a score and its position, as a score functor.
//
//   score{[](auto s, auto p) { return s - 0.1f * (p.q - p.k); }}                      vectorised
//   score{[](float s, heed::position p) { return p.k == 0 ? s + 1 : s; }}             key by key
//
// A generic function is called with packs of keys only (a single key is a pack of one), so that its
// body compiles for one kind of type and rounds the same way everywhere. The operators, and
// heed::select, abs, min, max, exp, log, tanh and lookup, are there for packs. A function that
// takes one float or one heed::position is called for each key in turn.
#pragma once

#include "../core/pack.hpp"
#include "../core/position.hpp"

HEED_NAMESPACE_BEGIN

template <class F>
class score {
  template <class Real, int N>
  static constexpr bool takes_packs = requires(const F& f, pack<Real, N> s,
                                               const pack_position<Real, N>& p) {
    pack<Real, N>(f(s, p));
  };

 public:
  explicit score(F function) : function_(static_cast<F&&>(function)) {
    // Not asked of functions that take packs: it would compile a generic body for a single key.
    if constexpr (!takes_packs<float, 1>) {
      static_assert(
          requires(const F& f, float s, const position& p) { static_cast<float>(f(s, p)); },
          "heed: score{f} needs f(score, position) that returns a score and does not change f");
    }
  }

  template <class S>
  HEED_INLINE S operator()(S s, const position& p) const {
    if constexpr (takes_packs<S, 1>) {
      pack_position<S, 1> at;
      at.batch = p.batch;
      at.head = p.head;
      at.q = p.q;
      at.k = pack<integer_of<S>, 1>(p.k);
      at.queries = p.queries;
      at.keys = p.keys;
      at.first_key = p.k;
      return pack<S, 1>(function_(pack<S, 1>(s), at))[0];
    } else {
      return static_cast<S>(function_(s, p));
    }
  }

  template <class Real, int N>
  HEED_INLINE pack<Real, N> operator()(pack<Real, N> s, const pack_position<Real, N>& p) const {
    if constexpr (takes_packs<Real, N>) {
      return pack<Real, N>(function_(s, p));
    } else {
      pack<Real, N> result = s;
      for (int lane = 0; lane < p.valid; ++lane) {
        const position at{p.batch, p.head, p.q, p.k[lane], p.queries, p.keys};
        result.v[lane] = static_cast<Real>(function_(s[lane], at));
      }
      return result;
    }
  }

 private:
  F function_;
};

HEED_NAMESPACE_END
