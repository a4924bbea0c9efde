// heed::attention_backward: scores and their derivatives, gradients of biases and sinks, element
// types.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/dense/backward.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/backward_call.hpp"

namespace {

using heed::index_t;
using heed::position;
using heed_test::backward_call;
using heed_test::backward_shape;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
class backward_modifiers : public ::testing::Test {};
TYPED_TEST_SUITE(backward_modifiers, heed_test::method_backends, heed_test::backend_name);

bool causally(const position& p) { return p.k <= p.aligned_q(); }
double one(double, const position&) { return 1; }

// The oracle's gradient of the last score, summed over the axes where `extents` is 1.
std::vector<double> summed(const reference::gradients& truth, const backward_shape& s,
                           const std::array<index_t, 4>& extents) {
  std::vector<double> sums(
      static_cast<std::size_t>(extents[0] * extents[1] * extents[2] * extents[3]));
  std::size_t at = 0;
  for (index_t b = 0; b < s.batches; ++b) {
    for (index_t h = 0; h < s.heads; ++h) {
      for (index_t i = 0; i < s.queries; ++i) {
        for (index_t j = 0; j < s.keys; ++j) {
          const index_t to =
              ((b % extents[0] * extents[1] + h % extents[1]) * extents[2] + i % extents[2]) *
                  extents[3] +
              j % extents[3];
          sums[static_cast<std::size_t>(to)] += truth.scores[at++];
        }
      }
    }
  }
  return sums;
}

// ∂loss/∂lse, without which a row of dS would sum to 0 and prove nothing.
struct of_lse {
  tensor<float> values;
  reference::backward_options more;
  explicit of_lse(const backward_shape& s) : values(1, s.batches, s.heads, s.queries) {
    values.fill(77).for_each(
        [this](float& x) { more.lse_gradient.push_back(static_cast<double>(x)); });
  }
  heed::lse_gradient<float, 3> option() const {
    const auto v = values.read();
    return {heed::tensor_view<const float, 3>(v.data(), {v.extent(1), v.extent(2), v.extent(3)})};
  }
};

// Every way to broadcast, over several blocks of keys and tiles of rows.
TYPED_TEST(backward_modifiers, bias_gradients_sum_over_broadcast_axes) {
  const backward_shape s{2, 4, 2, 70, 530, 8, 8};
  backward_call<float> call(s, 3);
  reference::options how;
  how.visible = causally;
  const of_lse lse(s);
  const reference::gradients truth = call.truth(how, lse.more);
  call.template forward<TypeParam>(heed::causal{});
  for (int broadcast = 0; broadcast < 16; ++broadcast) {
    const std::array<index_t, 4> extents = {
        (broadcast & 1) != 0 ? 1 : s.batches, (broadcast & 2) != 0 ? 1 : s.heads,
        (broadcast & 4) != 0 ? 1 : s.queries, (broadcast & 8) != 0 ? 1 : s.keys};
    SCOPED_TRACE(broadcast);
    tensor<float> d_bias(extents[0], extents[1], extents[2], extents[3], layout::padded);
    call.template backward<TypeParam>(heed::causal{}, lse.option(),
                                      heed::bias_gradient_to{d_bias.view()});
    const std::vector<double> wanted = summed(truth, s, extents);
    heed_test::error_measure measure;
    std::size_t at = 0;
    d_bias.for_each([&](float& x) { measure.add(static_cast<double>(x), wanted[at++]); });
    EXPECT_LE(measure.result(0.1), 1e-5);
    EXPECT_EQ(d_bias.overwritten_around(), 0);
  }
}

// Long rows, so that a bias without keys is cut along its rows; the same bits for any executor.
TYPED_TEST(backward_modifiers, bias_gradients_of_long_rows) {
  const backward_shape s{1, 1, 1, 1100, 40, 8, 8};
  backward_call<float> call(s, 4);
  call.template forward<TypeParam>();
  const of_lse lse(s);
  tensor<float> d_bias(1, 1, s.queries, 1), again(1, 1, s.queries, 1);
  call.template backward<TypeParam>(lse.option(), heed::bias_gradient_to{d_bias.view()});
  heed::thread_pool pool(3);
  call.template backward<TypeParam>(lse.option(), heed::bias_gradient_to{again.view()},
                                    heed::on{pool});
  EXPECT_EQ(heed_test::gradient_bits(d_bias), heed_test::gradient_bits(again));
  // A row of dS sums to the gradient of its log-sum-exp.
  EXPECT_LE(heed_test::gradient_error<float>(d_bias.read(), lse.more.lse_gradient.data()), 1e-5);
}

// A bias in a ragged batch counts positions within its sequence, which is its batch.
TYPED_TEST(backward_modifiers, bias_gradients_of_a_ragged_batch) {
  const backward_shape s{1, 2, 1, 100, 130, 16, 8};
  backward_call<float> call(s, 5);
  reference::backward_options more;
  more.cu_q = {0, 30, 100}, more.cu_k = {0, 90, 130};
  const heed::ragged rows{more.cu_q, more.cu_k};
  const reference::gradients truth = call.truth({}, more);
  call.template forward<TypeParam>(rows);
  tensor<float> d_bias(2, 1, 70, 90);
  call.template backward<TypeParam>(rows, heed::bias_gradient_to{d_bias.view()});
  std::vector<double> wanted(2 * 70 * 90);
  for (index_t h = 0; h < 2; ++h) {
    for (index_t i = 0; i < 100; ++i) {
      for (index_t j = 0; j < 130; ++j) {
        const index_t b = i < 30 ? 0 : 1;
        if ((j < 90) != (b == 0)) continue;
        wanted[static_cast<std::size_t>((b * 70 + i - b * 30) * 90 + j - b * 90)] +=
            truth.scores[static_cast<std::size_t>((h * 100 + i) * 130 + j)];
      }
    }
  }
  EXPECT_LE(heed_test::gradient_error<float>(d_bias.read(), wanted.data()), 1e-5);
}

// Scores in a chain: derivatives multiply, and a bias's gradient knows what comes after it.
TYPED_TEST(backward_modifiers, chains_of_scores) {
  const backward_shape s{1, 2, 1, 75, 140, 16, 24};
  backward_call<float> call(s, 6);
  tensor<float> bias(1, 2, s.queries, s.keys), d_early(1, 2, s.queries, s.keys),
      d_late(1, 2, s.queries, s.keys);
  bias.fill(8);
  const std::vector<float> slope_data = {0.05f, 0.02f};
  const heed::alibi slopes{heed::tensor_view<const float, 1>(slope_data.data(), {2})};
  reference::options how;
  how.visible = causally;
  const auto bias_at = [&](const position& p) {
    return static_cast<double>(bias.read()(0, p.head, p.q, p.k));
  };
  how.scores = {[&](double x, const position& p) { return x + bias_at(p); },
                [](double x, const position&) { return 2 * std::tanh(x / 2); },
                [](double x, const position& p) { return x * (p.k % 3 == 0 ? 0.5 : 1.25); },
                [&](double x, const position& p) {
                  return x - static_cast<double>(slope_data[static_cast<std::size_t>(p.head)]) *
                                 static_cast<double>(std::abs(p.k - p.aligned_q()));
                }};
  const auto bent = [](double x, const position&) {
    return 1 - std::tanh(x / 2) * std::tanh(x / 2);
  };
  const auto factor = [](double, const position& p) { return p.k % 3 == 0 ? 0.5 : 1.25; };
  reference::backward_options more;
  more.derivatives = {one, bent, factor, one};
  const heed::score stretch{
      [](float x, const position& p) { return x * (p.k % 3 == 0 ? 0.5f : 1.25f); },
      [](float, const position& p) { return p.k % 3 == 0 ? 0.5f : 1.25f; }};
  call.template forward<TypeParam>(heed::bias{bias.read()}, heed::softcap{2}, stretch, slopes,
                                   heed::causal{});
  call.template backward<TypeParam>(heed::bias{bias.read()}, heed::bias_gradient_to{d_early.view()},
                                    heed::softcap{2}, stretch, slopes, heed::causal{},
                                    heed::bias_gradient_to{d_late.view()});
  const reference::gradients truth = call.truth(how, more);
  call.expect(truth, 1e-5);
  EXPECT_LE(heed_test::gradient_error<float>(d_late.read(), truth.scores.data()), 1e-5);
  // Back through the three scores behind the bias.
  std::vector<double> early = truth.scores;
  for (index_t h = 0; h < 2; ++h) {
    for (index_t i = 0; i < s.queries; ++i) {
      for (index_t j = 0; j < s.keys; ++j) {
        const position p{0, h, i, j, s.queries, s.keys};
        double x = 0;
        for (index_t d = 0; d < s.depth; ++d) {
          x += static_cast<double>(call.q.read()(0, h, i, d)) *
               static_cast<double>(call.k.read()(0, 0, j, d));
        }
        early[static_cast<std::size_t>((h * s.queries + i) * s.keys + j)] *=
            bent(x / std::sqrt(16.0) + bias_at(p), p) * factor(0, p);
      }
    }
  }
  EXPECT_LE(heed_test::gradient_error<float>(d_early.read(), early.data()), 1e-5);
}

TYPED_TEST(backward_modifiers, sinks) {
  const backward_shape s{2, 4, 2, 40, 70, 16, 16};
  backward_call<float> call(s, 7);
  const std::vector<float> logits = {-1.f, 0.5f, 3.f, 8.f};
  const heed::sink sink{heed::tensor_view<const float, 1>(logits.data(), {4})};
  reference::options how;
  how.visible = [](const position& p) { return p.k <= p.aligned_q() && p.q != 4; };
  how.sinks.assign(logits.begin(), logits.end());
  const of_lse lse(s);
  const heed::mask seen{how.visible};
  call.template forward<TypeParam>(seen, sink);
  std::vector<float> d_sinks(4, NAN), sum(1, NAN);
  call.template backward<TypeParam>(
      seen, sink, lse.option(),
      heed::sink_gradient_to{heed::tensor_view<float, 1>(d_sinks.data(), {4})});
  const reference::gradients truth = call.truth(how, lse.more);
  call.expect(truth, 1e-5);
  double wanted_sum = 0;
  for (std::size_t h = 0; h < 4; ++h) {
    EXPECT_NEAR(static_cast<double>(d_sinks[h]), truth.sinks[h], 1e-4) << h;
    EXPECT_GT(std::abs(truth.sinks[h]), 0.01) << h;
    wanted_sum += truth.sinks[h];
  }
  call.template backward<TypeParam>(
      seen, sink, lse.option(),
      heed::sink_gradient_to{heed::tensor_view<float, 1>(sum.data(), {1})});
  EXPECT_NEAR(static_cast<double>(sum[0]), wanted_sum, 1e-4);
}

template <class Backend, class T, class G>
void check_types(double allowed) {
  backward_call<T, G> call({1, 4, 2, 90, 130, 40, 24}, 13, layout::interleaved);
  reference::options how;
  how.visible = causally;
  call.template check<Backend>(allowed, how, {}, heed::causal{});
}

// Sums are float: what 16 bits cost is the rounding of the result.
TYPED_TEST(backward_modifiers, element_types) {
  check_types<TypeParam, double, double>(1e-13);
  check_types<TypeParam, Eigen::bfloat16, Eigen::bfloat16>(4e-3);
  check_types<TypeParam, Eigen::half, Eigen::half>(5e-4);
  check_types<TypeParam, Eigen::bfloat16, float>(4e-3);
}

}  // namespace
