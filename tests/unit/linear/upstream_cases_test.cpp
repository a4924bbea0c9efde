// The methods of linear/ against cases that other projects' code produced (tests/vectors: linear,
// hf, backward).
#include "heed/linear/cosformer.hpp"
#include "heed/linear/delta_rule.hpp"
#include "heed/linear/gated.hpp"
#include "heed/linear/kernelized.hpp"
#include "heed/linear/lightning.hpp"
#include "heed/linear/mamba2.hpp"
#include "heed/linear/performer.hpp"
#include "heed/linear/retention.hpp"
#include "heed/linear/rwkv6.hpp"
#include "heed/linear/selective_scan.hpp"
#include "heed/linear/taylor.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::numbers;
using heed_test::relative_rms;
using heed_test::vector_case;
namespace linear = heed::linear;

template <class Backend>
class linear_cases : public ::testing::Test {};
TYPED_TEST_SUITE(linear_cases, heed_test::method_backends, heed_test::backend_name);

constexpr double tolerance = 2e-6;

// A case with its operands in float; results are written like the outputs of the case.
struct loaded_case : vector_case {
  explicit loaded_case(const std::string& path)
      : vector_case(std::filesystem::path(HEED_TEST_VECTORS) / path) {}
  numbers<float> in(const char* array) const { return numbers<float>(input(array)); }
  numbers<double> wanted(const char* array) const { return numbers<double>(output(array)); }
  numbers<float> room(const char* array) const { return numbers<float>(wanted(array).shape, NAN); }
  void expect(const char* array, const numbers<float>& got, double allowed = tolerance) const {
    EXPECT_LE(relative_rms(got.data, wanted(array).data), allowed) << name << ": " << array;
  }
};

// The last two axes exchanged.
template <class T>
numbers<T> transposed(const numbers<T>& x) {
  numbers<T> y(x.shape);
  const std::size_t rank = x.shape.size();
  std::swap(y.shape[rank - 1], y.shape[rank - 2]);
  const index_t rows = x.shape[rank - 2], columns = x.shape[rank - 1];
  for (index_t i = 0; i < static_cast<index_t>(x.data.size()); ++i) {
    const index_t matrix = i / (rows * columns), r = i / columns % rows, c = i % columns;
    y.data[static_cast<std::size_t>(matrix * rows * columns + c * rows + r)] =
        x.data[static_cast<std::size_t>(i)];
  }
  return y;
}

TYPED_TEST(linear_cases, delta_rules) {
  {
    loaded_case c("linear/delta_rule_T37");
    auto o = c.room("o"), state = c.room("state");
    linear::delta_rule<TypeParam>(c.in("q").r4(), c.in("k").r4(), c.in("v").r4(), o.v4(),
                                  c.in("beta").r3(), linear::final_state(state.v4()));
    c.expect("o", o), c.expect("state", state);
  }
  {
    loaded_case c("linear/gated_delta_rule_T64_state");
    auto o = c.room("o"), state = c.room("state");
    linear::gated_delta_rule<TypeParam>(
        c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(), o.by_token(),
        c.in("beta").by_token(), c.in("g").by_token(), linear::initial_state(c.in("h0").r4()),
        linear::final_state(state.v4()));
    c.expect("o", o), c.expect("state", state);
  }
  {
    loaded_case c("linear/kda_T37");
    auto o = c.room("o"), state = c.room("state");
    linear::kimi_delta_attention<TypeParam>(
        c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(), o.by_token(),
        c.in("beta").by_token(), c.in("g").by_token(), linear::final_state(state.v4()));
    c.expect("o", o), c.expect("state", state);
  }
  for (const char* path : {"backward/delta_rule", "backward/gated_delta_rule",
                           "hf/qwen3_next_gated_delta", "hf/kimi_delta_attention"}) {
    loaded_case c(path);
    auto o = c.room("O"), state = c.room("S_final");
    const auto q = c.in("Q"), k = c.in("K"), v = c.in("V"), beta = c.in("beta");
    const auto first = c.has_input("S0") ? c.in("S0") : numbers<float>(state.shape);
    const linear::initial_state before(first.r4());
    const linear::final_state after(state.v4());
    if (!c.has_input("g")) {
      linear::delta_rule<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), beta.r3(), before, after);
    } else if (const auto g = c.in("g"); g.shape.size() == 3) {
      linear::gated_delta_rule<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), beta.r3(), g.r3(), before,
                                          after);
    } else {
      linear::kimi_delta_attention<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), beta.r3(), g.r4(),
                                              before, after, linear::l2_normalized{1e-6},
                                              heed::scale{c.meta["attrs"]["scale"]});
    }
    c.expect("O", o), c.expect("S_final", state);
  }
}

TYPED_TEST(linear_cases, gated) {
  for (const char* path : {"linear/gla_T1_state", "linear/gla_T37"}) {
    loaded_case c(path);
    auto o = c.room("o"), state = c.room("state");
    const auto first = c.has_input("h0") ? c.in("h0") : numbers<float>(state.shape);
    linear::gla<TypeParam>(c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(),
                           o.by_token(), c.in("gk").by_token(), linear::initial_state(first.r4()),
                           linear::final_state(state.v4()));
    c.expect("o", o), c.expect("state", state);
  }
  {
    loaded_case c("linear/simple_gla_T50");
    auto o = c.room("o"), state = c.room("state");
    linear::simple_gla<TypeParam>(c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(),
                                  o.by_token(), c.in("g").by_token(),
                                  linear::final_state(state.v4()));
    c.expect("o", o), c.expect("state", state);
  }
  for (const char* path : {"backward/gla", "backward/simple_gla", "backward/linear_plain",
                           "backward/retention", "hf/minimax_lightning"}) {
    loaded_case c(path);
    auto o = c.room("O"), state = c.room("S_final");
    const auto q = c.in("Q"), k = c.in("K"), v = c.in("V");
    const auto first = c.has_input("S0") ? c.in("S0") : numbers<float>(state.shape);
    const linear::initial_state before(first.r4());
    const linear::final_state after(state.v4());
    if (c.has_input("slope")) {
      linear::lightning<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), c.in("slope").r1(), after);
    } else if (c.has_input("gamma")) {
      auto logs = c.in("gamma");
      for (float& x : logs.data) x = std::log(x);
      linear::retention<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), linear::head_decay(logs.r1()),
                                   before, after);
    } else if (!c.has_input("g")) {
      linear::attention<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), before, after);
    } else if (const auto g = c.in("g"); g.shape.size() == 3) {
      linear::simple_gla<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), g.r3(), before, after);
    } else {
      linear::gla<TypeParam>(q.r4(), k.r4(), v.r4(), o.v4(), g.r4(), before, after);
    }
    c.expect("O", o), c.expect("S_final", state);
  }
}

TYPED_TEST(linear_cases, retention_and_lightning) {
  for (const char* path : {"linear/retention_T5", "linear/retention_T64"}) {
    loaded_case c(path);
    auto o = c.room("o");
    linear::retention<TypeParam>(c.in("q").r4(), c.in("k").r4(), c.in("v").r4(), o.v4());
    c.expect("o", o);
  }
  loaded_case c("linear/lightning2_nodecay");
  auto o = c.room("o");
  const numbers<float> none({4});
  linear::lightning<TypeParam>(c.in("q").r4(), c.in("k").r4(), c.in("v").r4(), o.v4(), none.r1());
  c.expect("o", o);
}

TYPED_TEST(linear_cases, rwkv6) {
  {
    loaded_case c("linear/rwkv6");
    auto o = c.room("o"), state = c.room("state");
    linear::rwkv6<TypeParam>(
        c.in("q").r4(), c.in("k").r4(), c.in("v").r4(), o.v4(), c.in("w").r4(), c.in("u").r2(),
        heed::scale{0.25}, linear::initial_state(c.in("h0").r4()), linear::final_state(state.v4()));
    c.expect("o", o), c.expect("state", state);
  }
  loaded_case c("backward/rwkv6");
  auto o = c.room("O"), state = c.room("S_final");
  linear::rwkv6<TypeParam>(c.in("Q").r4(), c.in("K").r4(), c.in("V").r4(), o.v4(), c.in("w").r4(),
                           c.in("u").r2(), linear::initial_state(c.in("S0").r4()),
                           linear::final_state(state.v4()));
  c.expect("O", o), c.expect("S_final", state);
}

TYPED_TEST(linear_cases, kernelized) {
  {
    loaded_case c("linear/katharopoulos_elu1_noncausal_keylen");
    auto o = c.room("o");
    const std::vector<index_t> lengths = c.input("key_lengths").template as<std::int64_t>();
    linear::kernelized<TypeParam>(c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(),
                                  o.by_token(), linear::bidirectional{},
                                  heed::key_lengths{lengths});
    c.expect("o", o);
  }
  {
    loaded_case c("backward/linear_elu1_full_normalised");
    auto o = c.room("O");
    linear::kernelized<TypeParam>(c.in("Q").r4(), c.in("K").r4(), c.in("V").r4(), o.v4(),
                                  linear::bidirectional{},
                                  linear::normalized{linear::sum_of_weights{0}});
    c.expect("O", o);
  }
  {
    // Upstream's recurrence normalises whatever it is given; elu + 1 was applied before.
    loaded_case c("linear/linear_attn_norm_elu1");
    auto o = c.room("o"), state = c.room("state"), z = c.room("z");
    const index_t b = z.shape[0], h = z.shape[2], d = z.shape[3];
    linear::kernelized<TypeParam>(
        c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(), o.by_token(),
        linear::identity{}, linear::normalized{linear::sum_of_weights{1e-10}},
        linear::final_state(state.v4(), heed::tensor_view<float, 3>(z.data.data(), {b, h, d})));
    c.expect("o", o), c.expect("state", state), c.expect("z", z);
  }
  loaded_case c("linear/linear_attn_plain");
  auto o = c.room("o"), state = c.room("state");
  linear::attention<TypeParam>(c.in("q").by_token(), c.in("k").by_token(), c.in("v").by_token(),
                               o.by_token(), linear::final_state(state.v4()));
  c.expect("o", o), c.expect("state", state);
}

TYPED_TEST(linear_cases, polynomials) {
  {
    loaded_case c("linear/based_taylor2_norm0");
    auto o = c.room("o");
    linear::attention<TypeParam>(c.in("q").r4(), c.in("k").r4(), c.in("v").r4(), o.v4(),
                                 linear::taylor_features);
    c.expect("o", o);
  }
  loaded_case c("linear/rebased");
  auto o = c.room("o");
  linear::rebased<TypeParam>(c.in("q").r4(), c.in("k").r4(), c.in("v").r4(), o.v4());
  c.expect("o", o);
}

TYPED_TEST(linear_cases, cosformer) {
  loaded_case c("linear/cosformer_causal0");
  auto o = c.room("o");
  const auto q = c.in("q"), k = c.in("k"), v = c.in("v");
  // [L, B, heads·8] as [B, heads, L, 8]
  const auto by_head = [](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    return heed::tensor_view<T, 4>(data, {30, 2, 3, 8}).permuted({1, 2, 0, 3});
  };
  linear::cosformer<TypeParam>(by_head(q.data.data()), by_head(k.data.data()),
                               by_head(v.data.data()), by_head(o.data.data()),
                               linear::bidirectional{});
  c.expect("o", o);
}

TYPED_TEST(linear_cases, performer) {
  loaded_case c("linear/performer_favor_noncausal");
  auto o = c.room("o");
  const auto q = c.in("q");
  const linear::random_features<float> features(c.in("projection").r2());
  linear::performer<TypeParam>(q.r4(), c.in("k").r4(), c.in("v").r4(), o.v4(), features,
                               linear::bidirectional{});
  c.expect("o", o);

  auto phi = c.room("phi_q");
  numbers<float> row({1, 48});
  for (index_t i = 0; i < 2 * 3 * 40; ++i) {
    linear::token_rows<float> x{q.data.data() + i * 16, 16, 1, 16};
    x.queries = true;
    features.template map<TypeParam>(x, row.data.data(), 48);
    std::copy_n(row.data.begin(), 44, phi.data.begin() + i * 44);
  }
  c.expect("phi_q", phi);
}

TYPED_TEST(linear_cases, mamba2) {
  {
    loaded_case c("linear/mamba2_ssd_T64_b16");
    auto y = c.room("y");
    numbers<float> state({2, 3, 16, 12}, NAN);
    linear::mamba2<TypeParam>(c.in("x").by_token(), c.in("dt").by_token(), c.in("A").r1(),
                              c.in("B").by_token(), c.in("C").by_token(), y.by_token(),
                              linear::final_state(state.v4()));
    c.expect("y", y), c.expect("state", transposed(state));
  }
  loaded_case c("hf/mamba2_chunk_scan");
  auto y = c.room("y"), dt = c.in("dt");
  const auto x = c.in("x"), bias = c.in("dt_bias"), h0 = transposed(c.in("h0"));
  auto state = h0;
  for (std::size_t i = 0; i < dt.data.size(); ++i) {
    const float raw = dt.data[i] + bias.data[i % bias.data.size()];
    dt.data[i] = std::clamp(std::log1p(std::exp(raw)), 0.05f, 2.0f);
  }
  linear::mamba2<TypeParam>(x.by_token(), dt.by_token(), c.in("A").r1(), c.in("Bm").by_token(),
                            c.in("Cm").by_token(), y.by_token(), linear::initial_state(h0.r4()),
                            linear::final_state(state.v4()));
  linear::add_skip(x.by_token(), c.in("Dskip").r1(), y.by_token());
  c.expect("y", y), c.expect("h_final", transposed(state));
}

// Upstream has the channels before the tokens.
TYPED_TEST(linear_cases, mamba1) {
  for (const char* path : {"linear/mamba1_selective_scan", "hf/mamba_selective_scan",
                           "backward/selective_scan_mamba1"}) {
    loaded_case c(path);
    const bool raw = c.has_input("delta_bias");  // else Δ has been through softplus already
    const auto x = transposed(c.in(c.has_input("u") ? "u" : "x"));
    auto dt = transposed(c.in(c.has_input("delta") ? "delta" : "dt"));
    const auto b = transposed(c.in(c.has_input("B") ? "B" : "Bm"));
    const auto C = transposed(c.in(c.has_input("C") ? "C" : "Cm"));
    const auto skip = c.in(c.has_input("D") ? "D" : "Dskip");
    const std::size_t channels = skip.data.size();
    for (std::size_t i = 0; raw && i < dt.data.size(); ++i) {
      dt.data[i] = std::log1p(std::exp(dt.data[i] + c.in("delta_bias").data[i % channels]));
    }
    numbers<float> y(x.shape, NAN);
    const char* last = c.has_output("state") ? "state" : c.has_output("h_final") ? "h_final" : "";
    auto state = c.room(last);
    const heed::tensor_view<float, 4> state_view(
        state.data.data(), {state.shape[0], state.shape[1], state.shape[2], 1});
    linear::selective_scan<TypeParam>(x.r3(), dt.r3(), c.in("A").r2(), b.r3(), C.r3(), y.v3(),
                                      linear::final_state(state_view));
    const auto z = c.has_input("z") ? transposed(c.in("z")) : numbers<float>(x.shape);
    for (std::size_t i = 0; i < y.data.size(); ++i) {
      y.data[i] += skip.data[i % channels] * x.data[i];
      if (c.has_input("z")) y.data[i] *= z.data[i] / (1 + std::exp(-z.data[i]));
    }
    c.expect(c.has_output("y") ? "y" : "O", transposed(y));
    c.expect(last, state);
  }
}

}  // namespace
