// Prefix language model: every query attends to the whole prefix, and causally to the rest,
//
//   k < prefix  or  k ≤ q + keys - queries
//
//   prefix_lm{n}         one prefix length for all sequences
//   prefix_lm{lengths}   lengths [batch], any integer type; one element serves all
//
// Dong et al., "Unified Language Model Pre-training" (UniLM), 2019; Raffel et al., T5, 2020; image
// and question of PaliGemma. A prefix longer than the sequence is the whole sequence.
//
// Tiles and keys are exact.
#pragma once

#include <string>
#include <type_traits>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"
#include "detail/arrays.hpp"

HEED_NAMESPACE_BEGIN

template <class Length = index_t>
class prefix_lm {
  static_assert(std::is_integral_v<Length>, "heed: prefix lengths are integers");

 public:
  explicit prefix_lm(index_t length) : length_(length) {
    if (length < 0) {
      raise("prefix_lm: prefix length " + std::to_string(length) + " is negative");
    }
  }
  explicit prefix_lm(const tensor_view<const Length, 1>& lengths)
      : per_sequence_(true), lengths_(lengths) {}

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    return mask_detail::key_at_most(p, max(p.aligned_q(), length(p.batch) - 1));
  }
  key_interval interval(const position& p) const {
    return {0, max(p.aligned_q() + 1, length(p.batch))};
  }

  visibility tile(const tile_extent& t) const {
    const index_t prefix = length(t.batch);
    if (t.k_begin >= max(prefix, t.q_end + t.alignment())) return visibility::none;
    return t.k_end <= max(prefix, t.q_begin + 1 + t.alignment()) ? visibility::all
                                                                 : visibility::some;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    return {t.k_begin, min(t.k_end, max(length(t.batch), t.q_end + t.alignment()))};
  }

  void check(const call_shape& shape) const {
    if (!per_sequence_) return;
    mask_detail::check_axis("prefix_lm", "batch", nullptr, lengths_.extent(0), shape.batches,
                            "batches");
    for (index_t i = 0; i < lengths_.extent(0); ++i) {
      const index_t length = static_cast<index_t>(lengths_(i));
      if (length < 0) {
        raise("prefix_lm: prefix length " + std::to_string(length) + " of sequence " +
              std::to_string(i) + " is negative");
      }
    }
  }

 private:
  HEED_INLINE index_t length(index_t batch) const {
    if (!per_sequence_) return length_;
    return static_cast<index_t>(lengths_.data()[batch * mask_detail::step_of(lengths_, 0)]);
  }

  bool per_sequence_ = false;
  index_t length_ = 0;
  tensor_view<const Length, 1> lengths_;
};
template <class T>
prefix_lm(const tensor_view<T, 1>&) -> prefix_lm<std::remove_const_t<T>>;

HEED_NAMESPACE_END
