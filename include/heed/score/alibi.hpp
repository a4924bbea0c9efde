// ALiBi, attention with linear biases: s - slope[h]·|aligned_q - k|.
//
// The distance is taken on the axis of the keys, the last query at the last key. Under a causal
// mask it is q - k, and this is the formula of the paper; without one it is symmetric: keys ahead
// of the query are penalised like keys behind it. Slopes are in natural units per position.
//
//   alibi{slopes}        slopes[h], one per query head, of any element type
//   alibi_for_heads{n}   the slopes of the paper. For n a power of two: 2^(-8(h+1)/n). Otherwise,
//                        with c the largest power of two below n: the slopes for c heads, then
//                        every other slope for 2c heads, 2^(-8·1/(2c)), 2^(-8·3/(2c)), …
//
// Press, Smith and Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input
// Length Extrapolation", ICLR 2022.
#pragma once

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/pack.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"
#include "detail/table.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class S, class P>
HEED_INLINE S subtract_distance(S s, score_real<S> slope, const P& p) {
  return s - S(slope) * S(abs(p.k - p.aligned_q()));
}

}  // namespace detail

template <element T>
class alibi : public additive_score {
 public:
  explicit alibi(tensor_view<const T, 1> slopes)
      : slopes_(slopes.data()), heads_(slopes.extent(0)) {}

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    return detail::subtract_distance(s, widen<detail::score_real<S>>(slopes_[p.head]), p);
  }

  void check(const call_shape& shape) const {
    if (heads_ != shape.heads) {
      raise(message("alibi: slopes have extent ")
            << heads_ << ", call has " << shape.heads << " heads");
    }
  }

 private:
  const T* slopes_;
  index_t heads_;
};

template <class U>
alibi(tensor_view<U, 1>) -> alibi<std::remove_const_t<U>>;

class alibi_for_heads : public additive_score {
 public:
  explicit alibi_for_heads(index_t heads) : heads_(heads) {
    if (heads < 1) raise(message("alibi_for_heads: head count ") << heads << " is not positive");
    while (power_ <= heads / 2) power_ *= 2;
  }

  // Computed, not stored: the compiler moves this out of the loop over keys.
  HEED_INLINE double slope(index_t head) const {
    const index_t eighths = head < power_ ? 2 * (head + 1) : 2 * (head - power_) + 1;
    const double exponent = -4.0 * static_cast<double>(eighths) / static_cast<double>(power_);
    return exp2(pack<double, 2>(exponent))[0];
  }

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    return detail::subtract_distance(s, static_cast<detail::score_real<S>>(slope(p.head)), p);
  }

  void check(const call_shape& shape) const {
    if (heads_ != shape.heads) {
      raise(message("alibi_for_heads: head count ")
            << heads_ << ", call has " << shape.heads << " heads");
    }
  }

 private:
  index_t heads_;
  index_t power_ = 1;  // the largest power of two that is at most heads_
};

HEED_NAMESPACE_END
