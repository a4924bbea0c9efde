// The weights themselves, for pictures and tests: what multiplies v,
//
//   weights[b, h, i, j] = p_ij        [B, Hq, Lq, Lk], any element type; 0 where i does not see j
//
// The only observer whose output grows with Lq·Lk.
#pragma once

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
struct weights_to {
  tensor_view<T, 4> weights;

  template <int Rank>
  explicit weights_to(tensor_view<T, Rank> target) : weights(target.template lifted<4>()) {}

  template <class Row>
  void observe(const Row& row) const {
    using real = typename Row::real;
    T* to = weights.row(row.batch, row.head, row.row);
    row.for_each([&](real w, const key_run& run, int c) { to[run.column + c] = narrow<T>(w); });
  }

  void clear() const { observer_detail::fill(weights, narrow<T>(0.f)); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("weights_to", weights,
                                  {shape.batches, shape.heads, shape.queries, shape.keys}, "length",
                                  "key count");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("weights_to", weights);
  }
};
template <class T, int Rank>
weights_to(tensor_view<T, Rank>) -> weights_to<T>;

HEED_NAMESPACE_END
