// heed::attention_backward against gradients that PyTorch's autograd computed in double
// (tests/vectors/backward), masks and scores as the named functors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "heed/dense/backward.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/relative_table.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/backward_call.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::vector_case;

// Numbers of an array and their shape.
struct array {
  std::vector<float> numbers;
  std::vector<index_t> shape;

  array() = default;
  explicit array(const heed_test::npy_array& from)
      : numbers(from.as<float>()), shape(from.shape.begin(), from.shape.end()) {}
  explicit array(const std::vector<index_t>& extents) : shape(extents) {
    index_t count = 1;
    for (const index_t extent : extents) count *= extent;
    numbers.assign(static_cast<std::size_t>(count), NAN);
  }
  template <int Rank>
  tensor_view<float, Rank> view() {
    std::array<index_t, static_cast<std::size_t>(Rank)> extents{};
    std::copy(shape.begin(), shape.end(), extents.begin());
    return {numbers.data(), extents};
  }
  float& operator[](index_t i) { return numbers[static_cast<std::size_t>(i)]; }
};

void expect_close(const array& got, const std::vector<double>& wanted, const char* name) {
  ASSERT_EQ(got.numbers.size(), wanted.size()) << name;
  heed_test::error_measure measure;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    measure.add(static_cast<double>(got.numbers[i]), wanted[i]);
  }
  EXPECT_LE(measure.result(1e-6), 5e-6) << name;
}

// One case's operands, and both passes over them.
template <class Backend>
struct backward_case {
  const vector_case& c;
  array q, k, v, d_out, out, lse, d_q, d_k, d_v;
  double scale;

  explicit backward_case(const vector_case& from)
      : backward_case(from, "Q", "K", array(from.input("dO"))) {}
  backward_case(const vector_case& from, const char* q_name, const char* k_name,
                const array& of_out)
      : c(from),
        q(from.input(q_name)),
        k(from.input(k_name)),
        v(from.input("V")),
        d_out(of_out),
        out(d_out.shape),
        lse(std::vector<index_t>(q.shape.begin(), q.shape.end() - 1)),
        d_q(q.shape),
        d_k(k.shape),
        d_v(v.shape),
        scale(from.meta.at("attrs").value("scale", 1.0)) {}

  // `more` are what only the backward pass takes; the others are for both.
  template <class... More, class... Modifiers>
  void run_with(const std::tuple<More...>& more, const Modifiers&... modifiers) {
    heed::attention<Backend>(q.view<4>(), k.view<4>(), v.view<4>(), out.view<4>(), modifiers...,
                             heed::scale{scale}, heed::lse_to{lse.view<3>()});
    std::apply(
        [&](const auto&... only_backward) {
          heed::attention_backward<Backend>(q.view<4>(), k.view<4>(), v.view<4>(), out.view<4>(),
                                            lse.view<3>(), d_out.view<4>(), d_q.view<4>(),
                                            d_k.view<4>(), d_v.view<4>(), modifiers...,
                                            only_backward..., heed::scale{scale});
        },
        more);
  }
  template <class... Modifiers>
  void run(const Modifiers&... modifiers) {
    run_with(std::tuple<>(), modifiers...);
  }
  void expect() {
    expect_close(d_q, wanted("dQ"), "dQ");
    expect_close(d_k, wanted("dK"), "dK");
    expect_close(d_v, wanted("dV"), "dV");
  }
  std::vector<double> wanted(const char* name) const {
    return c.output(name).template as<double>();
  }
};

template <class Backend>
class backward_cases : public ::testing::Test {};
TYPED_TEST_SUITE(backward_cases, heed_test::method_backends, heed_test::backend_name);

template <class Backend>
void check_mask(const vector_case& c) {
  backward_case<Backend> x(c);
  const auto& attributes = c.meta.at("attrs");
  if (attributes.contains("window_left")) {
    x.run(heed::window{attributes["window_left"].template get<index_t>(),
                       attributes["window_right"].template get<index_t>()});
  } else if (attributes.value("align", std::string()) == "ul") {
    x.run(heed::causal_upper_left{});
  } else if (attributes.value("causal", 0) == 1) {
    x.run(heed::causal{});
  } else if (c.has_input("mask")) {
    const std::vector<std::uint8_t> mask = c.input("mask").template as<std::uint8_t>();
    x.run(heed::array_mask{tensor_view<const std::uint8_t, 4>(
        mask.data(), {x.q.shape[0], x.q.shape[1], x.q.shape[2], x.k.shape[2]})});
  } else {
    x.run();
  }
  x.expect();
}

TYPED_TEST(backward_cases, masks_and_shapes) {
  for (const char* name :
       {"full", "dv_gt_d", "scale_custom", "bool_mask_dead_rows", "causal_square",
        "causal_lr_65x97", "causal_ul_97x65", "window_causal_16"}) {
    SCOPED_TRACE(name);
    check_mask<TypeParam>(vector_case(HEED_TEST_VECTORS "/backward/" + std::string(name)));
  }
}

TYPED_TEST(backward_cases, biases) {
  for (const char* name : {"bias_full", "bias_key", "bias_causal"}) {
    SCOPED_TRACE(name);
    const vector_case c(HEED_TEST_VECTORS "/backward/" + std::string(name));
    backward_case<TypeParam> x(c);
    array bias(c.input("bias")), d_bias(bias.shape);
    const auto more = std::make_tuple(heed::bias_gradient_to{d_bias.view<4>()});
    if (c.has_input("mask")) {
      x.run_with(more, heed::causal{}, heed::bias{bias.view<4>()});
    } else {
      x.run_with(more, heed::bias{bias.view<4>()});
    }
    x.expect();
    expect_close(d_bias, x.wanted("dbias"), "dbias");
  }
}

TYPED_TEST(backward_cases, softcap) {
  const vector_case c(HEED_TEST_VECTORS "/backward/softcap_5");
  backward_case<TypeParam> x(c);
  x.run(heed::softcap{5});
  x.expect();
}

TYPED_TEST(backward_cases, sinks) {
  const vector_case c(HEED_TEST_VECTORS "/backward/sinks");
  backward_case<TypeParam> x(c);
  array sinks(c.input("sinks")), d_sinks(sinks.shape);
  x.run_with(std::make_tuple(heed::sink_gradient_to{d_sinks.view<1>()}),
             heed::sink{sinks.view<1>()});
  x.expect();
  expect_close(d_sinks, x.wanted("dsinks"), "dsinks");

  const vector_case one(HEED_TEST_VECTORS "/backward/softmax_off_by_one");
  backward_case<TypeParam> y(one);
  y.run(heed::sink{0.f});
  y.expect();
}

TYPED_TEST(backward_cases, lse_gradient) {
  const vector_case c(HEED_TEST_VECTORS "/backward/lse_gradient");
  backward_case<TypeParam> x(c);
  array d_lse(c.input("dlse"));
  x.run_with(std::make_tuple(heed::lse_gradient{d_lse.view<3>()}));
  x.expect();
}

// The gradients of slopes and of a table by distance are sums of a bias's gradient.
TYPED_TEST(backward_cases, alibi) {
  const vector_case c(HEED_TEST_VECTORS "/backward/alibi_causal");
  backward_case<TypeParam> x(c);
  array slopes(c.input("slopes")), d_slopes({3}), d_bias({1, 3, 51, 51});
  x.run_with(std::make_tuple(heed::bias_gradient_to{d_bias.view<4>()}), heed::causal{},
             heed::alibi{slopes.view<1>()});
  x.expect();
  std::fill(d_slopes.numbers.begin(), d_slopes.numbers.end(), 0.f);
  for (index_t i = 0; i < 3 * 51 * 51; ++i) {
    d_slopes[i / (51 * 51)] -= d_bias[i] * static_cast<float>(std::abs(i / 51 % 51 - i % 51));
  }
  expect_close(d_slopes, x.wanted("dslopes"), "dslopes");
}

TYPED_TEST(backward_cases, relative_table) {
  const vector_case c(HEED_TEST_VECTORS "/backward/relative_bias_table");
  backward_case<TypeParam> x(c);
  array table(c.input("table")), d_table(table.shape), d_bias({1, 3, 51, 51});
  x.run_with(std::make_tuple(heed::bias_gradient_to{d_bias.view<4>()}),
             heed::relative_table{table.view<2>(), 20});
  x.expect();
  std::fill(d_table.numbers.begin(), d_table.numbers.end(), 0.f);
  for (index_t i = 0; i < 3 * 51 * 51; ++i) {
    const index_t distance = i % 51 - i / 51 % 51;
    d_table[i / (51 * 51) * 41 + std::clamp<index_t>(distance, -20, 20) + 20] += d_bias[i];
  }
  expect_close(d_table, x.wanted("dtable"), "dtable");
}

// bias_ij = c_i − c_j with c the running sum of log gates: dc is the sum of a row of dS less the
// sum of a column, and a gate is part of every later c.
TYPED_TEST(backward_cases, forgetting) {
  const vector_case c(HEED_TEST_VECTORS "/backward/forgetting_causal");
  backward_case<TypeParam> x(c);
  array gates(c.input("logf")), d_gates(gates.shape), rows({1, 2, 51, 1}), columns({1, 2, 1, 51});
  array sums = gates;
  for (index_t i = 0; i < 2 * 51; ++i) {
    if (i % 51 != 0) sums[i] += sums[i - 1];
  }
  const heed::score forget{[&](float s, const heed::position& p) {
                             const float* of_head = sums.numbers.data() + p.head * 51;
                             return s + of_head[p.q] - of_head[p.k];
                           },
                           [](float, const heed::position&) { return 1.f; }};
  x.run_with(std::make_tuple(heed::bias_gradient_to{rows.view<4>()},
                             heed::bias_gradient_to{columns.view<4>()}),
             heed::causal{}, forget);
  x.expect();
  for (index_t h = 0; h < 2; ++h) {
    float later = 0;
    for (index_t i = 50; i >= 0; --i) {
      later += rows[h * 51 + i] - columns[h * 51 + i];
      d_gates[h * 51 + i] = later;
    }
  }
  expect_close(d_gates, x.wanted("dlogf"), "dlogf");
}

// O = softmax(Q1 K1ᵀ) V − λ_h softmax(Q2 K2ᵀ) V: two calls, the second with −λ·dO.
TYPED_TEST(backward_cases, differential) {
  const vector_case c(HEED_TEST_VECTORS "/backward/differential_causal");
  array lambda(c.input("lam")), d_out(c.input("dO")), scaled = d_out, d_lambda({2});
  const index_t of_head = 49 * 48;
  for (index_t i = 0; i < 2 * of_head; ++i) scaled[i] *= -lambda[i / of_head];
  backward_case<TypeParam> first(c, "Q1", "K1", d_out), second(c, "Q2", "K2", scaled);
  first.run(heed::causal{});
  second.run(heed::causal{});
  array d_v = first.d_v;
  std::fill(d_lambda.numbers.begin(), d_lambda.numbers.end(), 0.f);
  for (index_t i = 0; i < 2 * of_head; ++i) {
    d_v[i] += second.d_v[i];
    d_lambda[i / of_head] -= d_out[i] * second.out[i];
  }
  expect_close(first.d_q, first.wanted("dQ1"), "dQ1");
  expect_close(first.d_k, first.wanted("dK1"), "dK1");
  expect_close(second.d_q, first.wanted("dQ2"), "dQ2");
  expect_close(second.d_k, first.wanted("dK2"), "dK2");
  expect_close(d_v, first.wanted("dV"), "dV");
  expect_close(d_lambda, first.wanted("dlam"), "dlam");
}

// s = e^(t_h)·q̂·k̂: attention over normalised rows, scaled per head. Of q̂ = q / |q| the gradient is
// (dq̂ − (dq̂·q̂) q̂) / |q|, and Σ_i dq̂_i·q̂_i is that of t, since s is linear in q̂.
TYPED_TEST(backward_cases, cosine) {
  const vector_case c(HEED_TEST_VECTORS "/backward/cosine_temperature");
  backward_case<TypeParam> x(c);
  array temperature(c.input("logit_scale")), d_temperature(temperature.shape);
  std::vector<float> factors;
  for (const float t : temperature.numbers) factors.push_back(std::exp(t));
  const auto normalise = [](array& rows) {
    std::vector<float> norms;
    for (index_t r = 0; r < static_cast<index_t>(rows.numbers.size()) / 20; ++r) {
      float sum = 0;
      for (index_t d = 0; d < 20; ++d) sum += rows[r * 20 + d] * rows[r * 20 + d];
      norms.push_back(std::sqrt(sum));
      for (index_t d = 0; d < 20; ++d) rows[r * 20 + d] /= norms.back();
    }
    return norms;
  };
  const std::vector<float> q_norms = normalise(x.q), k_norms = normalise(x.k);
  x.scale = 1;
  x.run(heed::score{
      [&](float s, const heed::position& p) {
        return s * factors[static_cast<std::size_t>(p.head)];
      },
      [&](float, const heed::position& p) { return factors[static_cast<std::size_t>(p.head)]; }});
  std::fill(d_temperature.numbers.begin(), d_temperature.numbers.end(), 0.f);
  const auto project = [&](array& rows, array& gradient, const std::vector<float>& norms,
                           bool queries) {
    for (index_t r = 0; r < static_cast<index_t>(norms.size()); ++r) {
      float along = 0;
      for (index_t d = 0; d < 20; ++d) along += rows[r * 20 + d] * gradient[r * 20 + d];
      if (queries) d_temperature[r / 49] += along;
      for (index_t d = 0; d < 20; ++d) {
        gradient[r * 20 + d] =
            (gradient[r * 20 + d] - along * rows[r * 20 + d]) / norms[static_cast<std::size_t>(r)];
      }
    }
  };
  project(x.q, x.d_q, q_norms, true);
  project(x.k, x.d_k, k_norms, false);
  x.expect();
  expect_close(d_temperature, x.wanted("dlogit_scale"), "dlogit_scale");
}

// Every gradient of a softmax over scores is tested above; of the other folders, other tests use
// the forward pass.
TEST(backward_vectors, every_folder_has_its_place) {
  const std::set<std::string> tested = {"alibi_causal",
                                        "bias_causal",
                                        "bias_full",
                                        "bias_key",
                                        "bool_mask_dead_rows",
                                        "causal_lr_65x97",
                                        "causal_square",
                                        "causal_ul_97x65",
                                        "cosine_temperature",
                                        "differential_causal",
                                        "dv_gt_d",
                                        "forgetting_causal",
                                        "full",
                                        "lse_gradient",
                                        "relative_bias_table",
                                        "scale_custom",
                                        "sinks",
                                        "softcap_5",
                                        "softmax_off_by_one",
                                        "window_causal_16"};
  const std::set<std::string> no_softmax = {"delta_rule",
                                            "gated_delta_rule",
                                            "gla",
                                            "linear_elu1_full_normalised",
                                            "linear_plain",
                                            "relu_rmsnorm",
                                            "retention",
                                            "rwkv6",
                                            "selective_scan_mamba1",
                                            "sigmoid",
                                            "simple_gla",
                                            "sparsemax",
                                            "entmax15",
                                            "talking_heads"};
  std::size_t found = 0;
  for (const auto& folder : heed_test::list_cases("backward")) {
    const std::string name = folder.filename().string();
    found += tested.count(name);
    EXPECT_EQ(tested.count(name) + no_softmax.count(name), 1u) << name;
  }
  EXPECT_EQ(found, tested.size());
}

}  // namespace
