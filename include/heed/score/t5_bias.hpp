// T5's relative bias: s + table[bucket(k - aligned_q), h], in natural units. The distance is taken
// on the axis of the keys, the last query at the last key.
//
// Of n buckets, a bidirectional bias gives one half to keys up to the query and the other half to
// keys ahead of it; a causal one gives all to distances back, and bucket 0 to every key ahead. Of
// the m buckets of a direction, the first e = ⌊m/2⌋ hold one distance each, the others are spaced
// logarithmically up to max_distance, and the last one holds all that is farther:
//
//   bucket(d) = d                                                               for d < e
//   bucket(d) = min(m - 1, e + ⌊log(d / e) / log(max_distance / e) · (m - e)⌋)   otherwise
//
// in float, as the published code computes it. T5 does not scale its scores: call with scale 1.
//
// Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
// Transformer", JMLR 2020, section 2.1; the bucket function is that of its code.
#pragma once

#include <array>
#include <cmath>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/pack.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"
#include "detail/table.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class t5_relative_bias : public additive_score {
 public:
  // Most logarithmic buckets of a direction; T5 has 8 or 16, the largest in known use is 80.
  static constexpr index_t capacity = 256;

  // table [buckets, H], any element type.
  explicit t5_relative_bias(tensor_view<const T, 2> table, index_t max_distance = 128,
                            bool bidirectional = true)
      : table_(table.data()),
        bucket_stride_(table.stride(0)),
        heads_(table.extent(1)),
        per_direction_(bidirectional ? table.extent(0) / 2 : table.extent(0)),
        exact_(per_direction_ / 2),
        bidirectional_(bidirectional) {
    check_buckets(table.extent(0), max_distance);
    // The first distance of every logarithmic bucket but the first. The function grows with the
    // distance, so bisection finds it.
    for (index_t bucket = exact_ + 1; bucket < per_direction_; ++bucket) {
      index_t low = exact_, high = max_distance;  // the bucket starts in (low, high]
      while (high - low > 1) {
        const index_t middle = low + (high - low) / 2;
        (logarithmic_bucket(middle, max_distance) < bucket ? low : high) = middle;
      }
      starts_[static_cast<std::size_t>(start_count_++)] = static_cast<std::int32_t>(high);
    }
    far_ = start_count_ == 0 ? exact_ : starts_[static_cast<std::size_t>(start_count_ - 1)];
  }

  // Bucket of k - aligned_q, for one key or a pack of keys.
  template <class I>
  HEED_INLINE I bucket(I relative) const {
    const I distance = bidirectional_ ? abs(relative) : max(-relative, I(0));
    I result = min(distance, I(exact_));
    for (index_t i = 0; i < start_count_; ++i) {
      result = result + select(distance >= I(starts_[static_cast<std::size_t>(i)]), I(1), I(0));
    }
    const index_t ahead = bidirectional_ ? per_direction_ : 0;
    return result + select(relative > I(0), I(ahead), I(0));
  }

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    const T* column = table_ + p.head;
    if constexpr (is_pack<S>) {
      // Keys are consecutive: those of a pack that lies far away on one side share one bucket.
      const index_t first = p.first_key - p.aligned_q(), last = first + p.valid - 1;
      if (last <= -far_ || first >= (bidirectional_ ? far_ : 0)) {
        const index_t shared = (last < 0         ? farthest()
                                : bidirectional_ ? per_direction_ + farthest()
                                                 : 0);
        return s + S(widen<detail::score_real<S>>(column[shared * bucket_stride_]));
      }
    }
    return s + detail::gather<S>(column, bucket_stride_, bucket(p.k - p.aligned_q()));
  }

  void check(const call_shape& shape) const {
    if (heads_ != shape.heads) {
      raise(message("t5_relative_bias: head axis of the table has extent ")
            << heads_ << ", call has " << shape.heads << " heads");
    }
  }

 private:
  index_t farthest() const { return exact_ + start_count_; }

  void check_buckets(index_t buckets, index_t max_distance) const {
    if (exact_ < 1) {
      raise(message("t5_relative_bias: table has ")
            << buckets << " buckets, at least " << (bidirectional_ ? 4 : 2) << " are needed");
    }
    if (per_direction_ - exact_ > capacity) {
      raise(message("t5_relative_bias: table has ")
            << buckets << " buckets, at most " << (bidirectional_ ? 4 * capacity : 2 * capacity)
            << " are possible");
    }
    if (max_distance <= exact_) {
      raise(message("t5_relative_bias: max_distance ")
            << max_distance << " does not exceed the " << exact_
            << " distances that have buckets of their own");
    }
    if (max_distance > 0x7fffffff) {
      raise(message("t5_relative_bias: max_distance ") << max_distance << " exceeds 2147483647");
    }
  }

  // The published formula for d ≥ e, not yet bounded. Every step is rounded to float, and volatile
  // keeps -ffast-math from rearranging them: a bucket that starts one key later is another bias.
  HEED_NOINLINE index_t logarithmic_bucket(index_t distance, index_t max_distance) const {
    const volatile float ratio = static_cast<float>(distance) / static_cast<float>(exact_);
    const volatile float logarithm = std::log(static_cast<float>(ratio));
    const volatile float range = static_cast<float>(
        std::log(static_cast<double>(max_distance) / static_cast<double>(exact_)));
    const volatile float share = logarithm / range;
    const volatile float steps = share * static_cast<float>(per_direction_ - exact_);
    return exact_ + static_cast<index_t>(steps);
  }

  const T* table_;
  index_t bucket_stride_;
  index_t heads_;
  index_t per_direction_;  // buckets of a direction
  index_t exact_;          // of which so many hold one distance each
  index_t far_ = 0;        // first distance of the last bucket
  index_t start_count_ = 0;
  std::array<std::int32_t, static_cast<std::size_t>(capacity)> starts_{};
  bool bidirectional_;
};

template <class U>
t5_relative_bias(tensor_view<U, 2>) -> t5_relative_bias<std::remove_const_t<U>>;
template <class U>
t5_relative_bias(tensor_view<U, 2>, index_t) -> t5_relative_bias<std::remove_const_t<U>>;
template <class U>
t5_relative_bias(tensor_view<U, 2>, index_t, bool) -> t5_relative_bias<std::remove_const_t<U>>;

HEED_NAMESPACE_END
