// Gradients of dense attention, next to the forward pass of the same shape, call by call in turn.
//
//   backward/<type>/D:<depth>/S:<length>/<mask>/<backend>         8 heads, one at S = 4096
//   backward/gqa/<type>/D:<depth>/S:<length>/<mask>/<backend>     8 query heads, 2 KV heads
//   backward/bias/<type>/D:<depth>/S:<length>/causal/<backend>    with the gradient of a bias [Hq,
//   S, S]
//
// Counters, from median calls and from a ceiling that is measured between the calls:
//   over_forward   time over that of heed::attention with the log-sum-exp; five products against
//                  two are 2.5
//   gflops         useful arithmetic, 2·(3·D + 2·Dv) per score that the mask lets through
//   of_ceiling     gflops by multiply-add from registers
//   gbs            bytes of q, k, v, out, d_out and the gradients, each counted once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <heed/dense/backward.hpp>
#include <heed/score/bias.hpp>
#include <memory>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;

// What a backward pass has beside the forward pass's operands.
template <class T>
struct gradients {
  explicit gradients(const operands<T>& of)
      : shape(of.shape),
        d_out(random_tensor<T>(of.out_view().size(), 11)),
        d_q(random_tensor<T>(of.query_view().size(), 12)),
        d_k(random_tensor<T>(of.key_view().size(), 13)),
        d_v(random_tensor<T>(of.value_view().size(), 14)),
        lse(static_cast<std::size_t>(shape.query_heads * shape.queries)) {}

  heed::tensor_view<float, 2> lse_view() {
    return {lse.data(), {shape.query_heads, shape.queries}};
  }
  dense_shape shape;
  std::shared_ptr<T> d_out, d_q, d_k, d_v;
  std::vector<float> lse;
};

template <class Backend, class T, class... Modifiers>
void backward(const operands<T>& x, gradients<T>& g, const Modifiers&... modifiers) {
  using view = heed::tensor_view<T, 3>;
  const auto q = x.query_view(), k = x.key_view(), v = x.value_view();
  heed::attention_backward<Backend>(
      q, k, v, x.out_view(), g.lse_view(),
      heed::tensor_view<const T, 3>(g.d_out.get(), x.out_view().extents()),
      view(g.d_q.get(), q.extents()), view(g.d_k.get(), k.extents()),
      view(g.d_v.get(), v.extents()), modifiers...);
  keep(*g.d_q);
}

template <class Backend, mask_kind Mask, class T, bool WithBias = false>
void add(const char* variant, const dense_shape& shape) {
  std::string name = std::string("backward/") + variant;
  name += std::string(type_name<T>()) + "/D:" + std::to_string(shape.depth) +
          "/S:" + std::to_string(shape.queries) + "/" + name_of(Mask) + "/";
  name += Backend::name;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<T>(shape);
    gradients<T> g(x);
    const index_t scores = shape.query_heads * shape.queries * shape.keys;
    std::vector<float> numbers(WithBias ? static_cast<std::size_t>(scores) : 0);
    std::vector<float> d_numbers(numbers.size());
    const heed::tensor_view<float, 3> d_bias(d_numbers.data(),
                                             {shape.query_heads, shape.queries, shape.keys});
    const heed::bias bias{heed::tensor_view<const float, 3>(numbers.data(), d_bias.extents())};
    const auto forward = [&] {
      if constexpr (WithBias) {
        attend<Backend, Mask>(x, heed::lse_to{g.lse_view()}, bias);
      } else {
        attend<Backend, Mask>(x, heed::lse_to{g.lse_view()});
      }
    };
    const auto backward_pass = [&] {
      if constexpr (WithBias) {
        backward<Backend>(x, g, heed::causal{}, bias, heed::bias_gradient_to{d_bias});
      } else if constexpr (Mask == mask_kind::full) {
        backward<Backend>(x, g);
      } else if constexpr (Mask == mask_kind::causal) {
        backward<Backend>(x, g, heed::causal{});
      } else {
        backward<Backend>(x, g, heed::window{255, 0});
      }
    };
    forward(), backward_pass();
    std::vector<double> ours, theirs, ceilings;
    for ([[maybe_unused]] auto _ : state) {
      ours.push_back(cpu_seconds_of(backward_pass));
      state.PauseTiming();
      theirs.push_back(cpu_seconds_of(forward));
      ceilings.push_back(remeasure(fma_burst<float>(), 0.005));
      state.ResumeTiming();
    }
    const double flops = useful_flops(shape, Mask) * 2.5;  // D = Dv
    const double gflops = flops / median(ours) * 1e-9;
    const double elements =
        static_cast<double>(4 * x.query_view().size() + 4 * x.key_view().size());
    state.counters["over_forward"] = median(ours) / median(theirs);
    state.counters["gflops"] = gflops;
    state.counters["of_ceiling"] = gflops / median(ceilings);
    state.counters["gbs"] = elements * sizeof(T) / median(ours) * 1e-9;
  });
}

template <class Backend>
void add_backend() {
  const auto add_masks = [](const char* variant, const dense_shape& shape) {
    add<Backend, mask_kind::full, float>(variant, shape);
    add<Backend, mask_kind::causal, float>(variant, shape);
  };
  for (const index_t depth : {64, 128}) {
    for (const index_t length : {1024, 2048, 4096}) {
      add_masks("", prefill(length == 4096 ? 1 : 8, length, depth));
    }
  }
  add<Backend, mask_kind::window256, float>("", prefill(1, 4096, 64));
  add_masks("gqa/", {8, 2, 1024, 1024, 128});
  add<Backend, mask_kind::causal, float, true>("bias/", prefill(8, 1024, 64));
  add<Backend, mask_kind::causal, Eigen::bfloat16>("", prefill(8, 1024, 64));
}

[[maybe_unused]] const bool registered = [] {
  for_each_available<heed::backend::vec, heed::backend::avx512>(
      []<class Backend>(std::type_identity<Backend>) { add_backend<Backend>(); });
  return true;
}();

}  // namespace
