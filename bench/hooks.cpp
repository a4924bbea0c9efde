// What normalisers, transforms and observers cost, next to the same call without them.
//
//   hooks/<phase>/<hook>/<type>/D:<depth>/S:<keys>/<mask>/<backend>
//
// phase prefill: 8 heads, or 2 where S is 4096; decode: one query, 32 query heads, 8 KV heads.
//
// Counters, from processor time of calls in turn:
//   time_ratio   time over that of the plain call, the least of each
//   gflops       2·H·(D + Dv) per score that is let through
//   of_ceiling   of float FMA
//   scratch_mib  scratch memory of the call: linear in S
#include <benchmark/benchmark.h>

#include <algorithm>
#include <heed/normalizer/entmax15.hpp>
#include <heed/normalizer/relaxed.hpp>
#include <heed/normalizer/relu.hpp>
#include <heed/normalizer/sigmoid.hpp>
#include <heed/normalizer/signed_softmax.hpp>
#include <heed/normalizer/sparsemax.hpp>
#include <heed/observer/block_maxima.hpp>
#include <heed/observer/column_sums.hpp>
#include <heed/observer/row_entropy.hpp>
#include <heed/observer/top_keys.hpp>
#include <limits>
#include <string>
#include <vector>

#include "support/dense_case.hpp"

namespace {

using namespace heed_bench;
using heed::backend::native;

// `hook(targets)` makes the modifier.
struct targets {
  std::vector<float> numbers;
  std::vector<int> indices;
  dense_shape shape;

  explicit targets(const dense_shape& s)
      : numbers(static_cast<std::size_t>(s.query_heads * std::max(s.keys, s.queries))),
        indices(static_cast<std::size_t>(s.query_heads * s.queries * 32)),
        shape(s) {}
  heed::tensor_view<float, 2> per_key() {
    return {numbers.data(), {shape.query_heads, shape.keys}};
  }
  heed::tensor_view<float, 2> per_query() {
    return {numbers.data(), {shape.query_heads, shape.queries}};
  }
  heed::tensor_view<float, 3> blocks() {
    return {numbers.data(), {shape.query_heads, (shape.queries + 63) / 64, (shape.keys + 63) / 64}};
  }
  heed::tensor_view<int, 3> top() {
    return {indices.data(), {shape.query_heads, shape.queries, 32}};
  }
};

template <class Backend, class T, mask_kind Mask, class Hook>
void add(const char* phase, const char* hook_name, const dense_shape& shape, Hook hook) {
  std::string name = std::string("hooks/") + phase + "/" + hook_name + "/" + type_name<T>() +
                     "/D:" + std::to_string(shape.depth) + "/S:" + std::to_string(shape.keys) +
                     "/" + name_of(Mask) + "/";
  name += Backend::name;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<T>(shape);
    targets seen(shape);
    const auto modifier = hook(seen);
    heed::workspace memory;
    const heed::scratch scratch(memory);
    const auto plain = [&] { attend<Backend, Mask>(tensors); };
    const auto hooked = [&] { attend<Backend, Mask>(tensors, modifier, scratch); };
    plain(), hooked();
    double ours = std::numeric_limits<double>::infinity(), theirs = ours;
    for ([[maybe_unused]] auto _ : state) {
      ours = std::min(ours, cpu_seconds_of(hooked));
      state.PauseTiming();
      theirs = std::min(theirs, cpu_seconds_of(plain));
      state.ResumeTiming();
    }
    const double gflops = useful_flops(shape, Mask) / ours * 1e-9;
    state.counters["time_ratio"] = ours / theirs;
    state.counters["gflops"] = gflops;
    state.counters["of_ceiling"] = gflops / fma_gflops<float>();
    state.counters["scratch_mib"] = static_cast<double>(memory.size()) / (1 << 20);
  });
}

template <class Backend, class T, mask_kind Mask>
void add_hooks(const char* phase, const dense_shape& shape) {
  const auto with = [&](const char* name, const auto& hook) {
    add<Backend, T, Mask>(phase, name, shape, hook);
  };
  with("column_sums", [](targets& t) { return heed::column_sums_to{t.per_key()}; });
  if (shape.depth != 128 && shape.queries > 1) return;
  with("row_entropy", [](targets& t) { return heed::row_entropy_to{t.per_query()}; });
  with("top_32_keys", [](targets& t) { return heed::top_keys_to{t.top()}; });
  with("block_maxima", [](targets& t) { return heed::block_maxima_to{t.blocks(), 64, 64}; });
  with("sigmoid", [](targets&) { return heed::sigmoid_weights{}; });
  with("relu", [](targets&) { return heed::relu_weights{}; });
  with("signed_softmax", [](targets&) { return heed::signed_softmax{}; });
  with("sparsemax", [](targets&) { return heed::sparsemax{}; });
  with("entmax15", [](targets&) { return heed::entmax15{}; });
  with("relaxed", [](targets&) { return heed::relaxed{0.1}; });
}

[[maybe_unused]] const bool registered = [] {
  add_hooks<native, float, mask_kind::full>("prefill", prefill(8, 1024, 64));
  add_hooks<native, float, mask_kind::full>("prefill", prefill(8, 1024, 128));
  add_hooks<native, float, mask_kind::causal>("prefill", prefill(8, 1024, 64));
  add_hooks<native, float, mask_kind::causal>("prefill", prefill(8, 1024, 128));
  add_hooks<native, float, mask_kind::causal>("prefill", prefill(2, 4096, 128));
  add_hooks<native, float, mask_kind::full>("decode", decode(4, 4096, 128));
  return true;
}();

}  // namespace
