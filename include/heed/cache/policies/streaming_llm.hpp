// StreamingLLM: the first `sinks` tokens of a sequence, whose keys soak up attention that has no
// better place, and the newest tokens.
//
//   score = ∞ for positions p < sinks, else p
//
// Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023. The ring store
// keeps the same tokens without moving any.
#pragma once

#include "../policy.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

struct streaming_llm {
  index_t sinks;

  explicit streaming_llm(index_t first = 4) : sinks(first) {
    if (first < 0) raise(message("streaming_llm: ") << first << " sinks, must not be negative");
  }
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    e.for_each_head([&](index_t b, index_t h) {
      double* row = scores.row(b, h);
      for (const token_position p : e.kept.at(b, h)) {
        *row++ = p < sinks ? highest_score : static_cast<double>(p);
      }
    });
  }
};

// All slots but [begin, end): what is kept when a range of tokens leaves.
template <store Store>
kept_tokens all_but(const Store& store, index_t begin, index_t end) {
  const auto kept = store.kept();
  if (begin < 0 || end < begin) {
    raise(message("all_but: [") << begin << ", " << end << ") is no range of slots");
  }
  kept_tokens result(static_cast<index_t>(kept.seen.size()), kept.key_heads);
  for (index_t b = 0; b < result.batches(); ++b) {
    for (index_t h = 0; h < result.key_heads(); ++h) {
      const auto slots = static_cast<index_t>(kept.at(b, h).size());
      for (index_t i = 0; i < slots; ++i) {
        if (i < begin || i >= end) result.at(b, h).push_back(i);
      }
    }
  }
  return result;
}

}  // namespace cache
HEED_NAMESPACE_END
