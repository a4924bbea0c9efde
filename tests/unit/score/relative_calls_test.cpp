// Relative embeddings in calls of other kinds: element types, observers, threads, decoding, numbers
// that are none.
#include <gtest/gtest.h>

#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/observer/scores.hpp"
#include "heed/score/relative_embedding.hpp"
#include "heed/score/transformer_xl.hpp"
#include "support/backends.hpp"
#include "unit/score/relative_operands.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

using call = heed_test::relative_call;
template <class T>
using operands = heed_test::relative_operands<T>;

template <class Backend>
class relative_calls : public ::testing::Test {};
TYPED_TEST_SUITE(relative_calls, heed_test::method_backends, heed_test::backend_name);

// Where whole rows of scores are kept, for observers.
TYPED_TEST(relative_calls, is_in_the_scores_that_observers_see) {
  for (const index_t queries : {index_t{1}, index_t{70}}) {
    const call c{1, 4, 2, queries, 700, 20, 300, -250, 4};
    operands<float> x(c, layout::padded, 6);
    tensor<float> scores(1, 4, queries, 700);
    std::vector<double> weights;
    reference::options how;
    how.scale = 0.25;
    how.weights = &weights;
    how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
    how.scores = {
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), 0.25)};
    std::vector<float> lse(static_cast<std::size_t>(4 * queries));
    heed::attention<TypeParam>(
        x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.25}, heed::causal{},
        heed::relative_embedding(x.entries(), c.first, x.query_bias()),
        heed::scores_to{scores.view()},
        heed::lse_to{heed::tensor_view<float, 3>(lse.data(), {1, 4, queries})});
    EXPECT_LE(x.error(how), 2e-5);
    std::size_t at = 0;
    scores.for_each([&](float s) {
      const double w = weights[at];
      if (w > 1e-30) {
        EXPECT_NEAR(static_cast<double>(s - lse[at / 700]), std::log(w), 1e-4) << at;
      }
      ++at;
    });
  }
}

template <class Backend, class T>
void check_type(double bound) {
  for (const index_t queries : {index_t{1}, index_t{9}, index_t{110}}) {
    const call c{1, 4, 2, queries, 260, 40, 100, -60, 4};
    operands<T> x(c, layout::dense, 21);
    reference::options how;
    how.scale = 0.1;
    how.scores = {
        reference::content_bias(x.k.read(), c.heads, x.query_bias(), 0.1),
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), 0.1)};
    heed::attention<Backend>(
        x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.1},
        heed::transformer_xl(x.entries(), x.query_bias(), x.query_bias(), c.first));
    EXPECT_LE(x.error(how), bound) << queries;
  }
}
TYPED_TEST(relative_calls, element_types) {
  check_type<TypeParam, double>(1e-12);
  check_type<TypeParam, Eigen::half>(2e-3);
  check_type<TypeParam, Eigen::bfloat16>(2e-2);
}

TYPED_TEST(relative_calls, is_bit_identical_for_any_number_of_threads) {
  const call c{1, 4, 2, 130, 1700, 24, 900, -800, 4};
  operands<float> x(c, layout::dense, 3);
  const heed::transformer_xl term(x.entries(), x.query_bias(), x.query_bias(), c.first);
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
                             term);
  tensor<float> again = x.out;
  heed::thread_pool pool(3);
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), again.view(), heed::causal{}, term,
                             heed::on{pool});
  EXPECT_EQ(std::memcmp(again.view().data(), x.out.view().data(),
                        static_cast<std::size_t>(again.view().size()) * sizeof(float)),
            0);
}

// Step by step through a growing cache, and several sets of keys under one softmax.
TYPED_TEST(relative_calls, decoding_gives_the_rows_of_the_whole_call) {
  const call c{1, 4, 2, 80, 80, 16, 159, -79, 4};
  operands<float> x(c, layout::dense, 8);
  const heed::relative_embedding term(x.entries(), c.first, x.query_bias());
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
                             term);
  for (index_t at = 0; at < 80; at += 13) {
    tensor<float> step(1, 4, 1, 24);
    heed::attention<TypeParam>(x.q.read().slice(2, at, 1), x.k.read().slice(2, 0, at + 1),
                               x.v.read().slice(2, 0, at + 1), step.view(), term);
    for (index_t h = 0; h < 4; ++h) {
      for (index_t d = 0; d < 24; ++d) {
        EXPECT_NEAR(step.view()(0, h, 0, d), x.out.view()(0, h, at, d), 1e-5) << at;
      }
    }
  }
}

TYPED_TEST(relative_calls, nan_behind_a_mask_does_not_leak) {
  for (const index_t queries : {index_t{1}, index_t{64}}) {
    const call c{1, 2, 1, queries, 130, 16, 261, -130, 1};
    operands<float> x(c, layout::dense, 8);
    // Distances ahead of the query are masked; so is the first key.
    x.table.view()(0, 0, 131, 3) = NAN;
    for (index_t d = 0; d < 16; ++d) x.k.view()(0, 0, 0, d) = NAN;
    reference::options how;
    how.visible = [](const heed::position& p) { return p.k <= p.aligned_q() && p.k > 0; };
    const double scale = 0.25;
    how.scores = {
        reference::content_bias(x.k.read(), 2, x.query_bias(), scale),
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), scale)};
    heed::attention<TypeParam>(
        x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
        heed::mask{[](const heed::position& p) { return p.k > 0; }},
        heed::transformer_xl(x.entries(), x.query_bias(), x.query_bias(), c.first));
    EXPECT_LE(x.error(how), 2e-5);
  }
}

}  // namespace
