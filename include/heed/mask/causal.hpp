// Causal masks: no query attends to a later key. They differ in what "later" means where there are
// more keys than queries, or fewer:
//
//   causal             k ≤ q + keys - queries   the last query is at the last key (lower right)
//   causal_upper_left  k ≤ q                    the first query is at the first key
//
// The decoder's mask of Vaswani et al., "Attention Is All You Need", 2017. Lower right is what
// decoding with a cache needs, and what flash-attention (from 2.1) and ONNX Attention compute;
// upper left is `is_causal` of PyTorch's scaled_dot_product_attention. With more queries than keys,
// `causal` leaves the first queries - keys queries without any key.
//
// Tiles and keys are exact.
#pragma once

#include "algebra.hpp"
#include "detail/answer.hpp"

HEED_NAMESPACE_BEGIN

struct causal {
  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    return mask_detail::key_at_most(p, p.aligned_q());
  }
  key_interval interval(const position& p) const { return {0, p.aligned_q() + 1}; }

  visibility tile(const tile_extent& t) const {
    if (t.k_begin > t.q_end - 1 + t.alignment()) return visibility::none;
    return t.k_end - 1 <= t.q_begin + t.alignment() ? visibility::all : visibility::some;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    return {t.k_begin, min(t.k_end, t.q_end + t.alignment())};
  }
};

struct causal_upper_left {
  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    return mask_detail::key_at_most(p, p.q);
  }
  key_interval interval(const position& p) const { return {0, p.q + 1}; }

  visibility tile(const tile_extent& t) const {
    if (t.k_begin > t.q_end - 1) return visibility::none;
    return t.k_end - 1 <= t.q_begin ? visibility::all : visibility::some;
  }
  key_ranges visible_keys(const tile_extent& t) const { return {t.k_begin, min(t.k_end, t.q_end)}; }
};

HEED_NAMESPACE_END
