// SnapKV: attention that the last `window` queries of a prompt pay to the tokens before them,
// pooled along the tokens; the window's own tokens stay.
//
//   score_j = aggregate over the group's query heads of pool_j(Σ_i softmax_j(q_i·k / √D))
//
// Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", 2024. With one budget
// per layer from pyramid_budgets() it is PyramidKV (Cai et al., "PyramidKV: Dynamic KV Cache
// Compression based on Pyramidal Information Funneling", 2024).
#pragma once

#include "../detail/window_attention.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

struct snapkv {
  index_t window, width;
  pooling pool;
  aggregation how;

  explicit snapkv(index_t queries = 32, index_t pooling_width = 5, pooling kind = pooling::mean,
                  aggregation heads = aggregation::mean)
      : window(queries), width(detail::checked_width(pooling_width)), pool(kind), how(heads) {
    if (queries < 1) raise(message("snapkv: window ") << queries << ", must be at least 1");
  }
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    static_assert(Evidence::ordered, "heed: snapkv needs rows in the order of their tokens");
    std::vector<double> raw;
    // The window's tokens are no part of the pooling.
    const auto before = [&](index_t b, index_t h) {
      const auto tokens = e.kept.at(b, h);
      return std::lower_bound(tokens.begin(), tokens.end(), e.seen(b) - window) - tokens.begin();
    };
    detail::window_attention(e, window, causal{}, how, scores,
                             [&](index_t b, index_t h, index_t slots, double* row) {
                               const index_t count = before(b, h);
                               raw.assign(row, row + count);
                               detail::pool_tokens(raw, width, pool, row);
                               for (index_t j = count; j < slots; ++j) row[j] = 0;
                             });
    e.for_each_head([&](index_t b, index_t h) {
      for (index_t j = before(b, h); j < e.slots(b, h); ++j) scores(b, h, j) = highest_score;
    });
  }
};

}  // namespace cache
HEED_NAMESPACE_END
