// Norms every head's output by the root of its mean square, before it is rounded.
//
//   out_id ← gain_hd · out_id / √(Σ_d out_id² / Dv + ε)
//
// gain is [Hq, Dv] (or [Dv] for all heads) of any element type, or absent. What keeps the unbounded
// sums of relu_weights in range (Zhang, Titov, Sennrich, "Sparse Attention with Linear Units",
// EMNLP 2021); also the norm of differential attention's heads.
#pragma once

#include <cmath>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

template <element T = float>
class rms_norm {
 public:
  explicit rms_norm(double epsilon = 1e-6) : epsilon_(epsilon) { check_epsilon(); }
  template <class U, int Rank>
  explicit rms_norm(tensor_view<U, Rank> gain, double epsilon = 1e-6)
      : gain_(gain.template lifted<2>()), epsilon_(epsilon), has_gain_(true) {
    static_assert(Rank <= 2, "heed: the gain of rms_norm is [heads, depth] or [depth]");
    check_epsilon();
  }

  template <class Real>
  void finish(Real* row, index_t depth, index_t head) const {
    Real squares = 0;
    for (index_t d = 0; d < depth; ++d) squares += row[d] * row[d];
    const Real mean = depth > 0 ? squares / static_cast<Real>(depth) : Real(0);
    const Real root = std::sqrt(mean + static_cast<Real>(epsilon_));
    const Real factor = root > 0 ? 1 / root : Real(0);
    const T* gain = has_gain_ ? gain_.row(gain_.extent(0) == 1 ? 0 : head) : nullptr;
    for (index_t d = 0; d < depth; ++d) {
      row[d] *= gain != nullptr ? factor * widen<Real>(gain[d]) : factor;
    }
  }

  void check(const call_shape& shape) const {
    if (has_gain_ && gain_.extent(0) != 1 && gain_.extent(0) != shape.heads) {
      raise(message("rms_norm: gain has ")
            << gain_.extent(0) << " heads, call has " << shape.heads);
    }
    if (has_gain_ && gain_.extent(1) != shape.value_depth) {
      raise(message("rms_norm: gain has depth ")
            << gain_.extent(1) << ", out has " << shape.value_depth);
    }
  }

 private:
  void check_epsilon() const {
    if (!(epsilon_ >= 0)) raise(message("rms_norm: epsilon is negative or not a number"));
  }

  tensor_view<const T, 2> gain_;
  double epsilon_;
  bool has_gain_ = false;
};

template <class U, int Rank>
rms_norm(tensor_view<U, Rank>) -> rms_norm<std::remove_const_t<U>>;
template <class U, int Rank>
rms_norm(tensor_view<U, Rank>, double) -> rms_norm<std::remove_const_t<U>>;

HEED_NAMESPACE_END
