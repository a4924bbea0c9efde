// Sparsemax: the point of the simplex that is nearest to the scores; most weights are exactly 0.
//
//   p_ij = max(0, s_ij − τ_i),  Σ_j p_ij = 1
//
// τ is exact: with the support S it is (Σ_S s − 1) / |S|, and starting from all keys within 1 of
// the largest, keys below τ leave S until none does (Michelot 1986).
//
// Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016.
#pragma once

#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

struct sparsemax {
  template <class Row>
  void normalize(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    const pack_type masked(masked_score<real>), none(real(0)), one(real(1));
    const pack_type top(row.largest([](pack_type s) HEED_LAMBDA_INLINE { return s; }));
    real threshold = -1;  // relative to the largest score
    for (real former = 0;;) {
      const pack_type tau(threshold);
      const real count =
          row.sum([&](pack_type s) HEED_LAMBDA_INLINE { return select(s - top > tau, one, none); });
      if (count == former || count == 0) break;
      former = count;
      const real sum = row.sum(
          [&](pack_type s) HEED_LAMBDA_INLINE { return select(s - top > tau, s - top, none); });
      threshold = (sum - 1) / count;
    }
    const pack_type tau(threshold);
    row.map([&](pack_type s) HEED_LAMBDA_INLINE {
      return select(s <= masked, none, select(s - top <= tau, none, s - top - tau));
    });
  }
};

HEED_NAMESPACE_END
