// Relative position representations of the keys, clipped at a radius:
//
//   score = scale · q_i · (k_j + e_h[clamp(j − i, −R, R) + R])
//
//   table  [H|1, 2R+1, D], or [2R+1, D] for all heads; entry R is for the key at the query's own
//          position (the last query at the last key), entry 2R for keys R or more ahead
//
// Shaw, Uszkoreit and Vaswani, "Self-Attention with Relative Position Representations", NAACL 2018.
#pragma once

#include "relative_embedding.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class shaw : public relative_embedding<T> {
 public:
  template <class U, int Rank>
  shaw(tensor_view<U, Rank> table, index_t radius)
      : relative_embedding<T>(checked(table, radius), -radius) {}

 private:
  template <class U, int Rank>
  static tensor_view<U, Rank> checked(tensor_view<U, Rank> table, index_t radius) {
    if (radius < 0) raise(message("shaw: radius ") << radius << " is negative");
    const index_t entries = table.extent(Rank - 2);
    // Halved instead of doubled: 2R+1 could overflow.
    if (entries % 2 == 0 || entries / 2 != radius) {
      raise(message("shaw: table has ")
            << entries << " distances, radius " << radius << " needs 2·" << radius << " + 1");
    }
    return table;
  }
};

template <class U, int Rank>
shaw(tensor_view<U, Rank>, index_t) -> shaw<std::remove_const_t<U>>;

HEED_NAMESPACE_END
