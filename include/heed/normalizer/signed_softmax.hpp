// Softmax of absolute scores whose signs come back: a key may be subtracted.
//
//   p_ij = sign(s_ij) · e^|s_ij| / Σ_j e^|s_ij|
//
// Absolute weights of a row add up to 1 (a score of 0 takes its part of the sum and gives weight
// 0).
//
// Lv et al., "More Expressive Attention with Negative Weights" (Cog attention), 2024.
#pragma once

#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

struct signed_softmax {
  template <class Row>
  void normalize(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    const pack_type masked(masked_score<real>), none(real(0));
    const pack_type top(row.largest(
        [&](pack_type s) HEED_LAMBDA_INLINE { return select(s <= masked, masked, abs(s)); }));
    const pack_type log2_e(real(1.44269504088896340736L));
    pack_type total(real(0));
    row.map([&](pack_type s) HEED_LAMBDA_INLINE {
      const pack_type grown = select(s <= masked, none, exp2((abs(s) - top) * log2_e));
      total += grown;
      return select(s < none, -grown, select(s == none, none, grown));
    });
    const real sum = sum_lanes(total);
    const pack_type factor(sum == 0 ? real(0) : 1 / sum);
    row.map([&](pack_type p) HEED_LAMBDA_INLINE { return p * factor; });
  }
};

HEED_NAMESPACE_END
