// Dilated sliding window: a query attends to every dilation-th key around its own position,
//
//   dilated_window{left, right, dilation}   i - k = n·dilation with -right ≤ n ≤ left,
//                                           i = q + keys - queries
//   dilated_window{steps, dilation}         the same on both sides
//
// left and right count steps of `dilation` keys, and the query's own key does not count, so that
// dilated_window{w, 1} is window{w}. dilated_window::unlimited opens a side:
// dilated_window{unlimited, 0, l} is the set of every l-th key of the strided pattern of Child et
// al., "Generating Long Sequences with Sparse Transformers", 2019.
//
// Beltagy et al., "Longformer", 2020, section 3.1. A causal dilated window of W keys that counts
// the query's own, as written for PyTorch's flex_attention, is dilated_window{W - 1, 0, dilation}.
//
// Tiles are exact; keys are their hull, tight at both ends.
#pragma once

#include <string>

#include "../core/error.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"

HEED_NAMESPACE_BEGIN

class dilated_window {
 public:
  static constexpr index_t unlimited = -1;

  constexpr dilated_window(index_t steps, index_t dilation)
      : dilation_(checked_dilation(dilation)),
        left_(distance("steps", steps)),
        right_(distance("steps", steps)) {}
  constexpr dilated_window(index_t left, index_t right, index_t dilation)
      : dilation_(checked_dilation(dilation)),
        left_(distance("left", left)),
        right_(distance("right", right)) {}

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    const index_t own = p.aligned_q();
    return mask_detail::both(mask_detail::key_between(p, own - left_, own + right_), on_a_step(p));
  }

  visibility tile(const tile_extent& t) const {
    const reached steps = reached_in(t);
    if (steps.nearest > steps.farthest) return visibility::none;
    // Neighbouring pairs differ by one in i - k: a dilated tile of more than one pair has gaps.
    const index_t nearest = t.q_begin + t.alignment() - (t.k_end - 1);
    const index_t farthest = t.q_end - 1 + t.alignment() - t.k_begin;
    const bool inside = nearest >= -right_ && farthest <= left_;
    return inside && (dilation_ == 1 || nearest == farthest) ? visibility::all : visibility::some;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    const reached steps = reached_in(t);
    if (steps.nearest > steps.farthest) return {};
    return {max(t.k_begin, t.q_begin + t.alignment() - steps.farthest),
            min(t.k_end, t.q_end + t.alignment() - steps.nearest)};
  }

 private:
  // Beyond every position, and far enough from the end of the range to be added to one.
  static constexpr index_t everything = index_t{1} << 61;

  // Whether dilation divides i - k, for keys that lie anywhere.
  HEED_INLINE bool on_a_step(const position& p) const {
    return (p.aligned_q() - p.k) % dilation_ == 0;
  }
  // Keys are consecutive: one division finds the first lane, the others follow.
  template <class Real, int N>
  HEED_INLINE typename pack<Real, N>::mask on_a_step(const pack_position<Real, N>& p) const {
    using mask = typename pack<Real, N>::mask;
    if (dilation_ == 1) return mask(true);
    const index_t rest = (p.aligned_q() - p.first_key) % dilation_;
    mask result(false);
    for (index_t lane = rest < 0 ? rest + dilation_ : rest; lane < N; lane += dilation_) {
      result = result | (p.k == p.first_key + lane);
    }
    return result;
  }

  // The smallest and largest multiple of dilation, within the window, that i - k takes in a tile;
  // none where nearest > farthest.
  struct reached {
    index_t nearest, farthest;
  };
  reached reached_in(const tile_extent& t) const {
    const index_t low = max(-right_, t.q_begin + t.alignment() - (t.k_end - 1));
    const index_t high = min(left_, t.q_end - 1 + t.alignment() - t.k_begin);
    return {-round_down(-low), round_down(high)};
  }
  index_t round_down(index_t value) const {
    const index_t rest = value % dilation_;
    return value - (rest < 0 ? rest + dilation_ : rest);
  }

  static constexpr index_t checked_dilation(index_t value) {
    if (value < 1) {
      raise("dilated_window: dilation " + std::to_string(value) + " is not positive");
    }
    return value < everything ? value : everything;
  }
  constexpr index_t distance(const char* side, index_t steps) const {
    if (steps < unlimited) {
      raise(std::string("dilated_window: ") + side + " " + std::to_string(steps) +
            " is negative (-1 stands for unlimited)");
    }
    index_t result = 0;
    const bool overflow = __builtin_mul_overflow(steps, dilation_, &result);
    return steps == unlimited || overflow || result > everything ? everything : result;
  }

  index_t dilation_;
  index_t left_, right_;  // in keys
};

HEED_NAMESPACE_END
