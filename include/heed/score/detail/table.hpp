// What score functors that read arrays share: the scalar type of a score, and reads from a table by
// distance, for one key or a pack of keys.
#pragma once

#include "../../core/element.hpp"
#include "../../core/pack.hpp"
#include "../../core/position.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class S>
struct score_scalar {
  using type = S;
};
template <class T, int N>
struct score_scalar<pack<T, N>> {
  using type = T;
};

// float or double, for a score that may be a pack of them.
template <class S>
using score_real = typename score_scalar<S>::type;

// table[index·stride], lane by lane; the caller keeps every index in range.
template <class S, class T>
HEED_INLINE S gather(const T* table, index_t stride, index_t index) {
  return widen<S>(table[index * stride]);
}
template <class S, class T, class I, int N>
HEED_INLINE S gather(const T* table, index_t stride, pack<I, N> index) {
  S result;
  for (int lane = 0; lane < N; ++lane) {
    result.v[lane] = widen<score_real<S>>(table[index.v[lane] * stride]);
  }
  return result;
}

// first[0], first[1], …: one element for each existing key of a pack.
template <class S, class T, class Real, int N>
HEED_INLINE S consecutive(const T* first, const pack_position<Real, N>& p) {
  pack_position<Real, N> from_zero;
  from_zero.valid = p.valid;
  return along_keys<S>(first, 1, from_zero);
}

}  // namespace detail

HEED_NAMESPACE_END
