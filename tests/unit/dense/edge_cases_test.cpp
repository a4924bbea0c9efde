// Edge cases that the suites of other attention libraries test.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cmath>
#include <limits>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/dense.hpp"
#include "heed/score/bias.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
class edge_cases : public ::testing::Test {};
TYPED_TEST_SUITE(edge_cases, heed_test::all_backends, heed_test::backend_name);

TYPED_TEST(edge_cases, bfloat16_filled_with_a_large_number_averages_to_it) {
  tensor<Eigen::bfloat16> q(1, 2, 9, 64), k(1, 2, 70, 64), v(1, 2, 70, 64), out(1, 2, 9, 64);
  for (auto* x : {&q, &k, &v}) {
    x->for_each([](Eigen::bfloat16& e) { e = heed::narrow<Eigen::bfloat16>(133120.f); });
  }
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view());
  out.for_each([](Eigen::bfloat16& e) { EXPECT_EQ(heed::widen<float>(e), 133120.f); });
}

// Subnormal halves too: AMX-FP16 computes with them.
TYPED_TEST(edge_cases, half_filled_with_the_largest_or_a_tiny_number_averages_to_it) {
  for (const float number : {65504.f, 0x3p-24f}) {
    tensor<Eigen::half> q(1, 2, 9, 64), k(1, 2, 70, 64), v(1, 2, 70, 64), out(1, 2, 9, 64);
    for (auto* x : {&q, &k, &v}) {
      x->for_each([number](Eigen::half& e) { e = heed::narrow<Eigen::half>(number); });
    }
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view());
    out.for_each([number](Eigen::half& e) { EXPECT_EQ(heed::widen<float>(e), number); });
  }
}

TYPED_TEST(edge_cases, a_large_negative_scale_picks_the_least_similar_key) {
  tensor<float> q(1, 1, 20, 16), k(1, 1, 90, 16), v(1, 1, 90, 8), out(1, 1, 20, 8);
  q.fill(1), k.fill(2), v.fill(3);
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::scale{-1e4});
  tensor<double> truth(1, 1, 20, 8), plain(1, 1, 20, 8);
  reference::options how;
  how.scale = -1e4;
  reference::attention(q.read(), k.read(), v.read(), truth.view(), how);
  reference::plain<float>(q.read(), k.read(), v.read(), plain.view(), how);
  EXPECT_LE(heed_test::worst_error(out.read(), truth.read()),
            2 * heed_test::worst_error(plain.read(), truth.read()) + 1e-5);
}

TYPED_TEST(edge_cases, large_scores_behind_a_bias_of_minus_infinity_do_not_count) {
  // Keys 10 to 39 would win by far, in either direction, were they not hidden.
  tensor<float> q(1, 1, 30, 8), k(1, 1, 80, 8), v(1, 1, 80, 8), out(1, 1, 30, 8);
  q.fill(1), k.fill(2), v.fill(3);
  std::vector<float> entries(80, 0.f);
  for (index_t j = 10; j < 40; ++j) {
    entries[static_cast<std::size_t>(j)] = -std::numeric_limits<float>::infinity();
    for (index_t d = 0; d < 8; ++d) k.view()(0, 0, j, d) = j % 2 == 0 ? 1000.f : -1000.f;
  }
  reference::options how;
  how.visible = [](const heed::position& p) { return p.k < 10 || p.k >= 40; };
  tensor<double> truth(1, 1, 30, 8);
  reference::attention(q.read(), k.read(), v.read(), truth.view(), how);
  heed::attention<TypeParam>(
      q.read(), k.read(), v.read(), out.view(),
      heed::bias{heed::tensor_view<const float, 2>(entries.data(), {1, 80})});
  EXPECT_LE(heed_test::worst_error(out.read(), truth.read(), 5e-6), 1e-5);
}

TYPED_TEST(edge_cases, a_wide_band_of_minus_infinity) {
  constexpr index_t length = 600;
  tensor<float> q(1, 1, length, 8), k(1, 1, length, 8), v(1, 1, length, 8), out(1, 1, length, 8);
  q.fill(1), k.fill(2), v.fill(3);
  const auto hidden = [](index_t i, index_t j) { return std::abs(i - j) < 250 || i > 580; };
  std::vector<float> entries(length * length, 0.f);
  for (index_t i = 0; i < length; ++i) {
    for (index_t j = 0; j < length; ++j) {
      if (hidden(i, j)) {
        entries[static_cast<std::size_t>(i * length + j)] = -std::numeric_limits<float>::infinity();
      }
    }
  }
  reference::options how;
  how.visible = [&](const heed::position& p) { return !hidden(p.q, p.k); };
  tensor<double> truth(1, 1, length, 8);
  reference::attention(q.read(), k.read(), v.read(), truth.view(), how);
  heed::attention<TypeParam>(
      q.read(), k.read(), v.read(), out.view(),
      heed::bias{heed::tensor_view<const float, 2>(entries.data(), {length, length})});
  EXPECT_LE(heed_test::worst_error(out.read(), truth.read(), 5e-6), 1e-5);
}

}  // namespace
