// Exact attention: prefill, decode, and the memory that a call needs.
//
//   dense/prefill/<type>/D:<depth>/S:<length>/<mask>/<backend>    8 heads (or /H:<heads>/)
//   dense/decode/<type>/D:<depth>/keys:<keys>/gqa:<group>/<backend>    one query, 32 query heads
//   dense/tiles/<type>/S:<length>/<mask>/<backend>    one head, D = 128, masks that hide most tiles
//   dense/threads/<prefill|decode>/<type>/threads:<threads>/<backend>/real_time    D = 128
//   dense/memory/L:<length>/D:<depth>
//
// D:576/Dv:512 is multi-head latent attention: 16 query heads, one KV head, V a view of K.
// The backend `eigen` is two matrix products and a softmax by Eigen, with the scores stored.
//
// Counters, from the median call and from ceilings that are measured between the calls:
//   gflops       useful arithmetic, 2·(D + Dv) per score that the mask lets through
//   gbs          bytes of K and V, each counted once per KV head
//   of_ceiling   prefill: gflops by multiply-add from registers in the type that sums are kept in;
//                of bf16 on avx512 without AMX by dot products of pairs from registers; on the
//                matrix unit by products of random tiles, keys' and values' from the second level;
//                decode: gbs by reading as many bytes as K and V have
//   of_multiple  gflops by those of the next larger depth that is a multiple of 32, calls in turn
//   tiles        visited tiles, as a share of those of a call without a mask
//   of_tiles     what the visited tiles take in a call without a mask, by what the call takes
//   speed_up     wall time on one thread by that on several, calls in turn
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <heed/backend/select.hpp>
#include <heed/core/thread_pool.hpp>
#include <heed/mask/block_pattern.hpp>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
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
// Whether amx computes the products of such elements on the matrix unit, as fast as bfloat16.
#if defined(HEED_HAS_AMX_FP16)
template <class T>
constexpr bool for_matrix_unit = heed::is_bfloat16<T> || heed::is_half<T>;
#else
template <class T>
constexpr bool for_matrix_unit = heed::is_bfloat16<T>;
#endif
// Of the unit that computes the products.
template <class T>
const burst& product_ceiling(const std::string& backend) {
  if (for_matrix_unit<T> && backend == "amx") {
    static const burst piece = matrix_burst(bf16, memory_level::l2);
    if (piece) return piece;
  }
#if !defined(HEED_HAS_AMX)
  if (heed::is_bfloat16<T> && backend == "avx512") {
    static const burst piece = vector_burst(bf16);
    if (piece) return piece;
  }
#endif
  return fma_ceiling<T>();
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

// "D:576/Dv:512", or "D:128" where values are as deep as keys.
std::string name_of_depth(const dense_shape& shape) {
  const std::string depth = "D:" + std::to_string(shape.depth);
  return shape.latent_depth == 0 ? depth : depth + "/Dv:" + std::to_string(shape.latent_depth);
}

// The rate of a depth that is no multiple of 32, as a share of the next multiple's.
template <class T>
double share_of_multiple(const operands<T>& tensors, mask_kind mask, kernel<T> run) {
  dense_shape wider = tensors.shape;
  wider.depth = (wider.depth + 31) / 32 * 32;
  const operands<T> others = make_operands<T>(wider);
  run(others);
  std::vector<double> seconds, seconds_of_wider;
  for (int turn = 0; turn < 10; ++turn) {
    seconds.push_back(cpu_seconds_of([&] { run(tensors); }));
    seconds_of_wider.push_back(cpu_seconds_of([&] { run(others); }));
  }
  return useful_flops(tensors.shape, mask) / median(seconds) /
         (useful_flops(wider, mask) / median(seconds_of_wider));
}

template <class T>
void add_prefill(const dense_shape& shape, mask_kind mask, const std::string& backend,
                 kernel<T> run) {
  std::string name = std::string("dense/prefill/") + type_name<T>() + "/" + name_of_depth(shape) +
                     "/S:" + std::to_string(shape.queries);
  if (shape.query_heads != 8) name += "/H:" + std::to_string(shape.query_heads);
  name += std::string("/") + name_of(mask) + "/" + backend;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const operands<T>& tensors = operands_for<T>(shape);
    const measured result = measure(
        state, [&] { run(tensors); }, product_ceiling<T>(backend));
    const double gflops = useful_flops(shape, mask) / result.seconds * 1e-9;
    state.counters["gflops"] = gflops;
    state.counters["of_ceiling"] = gflops / result.ceiling;
    if (shape.depth % 32 != 0) {
      state.counters["of_multiple"] = share_of_multiple(tensors, mask, run);
    }
  });
}

template <class T>
void add_decode(const dense_shape& shape, const std::string& backend, kernel<T> run) {
  const std::string name = std::string("dense/decode/") + type_name<T>() + "/" +
                           name_of_depth(shape) + "/keys:" + std::to_string(shape.keys) +
                           "/gqa:" + std::to_string(shape.query_heads / shape.kv_heads) + "/" +
                           backend;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const operands<T>& tensors = operands_for<T>(shape);
    const double bytes = key_value_bytes<T>(shape);
    const measured result = measure(
        state, [&] { run(tensors); }, read_ceiling(bytes));
    const double gbs = bytes / result.seconds * 1e-9;
    state.counters["gflops"] = useful_flops(shape, mask_kind::full) / result.seconds * 1e-9;
    state.counters["gbs"] = gbs;
    state.counters["of_ceiling"] = gbs / result.ceiling;
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

// The fast ones; scalar would take all day. amx differs from avx512 in prefill of such
// elements alone.
template <class Visit>
void for_each_backend(Visit visit) {
  for_each_available<heed::backend::vec, heed::backend::avx512>(visit);
}
template <class T, class Visit>
void for_each_prefill_backend(Visit visit) {
  for_each_backend(visit);
  if constexpr (for_matrix_unit<T>) for_each_available<heed::backend::amx>(visit);
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
  const auto add = [&]<class Backend>(std::type_identity<Backend>) {
    add_decode<T>(shape, std::string(Backend::name), run_heed<Backend, mask_kind::full, T>);
  };
  for_each_backend(add);
  // So many rows of a KV head that they are products of tiles, as in prefill.
  if constexpr (heed::is_bfloat16<T>) {
    if (shape.query_heads / shape.kv_heads > 8) for_each_available<heed::backend::amx>(add);
  }
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

  for (const index_t depth : {40, 72, 96, 111, 192, 512}) {
    add_prefill_backends<T, full, causal>(prefill(8, 1024, depth));
  }
  add_prefill_backends<T, full, causal>(latent(1024, 1024));
  add_decode_backends<T>(latent(1, 4096));

  for (const dense_shape& shape :
       {decode(4, 4096, 128), decode(4, 32768, 128), decode(1, 4096, 128)}) {
    add_decode_backends<T>(shape);
    if constexpr (is_float) {
      if (shape.keys == 4096) add_decode<T>(shape, "eigen", run_eigen<full, T>);
    }
  }
}

// A random pattern of blocks of 64 queries and 64 keys that hides nine in ten; no query is without
// keys, since the blocks on the diagonal are kept.
std::vector<std::uint8_t> sparse_blocks(index_t blocks) {
  std::mt19937 random(1);
  std::vector<std::uint8_t> pattern(static_cast<std::size_t>(blocks * blocks));
  for (index_t i = 0; i < blocks * blocks; ++i) {
    pattern[static_cast<std::size_t>(i)] = random() % 10 == 0 || i / blocks == i % blocks;
  }
  return pattern;
}

// Times a mask against the same call without one, and counts the tiles of both.
template <class T, class Mask>
void add_tiles(index_t length, const std::string& name_of_mask,
               const std::function<Mask()>& make_mask) {
  using heed::backend::native;
  const std::string name = std::string("dense/tiles/") + type_name<T>() +
                           "/S:" + std::to_string(length) + "/" + name_of_mask + "/" +
                           std::string(native::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const dense_shape shape = prefill(1, length, 128);
    const operands<T>& tensors = operands_for<T>(shape);
    const Mask mask = make_mask();
    heed::tile_counts all, visited;
    const auto run = [&](const auto&... options) {
      heed::attention<native>(tensors.query_view(), tensors.key_view(), tensors.value_view(),
                              tensors.out_view(), options...);
      keep(*tensors.out);
    };
    run(heed::count_tiles{all});
    run(mask, heed::count_tiles{visited});
    // Without a mask a call may take a second: one on each side of the others.
    std::vector<double> without = {cpu_seconds_of(run)}, with;
    for ([[maybe_unused]] auto _ : state) {
      with.push_back(cpu_seconds_of([&] { run(mask); }));
    }
    without.push_back(cpu_seconds_of(run));
    const double share =
        static_cast<double>(visited.visited()) / static_cast<double>(all.visited());
    state.counters["tiles"] = share;
    state.counters["of_tiles"] = median(without) * share / median(with);
  });
}

template <class T>
void add_masks_of_few_tiles() {
  add_tiles<T, heed::all_of<heed::causal, heed::window>>(
      16384, "window256", [] { return heed::causal{} & heed::window{255}; });
  for (const index_t length : {4096, 16384}) {
    add_tiles<T, heed::block_pattern<std::uint8_t>>(length, "blocks90", [length] {
      static std::vector<std::uint8_t> pattern;  // the mask's, which only refers to it
      pattern = sparse_blocks(length / 64);
      return heed::block_pattern<std::uint8_t>(
          heed::tensor_view(pattern.data(), {length / 64, length / 64}), 64, 64);
    });
  }
}

// One thread and several, by wall time.
template <class T>
void add_threads(const std::string& kind, const dense_shape& shape) {
  using heed::backend::native;
  std::set<int> counts = {1, 2, static_cast<int>(std::thread::hardware_concurrency())};
  counts.erase(0);  // not known
  for (const int threads : counts) {
    const std::string name = "dense/threads/" + kind + "/" + type_name<T>() +
                             "/threads:" + std::to_string(threads) + "/" +
                             std::string(native::name);
    const auto body = [=](benchmark::State& state) {
      const operands<T>& tensors = operands_for<T>(shape);
      heed::thread_pool pool(threads);
      const auto on_pool = [&] { attend<native, mask_kind::full>(tensors, heed::on{pool}); };
      const auto alone = [&] { attend<native, mask_kind::full>(tensors); };
      on_pool(), alone();
      std::vector<double> several, one;
      for ([[maybe_unused]] auto _ : state) {
        several.push_back(seconds_of(on_pool));
        state.PauseTiming();
        one.push_back(seconds_of(alone));
        state.ResumeTiming();
      }
      state.counters["speed_up"] = median(one) / median(several);
    };
    benchmark::RegisterBenchmark(name.c_str(), body)->UseRealTime();
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
  add_masks_of_few_tiles<float>();
  add_masks_of_few_tiles<Eigen::bfloat16>();
  add_threads<float>("prefill", prefill(8, 1024, 128));
  add_threads<Eigen::bfloat16>("prefill", prefill(8, 1024, 128));
  add_threads<float>("decode", decode(4, 32768, 128));
  add_threads<Eigen::bfloat16>("decode", decode(4, 32768, 128));
  benchmark::RegisterBenchmark("dense/memory", memory)->ArgNames({"L", "D"})->Args({16384, 64});
  return true;
}();

}  // namespace
