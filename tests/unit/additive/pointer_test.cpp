// Log-probabilities and indices of pointers, and Luong's general score.
#include "heed/additive/pointer.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "heed/additive/luong.hpp"
#include "heed/core/thread_pool.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/reference/score.hpp"
#include "heed/score/pairwise.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
class pointer : public ::testing::Test {};
TYPED_TEST_SUITE(pointer, heed_test::method_backends, heed_test::backend_name);

// log w of the oracle's weights; rows that see nothing and masked keys are −∞.
template <class T>
void expect_log_weights(tensor<T>& got, const tensor<T>& q, const tensor<T>& k,
                        reference::options how, double tolerance) {
  std::vector<double> weights;
  how.weights = &weights;
  tensor<double> none(q.read().extent(0), q.read().extent(1), q.read().extent(2), 0);
  const tensor<T> no_values(k.read().extent(0), k.read().extent(1), k.read().extent(2), 0);
  reference::attention(q.read(), k.read(), no_values.read(), none.view(), how);
  std::size_t i = 0;
  got.for_each([&](T& x) {
    const double w = weights[i++];
    if (w == 0) {
      EXPECT_TRUE(heed::is_minus_infinity(x)) << i;
    } else {
      EXPECT_NEAR(static_cast<double>(x), std::log(w), tolerance) << i;
    }
  });
}

TYPED_TEST(pointer, log_probabilities_of_additive_scores) {
  for (const index_t queries : {index_t{1}, index_t{30}}) {
    tensor<float> q(2, 4, queries, 24, layout::by_token), k(2, 2, 150, 24, layout::padded),
        w(1, 1, 4, 24), to(2, 4, queries, 150, layout::padded);
    q.fill(1), k.fill(2), w.fill(3);
    const heed::tensor_view<const float, 2> weights(w.read().data(), {4, 24});
    const std::vector<index_t> lengths = {150, 77};
    reference::options how;
    how.key_lengths = lengths;
    how.visible = [](const heed::position& p) { return p.k % 3 != 1 && p.q != 7; };
    how.scores = {reference::pairwise(
        q.read(), k.read(), weights, [](double x) { return std::tanh(x); }, 1)};
    heed::thread_pool pool(2);
    heed::pointer_log_probabilities<TypeParam>(
        q.read(), k.read(), to.view(), heed::pairwise{heed::tanh_of{}, weights}, heed::scale{1},
        heed::mask{[](const heed::position& p) { return p.k % 3 != 1 && p.q != 7; }},
        heed::key_lengths{lengths}, heed::on{pool});
    expect_log_weights(to, q, k, how, 1e-4);
    EXPECT_EQ(to.overwritten_around(), 0);

    // The first of the largest, or −1.
    std::vector<std::int32_t> best(static_cast<std::size_t>(8 * queries));
    heed::pointer_argmax(to.read(),
                         heed::tensor_view<std::int32_t, 3>(best.data(), {2, 4, queries}));
    std::size_t at = 0;
    for (index_t b = 0; b < 2; ++b) {
      for (index_t h = 0; h < 4; ++h) {
        for (index_t i = 0; i < queries; ++i) {
          index_t wanted = i == 7 ? -1 : 0;
          for (index_t j = 0; j < 150 && i != 7; ++j) {
            if (to.view()(b, h, i, j) > to.view()(b, h, i, wanted)) wanted = j;
          }
          EXPECT_EQ(best[at++], wanted);
        }
      }
    }
  }
}

TYPED_TEST(pointer, log_probabilities_of_products_in_double) {
  tensor<double> q(1, 2, 70, 16), k(1, 1, 70, 16), to(1, 2, 70, 70);
  q.fill(1), k.fill(2);
  reference::options how;
  how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
  heed::pointer_log_probabilities<TypeParam>(q.read(), k.read(), to.view(), heed::causal{});
  expect_log_weights(to, q, k, how, 1e-12);
}

// The worked case of additive attention: scores 0.951954, 0.761594, −1.732415, log of their
// exponentials' sum 1.591134.
TYPED_TEST(pointer, gives_the_numbers_of_a_case_by_hand) {
  const std::vector<float> q = {0.5f, -0.25f}, k = {0, 0, 0.5f, 0.25f, -1, 1}, w = {1, -2};
  std::vector<float> to(3);
  heed::pointer_log_probabilities<TypeParam>(
      heed::tensor_view<const float, 2>(q.data(), {1, 2}),
      heed::tensor_view<const float, 2>(k.data(), {3, 2}),
      heed::tensor_view<float, 2>(to.data(), {1, 3}),
      heed::pairwise{heed::tanh_of{}, heed::tensor_view<const float, 1>(w.data(), {2})},
      heed::scale{1});
  EXPECT_NEAR(to[0], -0.639180, 2e-6);
  EXPECT_NEAR(to[1], -0.829540, 2e-6);
  EXPECT_NEAR(to[2], -3.323549, 2e-6);
}

TYPED_TEST(pointer, luong_general_is_attention_with_projected_queries) {
  for (const index_t matrices : {index_t{1}, index_t{4}}) {
    tensor<float> q(2, 4, 9, 12, layout::by_token), w(1, matrices, 12, 20, layout::padded),
        k(2, 2, 80, 20), v(2, 2, 80, 8), out(2, 4, 9, 8);
    q.fill(1), w.fill(2, 0.3), k.fill(3), v.fill(4);
    const auto all = w.read();
    const heed::tensor_view<const float, 3> general(all.data(), {matrices, 12, 20},
                                                    {all.stride(1), all.stride(2), 1});
    tensor<double> projected(2, 4, 9, 20), wanted(2, 4, 9, 8);
    for (index_t b = 0; b < 2; ++b) {
      for (index_t h = 0; h < 4; ++h) {
        for (index_t i = 0; i < 9; ++i) {
          for (index_t d = 0; d < 20; ++d) {
            double sum = 0;
            for (index_t p = 0; p < 12; ++p) {
              sum += static_cast<double>(q.view()(b, h, i, p)) *
                     static_cast<double>(general(matrices == 1 ? 0 : h, p, d));
            }
            projected.view()(b, h, i, d) = sum;
          }
        }
      }
    }
    reference::options how;
    how.scale = 1;
    reference::attention(projected.read(), k.read(), v.read(), wanted.view(), how);
    heed::luong_attention<TypeParam>(q.read(), general, k.read(), v.read(), out.view());
    EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 2e-5);
  }
}

// The projected queries are sums of the call too: double where any operand is.
TYPED_TEST(pointer, luong_general_keeps_sums_in_the_type_of_the_call) {
  tensor<float> q(1, 1, 5, 12), w(1, 1, 12, 20);
  tensor<double> k(1, 1, 40, 20), v(1, 1, 40, 8), out(1, 1, 5, 8), projected(1, 1, 5, 20),
      wanted(1, 1, 5, 8);
  q.fill(1), w.fill(2, 0.3), k.fill(3), v.fill(4);
  const heed::tensor_view<const float, 2> general(w.read().data(), {12, 20});
  for (index_t i = 0; i < 5; ++i) {
    for (index_t d = 0; d < 20; ++d) {
      double sum = 0;
      for (index_t p = 0; p < 12; ++p) {
        sum += static_cast<double>(q.view()(0, 0, i, p)) * static_cast<double>(general(p, d));
      }
      projected.view()(0, 0, i, d) = sum;
    }
  }
  reference::options how;
  how.scale = 1;
  reference::attention(projected.read(), k.read(), v.read(), wanted.view(), how);
  heed::luong_attention<TypeParam>(q.read(), general, k.read(), v.read(), out.view());
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 1e-12);
}

}  // namespace
