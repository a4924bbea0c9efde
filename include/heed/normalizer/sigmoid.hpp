// Sigmoid attention: every weight by itself, no sum over the keys.
//
//   p_ij = σ(s_ij + b_h),  out_i = Σ_j p_ij v_j
//
//   sigmoid_weights{}        b = 0
//   sigmoid_weights{b}       the same for all heads; −log(Lk) keeps outputs of the size that a
//                            softmax gives them
//   sigmoid_weights{biases}  one per query head, of any element type
//
// Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", ICLR 2025.
#pragma once

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

template <element T = float>
class sigmoid_weights {
 public:
  sigmoid_weights() = default;
  explicit sigmoid_weights(T bias) : same_(bias) {}
  explicit sigmoid_weights(tensor_view<const T, 1> biases)
      : biases_(biases.data()), heads_(biases.extent(0)), per_head_(true) {}

  template <class Row>
  void normalize(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    // σ(x) = 1 / (1 + 2^(−log2(e)·x))
    const pack_type log2_e(real(-1.44269504088896340736L)), one(real(1));
    const pack_type bias(widen<real>(per_head_ ? biases_[row.head] : same_));
    const pack_type masked(masked_score<real>), none(real(0));
    row.map([&](pack_type s) HEED_LAMBDA_INLINE {
      return select(s <= masked, none, one / (one + exp2((s + bias) * log2_e)));
    });
  }

  void check(const call_shape& shape) const {
    if (per_head_ && heads_ != shape.heads) {
      raise(message("sigmoid_weights: biases have extent ")
            << heads_ << ", call has " << shape.heads << " heads");
    }
  }

 private:
  const T* biases_ = nullptr;
  index_t heads_ = 0;
  bool per_head_ = false;
  T same_{};
};

template <class U>
sigmoid_weights(tensor_view<U, 1>) -> sigmoid_weights<std::remove_const_t<U>>;

HEED_NAMESPACE_END
