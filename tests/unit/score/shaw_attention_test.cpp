// Relative positions on the side of the values too, and the sums of weights by distance.
#include "heed/dense/shaw_attention.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/reference/score.hpp"
#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
class shaw_attention : public ::testing::Test {};
TYPED_TEST_SUITE(shaw_attention, heed_test::method_backends, heed_test::backend_name);

// out_i = Σ_j w_ij (v_j + c[distance]), from the oracle's weights.
template <class Backend, class T>
void check(index_t queries, index_t keys, index_t radius, double bound) {
  const index_t heads = 4, entries = 2 * radius + 1;
  tensor<T> q(1, heads, queries, 20, layout::by_token), k(1, 2, keys, 20, layout::padded),
      v(1, 2, keys, 12), a(1, 1, entries, 20), c(1, heads, entries, 12, layout::padded),
      out(1, heads, queries, 12, layout::padded);
  q.fill(1), k.fill(2), v.fill(3), a.fill(4), c.fill(5);
  const auto key_table = a.read(), value_table = c.read();
  reference::options how;
  how.scale = 0.25;
  how.visible = [](const heed::position& p) { return p.k <= p.aligned_q() + 5 && p.k % 4 != 1; };
  const heed::tensor_view<const T, 2> key_entries(key_table.data(), {entries, 20});
  const heed::tensor_view<const T, 3> value_entries(
      value_table.data(), {heads, entries, 12}, {value_table.stride(1), value_table.stride(2), 1});
  how.scores = {reference::relative_embedding(q.read(), key_entries, -radius, {}, 0.25)};
  std::vector<double> weights;
  how.weights = &weights;
  tensor<double> wanted(1, heads, queries, 12);
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
  std::size_t at = 0;
  for (index_t h = 0; h < heads; ++h) {
    for (index_t i = 0; i < queries; ++i) {
      for (index_t j = 0; j < keys; ++j, ++at) {
        const index_t distance =
            std::clamp<index_t>(j - (i + keys - queries), -radius, radius) + radius;
        for (index_t d = 0; d < 12; ++d) {
          wanted.view()(0, h, i, d) +=
              weights[at] * heed::widen<double>(value_table(0, h, distance, d));
        }
      }
    }
  }
  heed::shaw_attention<Backend>(
      q.read(), k.read(), v.read(), key_entries, value_entries, radius, out.view(),
      heed::scale{0.25},
      heed::mask{[](const heed::position& p) { return p.k <= p.aligned_q() + 5 && p.k % 4 != 1; }});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), bound)
      << queries << "x" << keys << " radius " << radius;
  EXPECT_EQ(out.overwritten_around(), 0);
}

TYPED_TEST(shaw_attention, adds_the_embeddings_of_values) {
  for (const index_t radius : {0, 1, 16, 300}) {
    check<TypeParam, float>(1, 260, radius, 2e-5);
    check<TypeParam, float>(70, 150, radius, 2e-5);
    check<TypeParam, float>(90, 40, radius, 2e-5);
  }
  check<TypeParam, double>(70, 150, 16, 1e-12);
  check<TypeParam, Eigen::bfloat16>(70, 150, 16, 2e-2);
}

TEST(shaw_attention_errors, name_the_value_table) {
  std::vector<float> numbers(4096, 0.5f), out_data(4096, 42.f);
  const heed::tensor_view<const float, 4> q(numbers.data(), {1, 4, 5, 8});
  const heed::tensor_view<float, 4> out(out_data.data(), {1, 4, 5, 8});
  const heed::tensor_view<const float, 2> table(numbers.data(), {7, 8});
  const auto expect = [&](const std::string& text, const auto& value_table, const auto& to) {
    heed_test::expect_error(text,
                            [&] { heed::shaw_attention(q, q, q, table, value_table, 3, to); });
    for (float x : out_data) ASSERT_EQ(x, 42.f) << text;
  };
  using cube = heed::tensor_view<const float, 3>;
  expect("value_table: head count 3 differs from out's 4", cube(numbers.data(), {3, 7, 8}), out);
  expect("value_table: 6 distances, radius 3 needs 2·3 + 1", cube(numbers.data(), {1, 6, 8}), out);
  expect("value_table: depth 6 differs from out's 8", cube(numbers.data(), {1, 7, 6}), out);
  expect("out: overlaps q, in the row at its byte 0", cube(numbers.data(), {1, 7, 8}),
         heed::tensor_view<float, 4>(numbers.data(), {1, 4, 5, 8}));
  EXPECT_THROW(heed::distance_sums_to{out}, heed::invalid_argument);
}

}  // namespace
