// Routed attention next to causal dense attention of the same shape, call by call in turn.
//
//   routed/moba/float/D:64/S:4096/chunk:256/topk:3/<backend>        routing included
//   routed/nsa/float/D:64/S:4096/gqa:8/block:64/count:8/<backend>   all three branches
//   routed/biformer/float/D:32/image:56x56/windows:7/topk:4/<backend>
//
// Counters, of the fastest calls:
//   gflops        2·(D + Dv) per visible score
//   of_ceiling    gflops over what multiply-adds from registers reach
//   time_ratio    time over that of dense attention (causal; for biformer over the whole image)
//   score_ratio   visible scores over those of dense attention: what time_ratio could be
//   over_list     time over that of the same lists in the tile loop (sparse::attention)
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <heed/mask/causal.hpp>
#include <heed/routed/biformer.hpp>
#include <heed/routed/moba.hpp>
#include <heed/routed/nsa.hpp>
#include <limits>
#include <string>
#include <vector>

#include "support/dense_case.hpp"

namespace {

using namespace heed_bench;
namespace routed = heed::routed;
namespace sparse = heed::sparse;
using call = std::function<void()>;

void compare(benchmark::State& state, const call& ours, const call& dense, const call& by_list,
             double scores, double dense_scores, index_t depth) {
  constexpr double never = std::numeric_limits<double>::infinity();
  double mine = never, theirs = never, listed = never;
  ours(), dense();
  for ([[maybe_unused]] auto _ : state) {
    mine = std::min(mine, cpu_seconds_of(ours));
    state.PauseTiming();
    theirs = std::min(theirs, cpu_seconds_of(dense));
    if (by_list) listed = std::min(listed, cpu_seconds_of(by_list));
    state.ResumeTiming();
  }
  const double gflops = 4e-9 * static_cast<double>(depth) * scores / mine;
  state.counters["gflops"] = gflops;
  state.counters["of_ceiling"] = gflops / fma_gflops<float>();
  state.counters["time_ratio"] = mine / theirs;
  state.counters["score_ratio"] = scores / dense_scores;
  if (by_list) state.counters["over_list"] = mine / listed;
}

// Scores that causality leaves of a list with a row per query.
double visible(const sparse::block_list& list) {
  double count = 0;
  const auto view = list.view();
  for (index_t b = 0; b < list.shape.batches; ++b) {
    for (index_t h = 0; h < list.shape.heads; ++h) {
      for (index_t i = 0; i < list.shape.query_blocks; ++i) {
        for (index_t j : view.row(b, h, i)) {
          const index_t first = j * list.shape.block_k;
          count += static_cast<double>(std::min(list.shape.block_k, i + 1 - first));
        }
      }
    }
  }
  return count;
}

template <class Backend>
void add_moba(index_t depth, index_t length, index_t chunk, index_t topk) {
  const std::string name = "routed/moba/float/D:" + std::to_string(depth) +
                           "/S:" + std::to_string(length) + "/chunk:" + std::to_string(chunk) +
                           "/topk:" + std::to_string(topk) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<float>(prefill(1, length, depth));
    const auto q = x.query_view();
    const auto k = x.key_view();
    const auto v = x.value_view();
    const auto out = x.out_view();
    const double scores = visible(routed::moba_list(q, k, chunk, topk));
    compare(
        state, [&] { routed::moba<Backend>(q, k, v, out, chunk, topk); },
        [&] { heed::attention<Backend>(q, k, v, out, heed::causal{}); },
        [&] {
          sparse::attention<Backend>(q, k, v, out, routed::moba_list(q, k, chunk, topk),
                                     heed::causal{});
        },
        scores, visible_scores(mask_kind::causal, length, length), depth);
  });
}

template <class Backend>
void add_nsa(index_t depth, index_t length, index_t group, index_t count) {
  const std::string name = "routed/nsa/float/D:" + std::to_string(depth) +
                           "/S:" + std::to_string(length) + "/gqa:" + std::to_string(group) +
                           "/block:64/count:" + std::to_string(count) + "/" +
                           std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    dense_shape shape = prefill(group, length, depth);
    shape.kv_heads = 1;
    const auto x = make_operands<float>(shape);
    const auto q = x.query_view();
    const auto k = x.key_view();
    const auto v = x.value_view();
    const auto out = x.out_view();
    routed::nsa_options how;
    how.count = count, how.window = 256;
    const sparse::table keys = sparse::pooled_means(k, 64), values = sparse::pooled_means(v, 64);
    const std::vector<float> half(static_cast<std::size_t>(group * length), 0.5f);
    const heed::tensor_view<const float, 3> gate(half.data(), {1, group, length});
    const routed::nsa_gates<float> gates{gate, gate, gate};
    const auto heads = static_cast<double>(group);
    const double selected = visible(routed::nsa_list(q, keys.view(), how)) * heads;
    const double all = visible_scores(mask_kind::causal, length, length);
    const double scores =
        selected + heads * (visible_scores(mask_kind::window256, length, length) + all / 64);
    compare(
        state, [&] { routed::nsa<Backend>(q, k, v, keys.view(), values.view(), gates, how, out); },
        [&] { heed::attention<Backend>(q, k, v, out, heed::causal{}); }, {}, scores, all * heads,
        depth);
  });
}

template <class Backend>
void add_biformer(index_t heads, index_t depth, index_t side) {
  const std::string name = "routed/biformer/float/D:" + std::to_string(depth) +
                           "/image:" + std::to_string(side) + "x" + std::to_string(side) +
                           "/windows:7/topk:4/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<float>(prefill(heads, side * side, depth));
    routed::region_options how;
    how.height = how.width = side;
    const auto tokens = static_cast<double>(side * side);
    compare(
        state,
        [&] {
          routed::biformer<Backend>(x.query_view(), x.key_view(), x.value_view(), how,
                                    x.out_view());
        },
        [&] {
          heed::attention<Backend>(x.query_view(), x.key_view(), x.value_view(), x.out_view());
        },
        {}, static_cast<double>(heads) * tokens * tokens * 4 / 49,
        static_cast<double>(heads) * tokens * tokens, depth);
  });
}

[[maybe_unused]] const bool registered = [] {
  using native = heed::backend::native;
  add_moba<native>(64, 4096, 256, 3);
  add_moba<native>(128, 8192, 512, 3);
  add_nsa<native>(64, 4096, 8, 8);
  add_biformer<native>(4, 32, 56);
  return true;
}();

}  // namespace
