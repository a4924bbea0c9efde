// Additive attention next to plain attention of the same shape, call by call in turn.
//
//   additive/<phase>/<form>/float/D:<depth>/L:<keys>/<backend>
//
// phase prefill: as many queries as keys, 2 heads; decode: one query, 32 query heads, 8 to a KV
// head; pointer: prefill without values. form: tanh (by factors of exponentials), plain_tanh (one
// tanh for every pair and channel), for comparison.
//
// Counters, from median calls:
//   ns_per_tanh     time of one term w·tanh(q + k), everything included
//   time_ratio      time over that of plain attention
//   scratch_bytes   scratch memory of the call
//   of_square       scratch bytes over those of the L × L × D array that the formula names
#include <benchmark/benchmark.h>

#include <heed/additive/attention.hpp>
#include <heed/additive/pointer.hpp>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;

struct plain_tanh {
  template <class S>
  S operator()(S x) const {
    return tanh(x);
  }
};

enum class form { tanh, plain_tanh, pointer };

template <class Backend>
void add(const char* phase, const char* name, form which, const dense_shape& shape) {
  const std::string full = std::string("additive/") + phase + "/" + name +
                           "/float/D:" + std::to_string(shape.depth) +
                           "/L:" + std::to_string(shape.keys) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(full.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<float>(shape);
    const auto weights_data = random_tensor<float>(shape.depth, 8);
    const heed::tensor_view<const float, 1> weights(weights_data.get(), {shape.depth});
    const index_t pairs = shape.query_heads * shape.queries * shape.keys;
    std::vector<float> to(which == form::pointer ? static_cast<std::size_t>(pairs) : 0);
    heed::workspace memory;
    const heed::scratch scratch(memory);
    const auto plain = [&] { attend<Backend, mask_kind::full>(tensors); };
    const auto additive = [&] {
      if (which == form::tanh) {
        heed::additive_attention<Backend>(tensors.query_view(), tensors.key_view(),
                                          tensors.value_view(), weights, tensors.out_view(),
                                          scratch);
      } else if (which == form::plain_tanh) {
        heed::attention<Backend>(tensors.query_view(), tensors.key_view(), tensors.value_view(),
                                 tensors.out_view(), heed::pairwise{plain_tanh{}, weights},
                                 heed::scale{1}, scratch);
      } else {
        heed::pointer_log_probabilities<Backend>(
            tensors.query_view(), tensors.key_view(),
            heed::tensor_view<float, 3>(to.data(), {shape.query_heads, shape.queries, shape.keys}),
            heed::pairwise{heed::tanh_of{}, weights}, heed::scale{1}, scratch);
      }
      keep(*tensors.out);
    };
    plain(), additive();
    std::vector<double> ours, theirs;
    for ([[maybe_unused]] auto _ : state) {
      ours.push_back(cpu_seconds_of(additive));
      state.PauseTiming();
      theirs.push_back(cpu_seconds_of(plain));
      state.ResumeTiming();
    }
    const double terms = static_cast<double>(pairs * shape.depth);
    state.counters["ns_per_tanh"] = median(ours) / terms * 1e9;
    state.counters["time_ratio"] = median(ours) / median(theirs);
    state.counters["scratch_bytes"] = static_cast<double>(memory.size());
    state.counters["of_square"] = static_cast<double>(memory.size()) / (4 * terms);
  });
}

template <class Backend>
void add_backend() {
  for (const index_t length : {256, 1024, 2048}) {
    add<Backend>("prefill", "tanh", form::tanh, prefill(2, length, 64));
  }
  add<Backend>("prefill", "tanh", form::tanh, prefill(2, 1024, 256));
  add<Backend>("prefill", "plain_tanh", form::plain_tanh, prefill(2, 256, 64));
  add<Backend>("decode", "tanh", form::tanh, decode(8, 1024, 64));
  add<Backend>("decode", "tanh", form::tanh, decode(8, 4096, 256));
  add<Backend>("pointer", "tanh", form::pointer, prefill(2, 1024, 64));
}

[[maybe_unused]] const bool registered = [] {
  add_backend<heed::backend::native>();
  return true;
}();

}  // namespace
