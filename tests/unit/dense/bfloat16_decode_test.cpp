// Few queries over keys and values in bfloat16, which are read in place. There are two ways to the
// scores: of queries that bfloat16 holds, and of others; both are exact but for float sums.
#include <gtest/gtest.h>

#include <limits>

#include "heed/dense/attention.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

namespace reference = heed::reference;
using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
using bfloat16 = Eigen::bfloat16;

template <class Backend>
class bfloat16_decode : public testing::Test {};
TYPED_TEST_SUITE(bfloat16_decode, heed_test::all_backends, heed_test::backend_name);

template <class Backend, class Query>
void check(index_t rows, index_t depth, index_t value_depth) {
  const index_t keys = 67, key_heads = 2;
  tensor<Query> q(1, rows * key_heads, 1, depth);
  tensor<bfloat16> k(1, key_heads, keys, depth, layout::padded);
  tensor<bfloat16> v(1, key_heads, keys, value_depth, layout::by_token);
  tensor<float> out(1, rows * key_heads, 1, value_depth);
  tensor<double> wanted(1, rows * key_heads, 1, value_depth);
  q.fill(1), k.fill(2), v.fill(3);
  heed::attention<Backend>(q.read(), k.read(), v.read(), out.view());
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), {});
  EXPECT_EQ(out.overwritten_around(), 0);
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 1e-5)
      << rows << " rows, depth " << depth << ", values " << value_depth;
}

TYPED_TEST(bfloat16_decode, is_exact_for_queries_of_either_kind) {
  // Depths on both sides of whole vectors, and of what is narrowed at once.
  for (const index_t depth : {1, 15, 31, 32, 33, 64, 100, 640, 1030}) {
    for (const index_t rows : {1, 2, 4, 5, 16}) {
      const index_t value_depth = depth % 2 == 0 ? 71 : 130;
      check<TypeParam, bfloat16>(rows, depth, value_depth);
      check<TypeParam, float>(rows, depth, value_depth);
    }
  }
}

// A query that bfloat16 does not hold must not be rounded to one that it does.
TYPED_TEST(bfloat16_decode, keeps_the_low_bits_of_queries) {
  const index_t depth = 64;
  tensor<float> q(1, 1, 1, depth), out(1, 1, 1, 1);
  tensor<bfloat16> k(1, 1, 2, depth), v(1, 1, 2, 1);
  tensor<double> wanted(1, 1, 1, 1);
  const auto set = [](const auto& view, double value) {
    using T = typename std::remove_cvref_t<decltype(view)>::value_type;
    for (index_t row = 0; row < view.extent(2); ++row) {
      for (index_t d = 0; d < view.extent(3); ++d) {
        view(0, 0, row, d) = T(static_cast<float>(row == 0 ? value : -value));
      }
    }
  };
  set(q.view(), 1.0 + 0x1p-10), set(k.view(), 1.0), set(v.view(), 1.0);
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::scale{0.01});
  reference::options how;
  how.scale = 0.01;
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
  EXPECT_NEAR(out.read()(0, 0, 0, 0), wanted.read()(0, 0, 0, 0), 1e-6);
}

// Rows come together, and vectors are wider than a row may be: a NaN stays in its own.
TYPED_TEST(bfloat16_decode, keeps_query_rows_apart) {
  const index_t depth = 15;
  tensor<bfloat16> q(1, 4, 1, depth), k(1, 1, 67, depth), v(1, 1, 67, depth);
  tensor<float> clean(1, 4, 1, depth), out(1, 4, 1, depth);
  q.fill(1), k.fill(2), v.fill(3);
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), clean.view());
  for (index_t d = 0; d < depth; ++d) {
    q.view()(0, 1, 0, d) = bfloat16(std::numeric_limits<float>::quiet_NaN());
  }
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view());
  for (index_t d = 0; d < depth; ++d) {
    for (const index_t head : {0, 2, 3}) {
      EXPECT_EQ(out.read()(0, head, 0, d), clean.read()(0, head, 0, d)) << "head " << head;
    }
    EXPECT_NE(out.read()(0, 1, 0, d), out.read()(0, 1, 0, d));
  }
}

}  // namespace
