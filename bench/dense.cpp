// Exact attention: prefill, decode, and the memory that a call needs.
//
//   dense/prefill/<type>/D:<depth>/S:<length>/<mask>/<backend>    8 heads (or /H:<heads>/)
//   dense/decode/<type>/D:<depth>/keys:<keys>/gqa:<group>/<backend>    one query, 32 query heads
//   dense/memory/L:<length>/D:<depth>
//
// The backend `eigen` is two matrix products and a softmax by Eigen, with the scores stored.
//
// Counters, from the median call and from ceilings that are measured between the calls:
//   gflops       useful arithmetic, 4·D per score that the mask lets through
//   gbs          bytes of K and V, each counted once per KV head
//   of_ceiling   prefill: gflops by multiply-add from registers in the type that sums are kept in,
//                or by products of tiles where the matrix unit computes them;
//                decode: gbs by reading from the level that holds K and V, which the label names
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <heed/backend/select.hpp>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "support/ceilings.hpp"
#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;

// Median time of a call, and the ceiling between the calls.
struct measured {
  double seconds = 0;
  double ceiling = 0;
};

// The ceiling is taken in turn with the calls, so that a drift of the machine hits both: the best
// of a few bursts each time, and the median over the times.
constexpr double ceiling_interval = 0.05;
measured measure(benchmark::State& state, const std::function<void()>& call, const burst& ceiling) {
  std::vector<double> calls, rates;
  double since_ceiling = 0;
  const auto take_ceiling = [&] {
    double best = cpu_seconds_of(ceiling.run);
    for (int again = 0; again < 4; ++again) best = std::min(best, cpu_seconds_of(ceiling.run));
    rates.push_back(ceiling.work / best * 1e-9);
    // What the bursts read is in the caches now. A call so long does not notice.
    if (calls.empty() || calls.back() < ceiling_interval) call();
    since_ceiling = 0;
  };
  take_ceiling();
  for ([[maybe_unused]] auto _ : state) {
    if (since_ceiling > ceiling_interval) {
      state.PauseTiming();
      take_ceiling();
      state.ResumeTiming();
    }
    calls.push_back(cpu_seconds_of(call));
    since_ceiling += calls.back();
  }
  return {median(calls), median(rates)};
}

// The ceilings are set up once; those that read hold hundreds of MiB.
template <class T>
const burst& fma_ceiling() {
  static const burst piece = fma_burst<heed::accumulator<T>>();
  return piece;
}
// Of the unit that computes the products: the matrix unit for bfloat16 by amx.
template <class T>
const burst& product_ceiling(const std::string& backend) {
  if (heed::is_bfloat16<T> && backend == "amx") {
    static const burst piece = matrix_burst(bf16);
    if (piece) return piece;
  }
  return fma_ceiling<T>();
}
const burst& read_ceiling(memory_level level) {
  static std::optional<burst> pieces[4];
  auto& piece = pieces[static_cast<std::size_t>(level)];
  if (!piece) piece = read_burst(level);
  return *piece;
}

// The operands of the shape that was asked for last: neighbours in the list share them, and all of
// them together would fill the memory.
template <class T>
const operands<T>& operands_for(const dense_shape& shape) {
  static std::optional<operands<T>> last;
  if (!last || !(last->shape == shape)) {
    last.reset();
    last = make_operands<T>(shape);
  }
  return *last;
}

template <class T>
using kernel = void (*)(const operands<T>&);

template <class T>
void add_prefill(const dense_shape& shape, mask_kind mask, const std::string& backend,
                 kernel<T> run) {
  std::string name = std::string("dense/prefill/") + type_name<T>() +
                     "/D:" + std::to_string(shape.depth) + "/S:" + std::to_string(shape.queries);
  if (shape.query_heads != 8) name += "/H:" + std::to_string(shape.query_heads);
  name += std::string("/") + name_of(mask) + "/" + backend;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const operands<T>& tensors = operands_for<T>(shape);
    const measured result = measure(
        state, [&] { run(tensors); }, product_ceiling<T>(backend));
    const double gflops = useful_flops(shape, mask) / result.seconds * 1e-9;
    state.counters["gflops"] = gflops;
    state.counters["of_ceiling"] = gflops / result.ceiling;
  });
}

template <class T>
void add_decode(const dense_shape& shape, const std::string& backend, kernel<T> run) {
  const std::string name =
      std::string("dense/decode/") + type_name<T>() + "/D:" + std::to_string(shape.depth) +
      "/keys:" + std::to_string(shape.keys) +
      "/gqa:" + std::to_string(shape.query_heads / shape.kv_heads) + "/" + backend;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const operands<T>& tensors = operands_for<T>(shape);
    const double bytes = key_value_bytes<T>(shape);
    const memory_level level = level_of(bytes);
    const measured result = measure(
        state, [&] { run(tensors); }, read_ceiling(level));
    const double gbs = bytes / result.seconds * 1e-9;
    state.counters["gflops"] = useful_flops(shape, mask_kind::full) / result.seconds * 1e-9;
    state.counters["gbs"] = gbs;
    state.counters["of_ceiling"] = gbs / result.ceiling;
    state.SetLabel(name_of(level));
  });
}

template <class Backend, mask_kind Mask, class T>
void run_heed(const operands<T>& tensors) {
  attend<Backend, Mask>(tensors);
}
template <mask_kind Mask, class T>
void run_eigen(const operands<T>& tensors) {
  attend_by_eigen(tensors, Mask);
}

// The fast ones; scalar would take all day. amx differs from avx512 in prefill of bfloat16 alone.
template <class Visit>
void for_each_backend(Visit visit) {
  for_each_available<heed::backend::vec, heed::backend::avx512>(visit);
}
template <class T, class Visit>
void for_each_prefill_backend(Visit visit) {
  for_each_backend(visit);
  if constexpr (heed::is_bfloat16<T>) for_each_available<heed::backend::amx>(visit);
}

template <class T, mask_kind... Masks>
void add_prefill_backends(const dense_shape& shape) {
  const auto add = [&]<mask_kind Mask>(std::integral_constant<mask_kind, Mask>) {
    for_each_prefill_backend<T>([&]<class Backend>(std::type_identity<Backend>) {
      add_prefill<T>(shape, Mask, std::string(Backend::name), run_heed<Backend, Mask, T>);
    });
  };
  (add(std::integral_constant<mask_kind, Masks>{}), ...);
}
template <class T, mask_kind... Masks>
void add_prefill_native(const dense_shape& shape) {
  using heed::backend::native;
  (add_prefill<T>(shape, Masks, std::string(native::name), run_heed<native, Masks, T>), ...);
}
template <class T>
void add_decode_backends(const dense_shape& shape) {
  for_each_backend([&]<class Backend>(std::type_identity<Backend>) {
    add_decode<T>(shape, std::string(Backend::name), run_heed<Backend, mask_kind::full, T>);
  });
}

template <class T>
void add_type() {
  using enum mask_kind;
  constexpr bool is_float = std::is_same_v<T, float>;
  const auto add_eigen = [](const dense_shape& shape) {
    if constexpr (is_float) {
      add_prefill<T>(shape, full, "eigen", run_eigen<full, T>);
      add_prefill<T>(shape, causal, "eigen", run_eigen<causal, T>);
    }
  };
  for (const index_t depth : {64, 80, 128, 256}) {
    const dense_shape shape = prefill(8, 1024, depth);
    add_prefill_backends<T, full, causal>(shape);
    // Every triple of mask, type and backend costs a second to compile.
    if constexpr (is_float) {
      add_prefill_backends<T, window256, document>(shape);
    } else {
      add_prefill_native<T, window256, document>(shape);
    }
    if (depth == 64 || depth == 128) add_eigen(shape);
  }
  add_prefill_backends<T, full, causal>(prefill(64, 128, 128));
  add_eigen(prefill(64, 128, 128));
  add_prefill_backends<T, causal>(prefill(8, 4096, 128));

  for (const dense_shape& shape :
       {decode(4, 4096, 128), decode(4, 32768, 128), decode(1, 4096, 128)}) {
    add_decode_backends<T>(shape);
    if constexpr (is_float) {
      if (shape.keys == 4096) add_decode<T>(shape, "eigen", run_eigen<full, T>);
    }
  }
}

// What a call takes besides its operands, next to the score matrix that it does not store.
void memory(benchmark::State& state) {
  const dense_shape shape = prefill(1, state.range(0), state.range(1));
  const operands<float>& tensors = operands_for<float>(shape);
  heed::workspace scratch;
  for ([[maybe_unused]] auto _ : state) {
    attend<heed::backend::native, mask_kind::full>(tensors, heed::scratch{scratch});
  }
  constexpr double mebibyte = 1 << 20;
  state.counters["scratch_mib"] = static_cast<double>(scratch.size()) / mebibyte;
  state.counters["score_matrix_mib"] =
      static_cast<double>(shape.queries * shape.keys) * sizeof(float) / mebibyte;
}

[[maybe_unused]] const bool registered = [] {
  add_type<float>();
  add_type<Eigen::bfloat16>();
  add_type<Eigen::half>();
  add_prefill_native<double, mask_kind::full>(prefill(8, 1024, 128));
  add_prefill<float>(prefill(8, 128, 64), mask_kind::full, "scalar",
                     run_heed<heed::backend::scalar, mask_kind::full, float>);
  benchmark::RegisterBenchmark("dense/memory", memory)->ArgNames({"L", "D"})->Args({16384, 64});
  return true;
}();

}  // namespace
