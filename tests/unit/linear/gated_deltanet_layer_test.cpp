// A whole layer of a model on this folder's functions: Qwen3-Next's gated DeltaNet, projections,
// causal convolution with SiLU, gated delta rule with normalised queries and keys, gated RMS norm
// (tests/vectors/hf/qwen3_next_gated_deltanet_module).
#include "heed/linear/causal_convolution.hpp"
#include "heed/linear/delta_rule.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::numbers;
namespace linear = heed::linear;

// x [n, in] times the transpose of w [out, in]
numbers<float> projected(const numbers<float>& x, const numbers<float>& w) {
  const index_t n = x.shape[0], in = w.shape[1], out = w.shape[0];
  numbers<float> y({n, out});
  for (index_t i = 0; i < n; ++i) {
    for (index_t o = 0; o < out; ++o) {
      double sum = 0;
      for (index_t c = 0; c < in; ++c) sum += double(x.r2()(i, c)) * double(w.r2()(o, c));
      y.v2()(i, o) = float(sum);
    }
  }
  return y;
}
float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

TEST(gated_deltanet, layer_of_qwen3_next) {
  const heed_test::vector_case c(std::filesystem::path(HEED_TEST_VECTORS) /
                                 "hf/qwen3_next_gated_deltanet_module");
  const auto in = [&](const char* name) { return numbers<float>(c.input(name)); };
  constexpr index_t B = 2, L = 50, K = 2, V = 4, D = 12, E = 16;  // key and value heads
  constexpr index_t group = V / K, per_key_head = 2 * D + 2 * group * E;
  constexpr index_t channels = 2 * K * D + V * E;
  auto x = in("x");
  x.shape = {B * L, x.shape[2]};
  const auto qkvz = projected(x, in("w_in_proj_qkvz_weight"));
  const auto ba = projected(x, in("w_in_proj_ba_weight"));

  // Per key head: q, k, and v and z of its value heads; per key head: β and gate inputs.
  numbers<float> mixed({B, L, channels}), z({B * L, V, E}), beta({B, V, L}), gates({B, V, L});
  for (index_t t = 0; t < B * L; ++t) {
    float* to = mixed.data.data() + t * channels;
    for (index_t h = 0; h < K; ++h) {
      const float* from = qkvz.data.data() + (t * K + h) * per_key_head;
      std::copy_n(from, D, to + h * D);
      std::copy_n(from + D, D, to + (K + h) * D);
      std::copy_n(from + 2 * D, group * E, to + 2 * K * D + h * group * E);
      std::copy_n(from + 2 * D + group * E, group * E, z.data.data() + (t * V + h * group) * E);
    }
    for (index_t h = 0; h < V; ++h) {
      const float* of_key_head = ba.data.data() + (t * K + h / group) * 2 * group;
      const float a = of_key_head[group + h % group] + in("w_dt_bias").data[std::size_t(h)];
      beta.v3()(t / L, h, t % L) = sigmoid(of_key_head[h % group]);
      gates.v3()(t / L, h, t % L) =
          -std::exp(in("w_A_log").data[std::size_t(h)]) * std::log1p(std::exp(a));
    }
  }
  auto taps = in("w_conv1d_weight");
  taps.shape = {channels, 4};
  linear::causal_convolution(mixed.r3(), taps.r2(), mixed.v3(), linear::silu_activation{});

  const auto heads = [&](index_t first, index_t count, index_t depth) {
    return heed::tensor_view<const float, 4>(mixed.data.data() + first, {B, count, L, depth},
                                             {L * channels, depth, channels, 1});
  };
  numbers<float> o({B, L, V, E});
  linear::gated_delta_rule(heads(0, K, D), heads(K * D, K, D), heads(2 * K * D, V, E), o.by_token(),
                           beta.r3(), gates.r3(), linear::l2_normalized{1e-6},
                           heed::scale{1 / std::sqrt(double(D))});

  const auto weight = in("w_norm_weight");
  for (index_t row = 0; row < B * L * V; ++row) {
    float* y = o.data.data() + row * E;
    double square = 0;
    for (index_t d = 0; d < E; ++d) square += double(y[d]) * double(y[d]);
    const float factor = float(1 / std::sqrt(square / E + 1e-6));
    for (index_t d = 0; d < E; ++d) {
      const float gate = z.data[std::size_t(row * E + d)];
      y[d] *= factor * weight.data[std::size_t(d)] * gate * sigmoid(gate);
    }
  }
  o.shape = {B * L, V * E};
  const auto y = projected(o, in("w_out_proj_weight"));
  EXPECT_LE(heed_test::relative_rms(y.data, numbers<double>(c.output("y")).data), 5e-6);
}

}  // namespace
