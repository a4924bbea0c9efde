// Relative attention with an embedding for every distance back:
//
//   score = scale · (q_i · k_j + q_i · e_h[j − i + N − 1])       for j ≤ i
//
//   table  [H|1, N, D], or [N, D] for all heads, N at least the number of keys; entry N − 1 is for
//          the key at the query's own position (the last query at the last key), entry 0 for the
//          farthest one behind
//
// Meant for a causal call. Keys ahead of the query have no embedding of their own: where a mask
// lets them through they get that of the query's own position. The paper skews an L × L product
// Q·Eᵀ; here nothing of that size exists.
//
// Huang et al., "Music Transformer", ICLR 2019.
#pragma once

#include "relative_embedding.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class music_transformer : public relative_embedding<T> {
 public:
  template <class U, int Rank>
  explicit music_transformer(tensor_view<U, Rank> table)
      : relative_embedding<T>(table, 1 - table.extent(Rank - 2)) {}

  void check(const call_shape& shape) const {
    if (this->entries() < shape.keys) {
      raise(message("music_transformer: table has ")
            << this->entries() << " distances, call has " << shape.keys << " keys");
    }
    relative_embedding<T>::check(shape);
  }
};

template <class U, int Rank>
music_transformer(tensor_view<U, Rank>) -> music_transformer<std::remove_const_t<U>>;

HEED_NAMESPACE_END
