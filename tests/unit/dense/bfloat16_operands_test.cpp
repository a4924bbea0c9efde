// Keys and values in bfloat16. Where some operand is of another type, both products are exact but
// for float sums; where all are bfloat16, backends may multiply pairs and round weights.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
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
class bfloat16_operands : public testing::Test {};
TYPED_TEST_SUITE(bfloat16_operands, heed_test::all_backends, heed_test::backend_name);

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

TYPED_TEST(bfloat16_operands, are_exact_beside_other_types) {
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
TYPED_TEST(bfloat16_operands, keeps_the_low_bits_of_queries) {
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

// |got − wanted| over |wanted|, as root mean squares.
double relative_rms(const heed::tensor_view<const bfloat16, 4>& got,
                    const heed::tensor_view<const double, 4>& wanted) {
  double error = 0, size = 0;
  for (index_t h = 0; h < got.extent(1); ++h) {
    for (index_t l = 0; l < got.extent(2); ++l) {
      for (index_t d = 0; d < got.extent(3); ++d) {
        const double w = wanted(0, h, l, d), e = heed::widen<double>(got(0, h, l, d)) - w;
        error += e * e, size += w * w;
      }
    }
  }
  return std::sqrt(error / size);
}

// Odd numbers of keys, and masks that begin and end at odd ones: half of a pair. A rounding of
// weights and one of the output are 2⁻⁹ each at most; a key too many or too few is a hundredth.
template <class Backend, class Mask>
void check_pairs(index_t heads, index_t queries, index_t keys, index_t depth, index_t value_depth,
                 const Mask& mask) {
  tensor<bfloat16> q(1, heads, queries, depth, layout::interleaved);
  tensor<bfloat16> k(1, 1, keys, depth, layout::padded);
  tensor<bfloat16> v(1, 1, keys, value_depth, layout::by_token);
  tensor<bfloat16> out(1, heads, queries, value_depth, layout::padded);
  tensor<double> wanted(1, heads, queries, value_depth);
  q.fill(1), k.fill(2), v.fill(3);
  reference::options how;
  how.visible = [&](const heed::position& at) { return mask(at); };
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
  for (const bool infinite : {false, true}) {
    // Nobody sees the last key.
    for (index_t d = 0; infinite && d < value_depth; ++d) {
      v.view()(0, 0, keys - 1, d) = bfloat16(std::numeric_limits<float>::infinity());
    }
    heed::attention<Backend>(q.read(), k.read(), v.read(), out.view(), mask);
    EXPECT_EQ(out.overwritten_around(), 0);
    EXPECT_LE(relative_rms(out.read(), wanted.read()), 0x1p-8)
        << heads << " heads, " << queries << " queries, " << keys << " keys, depth " << depth
        << ", values " << value_depth;
  }
}

TYPED_TEST(bfloat16_operands, come_in_pairs) {
  for (const index_t depth : {1, 2, 31, 33, 64, 79, 640}) {
    const index_t value_depth = depth % 2 == 0 ? 71 : 130;
    for (const index_t heads : {1, 2, 3, 4, 5, 8, 9}) {  // these read keys in place
      check_pairs<TypeParam>(heads, 1, 67, depth, value_depth, !heed::window{1});
      check_pairs<TypeParam>(heads, 1, 67, depth, value_depth, heed::window{35} & !heed::window{0});
    }
    for (const index_t queries : {17, 41}) {  // these pack them
      check_pairs<TypeParam>(3, queries, 200, depth, value_depth,
                             heed::window{36} & heed::causal{} & !heed::window{1});
    }
  }
}

// Rows come together, and vectors are wider than a row may be: a NaN stays in its own.
TYPED_TEST(bfloat16_operands, keeps_query_rows_apart) {
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
