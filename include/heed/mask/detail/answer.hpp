// What a mask answers: bool for one position, one boolean per lane for a pack of keys; how answers
// combine, and how the keys of either compare with a bound.
#pragma once

#include "../../core/position.hpp"

HEED_NAMESPACE_BEGIN

namespace mask_detail {

template <class Key>
struct answer_for {
  using type = bool;
};
template <class T, int N>
struct answer_for<pack<T, N>> {
  using type = typename pack<T, N>::mask;
};

// bool for a position, lane_mask for a pack_position.
template <class P>
using answer = typename answer_for<decltype(P::k)>::type;

// And and or of answers. For bool not written with & and |, which clang warns about where an
// operand is a call.
HEED_INLINE bool both(bool a, bool b) { return a && b; }
HEED_INLINE bool either(bool a, bool b) { return a || b; }
template <int Bytes, int N>
HEED_INLINE lane_mask<Bytes, N> both(lane_mask<Bytes, N> a, lane_mask<Bytes, N> b) {
  return a & b;
}
template <int Bytes, int N>
HEED_INLINE lane_mask<Bytes, N> either(lane_mask<Bytes, N> a, lane_mask<Bytes, N> b) {
  return a | b;
}

// A bound on keys as a value that a lane can hold. Keys always fit, but a bound computed from them
// may lie outside: a window wider than 32 bits, or a query far behind the last key.
template <class Key>
HEED_INLINE index_t clamp_to_lane(index_t bound) {
  if constexpr (is_pack<Key>) {
    if constexpr (sizeof(typename Key::value_type) == 4) {
      return max(min(bound, INT32_MAX), INT32_MIN);
    }
  }
  return bound;
}

template <class P>
HEED_INLINE answer<P> key_at_least(const P& p, index_t first) {
  return p.k >= clamp_to_lane<decltype(P::k)>(first);
}
template <class P>
HEED_INLINE answer<P> key_at_most(const P& p, index_t last) {
  return p.k <= clamp_to_lane<decltype(P::k)>(last);
}
template <class P>
HEED_INLINE answer<P> key_between(const P& p, index_t first, index_t last) {
  return both(key_at_least(p, first), key_at_most(p, last));
}

}  // namespace mask_detail

HEED_NAMESPACE_END
