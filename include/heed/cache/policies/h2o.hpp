// H2O, heavy hitters: the attention that a token has received from all queries so far, and the
// newest tokens.
//
//   score_j = Σ_i softmax_j(q_i·k / √D),  over all queries i since token j came
//
// Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
// Models", 2023: half of the budget is for the newest tokens. After a prompt, attention_received
// scores the prompt's queries; h2o(recent) goes on adding while tokens are generated:
//
//   auto policy = cache::h2o(10);
//   cache::compress(policy, prompt_queries, store, 16);         // then, for each new token,
//   cache::compress(policy, new_query, store, 16);
#pragma once

#include "../detail/window_attention.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// The column sums of attention over the queries of this call, under a mask that sees original
// positions.
template <class Mask = causal>
struct attention_received {
  aggregation how;
  [[no_unique_address]] Mask mask;

  explicit attention_received(aggregation heads = aggregation::mean, const Mask& visible = Mask())
      : how(heads), mask(visible) {}

  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    detail::window_attention(e, e.q.extent(2), mask, how, scores,
                             [](index_t, index_t, index_t, double*) {});
  }
};
// Keeps sums over all calls; `recent` tokens stay in any case.
inline auto h2o(index_t recent, aggregation how = aggregation::mean) {
  return always_keep{accumulated{attention_received<>(how)}, 0, recent};
}

}  // namespace cache
HEED_NAMESPACE_END
