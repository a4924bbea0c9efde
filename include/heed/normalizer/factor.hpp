// factor{f}: weights times a user's own function of the position, after the softmax, so that it
// does not enter the denominator.
//
//   p_ij ← p_ij · f(position of i and j)
//
//   factor{[](auto p) { return 1.f / (1 + p.aligned_q() - p.k); }}           vectorised
//   factor{[](heed::position p) { return table[p.q][p.k]; }}                 key by key
//
// A generic function is called with packs of keys; its operators are those of core/pack.hpp.
#pragma once

#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

template <class F>
class factor {
  template <class Real, int N>
  static constexpr bool takes_packs = requires(const F& f, const pack_position<Real, N>& p) {
    pack<Real, N>(f(p));
  };

 public:
  explicit factor(F function) : function_(static_cast<F&&>(function)) {
    // Not asked of functions that take packs: it would compile a generic body for a single key.
    if constexpr (!takes_packs<float, 4>) {
      static_assert(
          requires(const F& f, const position& p) { static_cast<float>(f(p)); },
          "heed: factor{f} needs f(position) that returns a number and does not change f");
    }
  }

  template <class Row>
  void transform(Row& row) const {
    using real = typename Row::real;
    if constexpr (takes_packs<real, Row::lanes>) {
      row.map_at([this](typename Row::pack_type w, const pack_position<real, Row::lanes>& p)
                     HEED_LAMBDA_INLINE { return w * typename Row::pack_type(function_(p)); });
    } else {
      row.map_at([this](real w, const position& p)
                     HEED_LAMBDA_INLINE { return w * static_cast<real>(function_(p)); });
    }
  }

 private:
  F function_;
};

HEED_NAMESPACE_END
