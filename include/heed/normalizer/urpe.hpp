// Universal relative position encoding: softmax weights times a learned Toeplitz matrix,
//
//   out_i = Σ_j softmax_j(s_ij) · c[h, k − aligned_q + R] · v_j,    |k − aligned_q| ≤ R
//
// which leaves the denominator alone. The table is [H|1, 2R+1], or [2R+1] for all heads, of any
// element type: entry R is for the key at the query's own position. Distances beyond R take the
// entry at the end, as in relative_table; the paper's matrix has R = L − 1, so that there are none.
//
// Luo et al., "Your Transformer May Not be as Powerful as You Expect", NeurIPS 2022.
#pragma once

#include "../core/weight_row.hpp"
#include "../score/relative_table.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class urpe {
 public:
  template <class U, int Rank>
  urpe(tensor_view<U, Rank> table, index_t radius) : table_(table, radius) {}

  // The table's entry is what relative_table adds to a score of 0.
  template <class Row>
  void transform(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    if constexpr (Row::lanes > 1) {
      row.map_at([this](pack_type w, const pack_position<real, Row::lanes>& p)
                     HEED_LAMBDA_INLINE { return w * table_(pack_type(real(0)), p); });
    } else {
      row.map_at([this](real w, const position& p)
                     HEED_LAMBDA_INLINE { return w * table_(real(0), p); });
    }
  }
  void check(const call_shape& shape) const { table_.check(shape); }

 private:
  relative_table<T> table_;
};

template <class U, int Rank>
urpe(tensor_view<U, Rank>, index_t) -> urpe<std::remove_const_t<U>>;

HEED_NAMESPACE_END
