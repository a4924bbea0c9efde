// Additive attention and other pairwise scores: against the oracle and against numbers computed by
// hand, under masks, in prefill and decode, on every backend.
#include "heed/additive/attention.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "heed/core/quantize.hpp"
#include "heed/core/thread_pool.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/reference/score.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/relative_embedding.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
class additive : public ::testing::Test {};
TYPED_TEST_SUITE(additive, heed_test::method_backends, heed_test::backend_name);

struct relu_of {
  template <class S>
  S operator()(S x) const {
    return max(x, S(0));
  }
};

struct shape {
  index_t batches, heads, key_heads, queries, keys, depth, weight_heads;
};
const std::vector<shape> shapes = {
    {1, 1, 1, 1, 1, 1, 1},    {2, 2, 2, 65, 65, 16, 2}, {1, 4, 2, 33, 700, 42, 1},
    {1, 8, 2, 1, 1100, 7, 8}, {1, 8, 1, 4, 131, 24, 8}, {2, 3, 3, 100, 64, 33, 3},
    {1, 2, 2, 5, 0, 8, 1},    {1, 2, 1, 30, 90, 0, 2},  {1, 1, 1, 13, 65, 130, 1},
};

template <class T>
struct operands {
  tensor<T> q, k, v, w, out;
  operands(const shape& s, layout how, unsigned seed, double spread = 1)
      : q(s.batches, s.heads, s.queries, s.depth, how),
        k(s.batches, s.key_heads, s.keys, s.depth, how),
        v(s.batches, s.key_heads, s.keys, 20, how),
        w(1, 1, s.weight_heads, s.depth, how),
        out(s.batches, s.heads, s.queries, 20, how) {
    q.fill(seed, spread), k.fill(seed + 1, spread), v.fill(seed + 2), w.fill(seed + 3);
  }
  heed::tensor_view<const T, 2> weights() const {
    const auto x = w.read();
    return {x.data(), {x.extent(2), x.extent(3)}, {x.stride(2), 1}};
  }
  reference::score_map oracle(std::function<double(double)> f, double scale = 1) const {
    return reference::pairwise(q.read(), k.read(), weights(), std::move(f), scale);
  }
  double error(const reference::options& how) {
    tensor<double> wanted(out.read().extent(0), out.read().extent(1), out.read().extent(2), 20);
    reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
    EXPECT_EQ(out.overwritten_around(), 0);
    return heed_test::worst_error(out.read(), wanted.read(), 5e-6);
  }
};

double tanh_in_double(double x) { return std::tanh(x); }

// One head, D = 2, w = (1, −2): s = tanh(q_0 + k_0) − 2·tanh(q_1 + k_1). With q = (0.5, −0.25):
//   k = (0, 0)          0.462117157 + 2·0.244918662 =  0.951954481
//   k = (0.5, 0.25)     0.761594156 − 2·0           =  0.761594156
//   k = (−1, 1)        −0.462117157 − 2·0.635148952 = −1.732415062
// e^s = 2.590768, 2.141688, 0.176857, of sum 4.909313: weights 0.527725, 0.436250, 0.036025.
TYPED_TEST(additive, gives_the_numbers_of_a_case_by_hand) {
  const std::vector<float> q = {0.5f, -0.25f}, k = {0, 0, 0.5f, 0.25f, -1, 1}, w = {1, -2};
  const std::vector<float> v = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  std::vector<float> out(3);
  heed::additive_attention<TypeParam>(heed::tensor_view<const float, 2>(q.data(), {1, 2}),
                                      heed::tensor_view<const float, 2>(k.data(), {3, 2}),
                                      heed::tensor_view<const float, 2>(v.data(), {3, 3}),
                                      heed::tensor_view<const float, 1>(w.data(), {2}),
                                      heed::tensor_view<float, 2>(out.data(), {1, 3}));
  EXPECT_NEAR(out[0], 0.527725, 2e-6);
  EXPECT_NEAR(out[1], 0.436250, 2e-6);
  EXPECT_NEAR(out[2], 0.036025, 2e-6);
}

TYPED_TEST(additive, is_the_formula_in_every_shape_and_range) {
  unsigned seed = 1;
  for (const shape& s : shapes) {
    // Elements of 30 leave the range of exponentials; so may their sums of 20 and more.
    for (const double spread : {1.0, 8.0, 60.0}) {
      operands<float> x(s, heed_test::layouts[seed % 4], seed, spread);
      reference::options how;
      how.scores = {x.oracle(tanh_in_double)};
      heed::additive_attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.weights(),
                                          x.out.view());
      EXPECT_LE(x.error(how), 1e-5) << s.queries << "x" << s.keys << " spread " << spread;
      how.visible = [](const heed::position& p) { return p.k <= p.aligned_q() && p.k % 5 != 2; };
      how.scores = {x.oracle(tanh_in_double, -0.7)};
      heed::additive_attention<TypeParam>(
          x.q.read(), x.k.read(), x.v.read(), x.weights(), x.out.view(), heed::causal{},
          heed::mask{[](const heed::position& p) { return p.k % 5 != 2; }}, heed::scale{-0.7});
      EXPECT_LE(x.error(how), 1e-5) << s.queries << "x" << s.keys << " spread " << spread;
      ++seed;
    }
  }
}

TYPED_TEST(additive, any_function_of_pairs) {
  unsigned seed = 50;
  for (const shape& s : shapes) {
    operands<float> x(s, layout::by_token, seed += 5);
    reference::options how;
    how.scores = {x.oracle([](double t) { return t > 0 ? t : 0; }, 0.5)};
    heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.5},
                               heed::pairwise{relu_of{}, x.weights()});
    EXPECT_LE(x.error(how), 1e-5) << s.queries << "x" << s.keys;
    how.scores = {x.oracle([](double t) { return 1 / (1 + std::exp(-t)); }, 2)};
    heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{2},
                               heed::pairwise{heed::sigmoid_of{}, x.weights()});
    EXPECT_LE(x.error(how), 1e-5) << s.queries << "x" << s.keys;
  }
}

TYPED_TEST(additive, other_terms_and_scores_add_to_it) {
  const shape s{1, 2, 2, 40, 90, 12, 2};
  operands<float> x(s, layout::dense, 9);
  tensor<float> table(1, 1, 31, 12);
  table.fill(4);
  const heed::tensor_view<const float, 2> entries(table.read().data(), {31, 12});
  reference::options how;
  how.scores = {x.oracle(tanh_in_double),
                reference::relative_embedding(x.q.read(), entries, -15, {}, 1),
                [](double t, const heed::position& p) {
                  return t - 0.1 * std::abs(static_cast<double>(p.aligned_q() - p.k));
                }};
  const std::vector<float> slopes = {0.1f, 0.1f};
  // In any order: the term that stands in place of q·k does not undo the other.
  heed::additive_attention<TypeParam>(
      x.q.read(), x.k.read(), x.v.read(), x.weights(), x.out.view(),
      heed::relative_embedding{entries, -15},
      heed::alibi{heed::tensor_view<const float, 1>(slopes.data(), {2})});
  EXPECT_LE(x.error(how), 2e-5);
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{1},
                             heed::relative_embedding{entries, -15},
                             heed::pairwise{heed::tanh_of{}, x.weights()},
                             heed::alibi{heed::tensor_view<const float, 1>(slopes.data(), {2})});
  EXPECT_LE(x.error(how), 2e-5);
}

template <class Backend, class T>
void check_type(double bound) {
  for (const index_t queries : {index_t{1}, index_t{50}}) {
    operands<T> x({1, 4, 2, queries, 200, 30, 4}, layout::padded, 21);
    reference::options how;
    how.scores = {x.oracle(tanh_in_double)};
    heed::additive_attention<Backend>(x.q.read(), x.k.read(), x.v.read(), x.weights(),
                                      x.out.view());
    EXPECT_LE(x.error(how), bound) << queries;
  }
}
TYPED_TEST(additive, element_types) {
  check_type<TypeParam, double>(1e-12);
  check_type<TypeParam, Eigen::half>(2e-3);
  check_type<TypeParam, Eigen::bfloat16>(2e-2);
}

TYPED_TEST(additive, keys_as_codes) {
  operands<float> x({1, 2, 2, 20, 100, 16, 2}, layout::dense, 2);
  std::vector<std::int8_t> codes(2 * 100 * 16);
  std::vector<float> scales(2 * 100);
  heed::quantize(x.k.read(), heed::tensor_view<std::int8_t, 4>(codes.data(), {1, 2, 100, 16}),
                 heed::tensor_view<float, 4>(scales.data(), {1, 2, 100, 1}), heed::per_token);
  const heed::quantized_view<std::int8_t, 4> k(
      heed::tensor_view<const std::int8_t, 4>(codes.data(), {1, 2, 100, 16}),
      heed::tensor_view<const float, 4>(scales.data(), {1, 2, 100, 1}), heed::per_token);
  reference::options how;
  how.scores = {reference::pairwise(x.q.read(), k, x.weights(), tanh_in_double, 1)};
  heed::additive_attention<TypeParam>(x.q.read(), k, x.v.read(), x.weights(), x.out.view());
  EXPECT_LE(x.error(how), 1e-5);
}

TYPED_TEST(additive, is_bit_identical_for_any_number_of_threads) {
  operands<float> x({1, 4, 2, 130, 1700, 24, 4}, layout::dense, 3);
  heed::additive_attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.weights(),
                                      x.out.view());
  tensor<float> again = x.out;
  heed::thread_pool pool(3);
  heed::additive_attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.weights(), again.view(),
                                      heed::on{pool});
  EXPECT_EQ(std::memcmp(again.view().data(), x.out.view().data(),
                        static_cast<std::size_t>(again.view().size()) * sizeof(float)),
            0);
}

// What is masked does not leak; what is visible and not a number does.
TYPED_TEST(additive, nan_reaches_the_output_only_where_it_is_visible) {
  for (const index_t queries : {index_t{1}, index_t{40}}) {
    for (const float poison : {NAN, INFINITY}) {
      operands<float> x({1, 1, 1, queries, 100, 8, 1}, layout::dense, 7);
      x.k.view()(0, 0, 17, 3) = poison;
      reference::options how;
      how.visible = [](const heed::position& p) { return p.k != 17; };
      how.scores = {x.oracle(tanh_in_double)};
      heed::additive_attention<TypeParam>(
          x.q.read(), x.k.read(), x.v.read(), x.weights(), x.out.view(),
          heed::mask{[](const heed::position& p) { return p.k != 17; }});
      EXPECT_LE(x.error(how), 1e-5);
      how.visible = {};
      heed::additive_attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.weights(),
                                          x.out.view());
      if (poison == INFINITY) {
        EXPECT_LE(x.error(how), 1e-5);  // tanh(∞) = 1
      } else {
        EXPECT_TRUE(heed_test::is_nan(static_cast<double>(x.out.view()(0, 0, 0, 0))));
      }
    }
  }
}

}  // namespace
