// The scores that the softmax, or another normaliser, sees: scaled, after all score functors,
//
//   scores[b, h, i, j] = s_ij        [B, Hq, Lq, Lk], natural units; −∞ where i does not see j
//
// and the largest of every row, what tells how close logits come to overflow,
//
//   largest[b, h, i] = max_j s_ij    [B, Hq, Lq]; −∞ for a query that sees no key; without sinks
#pragma once

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
struct scores_to {
  tensor_view<T, 4> scores;

  template <int Rank>
  explicit scores_to(tensor_view<T, Rank> target) : scores(target.template lifted<4>()) {}

  template <class Row>
  void observe_scores(const Row& row) const {
    using real = typename Row::real;
    T* to = scores.row(row.batch, row.head, row.row);
    row.for_each([&](real s, const key_run& run, int c) {
      to[run.column + c] = narrow<T>(s <= masked_score<real> ? minus_infinity<real>() : s);
    });
  }

  void clear() const { observer_detail::fill(scores, narrow<T>(minus_infinity<float>())); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("scores_to", scores,
                                  {shape.batches, shape.heads, shape.queries, shape.keys}, "length",
                                  "key count");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("scores_to", scores);
  }
};
template <class T, int Rank>
scores_to(tensor_view<T, Rank>) -> scores_to<T>;

template <element T>
struct largest_scores_to {
  tensor_view<T, 3> largest;

  template <int Rank>
  explicit largest_scores_to(tensor_view<T, Rank> target) : largest(target.template lifted<3>()) {}

  template <class Row>
  void observe_scores(const Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    const real top = row.largest([](pack_type s) HEED_LAMBDA_INLINE { return s; });
    largest(row.batch, row.head, row.row) =
        narrow<T>(top <= masked_score<real> ? minus_infinity<real>() : top);
  }

  void clear() const { observer_detail::fill(largest, narrow<T>(minus_infinity<float>())); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("largest_scores_to", largest,
                                  {shape.batches, shape.heads, shape.queries}, "length");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("largest_scores_to", largest);
  }
};
template <class T, int Rank>
largest_scores_to(tensor_view<T, Rank>) -> largest_scores_to<T>;

HEED_NAMESPACE_END
