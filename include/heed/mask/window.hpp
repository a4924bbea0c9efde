// Sliding window: a query attends to the keys around its own position,
//
//   window{left, right}   i - left ≤ k ≤ i + right,   i = q + keys - queries
//   window{reach}         the same on both sides: |i - k| ≤ reach
//
// Both ends belong to the window, and the query's own key does not count: window{w} & causal{} lets
// w + 1 keys through. window::unlimited opens a side: window{window::unlimited, 0} is causal.
//
// Beltagy et al., "Longformer", 2020; Jiang et al., "Mistral 7B", 2023, whose window of W tokens
// counts the query's own and is window{W - 1, 0}. left and right are the two window sizes of
// flash-attention, -1 for unlimited included.
//
// Tiles and keys are exact, also those of window & causal.
#pragma once

#include <string>

#include "../core/error.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"

HEED_NAMESPACE_BEGIN

class window {
 public:
  static constexpr index_t unlimited = -1;

  explicit constexpr window(index_t reach)
      : left_(distance("reach", reach)), right_(distance("reach", reach)) {}
  constexpr window(index_t left, index_t right)
      : left_(distance("left", left)), right_(distance("right", right)) {}

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    const index_t own = p.aligned_q();
    return mask_detail::key_between(p, own - left_, own + right_);
  }
  key_interval interval(const position& p) const {
    return {p.aligned_q() - left_, p.aligned_q() + right_ + 1};
  }

  visibility tile(const tile_extent& t) const {
    const index_t first = t.q_begin + t.alignment(), last = t.q_end - 1 + t.alignment();
    if (t.k_begin > last + right_ || t.k_end - 1 < first - left_) return visibility::none;
    return t.k_begin >= last - left_ && t.k_end - 1 <= first + right_ ? visibility::all
                                                                      : visibility::some;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    return {max(t.k_begin, t.q_begin + t.alignment() - left_),
            min(t.k_end, t.q_end + t.alignment() + right_)};
  }

 private:
  // Beyond every position, and far enough from the end of the range to be added to one.
  static constexpr index_t everything = index_t{1} << 61;

  static constexpr index_t distance(const char* side, index_t value) {
    if (value < unlimited) {
      raise(std::string("window: ") + side + " " + std::to_string(value) +
            " is negative (-1 stands for unlimited)");
    }
    return value == unlimited || value > everything ? everything : value;
  }

  index_t left_;
  index_t right_;
};

HEED_NAMESPACE_END
