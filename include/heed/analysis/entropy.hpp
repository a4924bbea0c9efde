// How spread out a head's attention is: the mean over its queries of what row_entropy_to reports,
//
//   heads[b, h] = 1/n Σ_i entropy[b, h, i],  n = Lq, or the entry's number of queries
//
// in nats. Low entropy at many keys is a head that looks at few of them (previous token, sink,
// retrieval); entropy that collapses in training is what normed queries and keys prevent (Zhai et
// al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", ICML 2023).
#pragma once

#include <span>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace analysis {

// entropy [B, H, Lq] → heads [B, H]; query_lengths [B], empty: all rows. 0 without queries.
template <class U, class T>
void head_entropy(const tensor_view<U, 3>& entropy, const tensor_view<T, 2>& heads,
                  std::span<const index_t> query_lengths = {}) {
  if (heads.extent(0) != entropy.extent(0) || heads.extent(1) != entropy.extent(1)) {
    raise(message("head_entropy: heads are [")
          << heads.extent(0) << ", " << heads.extent(1) << "], entropy has [" << entropy.extent(0)
          << ", " << entropy.extent(1) << ", …]");
  }
  const auto batches = static_cast<index_t>(query_lengths.size());
  if (batches != 0 && batches != entropy.extent(0)) {
    raise(message("head_entropy: ")
          << batches << " query lengths for a batch of " << entropy.extent(0));
  }
  for (const index_t rows : query_lengths) {
    if (rows < 0 || rows > entropy.extent(2)) {
      raise(message("head_entropy: query length ")
            << rows << " is outside [0, " << entropy.extent(2) << "]");
    }
  }
  for (index_t b = 0; b < heads.extent(0); ++b) {
    const index_t rows =
        batches == 0 ? entropy.extent(2) : query_lengths[static_cast<std::size_t>(b)];
    for (index_t h = 0; h < heads.extent(1); ++h) {
      double sum = 0;
      for (index_t i = 0; i < rows; ++i) sum += widen<double>(entropy(b, h, i));
      heads(b, h) = narrow<T>(rows > 0 ? sum / static_cast<double>(rows) : 0.0);
    }
  }
}

}  // namespace analysis
HEED_NAMESPACE_END
