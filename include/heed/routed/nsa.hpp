// Native Sparse Attention (Yuan et al., 2025): three branches under gates of their own,
//
//   cmp   attention over compressed blocks (k_cmp, v_cmp) that lie wholly in the past
//   slc   causal attention over `count` selected blocks of keys, the same for all query heads of a
//         KV head: those with the most weight in the compressed branch, summed over these heads;
//         the first block, the own and the one before it are always among them
//   win   causal attention over the last `window` keys
//   out_i = g_cmp·o_cmp + g_slc·o_slc + g_win·o_win,   gates [B, Hq, L] per query and head
//
//   nsa(q, k, v, k_cmp, v_cmp, {g_cmp, g_slc, g_win}, {block, count, window}, out, …)
//
// k_cmp, v_cmp [B, Hkv, ⌈L / block⌉, D]: sparse::pooled_means, or a compressor of one's own.
#pragma once

#include <cmath>
#include <vector>

#include "../core/check_data.hpp"
#include "../mask/causal.hpp"
#include "../mask/mask.hpp"
#include "../mask/window.hpp"
#include "../sparse/attention.hpp"
#include "../sparse/estimate.hpp"
#include "../sparse/select.hpp"

HEED_NAMESPACE_BEGIN
namespace routed {

struct nsa_options {
  index_t block = 64, count = 16, window = 512;
  double scale = 0;  // 0: 1/√D
};

inline double nsa_scale(const nsa_options& how, index_t depth) {
  return how.scale != 0 ? how.scale : 1 / std::sqrt(static_cast<double>(max(depth, 1)));
}

// Whether a compressed block is seen: its last key is not behind the query.
inline auto nsa_complete(index_t block, index_t queries, index_t keys) {
  return mask{[=](const position& p) { return (p.k + 1) * block - 1 <= p.q + keys - queries; }};
}

// The selection, [B, Hkv, L, blocks].
template <viewable Q, viewable C, executor E = const serial>
sparse::block_list nsa_list(const Q& q, const C& k_cmp, const nsa_options& how, E&& runner = {}) {
  if (how.count < 3) {
    raise(message("nsa: count ")
          << how.count
          << ", must be 3 at least: the first block, the own and the one before "
             "it are always selected");
  }
  const sparse::top_k keep(how.count);
  sparse::estimation::check_block("block", how.block);
  const sparse::table scores = sparse::product_scores(
      q, k_cmp, nsa_scale(how, sparse::estimation::rows_of("q", q).extent(3)), runner);
  const auto from = scores.view();
  const index_t heads = sparse::estimation::rows_of("k_cmp", k_cmp).extent(1);
  const index_t group = heads == 0 ? 1 : from.extent(1) / heads, blocks = from.extent(3);
  sparse::table importance({from.extent(0), heads, from.extent(2), blocks},
                           minus_infinity<float>());
  const auto to = importance.view();
  runner.run(from.extent(0) * heads, [&](index_t item, int) {
    const index_t b = item / heads, h = item % heads;
    for (index_t i = 0; i < from.extent(2); ++i) {
      float* row = to.row(b, h, i);
      const index_t own = i / how.block, complete = min((i + 1) / how.block, blocks);
      for (index_t j = 0; j <= own && j < blocks; ++j) row[j] = 0;
      for (index_t g = h * group; g < (h + 1) * group; ++g) {
        const float* score = from.row(b, g, i);
        float highest = 0, total = 0;
        for (index_t j = 0; j < complete; ++j) {
          highest = j == 0 || score[j] > highest ? score[j] : highest;
        }
        for (index_t j = 0; j < complete; ++j) total += std::exp(score[j] - highest);
        for (index_t j = 0; j < complete; ++j) row[j] += std::exp(score[j] - highest) / total;
      }
      for (index_t j : {index_t{0}, own - 1, own}) {
        if (j >= 0 && j < blocks) row[j] = -minus_infinity<float>();
      }
    }
  });
  const sparse::table& final_importance = importance;
  return sparse::select(final_importance.view(), keep, 1, how.block, runner);
}

template <class T>
struct nsa_gates {
  tensor_view<const T, 3> compressed, selected, window;
};

// Options: on, scratch.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable KC,
          viewable VC, class T, viewable Out, class... Modifiers>
void nsa(const Q& q, const K& k, const V& v, const KC& k_cmp, const VC& v_cmp,
         const nsa_gates<T>& gates, const nsa_options& how, Out&& result,
         const Modifiers&... modifiers) {
  static_assert(
      (... && (heed::detail::is_on<Modifiers> || std::is_same_v<Modifiers, scratch>)),
      "heed::routed::nsa takes on and scratch; masks and scores would mean another thing in each "
      "of its branches");
  serial on_this_thread;
  const on<serial> here(on_this_thread);
  auto& runner = heed::detail::pick<heed::detail::picks_executor>(here, modifiers...).runner;
  const call_shape call = sparse::lists::shape_of(q, k);
  const auto out = output_view_of(result).template lifted<4>();
  using out_type = typename std::remove_cvref_t<decltype(out)>::value_type;
  using Real = accumulator<view_element<Q>, view_element<K>, view_element<V>, out_type>;
  if (call.queries != call.keys) {
    raise(message("q: length ") << call.queries << " differs from k's " << call.keys);
  }
  if (how.window < 1) raise(message("nsa: window ") << how.window << " is not positive");
  const index_t blocks = sparse::blocks_of(call, 1, how.block).key_blocks;
  if (sparse::estimation::rows_of("k_cmp", k_cmp).extent(2) != blocks) {
    raise(message("k_cmp: length ") << sparse::estimation::rows_of("k_cmp", k_cmp).extent(2)
                                    << " differs from the number of blocks, " << blocks);
  }
  for (const auto* gate : {&gates.compressed, &gates.selected, &gates.window}) {
    heed::detail::check_data("gates", *gate);
    if (gate->extent(0) != call.batches || gate->extent(1) != call.heads ||
        gate->extent(2) != call.queries) {
      raise(message("gates: [") << gate->extent(0) << ", " << gate->extent(1) << ", "
                                << gate->extent(2) << "] differs from q's [" << call.batches << ", "
                                << call.heads << ", " << call.queries << "]");
    }
  }
  sparse::lists::check_axes("out", out, "q", read_view_of(q).template lifted<4>(), true);
  const auto written = heed::detail::erase("out", out);
  heed::detail::check_operand(written);
  heed::detail::check_distinct_rows(written);
  if (out.empty()) return;
  const scale factor(nsa_scale(how, sparse::estimation::rows_of("q", q).extent(3)));
  const sparse::block_list list = nsa_list(q, k_cmp, how, runner);
  std::vector<Real> numbers[3];
  tensor_view<Real, 4> branch[3];
  for (int i = 0; i < 3; ++i) {
    numbers[i].resize(static_cast<std::size_t>(out.size()));
    branch[i] = {numbers[i].data(), out.extents()};
  }
  heed::attention<Backend>(q, k_cmp, v_cmp, branch[0],
                           nsa_complete(how.block, call.queries, call.keys), factor, modifiers...);
  sparse::attention<Backend>(q, k, v, branch[1], list, causal{}, factor, modifiers...);
  heed::attention<Backend>(q, k, v, branch[2], window{how.window - 1, 0}, factor, modifiers...);
  runner.run(call.batches * call.heads, [&](index_t item, int) {
    const index_t b = item / call.heads, h = item % call.heads;
    for (index_t i = 0; i < call.queries; ++i) {
      const Real g[3] = {widen<Real>(gates.compressed(b, h, i)),
                         widen<Real>(gates.selected(b, h, i)), widen<Real>(gates.window(b, h, i))};
      for (index_t d = 0; d < out.extent(3); ++d) {
        out(b, h, i, d) =
            narrow<out_type>(g[0] * branch[0](b, h, i, d) + g[1] * branch[1](b, h, i, d) +
                             g[2] * branch[2](b, h, i, d));
      }
    }
  });
}

}  // namespace routed
HEED_NAMESPACE_END
