// How much every query attends to each distance, clipped at a radius:
//
//   sums[b, h, i, t] = Σ_j w_ij  over the keys with clamp(j − i, −R, R) + R = t
//
//   [B, Hq, Lq, 2R + 1], any element type; i on the axis of keys, the last query at the last key
//
// What relative embeddings on the value side are multiplied with (dense/shaw_attention.hpp).
#pragma once

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
struct distance_sums_to {
  tensor_view<T, 4> sums;

  template <int Rank>
  explicit distance_sums_to(tensor_view<T, Rank> target) : sums(target.template lifted<4>()) {
    if (sums.extent(3) % 2 == 0) {
      raise(message("distance_sums_to: ")
            << sums.extent(3) << " distances, those within a radius R are 2·R + 1");
    }
  }
  index_t radius() const { return sums.extent(3) / 2; }

  template <class Row>
  void observe(const Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    T* to = sums.row(row.batch, row.head, row.row);
    const index_t reach = radius();
    real before = 0, behind = 0;  // kept apart: they may be sums over most of the keys
    for (index_t i = 0; i < row.run_count; ++i) {
      const position first = row.first(i);
      const index_t distance = first.k - first.aligned_q();
      const real* weights = row.weights + i * Row::run_keys;
      const int count = row.runs[i].count;
      if (distance >= reach || distance + count - 1 <= -reach) {
        pack_type total(real(0));
        for (int c = 0; c < Row::run_keys; c += Row::lanes) {
          total += load_pack<pack_type>(weights + c);
        }
        (distance >= reach ? behind : before) += sum_lanes(total);
        continue;
      }
      for (int c = 0; c < count; ++c) {
        const index_t at = distance + c;
        if (at <= -reach) {
          before += weights[c];
        } else if (at >= reach) {
          behind += weights[c];
        } else {
          to[at + reach] = narrow<T>(weights[c]);
        }
      }
    }
    to[0] = narrow<T>(reach == 0 ? before + behind : before);
    if (reach > 0) to[2 * reach] = narrow<T>(behind);
  }

  void clear() const { observer_detail::fill(sums, narrow<T>(0.f)); }
  void check(const call_shape& shape) const {
    observer_detail::check_target("distance_sums_to", sums,
                                  {shape.batches, shape.heads, shape.queries, sums.extent(3)},
                                  "length");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("distance_sums_to", sums);
  }
};
template <class T, int Rank>
distance_sums_to(tensor_view<T, Rank>) -> distance_sums_to<T>;

HEED_NAMESPACE_END
