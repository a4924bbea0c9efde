// Rectified linear attention: weights are what is positive of the scores.
//
//   p_ij = max(0, s_ij)^power,  out_i = Σ_j p_ij v_j          power 1 or 2
//
//   relu_weights{}                 p = max(0, s): Zhang, Titov, Sennrich, "Sparse Attention with
//                                  Linear Units", EMNLP 2021, whose output rms_norm{gain} norms
//   relu_weights{1, relu_mean}     p / n, n keys that the query sees: Wortsman et al., "Replacing
//                                  softmax with ReLU in Vision Transformers", 2023
//   relu_weights{2, relu_mean}     squared: Hua et al., "Transformer Quality in Linear Time",
//                                  ICML 2022
//   relu_weights{power, relu_sum}  p / Σ_j p_ij, 0 where no score is positive
#pragma once

#include "../core/error.hpp"
#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

// What the powers are divided by: 1, the number of keys seen, their sum.
enum relu_divisor { relu_plain, relu_mean, relu_sum };

class relu_weights {
 public:
  static constexpr bool needs_visibility = true;  // of relu_mean

  explicit relu_weights(int power = 1, relu_divisor divisor = relu_plain)
      : squared_(power == 2), divisor_(divisor) {
    if (power != 1 && power != 2) {
      raise(message("relu_weights: power is ") << power << ", must be 1 or 2");
    }
  }

  template <class Row>
  void normalize(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    const pack_type none(real(0));
    row.map([&](pack_type s) HEED_LAMBDA_INLINE {
      const pack_type positive = select(s <= none, none, s);
      return squared_ ? positive * positive : positive;
    });
    if (divisor_ == relu_plain) return;
    real total = 0;
    if (divisor_ == relu_sum) {
      total = row.sum([](pack_type p) HEED_LAMBDA_INLINE { return p; });
    } else {
      for (index_t i = 0; i < row.run_count; ++i) {
        total += static_cast<real>(__builtin_popcountll(row.visible(i)));
      }
    }
    if (total == 0) return;
    const pack_type factor(1 / total);
    row.map([&](pack_type p) HEED_LAMBDA_INLINE { return p * factor; });
  }

 private:
  bool squared_;
  relu_divisor divisor_;
};

HEED_NAMESPACE_END
