// The keys with the largest weights of every query.
//
//   indices [B, Hq, Lq, K]   integers of 16 bits or more: columns of the call's key axis, largest
//                            weight first, lower column first among equals; −1 behind the last
//   weights [B, Hq, Lq, K]   their weights, 0 behind the last; may be left out
#pragma once

#include <algorithm>
#include <concepts>
#include <limits>

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <std::signed_integral I, element T = float>
struct top_keys_to {
  // While keys are sought, places in a row stand for them: 64 for every source at least.
  static_assert(sizeof(I) >= 2, "heed: top_keys_to needs indices of 16 bits or more");
  static constexpr bool needs_visibility = true;
  tensor_view<I, 4> indices;
  tensor_view<T, 4> weights;

  template <int Rank>
  explicit top_keys_to(tensor_view<I, Rank> keys) : indices(keys.template lifted<4>()) {}
  template <int Rank>
  top_keys_to(tensor_view<I, Rank> keys, tensor_view<T, Rank> of_keys)
      : indices(keys.template lifted<4>()), weights(of_keys.template lifted<4>()) {}

  template <class Row>
  void observe(const Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    const index_t most = indices.extent(3);
    // A heap of places in the row, the least of them in front; in the end columns take their place.
    I* best = indices.row(row.batch, row.head, row.row);
    index_t held = 0;
    const auto before = [&](I a, I b) {
      const real of_a = row.weights[a], of_b = row.weights[b];
      return of_a > of_b || (of_a == of_b && a < b);
    };
    const pack_type bound(reached_by(row, most));
    for (index_t i = 0; i < row.run_count; ++i) {
      for (int c = 0; c < Row::run_keys; c += Row::lanes) {
        std::uint64_t candidates =
            row.visible(i) >> c & ~std::uint64_t{0} >> (Row::run_keys - Row::lanes);
        const index_t at = i * Row::run_keys + c;
        const pack_type w = load_pack<pack_type>(row.weights + at);
        candidates &= to_bits(!(w < bound));
        if (held == most && candidates != 0) {
          candidates &= to_bits(w > pack_type(row.weights[best[0]]));
        }
        for (; candidates != 0; candidates &= candidates - 1) {
          const I place = static_cast<I>(at + __builtin_ctzll(candidates));
          if (held < most) {
            best[held++] = place;
          } else if (before(place, best[0])) {
            std::pop_heap(best, best + held, before);
            best[held - 1] = place;
          } else {
            continue;
          }
          std::push_heap(best, best + held, before);
        }
      }
    }
    std::sort_heap(best, best + held, before);
    for (index_t rank = 0; rank < held; ++rank) {
      const index_t place = best[rank];
      if (weights.data() != nullptr) {
        weights(row.batch, row.head, row.row, rank) = narrow<T>(row.weights[place]);
      }
      best[rank] = static_cast<I>(row.runs[place / Row::run_keys].column + place % Row::run_keys);
    }
  }

  void clear() const {
    observer_detail::fill(indices, static_cast<I>(-1));
    if (weights.data() != nullptr) observer_detail::fill(weights, narrow<T>(0.f));
  }
  void check(const call_shape& shape) const {
    const index_t most = indices.extent(3);
    if (most < 1)
      raise(message("top_keys_to: ") << most << " keys are asked for, must be 1 or more");
    observer_detail::check_target("top_keys_to", indices,
                                  {shape.batches, shape.heads, shape.queries, most}, "length",
                                  "key count");
    // Places in a row are counted in whole steps of 64 keys.
    if (shape.keys > static_cast<index_t>(std::numeric_limits<I>::max()) / 2) {
      raise(message("top_keys_to: ") << shape.keys << " keys are too many for its index type");
    }
    if (weights.data() != nullptr) {
      observer_detail::check_target("top_keys_to: weights", weights,
                                    {shape.batches, shape.heads, shape.queries, most}, "length",
                                    "key count");
    }
  }
  // Most keys need no look at the heap: a bound that at least `most` weights reach, if it is
  // positive, is the most-th largest of the maxima of the 64 columns of all runs.
  template <class Row>
  static typename Row::real reached_by(const Row& row, index_t most) {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    real maxima[Row::run_keys] = {};
    if (most > Row::run_keys) return masked_score<real>;
    for (index_t i = 0; i < row.run_count; ++i) {
      for (int c = 0; c < Row::run_keys; c += Row::lanes) {
        store_pack(maxima + c, max(load_pack<pack_type>(row.weights + i * Row::run_keys + c),
                                   load_pack<pack_type>(maxima + c)));
      }
    }
    std::nth_element(maxima, maxima + most - 1, maxima + Row::run_keys,
                     [](real a, real b) { return a > b; });
    return maxima[most - 1] > 0 ? maxima[most - 1] : masked_score<real>;
  }

  template <class Use>
  void outputs(const Use& use) const {
    use("top_keys_to", indices);
    if (weights.data() != nullptr) use("top_keys_to: weights", weights);
  }
};
template <class I, int Rank>
top_keys_to(tensor_view<I, Rank>) -> top_keys_to<I>;
template <class I, class T, int Rank>
top_keys_to(tensor_view<I, Rank>, tensor_view<T, Rank>) -> top_keys_to<I, T>;

HEED_NAMESPACE_END
