// Quest (Tang et al., "Query-Aware Sparsity for Efficient Long-Context LLM Inference", 2024): every
// query reads the pages of keys that could matter most to it,
//
//   u(q, page) = Σ_d max(q_d·min_d, q_d·max_d)     min and max over the page's keys
//   out        = attention over the `pages` pages with the highest u, the query's own included
//
//   quest(q, k, v, out, page, pages, heed::lse_to{lse}, …)
//
// Queries stand at the end of the keys and are causal. quest_list keeps the selection: with
// block_bounds of a cache's pages, which change only at the last page.
#pragma once

#include <cmath>

#include "../mask/causal.hpp"
#include "attention.hpp"
#include "estimate.hpp"
#include "select.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// Pages for every query [B, Hq, Lq]; `keys` is the length that the bounds were taken over.
template <viewable Q, executor E = const serial>
block_list quest_list(const Q& q, const std::pair<table, table>& bounds, index_t keys, index_t page,
                      index_t pages, E&& runner = {}) {
  const top_k keep(pages);
  estimation::check_block("page", page);
  table scores = bound_scores(q, bounds, 1.0, runner);
  if (estimation::blocks(keys, page) != scores.extents[3]) {
    raise(message("bounds: ") << scores.extents[3] << " pages, " << keys << " keys have "
                              << estimation::blocks(keys, page) << " of " << page);
  }
  make_causal(scores.view(), {1, page, scores.extents[2], keys}, true);
  const table& final_scores = scores;
  return select(final_scores.view(), keep, 1, page, runner);
}

template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void quest(const Q& q, const K& k, const V& v, Out&& out, index_t page, index_t pages,
           const Modifiers&... modifiers) {
  serial on_this_thread;
  const on<serial> here(on_this_thread);
  auto& runner = heed::detail::pick<heed::detail::picks_executor>(here, modifiers...).runner;
  const index_t keys = lists::shape_of(q, k).keys;
  const block_list list = quest_list(q, block_bounds(k, page, runner), keys, page, pages, runner);
  sparse::attention<Backend>(q, k, v, out, list, causal{}, modifiers...);
}

}  // namespace sparse
HEED_NAMESPACE_END
