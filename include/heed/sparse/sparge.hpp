// SpargeAttn (Zhang et al., "Accurate Sparse Attention Accelerating Any Model Inference", 2025),
// its first stage: blocks of keys chosen by pooled queries and keys.
//
//   P̂ = softmax(scale·mean(q block)·mean(k block))     over the self-similar key blocks
//   sim(block) = |Σ_i x_i/|x_i||² / n²                   the mean cosine of all pairs of its rows
//
// Of every row of P̂ a selector keeps blocks: top_p{τ, false} as in the paper, or top_k. Blocks
// whose mean says little (sim ≤ θ) are always computed: such a key block for all queries, such a
// query block against all keys.
//
//   sparge(q, k, v, out, top_p{0.9, false}, sparge_options{}, heed::causal{}, …)
//
// The second stage (leaving out P·V where a block's maximum is far below the running one) and the
// 8-bit products are not part of it.
#pragma once

#include <cmath>
#include <vector>

#include "attention.hpp"
#include "estimate.hpp"
#include "select.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

struct sparge_options {
  index_t block_q = 128, block_k = 64;
  double similarity = 0.1;  // θ
  bool causal = false;      // leave out future blocks; the mask is the call's
  double scale = 0;         // 0: 1/√D
};

// Mean cosine of the rows of every block, as [B, H, ⌈L / block⌉, 1].
template <viewable X, executor E = const serial>
table self_similarity(const X& x, index_t block, E&& runner = {}) {
  estimation::check_block("block", block);
  const auto rows = estimation::rows_of("x", x);
  const index_t length = rows.extent(2), depth = rows.extent(3), heads = rows.extent(1);
  table result({rows.extent(0), heads, estimation::blocks(length, block), 1});
  const auto out = result.view();
  runner.run(rows.extent(0) * heads, [&](index_t item, int) {
    std::vector<float> row(static_cast<std::size_t>(depth)), sum(row.size());
    for (index_t i = 0; i < length; ++i) {
      if (i % block == 0) sum.assign(row.size(), 0.0f);
      estimation::read_row(rows.row(item / heads, item % heads, i), depth, row.data());
      const float norm = std::sqrt(dot(row.data(), row.data(), depth));
      const float factor = norm > 0 ? 1 / norm : 0.0f;
      for (std::size_t d = 0; d < row.size(); ++d) sum[d] += row[d] * factor;
      if (i + 1 == length || (i + 1) % block == 0) {
        const auto count = static_cast<float>(i % block + 1);
        out(item / heads, item % heads, i / block, 0) =
            dot(sum.data(), sum.data(), depth) / (count * count);
      }
    }
  });
  return result;
}

template <viewable Q, viewable K, selector Selector, executor E = const serial>
block_list sparge_list(const Q& q, const K& k, const Selector& keep, const sparge_options& how = {},
                       E&& runner = {}) {
  const call_shape call = lists::shape_of(q, k);
  const block_shape shape = blocks_of(call, how.block_q, how.block_k);
  table scores = pooled_scores(q, k, how.block_q, how.block_k, how.scale, runner);
  const table query_similarity = self_similarity(q, how.block_q, runner);
  const table key_similarity = self_similarity(k, how.block_k, runner);
  const auto of_query = query_similarity.view(), of_key = key_similarity.view();
  const auto theta = static_cast<float>(how.similarity);
  const index_t group = of_key.extent(1) == 0 ? 1 : call.heads / of_key.extent(1);
  const causal_blocks order{how.block_q, how.block_k, call.queries, call.keys};
  const auto left_out = [&](index_t i, index_t j) { return how.causal && order.future(i, j); };
  const auto all = scores.view();
  for (index_t b = 0; b < shape.batches; ++b) {
    for (index_t h = 0; h < shape.heads; ++h) {
      for (index_t i = 0; i < shape.query_blocks; ++i) {
        for (index_t j = 0; j < shape.key_blocks; ++j) {
          if (of_key(b, h / group, j, 0) <= theta || left_out(i, j)) {
            all(b, h, i, j) = minus_infinity<float>();
          }
        }
      }
    }
  }
  const table& similar_only = scores;
  const block_list chosen = select(similar_only.view(), keep, how.block_q, how.block_k, runner);
  std::vector<std::uint64_t> storage;
  const block_list_view seen = chosen.view().with_bits(storage);
  return list_where(shape, [&](index_t b, index_t h, index_t i, index_t j) {
    if (left_out(i, j)) return false;
    return of_query(b, h, i, 0) <= theta || of_key(b, h / group, j, 0) <= theta ||
           seen(position{b, h, i * how.block_q, j * how.block_k, 0, 0});
  });
}

template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          selector Selector, class... Modifiers>
void sparge(const Q& q, const K& k, const V& v, Out&& out, const Selector& keep,
            const sparge_options& how, const Modifiers&... modifiers) {
  serial on_this_thread;
  const on<serial> here(on_this_thread);
  auto& runner = heed::detail::pick<heed::detail::picks_executor>(here, modifiers...).runner;
  sparse::attention<Backend>(q, k, v, out, sparge_list(q, k, keep, how, runner), modifiers...);
}

}  // namespace sparse
HEED_NAMESPACE_END
