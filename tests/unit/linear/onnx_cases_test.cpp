// The operators LinearAttention and CausalConvWithState of ONNX, by linear/'s functions, against
// the backend tests of ONNX (tests/vectors/onnx).
#include <Eigen/Core>
#include <set>
#include <string>

#include "heed/linear/attention.hpp"
#include "heed/linear/causal_convolution.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::numbers;
using heed_test::vector_case;
namespace linear = heed::linear;

template <class Backend>
class onnx_linear : public ::testing::Test {};
TYPED_TEST_SUITE(onnx_linear, heed_test::method_backends, heed_test::backend_name);

// Half where the case is half, float otherwise.
template <class T>
numbers<T> narrowed(const numbers<float>& x) {
  numbers<T> y;
  y.shape = x.shape;
  for (const float value : x.data) y.data.push_back(heed::narrow<T>(value));
  return y;
}

// The runner's rule; half also by the spacing of the results' type.
template <class T>
void expect_close(const vector_case& c, const char* name, const numbers<T>& got) {
  const numbers<float> wanted(c.output(name));
  ASSERT_EQ(got.data.size(), wanted.data.size());
  const double relative = c.meta.at("runner_rtol"), absolute = c.meta.at("runner_atol");
  for (std::size_t i = 0; i < wanted.data.size(); ++i) {
    const double w = static_cast<double>(wanted.data[i]);
    ASSERT_NEAR(heed::widen<double>(got.data[i]), w, absolute + relative * std::abs(w))
        << name << "[" << i << "]";
  }
}

template <class Backend, class T>
void run_attention(const vector_case& c) {
  const auto& attributes = c.meta.at("node").at("attributes");
  const index_t heads = attributes.at("kv_num_heads"), queries = attributes.at("q_num_heads");
  const auto in = [&](const char* name) { return narrowed<T>(numbers<float>(c.input(name))); };
  const auto q = in("query"), k = in("key"), v = in("value");
  // [B, T, H·D] as [B, H, T, D]
  const auto by_head = [](auto& x, index_t of) {
    using E = std::remove_pointer_t<decltype(x.data.data())>;
    return heed::tensor_view<E, 4>(x.data.data(), {x.shape[0], x.shape[1], of, x.shape[2] / of})
        .permuted({0, 2, 1, 3});
  };
  numbers<T> out, state;
  out.shape = numbers<float>(c.output("output")).shape;
  state.shape = numbers<float>(c.output("present_state")).shape;
  out.data.resize(numbers<float>(c.output("output")).data.size());
  state.data.resize(numbers<float>(c.output("present_state")).data.size());
  const auto past = c.has_input("past_state") ? in("past_state") : numbers<T>();
  const auto call = [&](const auto&... modifiers) {
    const linear::final_state last(heed::tensor_view<T, 4>(
        state.data.data(), {state.shape[0], state.shape[1], state.shape[2], state.shape[3]}));
    if (c.has_input("past_state")) {
      linear::attention<Backend>(by_head(q, queries), by_head(k, heads), by_head(v, heads),
                                 by_head(out, queries), last, linear::initial_state(past.r4()),
                                 modifiers...);
    } else {
      linear::attention<Backend>(by_head(q, queries), by_head(k, heads), by_head(v, heads),
                                 by_head(out, queries), last, modifiers...);
    }
  };
  const double depth = static_cast<double>(q.shape[2] / queries);
  const heed::scale scale{attributes.value("scale", 1 / std::sqrt(depth))};
  const std::string rule = attributes.value("update_rule", "gated_delta");
  if (rule == "linear") {
    call(scale);
  } else {
    ASSERT_EQ(rule, "gated_delta");
    const auto decay = in("decay"), beta = in("beta");
    call(scale, linear::channel_decay(by_head(decay, heads)), linear::delta(by_head(beta, heads)));
  }
  expect_close(c, "output", out);
  expect_close(c, "present_state", state);
}

TYPED_TEST(onnx_linear, attention) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("onnx")) {
    const vector_case c(folder);
    if (c.meta.at("node").at("op_type") != "LinearAttention") continue;
    SCOPED_TRACE(c.name);
    if (c.input("query").dtype == "<f2") {
      run_attention<TypeParam, Eigen::half>(c);
    } else {
      run_attention<TypeParam, float>(c);
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 9u);
}

template <class Backend, class T>
void run_convolution(const vector_case& c) {
  // [B, C, L] as [B, L, C], which is how the library has it
  const auto turned = [](const numbers<float>& x) {
    numbers<float> y({x.shape[0], x.shape[2], x.shape[1]});
    for (index_t b = 0; b < x.shape[0]; ++b) {
      for (index_t i = 0; i < x.shape[1]; ++i) {
        for (index_t j = 0; j < x.shape[2]; ++j) y.v3()(b, j, i) = x.r3()(b, i, j);
      }
    }
    return y;
  };
  const auto in = [&](const char* name) {
    return narrowed<T>(turned(numbers<float>(c.input(name))));
  };
  const auto x = in("input");
  auto weight = narrowed<T>(numbers<float>(c.input("weight")));
  const index_t channels = weight.shape[0], width = weight.shape[2];
  auto state = c.has_input("past_state")
                   ? in("past_state")
                   : narrowed<T>(numbers<float>({x.shape[0], width - 1, channels}));
  auto out = x;
  const auto call = [&](const auto&... modifiers) {
    linear::causal_convolution<Backend>(
        x.r3(), heed::tensor_view<const T, 2>(weight.data.data(), {channels, width}), out.v3(),
        linear::input_state(state.v3()), modifiers...);
  };
  const bool silu = c.meta.at("node").at("attributes").contains("activation");
  if (c.has_input("bias")) {
    ASSERT_FALSE(silu);
    const auto bias = narrowed<T>(numbers<float>(c.input("bias")));
    call(linear::channel_bias(bias.r1()));
  } else if (silu) {
    call(linear::silu_activation{});
  } else {
    call();
  }
  const auto back = [&](const numbers<T>& y) {
    numbers<float> wide(y.shape);
    for (std::size_t i = 0; i < y.data.size(); ++i) wide.data[i] = heed::widen<float>(y.data[i]);
    return turned(wide);
  };
  expect_close(c, "output", back(out));
  expect_close(c, "present_state", back(state));
}

TYPED_TEST(onnx_linear, causal_convolution) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("onnx")) {
    const vector_case c(folder);
    if (c.meta.at("node").at("op_type") != "CausalConvWithState") continue;
    SCOPED_TRACE(c.name);
    if (c.input("input").dtype == "<f2") {
      run_convolution<TypeParam, Eigen::half>(c);
    } else {
      run_convolution<TypeParam, float>(c);
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 6u);
}

}  // namespace
