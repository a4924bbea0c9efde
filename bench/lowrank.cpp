// Low-rank attention beside exact attention of the same shape, call by call in turn.
//
//   lowrank/<method>/<type>/D:64/L:<tokens>/rank:<landmarks, projected keys or agents>/<backend>
//   lowrank/pseudo_inverse/float/m:<size>/<backend>     6 steps, 8 matrices
//
// 2 heads, no mask. Counters:
//   gflops            of the method's own products
//   gbs               q, k, v and out, once
//   of_ceiling        gflops over multiply-add from registers
//   speed_up          time of exact attention over this one's, medians of calls in turn
//   bytes_per_token   scratch memory over L: constant where memory is linear in L
#include <benchmark/benchmark.h>

#include <heed/lowrank/agent.hpp>
#include <heed/lowrank/linformer.hpp>
#include <heed/lowrank/nystrom.hpp>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;
namespace lowrank = heed::lowrank;

enum class method { nystrom, linformer, agent };

const char* name_of(method m) {
  return m == method::nystrom ? "nystrom" : m == method::linformer ? "linformer" : "agent";
}

double flops(method m, const dense_shape& s, index_t rank) {
  const auto r = static_cast<double>(rank), depth = static_cast<double>(s.depth);
  const double chained = 2 * 2 * 2 * r * static_cast<double>(s.keys) * depth;  // both ways
  const double small = 2 * r * r * (depth + r) + 6 * 4 * 2 * r * r * r + 2 * r * r * depth;
  return static_cast<double>(s.query_heads) * (chained + (m == method::nystrom ? small : 0));
}

template <class Backend, class T>
void add(method m, index_t length, index_t rank) {
  const std::string name = std::string("lowrank/") + name_of(m) + "/" + type_name<T>() +
                           "/D:64/L:" + std::to_string(length) + "/rank:" + std::to_string(rank) +
                           "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<T>(prefill(2, length, 64));
    const auto map_data = random_tensor<T>(length * rank, 7);
    const heed::tensor_view<const T, 2> map(map_data.get(), {length, rank});
    heed::workspace memory;
    const auto ours = [&] {
      const auto q = tensors.query_view(), k = tensors.key_view(), v = tensors.value_view();
      const heed::scratch scratch(memory);
      if (m == method::nystrom) {
        lowrank::nystrom<Backend>(q, k, v, tensors.out_view(), lowrank::landmarks{rank}, scratch);
      } else if (m == method::linformer) {
        lowrank::linformer<Backend>(q, k, v, map, map, tensors.out_view(), scratch);
      } else {
        lowrank::agent<Backend>(q, k, v, tensors.out_view(),
                                lowrank::pooled_agents{{length}, {rank}}, scratch);
      }
      keep(*tensors.out);
    };
    const auto exact = [&] { attend<Backend, mask_kind::full>(tensors); };
    ours(), exact();
    std::vector<double> own_times, exact_times;
    for ([[maybe_unused]] auto _ : state) {
      own_times.push_back(cpu_seconds_of(ours));
      // Exact attention of long sequences takes a second: a few calls are enough.
      if (exact_times.size() >= 5) continue;
      state.PauseTiming();
      exact_times.push_back(cpu_seconds_of(exact));
      state.ResumeTiming();
    }
    const double seconds = median(own_times);
    const double rate = flops(m, tensors.shape, rank) / seconds * 1e-9;
    state.counters["gflops"] = rate;
    state.counters["gbs"] =
        2 * key_value_bytes<T>(tensors.shape) / seconds * 1e-9;  // q and out like k and v
    state.counters["of_ceiling"] = rate / fma_gflops<float>();
    state.counters["speed_up"] = median(exact_times) / seconds;
    state.counters["bytes_per_token"] =
        static_cast<double>(memory.size()) / static_cast<double>(length);
  });
}

template <class Backend>
void add_inverse(index_t size) {
  const std::string name =
      "lowrank/pseudo_inverse/float/m:" + std::to_string(size) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto from = random_tensor<float>(8 * size * size, 1);
    const auto to = random_tensor<float>(8 * size * size, 2);
    const heed::tensor_view<const float, 3> a(from.get(), {8, size, size});
    const heed::tensor_view<float, 3> z(to.get(), {8, size, size});
    std::vector<double> times;
    for ([[maybe_unused]] auto _ : state) {
      times.push_back(cpu_seconds_of([&] { lowrank::pseudo_inverse<Backend>(a, z); }));
      keep(*to);
    }
    const auto m = static_cast<double>(size);
    const double rate = 8 * 6 * 4 * 2 * m * m * m / median(times) * 1e-9;
    state.counters["gflops"] = rate;
    state.counters["of_ceiling"] = rate / fma_gflops<float>();
  });
}

template <class Backend>
void add_backend() {
  for (const method m : {method::nystrom, method::linformer, method::agent}) {
    for (const index_t length : {1024, 4096, 16384}) add<Backend, float>(m, length, 64);
    add<Backend, float>(m, 4096, 256);
    add<Backend, Eigen::bfloat16>(m, 4096, 64);
  }
  for (const index_t size : {32, 64, 128}) add_inverse<Backend>(size);
}

[[maybe_unused]] const bool registered = [] {
  add_backend<heed::backend::native>();
  return true;
}();

}  // namespace
