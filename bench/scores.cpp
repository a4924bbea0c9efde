// Relative position in the scores, next to plain attention of the same shape, call by call in turn.
//
//   scores/<phase>/<form>/float/D:<depth>/L:<keys>/<backend>
//
// phase prefill: as many queries as keys, 2 heads, causal or full; decode: one query, 32
// query heads, 8 to a KV head. form: shaw (radius 64), music (an embedding for every distance),
// transformer_xl (the same with both biases); a table is shared by all heads.
//
// Counters, from median calls:
//   time_ratio        time over that of plain attention
//   products          what the form adds, in units of the product of queries and keys alone: half
//   of
//                     plain attention's multiplications at the rate of plain attention
//   gflops            of all multiplications and additions that the call needs
//   of_ceiling        gflops over what this core's multiply-add units do at most
//   scratch_bytes     scratch memory of the call
//   of_square         scratch bytes over those of one L × L array of floats per call
#include <benchmark/benchmark.h>

#include <heed/score/music_transformer.hpp>
#include <heed/score/shaw.hpp>
#include <heed/score/transformer_xl.hpp>
#include <string>
#include <vector>

#include "support/ceilings.hpp"
#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;

enum class form { shaw, music, transformer_xl };

template <class Backend, mask_kind Mask>
void add(const char* phase, const char* name, form which, const dense_shape& shape) {
  const std::string full = std::string("scores/") + phase + "/" + name +
                           "/float/D:" + std::to_string(shape.depth) +
                           "/L:" + std::to_string(shape.keys) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(full.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<float>(shape);
    const index_t entries = which == form::shaw ? 129 : shape.keys;
    const auto table_data = random_tensor<float>(entries * shape.depth, 7);
    const auto bias_data = random_tensor<float>(shape.query_heads * shape.depth, 8);
    const heed::tensor_view<const float, 2> table(table_data.get(), {entries, shape.depth});
    const heed::tensor_view<const float, 2> bias(bias_data.get(), {shape.query_heads, shape.depth});
    heed::workspace memory;
    const heed::scratch scratch(memory);
    const auto plain = [&] { attend<Backend, Mask>(tensors); };
    const auto relative = [&] {
      if (which == form::shaw) {
        attend<Backend, Mask>(tensors, heed::shaw{table, 64}, scratch);
      } else if (which == form::music) {
        attend<Backend, Mask>(tensors, heed::music_transformer{table}, scratch);
      } else {
        attend<Backend, Mask>(tensors, heed::transformer_xl{table, bias, bias}, scratch);
      }
    };
    plain(), relative();
    std::vector<double> ours, theirs;
    for ([[maybe_unused]] auto _ : state) {
      ours.push_back(cpu_seconds_of(relative));
      state.PauseTiming();
      theirs.push_back(cpu_seconds_of(plain));
      state.ResumeTiming();
    }
    const double ratio = median(ours) / median(theirs);
    // Queries and keys, values, and as many products with embeddings as with keys.
    const double flops = 1.5 * useful_flops(shape, Mask);
    state.counters["time_ratio"] = ratio;
    state.counters["products"] = 2 * (ratio - 1);
    state.counters["gflops"] = flops / median(ours) * 1e-9;
    state.counters["of_ceiling"] = flops / median(ours) * 1e-9 / fma_gflops<float>();
    const double square = 4.0 * static_cast<double>(shape.query_heads * shape.queries * shape.keys);
    state.counters["scratch_bytes"] = static_cast<double>(memory.size());
    state.counters["of_square"] = static_cast<double>(memory.size()) / square;
  });
}

template <class Backend>
void add_backend() {
  const std::pair<const char*, form> forms[] = {
      {"shaw", form::shaw}, {"music", form::music}, {"transformer_xl", form::transformer_xl}};
  for (const auto& [name, which] : forms) {
    for (const index_t length : {512, 1024, 2048, 4096, 8192}) {
      add<Backend, mask_kind::causal>("prefill_causal", name, which, prefill(2, length, 64));
    }
    add<Backend, mask_kind::full>("prefill", name, which, prefill(2, 2048, 64));
    add<Backend, mask_kind::full>("prefill", name, which, prefill(2, 2048, 128));
    add<Backend, mask_kind::full>("decode", name, which, decode(8, 4096, 64));
    add<Backend, mask_kind::full>("decode", name, which, decode(8, 16384, 64));
  }
}

[[maybe_unused]] const bool registered = [] {
  add_backend<heed::backend::native>();
  return true;
}();

}  // namespace
