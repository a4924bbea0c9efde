// The weight that every query puts on keys that the caller names,
//
//   weights[b, h, i, n] = p_ij,  j = keys[b, i, n]
//
//   keys    [B|1, Lq, N]     integers: columns of the call's key axis; negative: none
//   weights [B, Hq, Lq, N]   any element type; 0 where there is no key, or the query sees it not
//
// Without the matrix of weights: what the token before gets, the token that is copied, a sink.
#pragma once

#include <concepts>

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <std::signed_integral I, element T>
struct key_weights_to {
  tensor_view<const I, 3> keys;
  tensor_view<T, 4> weights;

  template <class U, int Rank>
  key_weights_to(tensor_view<U, Rank> wanted, tensor_view<T, 4> target)
      : keys(tensor_view<const I, Rank>(wanted).template lifted<3>()), weights(target) {}

  template <class Row>
  void observe(const Row& row) const {
    const I* wanted = keys.row(keys.extent(0) == 1 ? 0 : row.batch, row.row);
    for (index_t n = 0; n < weights.extent(3); ++n) {
      const index_t column = wanted[n];
      // The last run that begins at the column or before it.
      index_t first = 0, behind = row.run_count;
      while (first < behind) {
        const index_t middle = first + (behind - first) / 2;
        (row.runs[middle].column <= column ? first : behind) =
            row.runs[middle].column <= column ? middle + 1 : middle;
      }
      if (first == 0) continue;
      const index_t place = column - row.runs[first - 1].column;
      if (place >= row.runs[first - 1].count) continue;
      weights(row.batch, row.head, row.row, n) =
          narrow<T>(row.weights[(first - 1) * Row::run_keys + place]);
    }
  }

  void clear() const { observer_detail::fill(weights, narrow<T>(0.f)); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("key_weights_to", weights,
                                  {shape.batches, shape.heads, shape.queries, keys.extent(2)},
                                  "length", "key count");
    if ((keys.extent(0) != 1 && keys.extent(0) != shape.batches) ||
        keys.extent(1) != shape.queries) {
      raise(message("key_weights_to: keys are [")
            << keys.extent(0) << ", " << keys.extent(1) << ", …], call has batch " << shape.batches
            << " and length " << shape.queries);
    }
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("key_weights_to", weights);
  }
};
template <class U, int Rank, class T>
key_weights_to(tensor_view<U, Rank>, tensor_view<T, 4>)
    -> key_weights_to<std::remove_const_t<U>, T>;

HEED_NAMESPACE_END
