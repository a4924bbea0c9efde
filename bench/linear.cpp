// Linear attention: prefill in chunks, the recurrence of decoding, and the causal convolution.
//
//   linear/chunk/<method>/float/D:<depth>/L:<length>/<backend>    8 heads, D = Dv, chunks of 32
//   linear/step/<method>/float/D:<depth>/H:<heads>/<backend>      one token, states in and out
//   linear/convolution/float/C:<channels>/L:<length>/<backend>    4 taps and SiLU
//
// Counters, from the median call and from ceilings that are measured between the calls:
//   gflops      useful arithmetic: per token 4·D·Dv for reading and writing the state and
//               chunk·(D + Dv) for the pairs within a chunk that are in order; the delta rule
//               2·D·Dv + chunk·(D + Dv) more. Exponentials, scalings and feature maps count nothing
//   of_ceiling  gflops by multiply-add from registers
//   mtokens     10⁶ tokens (of all heads) per second
//   speed_up    time of the recurrence by that of chunks, calls in turn
//   gbs         bytes of the states, read and written
#include <benchmark/benchmark.h>

#include <cmath>
#include <functional>
#include <heed/linear/causal_convolution.hpp>
#include <heed/linear/delta_rule.hpp>
#include <heed/linear/gated.hpp>
#include <heed/linear/kernelized.hpp>
#include <heed/linear/retention.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "support/ceilings.hpp"
#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;
namespace linear = heed::linear;

constexpr index_t chunk = 32;

struct operands_of_heads {
  index_t heads, length, depth;
  std::shared_ptr<float> q, k, v, out, token, channel, beta, state;

  operands_of_heads(index_t h, index_t l, index_t d) : heads(h), length(l), depth(d) {
    const index_t n = h * l * d;
    q = random_tensor<float>(n, 1), k = random_tensor<float>(n, 2), v = random_tensor<float>(n, 3);
    out = random_tensor<float>(n, 4);
    token = random_tensor<float>(h * l, 5), channel = random_tensor<float>(n, 6);
    beta = random_tensor<float>(h * l, 7), state = random_tensor<float>(h * d * d, 8);
    // Keys of length 1, decays as trained gates have them, β in (0, 1).
    for (index_t i = 0; i < h * l; ++i) {
      double square = 0;
      for (index_t c = 0; c < d; ++c) square += std::pow(k.get()[i * d + c], 2);
      for (index_t c = 0; c < d; ++c) k.get()[i * d + c] /= static_cast<float>(std::sqrt(square));
      token.get()[i] = -0.05f * std::abs(token.get()[i]);
      beta.get()[i] = 1 / (1 + std::exp(-beta.get()[i]));
    }
    for (index_t i = 0; i < n; ++i) channel.get()[i] = -0.05f * std::abs(channel.get()[i]);
  }
  heed::tensor_view<const float, 3> rows(const std::shared_ptr<float>& x) const {
    return {x.get(), {heads, length, depth}};
  }
  heed::tensor_view<float, 3> result() const { return {out.get(), {heads, length, depth}}; }
  heed::tensor_view<const float, 2> numbers(const std::shared_ptr<float>& x) const {
    return {x.get(), {heads, length}};
  }
  heed::tensor_view<float, 3> states() const { return {state.get(), {heads, depth, depth}}; }
};

enum class method { plain, kernelized, retention, simple_gla, gla, delta_rule, gated_delta, kimi };
constexpr const char* names[] = {"plain", "kernelized", "retention",   "simple_gla",
                                 "gla",   "delta_rule", "gated_delta", "kimi"};
constexpr bool is_delta(method m) { return m >= method::delta_rule; }

template <class Backend, method Method, class... Rest>
void attend_linear(const operands_of_heads& x, const Rest&... rest) {
  const auto q = x.rows(x.q), k = x.rows(x.k), v = x.rows(x.v);
  const auto out = x.result();
  const auto beta = x.numbers(x.beta), token = x.numbers(x.token);
  if constexpr (Method == method::plain) {
    linear::attention<Backend>(q, k, v, out, rest...);
  } else if constexpr (Method == method::kernelized) {
    linear::kernelized<Backend>(q, k, v, out, rest...);
  } else if constexpr (Method == method::retention) {
    linear::retention<Backend>(q, k, v, out, rest...);
  } else if constexpr (Method == method::simple_gla) {
    linear::simple_gla<Backend>(q, k, v, out, token, rest...);
  } else if constexpr (Method == method::gla) {
    linear::gla<Backend>(q, k, v, out, x.rows(x.channel), rest...);
  } else if constexpr (Method == method::delta_rule) {
    linear::delta_rule<Backend>(q, k, v, out, beta, rest...);
  } else if constexpr (Method == method::gated_delta) {
    linear::gated_delta_rule<Backend>(q, k, v, out, beta, token, rest...);
  } else {
    linear::kimi_delta_attention<Backend>(q, k, v, out, beta, x.rows(x.channel), rest...);
  }
  keep(*x.out);
}

double useful_flops_of(method m, index_t heads, index_t length, index_t depth) {
  const double d = static_cast<double>(depth), pairs = 2 * d * chunk;
  const double per_token = 4 * d * d + pairs + (is_delta(m) ? 2 * d * d + pairs : 0);
  return static_cast<double>(heads * length) * per_token;
}

template <class Backend, method Method>
void add_chunks(index_t depth, index_t length) {
  const std::string name = std::string("linear/chunk/") + names[static_cast<int>(Method)] +
                           "/float/D:" + std::to_string(depth) + "/L:" + std::to_string(length) +
                           "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    constexpr index_t heads = 8;
    const operands_of_heads x(heads, length, depth);
    static const burst ceiling = fma_burst<float>();
    std::vector<double> seconds, rates, steps;
    attend_linear<Backend, Method>(x);
    for ([[maybe_unused]] auto _ : state) {
      seconds.push_back(cpu_seconds_of([&] { attend_linear<Backend, Method>(x); }));
      state.PauseTiming();
      rates.push_back(ceiling.work / cpu_seconds_of(ceiling.run) * 1e-9);
      if (seconds.size() % 8 == 1) {
        steps.push_back(
            cpu_seconds_of([&] { attend_linear<Backend, Method>(x, linear::chunk{1}); }));
      }
      state.ResumeTiming();
    }
    const double call = median(seconds);
    const double gflops = useful_flops_of(Method, heads, length, depth) / call * 1e-9;
    state.counters["gflops"] = gflops;
    state.counters["of_ceiling"] = gflops / *std::max_element(rates.begin(), rates.end());
    state.counters["mtokens"] = static_cast<double>(heads * length) / call * 1e-6;
    state.counters["speed_up"] = median(steps) / call;
  });
}

template <class Backend, method Method>
void add_step(index_t depth, index_t heads) {
  const std::string name = std::string("linear/step/") + names[static_cast<int>(Method)] +
                           "/float/D:" + std::to_string(depth) + "/H:" + std::to_string(heads) +
                           "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const operands_of_heads x(heads, 1, depth);
    const linear::initial_state before(x.states());
    const linear::final_state after(x.states());
    std::vector<double> seconds;
    for ([[maybe_unused]] auto _ : state) {
      seconds.push_back(cpu_seconds_of([&] { attend_linear<Backend, Method>(x, before, after); }));
    }
    const double bytes = 2.0 * static_cast<double>(heads * depth * depth) * sizeof(float);
    state.counters["gbs"] = bytes / median(seconds) * 1e-9;
    state.counters["mtokens"] = static_cast<double>(heads) / median(seconds) * 1e-6;
  });
}

template <class Backend>
void add_convolution(index_t channels, index_t length) {
  const std::string name = "linear/convolution/float/C:" + std::to_string(channels) +
                           "/L:" + std::to_string(length) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = random_tensor<float>(channels * length, 1);
    const auto out = random_tensor<float>(channels * length, 3);
    const auto taps = random_tensor<float>(channels * 4, 4);
    std::vector<double> seconds;
    for ([[maybe_unused]] auto _ : state) {
      seconds.push_back(cpu_seconds_of([&] {
        linear::causal_convolution<Backend>(
            heed::tensor_view<const float, 2>(x.get(), {length, channels}),
            heed::tensor_view<const float, 2>(taps.get(), {channels, 4}),
            heed::tensor_view<float, 2>(out.get(), {length, channels}), linear::silu_activation{});
        keep(*out);
      }));
    }
    const double bytes = 2.0 * static_cast<double>(channels * length) * sizeof(float);
    state.counters["gbs"] = bytes / median(seconds) * 1e-9;
  });
}

template <class Backend, method... Methods>
void add_all() {
  (add_chunks<Backend, Methods>(64, 4096), ...);
  (add_chunks<Backend, Methods>(128, 4096), ...);
}

[[maybe_unused]] const bool registered = [] {
  using namespace heed::backend;
  for_each_available<vec, avx512>([]<class Backend>(std::type_identity<Backend>) {
    add_all<Backend, method::plain, method::kernelized, method::retention, method::simple_gla,
            method::gla, method::delta_rule, method::gated_delta, method::kimi>();
    add_step<Backend, method::retention>(64, 32);
    add_step<Backend, method::gla>(64, 32);
    add_step<Backend, method::gated_delta>(64, 32);
    add_convolution<Backend>(1024, 4096);
  });
  return true;
}();

}  // namespace
