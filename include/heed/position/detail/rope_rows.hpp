// Turns the pairs of one row.
#pragma once

#include <type_traits>

#include "../../core/element.hpp"
#include "../rope_options.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// Pairs that are turned together: enough to fill a register of any width.
inline constexpr int pairs_at_once = 16;

// Pairs [begin, begin + Count) of one row; count is Count where that is not 0. All are read before
// one is written, so that out may be x.
template <int Count, class Real, class T, class U>
HEED_INLINE void rotate_pairs(const T* x, U* out, const Real* cosines, const Real* sines,
                              index_t begin, index_t count, index_t half, rope_pairing pairing) {
  if constexpr (Count != 0) count = Count;
  const index_t step = pairing == rope_pairing::interleaved ? 2 : 1;
  const index_t a = begin * step, b = pairing == rope_pairing::interleaved ? a + 1 : a + half;
  Real first[pairs_at_once], second[pairs_at_once];
  if (step == 1) {
    for (index_t i = 0; i < count; ++i) first[i] = widen<Real>(x[a + i]);
    for (index_t i = 0; i < count; ++i) second[i] = widen<Real>(x[b + i]);
  } else {
    for (index_t i = 0; i < count; ++i) first[i] = widen<Real>(x[a + 2 * i]);
    for (index_t i = 0; i < count; ++i) second[i] = widen<Real>(x[b + 2 * i]);
  }
  for (index_t i = 0; i < count; ++i) {
    const Real c = cosines[begin + i], s = sines[begin + i];
    const Real turned = first[i] * c - second[i] * s;
    second[i] = first[i] * s + second[i] * c;
    first[i] = turned;
  }
  if (step == 1) {
    for (index_t i = 0; i < count; ++i) out[a + i] = narrow<U>(first[i]);
    for (index_t i = 0; i < count; ++i) out[b + i] = narrow<U>(second[i]);
  } else {
    for (index_t i = 0; i < count; ++i) out[a + 2 * i] = narrow<U>(first[i]);
    for (index_t i = 0; i < count; ++i) out[b + 2 * i] = narrow<U>(second[i]);
  }
}

template <class Real, class T, class U>
void rotate_row(const T* x, U* out, const Real* cosines, const Real* sines, index_t half,
                index_t depth, rope_pairing pairing) {
  index_t begin = 0;
  for (; begin + pairs_at_once <= half; begin += pairs_at_once) {
    rotate_pairs<pairs_at_once>(x, out, cosines, sines, begin, pairs_at_once, half, pairing);
  }
  if (begin < half) {
    rotate_pairs<0>(x, out, cosines, sines, begin, half - begin, half, pairing);
  }
  if (static_cast<const void*>(x) != static_cast<const void*>(out)) {
    for (index_t i = 2 * half; i < depth; ++i) {
      if constexpr (std::is_same_v<T, U>) {
        out[i] = x[i];
      } else {
        out[i] = narrow<U>(widen<Real>(x[i]));
      }
    }
  }
}

}  // namespace detail

HEED_NAMESPACE_END
