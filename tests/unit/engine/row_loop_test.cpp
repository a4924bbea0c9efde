// Rows of weights that are kept whole: over more keys than a block has, over several sources and
// query heads of a group, every weight is shown once, in its column, and adds its value.
#include "heed/engine/row_loop.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/window.hpp"
#include "heed/normalizer/sigmoid.hpp"
#include "heed/observer/column_sums.hpp"
#include "heed/observer/weights.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;

template <class Backend>
class row_loop : public ::testing::Test {};
TYPED_TEST_SUITE(row_loop, heed_test::all_backends, heed_test::backend_name);

constexpr index_t heads = 4, queries = 150, first_keys = 1100, second_keys = 77;

// The weights of all keys of both sources: window on the first, all of the second.
std::vector<double> wanted_weights(const tensor<float>& q, const tensor<float>& k1,
                                   const tensor<float>& k2, bool softmax) {
  std::vector<double> result;
  const double scale = 1 / std::sqrt(static_cast<double>(q.read().extent(3)));
  for (index_t h = 0; h < heads; ++h) {
    for (index_t i = 0; i < queries; ++i) {
      std::vector<double> row;
      double sum = 0;
      for (index_t j = 0; j < first_keys + second_keys; ++j) {
        const bool first = j < first_keys;
        double s = 0;
        for (index_t d = 0; d < q.read().extent(3); ++d) {
          s += static_cast<double>(q.read()(0, h, i, d)) *
               static_cast<double>(first ? k1.read()(0, h / 2, j, d)
                                         : k2.read()(0, h / 2, j - first_keys, d));
        }
        const index_t distance = i + first_keys - queries - j;
        const bool visible = !first || (distance <= 700 && distance >= 0);
        const double weight = !visible  ? 0
                              : softmax ? std::exp(s * scale)
                                        : 1 / (1 + std::exp(6 - s * scale));
        row.push_back(weight);
        sum += weight;
      }
      for (const double w : row) result.push_back(softmax ? w / sum : w);
    }
  }
  return result;
}

TYPED_TEST(row_loop, weights_columns_and_outputs_agree_over_blocks_and_sources) {
  const index_t keys = first_keys + second_keys;
  tensor<float> q(1, heads, queries, 12), k1(1, 2, first_keys, 12), v1(1, 2, first_keys, 10),
      k2(1, 2, second_keys, 12), v2(1, 2, second_keys, 10);
  q.fill(1), k1.fill(2), v1.fill(3), k2.fill(4), v2.fill(5);
  for (const bool softmax : {true, false}) {
    const std::vector<double> wanted = wanted_weights(q, k1, k2, softmax);
    std::vector<float> weights(wanted.size(), 42.f);
    std::vector<double> sums(static_cast<std::size_t>(heads * keys), 42.);
    tensor<float> out(1, heads, queries, 10);
    const heed::weights_to all{
        heed::tensor_view<float, 4>(weights.data(), {1, heads, queries, keys})};
    const heed::column_sums_to columns{heed::tensor_view<double, 3>(sums.data(), {1, heads, keys})};
    const heed::sources both{heed::source{k1.read(), v1.read(), heed::window(700, 0)},
                             heed::source{k2.read(), v2.read()}};
    if (softmax) {
      heed::attention<TypeParam>(q.read(), both, out.view(), all, columns);
    } else {
      heed::attention<TypeParam>(q.read(), both, out.view(), all, columns,
                                 heed::sigmoid_weights{-6.f});
    }
    for (index_t h = 0; h < heads; ++h) {
      std::vector<double> column(static_cast<std::size_t>(keys), 0.);
      for (index_t i = 0; i < queries; ++i) {
        const auto at = static_cast<std::size_t>((h * queries + i) * keys);
        std::vector<double> value(10, 0.);
        for (index_t j = 0; j < keys; ++j) {
          const double w = wanted[at + static_cast<std::size_t>(j)];
          ASSERT_NEAR(static_cast<double>(weights[at + static_cast<std::size_t>(j)]), w, 2e-6)
              << "head " << h << " query " << i << " key " << j;
          column[static_cast<std::size_t>(j)] += w;
          for (index_t d = 0; d < 10; ++d) {
            const auto v =
                j < first_keys ? v1.read()(0, h / 2, j, d) : v2.read()(0, h / 2, j - first_keys, d);
            value[static_cast<std::size_t>(d)] += w * static_cast<double>(v);
          }
        }
        for (index_t d = 0; d < 10; ++d) {
          const double right = value[static_cast<std::size_t>(d)];
          EXPECT_NEAR(static_cast<double>(out.view()(0, h, i, d)), right,
                      1e-5 + 1e-5 * std::abs(right));
        }
      }
      for (index_t j = 0; j < keys; ++j) {
        EXPECT_NEAR(sums[static_cast<std::size_t>(h * keys + j)],
                    column[static_cast<std::size_t>(j)], 1e-4)
            << "head " << h << " key " << j;
      }
    }
  }
}

}  // namespace
