// Normalisers and transforms of weights against the oracle, over masks, grouped heads, odd shapes
// and lengths; few rows (keys in place) and many (packed).
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/normalizer/entmax15.hpp"
#include "heed/normalizer/factor.hpp"
#include "heed/normalizer/redistribute.hpp"
#include "heed/normalizer/relaxed.hpp"
#include "heed/normalizer/relu.hpp"
#include "heed/normalizer/rms_norm.hpp"
#include "heed/normalizer/sigmoid.hpp"
#include "heed/normalizer/signed_softmax.hpp"
#include "heed/normalizer/softmax_off_by_one.hpp"
#include "heed/normalizer/sparsemax.hpp"
#include "heed/normalizer/urpe.hpp"
#include "support/backends.hpp"
#include "support/rows.hpp"

namespace {

using heed::index_t;
using heed::reference::row_map;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
struct problem {
  tensor<float> q, k, v;
  index_t heads, queries, keys;

  problem(index_t hq, index_t hk, index_t lq, index_t lk, double spread)
      : q(2, hq, lq, 24), k(2, hk, lk, 24), v(2, hk, lk, 20), heads(hq), queries(lq), keys(lk) {
    q.fill(1, spread), k.fill(2), v.fill(3);
  }

  // The call with these modifiers against the maps, under a window mask: out and weights.
  template <class... Modifiers>
  reference::weighted_result check(const char* what, const std::vector<row_map>& maps,
                                   const Modifiers&... modifiers) const {
    SCOPED_TRACE(what);
    const heed::window window(90, 20);
    reference::options how;
    how.visible = [window](const heed::position& p) { return window(p); };
    const auto truth = reference::weighted_attention(q.read(), k.read(), v.read(), maps, how);
    tensor<float> out(2, heads, queries, 20, heed_test::layout::interleaved);
    tensor<float> weights(2, heads, queries, keys);
    heed::attention<Backend>(q.read(), k.read(), v.read(), out.view(), window, modifiers...,
                             heed::weights_to{weights.view()});
    const auto error = [](const tensor<float>& got, const std::vector<double>& wanted) {
      const heed::tensor_view<const double, 4> as_view(wanted.data(), got.read().extents());
      return heed_test::worst_error(got.read(), as_view, 1e-5);
    };
    // Sums round like the sum of their terms' sizes, weights like the scores.
    double most = 1;
    for (std::size_t at = 0; at < truth.weights.size();) {
      double row = 0;
      for (index_t j = 0; j < keys; ++j) row += std::abs(truth.weights[at++]);
      most = std::max(most, row);
    }
    EXPECT_LE(error(out, truth.out), 2e-5 * std::sqrt(most));
    EXPECT_LE(error(weights, truth.weights), 6e-6);
    EXPECT_EQ(out.overwritten_around(), 0);
    return truth;
  }
};

template <class Backend>
class normalizers : public ::testing::Test {
 public:
  template <class Use>
  static void for_each_shape(Use use) {
    for (double spread : {1.0, 6.0}) {
      use(problem<Backend>(4, 2, 1, 300, spread));
      use(problem<Backend>(4, 2, 75, 130, spread));
      use(problem<Backend>(2, 1, 200, 97, spread));  // the first queries see no key
    }
  }
};
TYPED_TEST_SUITE(normalizers, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(normalizers, sigmoid) {
  this->for_each_shape([](const problem<TypeParam>& p) {
    const std::vector<float> biases = {0.5f, -1.f, -3.f, 0.f};
    p.check("per head", {reference::sigmoid_weights({0.5, -1, -3, 0})},
            heed::sigmoid_weights{heed::tensor_view<const float, 1>(biases.data(), {p.heads})});
    p.check("same", {reference::sigmoid_weights(std::vector<double>(4, -2.0))},
            heed::sigmoid_weights{-2.f});
  });
}

TYPED_TEST(normalizers, rectified) {
  this->for_each_shape([](const problem<TypeParam>& p) {
    p.check("plain", {reference::relu_weights(1, 0)}, heed::relu_weights{});
    p.check("squared mean", {reference::relu_weights(2, 1)},
            heed::relu_weights{2, heed::relu_mean});
    p.check("sum", {reference::relu_weights(1, 2)}, heed::relu_weights{1, heed::relu_sum});
  });
}

TYPED_TEST(normalizers, softmax_off_by_one_and_signed) {
  this->for_each_shape([](const problem<TypeParam>& p) {
    p.check("off by one", {reference::softmax(std::vector<double>(4, 0.0))},
            heed::softmax_off_by_one{});
    p.check("signed", {reference::signed_softmax()}, heed::signed_softmax{});
  });
}

TYPED_TEST(normalizers, sparsemax_and_entmax) {
  this->for_each_shape([](const problem<TypeParam>& p) {
    p.check("sparsemax", {reference::entmax(2)}, heed::sparsemax{});
    p.check("entmax", {reference::entmax(1.5)}, heed::entmax15{});
  });
}

TYPED_TEST(normalizers, relaxed_factor_and_urpe) {
  this->for_each_shape([](const problem<TypeParam>& p) {
    const row_map softmax = reference::softmax();
    p.check("relaxed", {softmax, reference::relaxed(0.2)}, heed::relaxed{0.2});
    const auto decay = [](const heed::position& at) {
      return 1 / (1 + 0.125 * std::abs(static_cast<double>(at.aligned_q() - at.k)));
    };
    p.check("pack factor", {softmax, reference::factor(decay)}, heed::factor{[](auto at) {
              return 1.f / (1.f + 0.125f * abs(at.aligned_q() - at.k));
            }});
    p.check("key factor", {softmax, reference::factor(decay)},
            heed::factor{[&](heed::position at) { return decay(at); }});
    std::vector<float> table(4 * 61);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = std::sin(static_cast<float>(i));
    const auto entry = [&](const heed::position& at) {
      const index_t distance = std::clamp<index_t>(at.k - at.aligned_q(), -30, 30);
      return static_cast<double>(table[static_cast<std::size_t>(at.head * 61 + distance + 30)]);
    };
    const heed::urpe urpe(heed::tensor_view<const float, 2>(table.data(), {p.heads, 61}), 30);
    p.check("urpe", {softmax, reference::factor(entry)}, urpe);
    // In the order written: the uniform share is not scaled, or is.
    p.check("urpe, relaxed", {softmax, reference::factor(entry), reference::relaxed(0.3)}, urpe,
            heed::relaxed{0.3});
    p.check("relaxed, urpe", {softmax, reference::relaxed(0.3), reference::factor(entry)},
            heed::relaxed{0.3}, urpe);
    p.check("sigmoid times factor",
            {reference::sigmoid_weights(std::vector<double>(4, 0.0)), reference::factor(entry)},
            urpe, heed::sigmoid_weights{});
  });
}

TYPED_TEST(normalizers, redistribution) {
  this->for_each_shape([](const problem<TypeParam>& p) {
    std::vector<std::uint8_t> sinks(static_cast<std::size_t>(2 * p.keys));
    std::vector<std::uint8_t> takers(static_cast<std::size_t>(p.keys));
    for (std::size_t j = 0; j < sinks.size(); ++j) sinks[j] = j % 23 == 0 || j % 37 == 4;
    for (std::size_t j = 0; j < takers.size(); ++j) takers[j] = j % 100 > 20;
    const auto is_sink = [&](index_t b, index_t j) {
      return sinks[static_cast<std::size_t>(b * p.keys + j)] != 0;
    };
    const auto takes = [&](index_t, index_t j) { return takers[static_cast<std::size_t>(j)] != 0; };
    const row_map softmax = reference::softmax();
    heed::redistribute var{heed::tensor_view<const std::uint8_t, 2>(sinks.data(), {2, p.keys}),
                           heed::tensor_view<const std::uint8_t, 2>(takers.data(), {1, p.keys})};
    var.keep = 0.6, var.most_sink_share = 0.08, var.least_taken = 0.2;
    const auto truth =
        p.check("visual tokens take",
                {softmax, reference::redistribute(is_sink, takes, 0.6, 0.08, 0.2)}, var);
    heed::redistribute calibrate{
        heed::tensor_view<const std::uint8_t, 2>(sinks.data(), {2, p.keys})};
    calibrate.keep = 0.4;
    p.check("all take",
            {softmax, reference::redistribute(
                          is_sink, [](index_t, index_t) { return true; }, 0.4, 1, 0)},
            calibrate);
    // The criterion lets some rows through and keeps others.
    if (p.queries > 1) {
      const auto plain = reference::weighted_attention(
          p.q.read(), p.k.read(), p.v.read(), {softmax},
          {.visible = [](const heed::position& at) { return heed::window(90, 20)(at); }});
      std::size_t same = 0;
      for (std::size_t i = 0; i < plain.out.size(); ++i) same += plain.out[i] == truth.out[i];
      EXPECT_GT(same, plain.out.size() / 50);
      EXPECT_LT(same, plain.out.size());
    }
    const std::vector<std::uint8_t> none(static_cast<std::size_t>(p.heads), 0);
    calibrate.enabled_heads = none;
    p.check("no head", {softmax}, calibrate);
  });
}

TYPED_TEST(normalizers, rms_norm_of_the_output) {
  const problem<TypeParam> p(4, 2, 75, 130, 1);
  const auto truth = reference::weighted_attention(p.q.read(), p.k.read(), p.v.read(),
                                                   {reference::relu_weights(1, 0)});
  std::vector<float> gain(80);
  for (std::size_t i = 0; i < gain.size(); ++i) gain[i] = 1 + 0.01f * static_cast<float>(i);
  tensor<Eigen::half> out(2, 4, 75, 20);
  const auto check = [&](index_t gain_heads, const auto& norm) {
    heed::attention<TypeParam>(p.q.read(), p.k.read(), p.v.read(), out.view(), heed::relu_weights{},
                               norm);
    for (std::size_t row = 0; row < truth.out.size() / 20; ++row) {
      double squares = 0;
      for (std::size_t d = 0; d < 20; ++d) squares += std::pow(truth.out[row * 20 + d], 2);
      const std::size_t head = row / 75 % 4;
      for (std::size_t d = 0; d < 20; ++d) {
        const double of_gain =
            gain_heads == 0 ? 1 : static_cast<double>(gain[(gain_heads == 1 ? 0 : head) * 20 + d]);
        const double wanted = of_gain * truth.out[row * 20 + d] / std::sqrt(squares / 20 + 1e-6);
        const double got = heed::widen<double>(out.view().data()[row * 20 + d]);
        ASSERT_NEAR(got, wanted, 1e-4 + 1e-3 * std::abs(wanted));
      }
    }
  };
  // One rounding, to half: the sums that are normed reach beyond what a half can hold.
  check(0, heed::rms_norm{});
  check(1, heed::rms_norm{heed::tensor_view<const float, 1>(gain.data(), {20})});
  check(4, heed::rms_norm{heed::tensor_view<const float, 2>(gain.data(), {4, 20})});
}

}  // namespace
