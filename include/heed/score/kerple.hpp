// KERPLE, kernelized relative positional embedding, with d = |aligned_q - k| the distance on the
// axis of the keys (the last query at the last key):
//
//   kerple_log{r1, r2}     s - r1[h]·log(1 + r2[h]·d)      r1, r2 > 0
//   kerple_power{r1, r2}   s - r1[h]·d^r2[h]               r1 > 0, 0 < r2 ≤ 2
//
// One learned pair per query head, of any element type, in natural units. The values are checked
// when the functor is made. The power is computed as exp(r2·log(d)): its relative error in float is
// about 1e-7·(2 + r2·log(d)).
//
// Chi, Fan, Ramadge and Rudnicky, "KERPLE: Kernelized Relative Positional Embedding for Length
// Extrapolation", NeurIPS 2022, equations 6 (logarithmic) and 7 (power).
#pragma once

#include <limits>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/pack.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"
#include "detail/table.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// The two values of every head, and their checks.
template <element T>
class kerple_parameters {
 public:
  kerple_parameters(const char* name, tensor_view<const T, 1> r1, tensor_view<const T, 1> r2,
                    double r2_limit)
      : name_(name), r1_(r1.data()), r2_(r2.data()), heads_(r1.extent(0)) {
    if (r2.extent(0) != heads_) {
      raise(message(name) << ": r2 has extent " << r2.extent(0) << ", r1 has " << heads_);
    }
    for (index_t head = 0; head < heads_; ++head) {
      const double first = widen<double>(r1_[head]), second = widen<double>(r2_[head]);
      if (!(first > 0)) refuse(": r1 of head ", head, first, " is not positive");
      if (!(second > 0)) refuse(": r2 of head ", head, second, " is not positive");
      if (second > r2_limit) refuse(": r2 of head ", head, second, " exceeds 2");
    }
  }

  template <class Real>
  HEED_INLINE Real r1(index_t head) const {
    return widen<Real>(r1_[head]);
  }
  template <class Real>
  HEED_INLINE Real r2(index_t head) const {
    return widen<Real>(r2_[head]);
  }

  void check(const call_shape& shape) const {
    if (heads_ != shape.heads) {
      raise(message(name_) << ": r1 and r2 have extent " << heads_ << ", call has " << shape.heads
                           << " heads");
    }
  }

 private:
  void refuse(const char* what, index_t head, double value, const char* problem) const {
    raise(message(name_) << what << head << " is " << value << ", which" << problem);
  }

  const char* name_;
  const T* r1_;
  const T* r2_;
  index_t heads_;
};

}  // namespace detail

template <element T>
class kerple_log : public additive_score {
 public:
  kerple_log(tensor_view<const T, 1> r1, tensor_view<const T, 1> r2)
      : parameters_("kerple_log", r1, r2, std::numeric_limits<double>::max()) {}

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    using real = detail::score_real<S>;
    const S distance = S(abs(p.k - p.aligned_q()));
    const S r1(parameters_.template r1<real>(p.head)), r2(parameters_.template r2<real>(p.head));
    return s - r1 * log(S(real(1)) + r2 * distance);
  }

  void check(const call_shape& shape) const { parameters_.check(shape); }

 private:
  detail::kerple_parameters<T> parameters_;
};

template <element T>
class kerple_power : public additive_score {
 public:
  kerple_power(tensor_view<const T, 1> r1, tensor_view<const T, 1> r2)
      : parameters_("kerple_power", r1, r2, 2) {}

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    using real = detail::score_real<S>;
    const S distance = S(abs(p.k - p.aligned_q()));
    const S r1(parameters_.template r1<real>(p.head)), r2(parameters_.template r2<real>(p.head));
    const S power = exp(r2 * log(max(distance, S(real(1)))));
    return s - select(distance > S(real(0)), r1 * power, S(real(0)));
  }

  void check(const call_shape& shape) const { parameters_.check(shape); }

 private:
  detail::kerple_parameters<T> parameters_;
};

template <class U, class V>
kerple_log(tensor_view<U, 1>, tensor_view<V, 1>) -> kerple_log<std::remove_const_t<U>>;
template <class U, class V>
kerple_power(tensor_view<U, 1>, tensor_view<V, 1>) -> kerple_power<std::remove_const_t<U>>;

HEED_NAMESPACE_END
