// 1.5-entmax: between softmax and sparsemax; weights are exactly 0 where scores are low.
//
//   p_ij = max(0, s_ij / 2 − τ_i)²,  Σ_j p_ij = 1
//
// τ by Newton's method from below, where Σ p is convex and falling: every step is a lower bound,
// and the number of correct digits doubles.
//
// Peters, Niculae, Martins, "Sparse Sequence-to-Sequence Models", ACL 2019; Correia et al.,
// "Adaptively Sparse Transformers", EMNLP 2019.
#pragma once

#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

struct entmax15 {
  template <class Row>
  void normalize(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    const pack_type masked(masked_score<real>), none(real(0)), half(real(0.5));
    const pack_type top(row.largest([](pack_type s) HEED_LAMBDA_INLINE { return s; }));
    real threshold = -1;  // of s / 2, relative to the largest: p = 1 there
    constexpr int most_steps = 40;
    for (int step = 0; step < most_steps; ++step) {
      const pack_type tau(threshold);
      const auto excess = [&](pack_type s) HEED_LAMBDA_INLINE {
        const pack_type x = (s - top) * half - tau;
        return select(x > none, x, none);
      };
      const real slope = 2 * row.sum(excess);
      const real over = row.sum([&](pack_type s) HEED_LAMBDA_INLINE {
        const pack_type x = excess(s);
        return x * x;
      }) - 1;
      // Rounding ends it: no step upwards is left.
      if (!(over > 0) || !(threshold + over / slope > threshold)) break;
      threshold += over / slope;
    }
    const pack_type tau(threshold);
    row.map([&](pack_type s) HEED_LAMBDA_INLINE {
      const pack_type x = (s - top) * half - tau;
      return select(s <= masked, none, select(x <= none, none, x * x));
    });
  }
};

HEED_NAMESPACE_END
