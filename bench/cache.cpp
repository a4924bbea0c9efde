// Caches: attention over stores beside attention over plain tensors, what policies cost, what
// retrieval saves. 32 query heads, depth 128; calls of both kinds in turn, best of all. Stores and
// tensors lie in memory of the same kind: huge pages where the system gives them.
//
//   cache/decode/<store>/<type>/D:128/keys:<keys>/gqa:<group>/<backend>
//     paged_<n> is a pool whose two sequences grew in turn, fragmented_<n> one in which only every
//     other page was free
//     bytes_held   of the store: rows, scales and positions; of a pool, the pages of the sequence
//     gbs          these over the time
//     of_ceiling   gbs over those of reading as many bytes
//     ratio        speed over that of the plain tensors in the same run (paged: at least 0.9)
//   cache/policy/<policy>/D:128/keys:<keys>
//     ns_per_token   scoring, choosing and evicting half of the tokens, per token and KV head
//     decode_steps   the same in steps of one decoding attention over all tokens
//   cache/quest/D:128/keys:<keys>/pages:<pages>/<backend>
//     speed_up   over attention to all tokens; choosing the pages included
//     share      of the tokens that are read
#include <benchmark/benchmark.h>

#include <heed/cache/contiguous.hpp>
#include <heed/cache/paged.hpp>
#include <heed/cache/policies/h2o.hpp>
#include <heed/cache/policies/keydiff.hpp>
#include <heed/cache/policies/l2_norm.hpp>
#include <heed/cache/policies/lagkv.hpp>
#include <heed/cache/policies/quest.hpp>
#include <heed/cache/policies/snapkv.hpp>
#include <heed/cache/policies/streaming_llm.hpp>
#include <heed/cache/policies/tova.hpp>
#include <heed/cache/quantized.hpp>
#include <heed/cache/ring.hpp>
#include <memory>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;
namespace cache = heed::cache;

// The name behind the family's.
std::string name_of(const dense_shape& shape) {
  return "/D:" + std::to_string(shape.depth) + "/keys:" + std::to_string(shape.keys) +
         "/gqa:" + std::to_string(shape.query_heads / shape.kv_heads) + "/";
}

// Best times of two bodies, called in turn.
template <class Ours, class Theirs>
std::pair<double, double> in_turn(benchmark::State& state, const Ours& ours, const Theirs& theirs) {
  ours(), theirs();
  std::vector<double> first, second;
  for ([[maybe_unused]] auto _ : state) {
    first.push_back(cpu_seconds_of(ours));
    state.PauseTiming();
    second.push_back(cpu_seconds_of(theirs));
    state.ResumeTiming();
  }
  return {best_of(first), best_of(second)};
}

// One decoding step over a store that make(tensors) fills, beside the same over plain tensors.
template <class Backend, class T, class Make>
void add_decode(const std::string& store_name, const dense_shape& shape, const Make& make) {
  const std::string name = "cache/decode/" + store_name + "/" + type_name<T>() + name_of(shape) +
                           std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<T>(shape);
    const auto held = make(tensors);
    const auto bytes = static_cast<double>(held->bytes());
    const double ceiling = remeasure(read_ceiling(bytes));
    const auto [ours, theirs] = in_turn(
        state,
        [&] {
          held->attend([&](const auto& store) {
            heed::attention<Backend>(tensors.query_view().template lifted<4>(), store,
                                     tensors.out_view().template lifted<4>());
          });
          keep(*tensors.out);
        },
        [&] { attend<Backend, mask_kind::full>(tensors); });
    state.counters["bytes_held"] = bytes;
    state.counters["gbs"] = bytes / ours * 1e-9;
    state.counters["of_ceiling"] = bytes / ours * 1e-9 / ceiling;
    state.counters["ratio"] = theirs / ours;
  });
}

// A store, and how attention takes it.
template <class Store>
struct whole {
  Store store;
  index_t bytes() const { return store.bytes(); }
  template <class Use>
  void attend(const Use& use) const {
    use(store);
  }
};
// A sequence of a pool with as many pages for others, which are taken in turn with its own, or, in
// a fragmented pool, were taken before.
template <class T>
struct in_pages {
  cache::paged<T> pool;
  index_t id;

  in_pages(const operands<T>& tensors, index_t page, bool fragmented)
      : pool(tensors.shape.kv_heads, 2 * (tensors.shape.keys / page), page, tensors.shape.depth),
        id(0) {
    const auto keys = tensors.key_view(), values = tensors.value_view();
    std::vector<index_t> others;
    for (index_t i = 0; fragmented && i < pool.pages(); ++i) {
      others.push_back(pool.add());
      pool.append(others.back(), keys.slice(1, 0, page), values.slice(1, 0, page));
    }
    for (const index_t other : others) {
      if (pool.table(other)[0] % 2 == 0) pool.free(other);
    }
    id = pool.add();
    const index_t other = pool.add();
    for (index_t at = 0; at < tensors.shape.keys; at += page) {
      const auto k = keys.slice(1, at, page), v = values.slice(1, at, page);
      pool.append(id, k, v);
      if (!fragmented) pool.append(other, k, v);
    }
  }
  index_t bytes() const { return pool.bytes_in_use() / 2; }
  template <class Use>
  void attend(const Use& use) const {
    use(pool.batch({id}));
  }
};

template <class Backend, class T>
void add_stores(const dense_shape& shape) {
  for (const index_t page : {16, 64}) {
    for (const bool fragmented : {false, true}) {
      add_decode<Backend, T>((fragmented ? "fragmented_" : "paged_") + std::to_string(page), shape,
                             [=](const operands<T>& tensors) {
                               return std::make_shared<in_pages<T>>(tensors, page, fragmented);
                             });
    }
  }
  add_decode<Backend, T>("contiguous", shape, [=](const operands<T>& tensors) {
    using store = cache::contiguous<T>;
    auto held = std::make_shared<whole<store>>(
        whole<store>{store(1, shape.kv_heads, shape.keys, shape.depth)});
    held->store.append(tensors.key_view(), tensors.value_view());
    return held;
  });
  add_decode<Backend, T>("ring", shape, [=](const operands<T>& tensors) {
    using store = cache::ring<T>;
    auto held = std::make_shared<whole<store>>(
        whole<store>{store(1, shape.kv_heads, 4, shape.keys - 4, shape.depth)});
    for (index_t i = 0; i < 2 * shape.keys - shape.keys / 3; ++i) {  // it has gone round
      held->store.append(tensors.key_view().slice(1, i % shape.keys, 1),
                         tensors.value_view().slice(1, i % shape.keys, 1));
    }
    return held;
  });
  add_decode<Backend, T>("int8", shape, [=](const operands<T>& tensors) {
    using store = cache::quantized<>;
    auto held = std::make_shared<whole<store>>(
        whole<store>{store(1, shape.kv_heads, shape.keys, shape.depth)});
    held->store.append(tensors.key_view(), tensors.value_view());
    return held;
  });
}

template <class Policy>
void add_policy(const char* policy_name, const Policy& policy) {
  const dense_shape shape = decode(4, 4096, 128);
  const std::string name = std::string("cache/policy/") + policy_name + "/D:128/keys:4096";
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<float>(shape);
    const auto queries = random_tensor<float>(shape.query_heads * 64 * shape.depth, 5);
    // Observation windows take the last queries of these.
    const heed::tensor_view<const float, 4> q(queries.get(),
                                              {1, shape.query_heads, 64, shape.depth});
    std::vector<double> ours, theirs;
    cache::contiguous<float> store(1, shape.kv_heads, shape.keys, shape.depth);
    for ([[maybe_unused]] auto _ : state) {
      state.PauseTiming();
      Policy fresh = policy;
      store.clear();
      store.append(tensors.key_view(), tensors.value_view());
      state.ResumeTiming();
      ours.push_back(cpu_seconds_of([&] { cache::compress(fresh, q, store, shape.keys / 2); }));
      state.PauseTiming();
      theirs.push_back(
          cpu_seconds_of([&] { attend<heed::backend::native, mask_kind::full>(tensors); }));
      state.ResumeTiming();
    }
    state.counters["ns_per_token"] =
        best_of(ours) / static_cast<double>(shape.keys * shape.kv_heads) * 1e9;
    state.counters["decode_steps"] = best_of(ours) / best_of(theirs);
  });
}

template <class Backend>
void add_quest(index_t keys, index_t pages) {
  const dense_shape shape = decode(4, keys, 128);
  const std::string name = "cache/quest/D:128/keys:" + std::to_string(keys) +
                           "/pages:" + std::to_string(pages) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<float>(shape);
    cache::contiguous<float> store(1, shape.kv_heads, keys, shape.depth);
    store.append(tensors.key_view(), tensors.value_view());
    cache::page_bounds bounds(1, shape.kv_heads, 16, shape.depth);
    bounds.append(tensors.key_view());
    const auto q = tensors.query_view().template lifted<4>();
    const auto [ours, theirs] = in_turn(
        state,
        [&] {
          heed::attention<Backend>(q, cache::subset(store, bounds.choose(q, pages)),
                                   tensors.out_view().template lifted<4>());
          keep(*tensors.out);
        },
        [&] { attend<Backend, mask_kind::full>(tensors); });
    state.counters["speed_up"] = theirs / ours;
    state.counters["share"] = static_cast<double>(pages * 16) / static_cast<double>(keys);
  });
}

[[maybe_unused]] const bool registered = [] {
  using backend = heed::backend::native;
  for (const index_t keys : {4096, 32768}) {
    add_stores<backend, float>(decode(4, keys, 128));
  }
  add_stores<backend, Eigen::bfloat16>(decode(4, 4096, 128));
  add_policy("streaming_llm", cache::streaming_llm{});
  add_policy("l2_norm", cache::l2_norm{});
  add_policy("keydiff", cache::keydiff{});
  add_policy("lagkv", cache::lagkv{});
  add_policy("tova", cache::tova{});
  add_policy("snapkv_32", cache::snapkv(32));
  add_policy("h2o_64", cache::h2o(32));
  add_quest<backend>(4096, 64);
  add_quest<backend>(32768, 64);
  add_quest<backend>(32768, 256);
  return true;
}();

}  // namespace
