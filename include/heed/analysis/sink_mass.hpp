// The share of a head's attention that goes to its first keys, the attention sinks,
//
//   heads[b, h] = Σ_{j < sinks} sums[b, h, j] / Σ_j sums[b, h, j]
//
// of what column_sums_to reports. 0 for a head without attention. Xiao et al., "Efficient Streaming
// Language Models with Attention Sinks", ICLR 2024, with 4 sinks; Gu et al., "When Attention Sink
// Emerges in Language Models", ICLR 2025, call a head a sink head by its share on the first token.
#pragma once

#include <span>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace analysis {

// sums [B, H, Lk] → heads [B, H]. left_padding [B]: rows before the first key; empty: none.
template <class U, class T>
void sink_mass(const tensor_view<U, 3>& sums, const tensor_view<T, 2>& heads, index_t sinks = 4,
               std::span<const index_t> left_padding = {}) {
  if (heads.extent(0) != sums.extent(0) || heads.extent(1) != sums.extent(1)) {
    raise(message("sink_mass: heads are [")
          << heads.extent(0) << ", " << heads.extent(1) << "], sums have [" << sums.extent(0)
          << ", " << sums.extent(1) << ", …]");
  }
  if (sinks < 1) raise(message("sink_mass: ") << sinks << " sinks, must be 1 or more");
  const auto batches = static_cast<index_t>(left_padding.size());
  if (batches != 0 && batches != sums.extent(0)) {
    raise(message("sink_mass: left_padding has ")
          << batches << " entries for a batch of " << sums.extent(0));
  }
  for (index_t b = 0; b < heads.extent(0); ++b) {
    const index_t first = batches == 0 ? 0 : left_padding[static_cast<std::size_t>(b)];
    for (index_t h = 0; h < heads.extent(1); ++h) {
      double of_sinks = 0, all = 0;
      for (index_t j = 0; j < sums.extent(2); ++j) {
        const double sum = widen<double>(sums(b, h, j));
        all += sum;
        if (j >= first && j - first < sinks) of_sinks += sum;
      }
      heads(b, h) = narrow<T>(all > 0 ? of_sinks / all : 0.0);
    }
  }
}

}  // namespace analysis
HEED_NAMESPACE_END
