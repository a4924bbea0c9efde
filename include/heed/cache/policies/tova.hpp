// TOVA: attention of the newest query, averaged over all heads; one list of tokens for all of them.
//
//   score_j = mean over heads of softmax_j(q_last·k / √D)
//
// Oren et al., "Transformers are Multi-State RNNs", 2024. The newest token may be evicted, as in
// the authors' cache; always_keep{tova{}, 0, 1} keeps it. All heads of a store must hold the same
// tokens.
#pragma once

#include "../detail/window_attention.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

struct tova {
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    e.for_each_head([&](index_t b, index_t h) {
      if (!std::ranges::equal(e.kept.at(b, h), e.kept.at(b, 0))) {
        raise(message("tova: head ")
              << h << " of batch " << b << " holds other tokens than head 0");
      }
    });
    detail::window_attention(e, 1, causal{}, aggregation::mean, scores,
                             [](index_t, index_t, index_t, double*) {});
    for (index_t b = 0; b < e.batches(); ++b) {
      for (index_t j = 0; e.key_heads() > 0 && j < e.slots(b, 0); ++j) {
        double sum = 0;
        for (index_t h = 0; h < e.key_heads(); ++h) sum += scores(b, h, j);
        for (index_t h = 0; h < e.key_heads(); ++h) {
          scores(b, h, j) = sum / static_cast<double>(e.key_heads());
        }
      }
    }
  }
};

}  // namespace cache
HEED_NAMESPACE_END
