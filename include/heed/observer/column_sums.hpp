// How much attention every key gets: the sum of its weights over the queries.
//
//   sums[b, h, j] = Σ_i p_ij        [B, Hq, Lk], or without leading axes as q; any element type
//
// Query heads have sums of their own; what groups do with them is the caller's. Keys that no query
// sees, and rows that are no keys (padding), have 0. With several sources the key axes lie one
// behind the other. Sums are kept in the type of the call's sums and added in an order that depends
// on shapes alone. What H2O, SnapKV and attention calibration select by.
#pragma once

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
struct column_sums_to {
  tensor_view<T, 3> sums;

  template <int Rank>
  explicit column_sums_to(tensor_view<T, Rank> target) : sums(target.template lifted<3>()) {}

  template <class Row, class Real>
  HEED_INLINE void add_columns(const Row& row, Real* to) const {
    using pack_type = typename Row::pack_type;
    for (index_t i = 0; i < row.run_count; ++i) {
      const key_run& run = row.runs[i];
      const Real* w = row.weights + i * Row::run_keys;
      Real* at = to + run.local;
      if (run.count == Row::run_keys) {
        for (int c = 0; c < Row::run_keys; c += Row::lanes) {
          store_pack(at + c, load_pack<pack_type>(at + c) + load_pack<pack_type>(w + c));
        }
      } else {
        for (int c = 0; c < run.count; ++c) at[c] += w[c];
      }
    }
  }
  template <class Real>
  void store_columns(index_t batch, index_t head, index_t column, const Real* from,
                     index_t count) const {
    T* to = sums.row(batch, head) + column;
    for (index_t c = 0; c < count; ++c) to[c] = narrow<T>(from[c]);
  }

  void clear() const { observer_detail::fill(sums, narrow<T>(0.f)); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("column_sums_to", sums, {shape.batches, shape.heads, shape.keys},
                                  "key count");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("column_sums_to", sums);
  }
};
template <class T, int Rank>
column_sums_to(tensor_view<T, Rank>) -> column_sums_to<T>;

HEED_NAMESPACE_END
