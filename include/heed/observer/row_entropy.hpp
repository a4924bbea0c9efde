// How spread out every query's attention is: the entropy of its weights,
//
//   entropy[b, h, i] = −Σ_j p_ij ln p_ij        [B, Hq, Lq], in nats; any element type
//
// 0 where all weight is on one key, and for a query that sees none; ln n where n keys share it
// evenly. Weights that are 0 or negative add nothing. What a sink takes is not counted as a key.
#pragma once

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
struct row_entropy_to {
  tensor_view<T, 3> entropy;

  template <int Rank>
  explicit row_entropy_to(tensor_view<T, Rank> target) : entropy(target.template lifted<3>()) {}

  template <class Row>
  void observe(const Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    // Below this the product is 0 in the result's precision, and the logarithm may see a subnormal.
    const pack_type least(real(1e-37)), none(real(0));
    const real sum = row.sum([&](pack_type p) HEED_LAMBDA_INLINE {
      return select(p <= least, none, p * log(max(p, least)));
    });
    entropy(row.batch, row.head, row.row) = narrow<T>(-sum);
  }

  void clear() const { observer_detail::fill(entropy, narrow<T>(0.f)); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("row_entropy_to", entropy,
                                  {shape.batches, shape.heads, shape.queries}, "length");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("row_entropy_to", entropy);
  }
};
template <class T, int Rank>
row_entropy_to(tensor_view<T, Rank>) -> row_entropy_to<T>;

HEED_NAMESPACE_END
