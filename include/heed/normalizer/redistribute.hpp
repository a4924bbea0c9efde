// Takes a share of the weight of some keys, attention sinks, and gives it to others in proportion
// to what they have.
//
//   p_ij ← keep·p_ij                               j a sink
//   p_ij ← p_ij·(1 + (1 − keep)·Σ_sinks p / Σ_takers p)   j a taker that is no sink
//
// for the rows whose takers fulfil what is asked of them:
//
//   Σ_{takers that are sinks} p / Σ_takers p ≤ most_sink_share     (ρ)
//   Σ_takers p ≥ least_taken                                       (at least this attention)
//
// and for query heads that are enabled. A row's sum stays what it was; a row without takers is left
// alone. `sinks` and `takers` are bytes per key, [B|1, Lk], ≠ 0 for members, columns as in the
// tensors of k; an empty `takers` means every key.
//
// With the visual tokens as takers this is visual attention redistribution (Kang et al., "See What
// You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025), where sinks are
// found by massive activations; with all keys it is attention calibration (Yu et al., "Unveiling
// and Harnessing Hidden Attention Sinks", ICML 2024), where sinks are found by column_sums_to.
#pragma once

#include <cstdint>
#include <span>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

struct redistribute {
  tensor_view<const std::uint8_t, 2> sinks;
  tensor_view<const std::uint8_t, 2> takers = {};
  double keep = 0.6;
  double most_sink_share = 1;
  double least_taken = 0;
  std::span<const std::uint8_t> enabled_heads = {};  // [Hq]; empty: all

  template <class Row>
  void transform(Row& row) const {
    using real = typename Row::real;
    if (!enabled_heads.empty() && enabled_heads[static_cast<std::size_t>(row.head)] == 0) return;
    const std::uint8_t* sink = sinks.row(sinks.extent(0) == 1 ? 0 : row.batch);
    const std::uint8_t* taker =
        takers.data() == nullptr ? nullptr : takers.row(takers.extent(0) == 1 ? 0 : row.batch);
    const auto takes = [&](index_t column) { return taker == nullptr || taker[column] != 0; };
    real of_sinks = 0, of_taking_sinks = 0, of_takers = 0;
    row.for_each([&](real w, const key_run& run, int c) {
      const index_t column = run.column + c;
      if (sink[column] != 0) {
        of_sinks += w;
        if (takes(column)) of_taking_sinks += w;
      } else if (takes(column)) {
        of_takers += w;
      }
    });
    const real all = of_takers + of_taking_sinks;
    if (!(of_takers > 0) || of_taking_sinks > static_cast<real>(most_sink_share) * all ||
        all < static_cast<real>(least_taken)) {
      return;
    }
    const real kept = static_cast<real>(keep), grown = 1 + (1 - kept) * of_sinks / of_takers;
    row.for_each([&](real& w, const key_run& run, int c) {
      const index_t column = run.column + c;
      if (sink[column] != 0) {
        w *= kept;
      } else if (takes(column)) {
        w *= grown;
      }
    });
  }

  void check(const call_shape& shape) const {
    if (!(keep >= 0 && keep <= 1)) raise("redistribute: keep must lie in [0, 1]");
    check_keys("sinks", sinks, shape);
    if (takers.data() != nullptr) check_keys("takers", takers, shape);
    const auto heads = static_cast<index_t>(enabled_heads.size());
    if (heads != 0 && heads != shape.heads) {
      raise(message("redistribute: enabled_heads has ")
            << heads << " entries, call has " << shape.heads << " heads");
    }
  }

 private:
  static void check_keys(const char* name, const tensor_view<const std::uint8_t, 2>& keys,
                         const call_shape& shape) {
    if (keys.extent(0) != 1 && keys.extent(0) != shape.batches) {
      raise(message("redistribute: ")
            << name << " has batch " << keys.extent(0) << ", call has " << shape.batches);
    }
    if (keys.extent(1) != shape.keys) {
      raise(message("redistribute: ")
            << name << " has " << keys.extent(1) << " keys, call has " << shape.keys);
    }
  }
};

HEED_NAMESPACE_END
