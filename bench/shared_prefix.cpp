// A decoding step of a batch whose sequences begin with the same keys.
//
//   dense/shared_prefix/<type>/B:<batch>/prefix:<keys>/own:<keys>/gqa:<group>/<way>/<backend>
//
// 32 query heads, depth 128. Ways:
//
//   shared    shared_prefix_attention: the prefix is read once
//   sources   attention over two key sources, the first one broadcast: one copy of the prefix that
//             every sequence reads
//   copied    attention over a copy of prefix and own keys for each sequence
//
// Counters:
//   mib_read   K and V, as often as the way reads them
//   speed_up   time of `copied` divided by this way's, medians of calls in turn
#include <benchmark/benchmark.h>

#include <algorithm>
#include <heed/dense/shared_prefix.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;

struct batch_shape {
  index_t batches = 16, prefix = 4096, own = 128;
  index_t query_heads = 32, kv_heads = 8;
  index_t depth = 128;
};

enum class way { shared, sources, copied };

template <class T>
struct batch_operands {
  batch_shape shape;
  std::shared_ptr<T> q, prefix_k, prefix_v, k, v, copied_k, copied_v, out;

  explicit batch_operands(const batch_shape& s) : shape(s) {
    const index_t prefix = s.kv_heads * s.prefix * s.depth;
    const index_t own = s.batches * s.kv_heads * s.own * s.depth;
    q = random_tensor<T>(s.batches * s.query_heads * s.depth, 1);
    out = random_tensor<T>(s.batches * s.query_heads * s.depth, 2);
    prefix_k = random_tensor<T>(prefix, 3), prefix_v = random_tensor<T>(prefix, 4);
    k = random_tensor<T>(own, 5), v = random_tensor<T>(own, 6);
    copied_k = joined(prefix_k, k), copied_v = joined(prefix_v, v);
  }

  heed::tensor_view<const T, 4> keys(const std::shared_ptr<T>& data, index_t batches,
                                     index_t length) const {
    return {data.get(), {batches, shape.kv_heads, length, shape.depth}};
  }
  heed::tensor_view<const T, 4> broadcast(const std::shared_ptr<T>& data) const {
    const auto one = keys(data, 1, shape.prefix);
    return {one.data(),
            {shape.batches, shape.kv_heads, shape.prefix, shape.depth},
            {0, one.stride(1), one.stride(2), 1}};
  }
  template <class U>
  heed::tensor_view<U, 4> rows(const std::shared_ptr<T>& data) const {
    return {data.get(), {shape.batches, shape.query_heads, 1, shape.depth}};
  }

 private:
  // [B, Hkv, prefix + own, D]
  std::shared_ptr<T> joined(const std::shared_ptr<T>& prefix, const std::shared_ptr<T>& own) const {
    const index_t length = shape.prefix + shape.own, heads = shape.kv_heads;
    const auto bytes = allocate(
        static_cast<std::size_t>(shape.batches * heads * length * shape.depth) * sizeof(T));
    T* to = reinterpret_cast<T*>(bytes.get());
    for (index_t head = 0; head < shape.batches * heads; ++head) {
      const T* first = prefix.get() + head % heads * shape.prefix * shape.depth;
      to = std::copy(first, first + shape.prefix * shape.depth, to);
      const T* second = own.get() + head * shape.own * shape.depth;
      to = std::copy(second, second + shape.own * shape.depth, to);
    }
    return {bytes, reinterpret_cast<T*>(bytes.get())};
  }
};

template <class Backend, way Way, class T>
void step(const batch_operands<T>& x) {
  const batch_shape& s = x.shape;
  const auto q = x.template rows<const T>(x.q);
  const auto out = x.template rows<T>(x.out);
  const auto k = x.keys(x.k, s.batches, s.own), v = x.keys(x.v, s.batches, s.own);
  if constexpr (Way == way::shared) {
    heed::shared_prefix_attention<Backend>(q, x.keys(x.prefix_k, 1, s.prefix),
                                           x.keys(x.prefix_v, 1, s.prefix), k, v, out);
  } else if constexpr (Way == way::sources) {
    heed::attention<Backend>(
        q,
        heed::sources{heed::source{x.broadcast(x.prefix_k), x.broadcast(x.prefix_v)},
                      heed::source{k, v}},
        out);
  } else {
    heed::attention<Backend>(q, x.keys(x.copied_k, s.batches, s.prefix + s.own),
                             x.keys(x.copied_v, s.batches, s.prefix + s.own), out);
  }
  keep(*x.out);
}

// Made once per type: the copies take hundreds of MiB.
template <class T>
const batch_operands<T>& operands_for_batch() {
  static std::optional<batch_operands<T>> all;
  if (!all) all.emplace(batch_shape{});
  return *all;
}

template <class Backend, way Way, class T>
void add(const char* name_of_way) {
  const batch_shape shape;
  const std::string name =
      std::string("dense/shared_prefix/") + type_name<T>() + "/B:" + std::to_string(shape.batches) +
      "/prefix:" + std::to_string(shape.prefix) + "/own:" + std::to_string(shape.own) +
      "/gqa:" + std::to_string(shape.query_heads / shape.kv_heads) + "/" + name_of_way + "/" +
      std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [](benchmark::State& state) {
    const batch_operands<T>& tensors = operands_for_batch<T>();
    std::vector<double> own_times, copied_times;
    step<Backend, Way>(tensors);  // grows the scratch memory
    for ([[maybe_unused]] auto _ : state) {
      own_times.push_back(cpu_seconds_of([&] { step<Backend, Way>(tensors); }));
      if constexpr (Way != way::copied) {
        state.PauseTiming();
        copied_times.push_back(cpu_seconds_of([&] { step<Backend, way::copied>(tensors); }));
        state.ResumeTiming();
      }
    }
    const batch_shape& s = tensors.shape;
    const index_t keys =
        Way == way::shared ? s.prefix + s.batches * s.own : s.batches * (s.prefix + s.own);
    constexpr double mebibyte = 1 << 20;
    state.counters["mib_read"] =
        2.0 * static_cast<double>(keys * s.kv_heads * s.depth) * sizeof(T) / mebibyte;
    if constexpr (Way != way::copied) {
      state.counters["speed_up"] = median(copied_times) / median(own_times);
    }
  });
}

template <class T, class Backend>
void add_ways() {
  add<Backend, way::shared, T>("shared");
  add<Backend, way::sources, T>("sources");
  add<Backend, way::copied, T>("copied");
}

[[maybe_unused]] const bool registered = [] {
  using namespace heed::backend;
  for_each_available<vec, avx512>([]<class Backend>(std::type_identity<Backend>) {
    add_ways<float, Backend>();
    add_ways<Eigen::bfloat16, Backend>();
  });
  for_each_available<amx>(
      []<class Backend>(std::type_identity<Backend>) { add_ways<Eigen::bfloat16, Backend>(); });
  return true;
}();

}  // namespace
