// Keys and values as integer codes, next to the same shape in bfloat16, call by call in turn.
//
//   quantized/<phase>/<codes>/<scales>/D:128/keys:<keys>/gqa:<group>/<backend>
//
// phase decode: one query, 32 query heads; prefill: 1024 queries, 8 heads, no mask.
//
// Counters, from median calls:
//   gbs            bytes of codes and scales, each counted once per KV head
//   bytes_ratio    those bytes over the bytes of K and V in bfloat16
//   time_ratio     time over the time in bfloat16; what decode saves when it is bound by reading
//   over_bytes     time_ratio / bytes_ratio: 1 where fewer bytes are all the difference
#include <benchmark/benchmark.h>

#include <cstdint>
#include <functional>
#include <heed/core/quantize.hpp>
#include <memory>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;
using heed::int4_pair;
using heed::quantized_view;
using heed::scale_groups;

template <class T>
using view = heed::tensor_view<T, 3>;

template <class T>
std::shared_ptr<T> memory_of(index_t count) {
  const auto bytes = allocate(static_cast<std::size_t>(count) * sizeof(T));
  return {bytes, reinterpret_cast<T*>(bytes.get())};
}

// Codes and scales of one operand.
template <class Code>
struct quantized_operand {
  quantized_operand(const view<const Eigen::bfloat16>& x, const scale_groups& how)
      : extents{x.extent(0), x.extent(1), x.extent(2) / heed::codes_per_element<Code>},
        groups{x.extent(0), (x.extent(1) - 1) / how.tokens + 1,
               (x.extent(2) - 1) / how.channels + 1},
        shared(how),
        codes(memory_of<Code>(size(extents))),
        scales(memory_of<float>(size(groups))) {
    heed::quantize(x, view<Code>(codes.get(), extents), view<float>(scales.get(), groups), how);
  }
  quantized_view<Code, 3> read() const {
    return {view<const Code>(codes.get(), extents), view<const float>(scales.get(), groups),
            shared};
  }
  double bytes() const {
    return static_cast<double>(size(extents)) * sizeof(Code) +
           static_cast<double>(size(groups)) * sizeof(float);
  }
  static index_t size(const typename view<Code>::shape& of) { return of[0] * of[1] * of[2]; }

  typename view<Code>::shape extents, groups;
  scale_groups shared;
  // On the same pages as the operands that they are compared with.
  std::shared_ptr<Code> codes;
  std::shared_ptr<float> scales;
};

struct grouping {
  const char* name;
  scale_groups keys, values;
};

template <class Backend, class Code>
void add(const char* phase, const char* codes, const dense_shape& shape, const grouping& how) {
  std::string name = std::string("quantized/") + phase + "/" + codes + "/" + how.name +
                     "/D:" + std::to_string(shape.depth) + "/keys:" + std::to_string(shape.keys) +
                     "/gqa:" + std::to_string(shape.query_heads / shape.kv_heads) + "/";
  name += Backend::name;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto tensors = make_operands<Eigen::bfloat16>(shape);
    const quantized_operand<Code> k(tensors.key_view(), how.keys),
        v(tensors.value_view(), how.values);
    const auto plain = [&] { attend<Backend, mask_kind::full>(tensors); };
    const auto quantized = [&] {
      heed::attention<Backend>(tensors.query_view(), k.read(), v.read(), tensors.out_view());
      keep(*tensors.out);
    };
    plain(), quantized();
    std::vector<double> ours, theirs;
    for ([[maybe_unused]] auto _ : state) {
      ours.push_back(cpu_seconds_of(quantized));
      state.PauseTiming();
      theirs.push_back(cpu_seconds_of(plain));
      state.ResumeTiming();
    }
    const double bytes = k.bytes() + v.bytes();
    const double bytes_ratio = bytes / key_value_bytes<Eigen::bfloat16>(shape);
    const double time_ratio = median(ours) / median(theirs);
    state.counters["gbs"] = bytes / median(ours) * 1e-9;
    state.counters["bytes_ratio"] = bytes_ratio;
    state.counters["time_ratio"] = time_ratio;
    state.counters["over_bytes"] = time_ratio / bytes_ratio;
  });
}

template <class Backend>
void add_backend() {
  const grouping token{"per_token", heed::per_token, heed::per_token};
  const grouping channel{"per_channel", heed::per_channel, heed::per_channel};
  const grouping mixed{"channel_of_64_tokens", {64, 1}, heed::per_token};
  const grouping groups{"32_channels", {1, 32}, {1, 32}};
  for (const auto& [group, keys] :
       {std::pair<index_t, index_t>{4, 4096}, {4, 32768}, {1, 4096}, {8, 4096}}) {
    const dense_shape shape = decode(group, keys, 128);
    for (const grouping& how : {token, channel, mixed, groups}) {
      add<Backend, std::int8_t>("decode", "int8", shape, how);
      add<Backend, int4_pair>("decode", "int4", shape, how);
    }
  }
  add<Backend, std::int8_t>("prefill", "int8", prefill(8, 1024, 128), token);
  add<Backend, int4_pair>("prefill", "int4", prefill(8, 1024, 128), mixed);
}

[[maybe_unused]] const bool registered = [] {
  add_backend<heed::backend::native>();
  add_backend<heed::backend::vec>();
  return true;
}();

}  // namespace
