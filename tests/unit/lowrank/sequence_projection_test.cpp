// eᵀ·x along the sequence: shapes around the number of tokens that are multiplied at a time,
// element types, one map for all heads or one each, lengths, layouts.
#include "heed/lowrank/sequence_projection.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace lowrank = heed::lowrank;

template <class Backend>
class sequence_projection : public ::testing::Test {};
TYPED_TEST_SUITE(sequence_projection, heed_test::method_backends, heed_test::backend_name);

template <class Backend, class X, class E, class Real>
void check(index_t tokens, index_t rank, index_t maps, bool cut, double tolerance) {
  const index_t batches = 2, heads = 3, depth = 10, most = tokens + 4;
  for (const layout how : heed_test::layouts) {
    tensor<X> x(batches, heads, tokens, depth, how);
    tensor<E> e(1, maps, most, rank);
    tensor<Real> out(batches, heads, rank, depth, how);
    x.fill(1), e.fill(2, 0.3);
    const std::vector<index_t> lengths = {tokens, tokens / 2};
    if (cut) {  // what lies behind is not read
      for (index_t h = 0; h < heads; ++h) {
        for (index_t t = lengths[1]; t < tokens; ++t) {
          x.view()(1, h, t, 0) = static_cast<X>(std::numeric_limits<float>::quiet_NaN());
        }
      }
    }
    const heed::tensor_view<const E, 3> map(e.read().data(), {maps, most, rank});
    if (cut) {
      lowrank::project_sequence<Backend>(x.read(), map, out.view(), heed::key_lengths{lengths});
    } else {
      lowrank::project_sequence<Backend>(x.read(), map, out.view());
    }
    EXPECT_EQ(out.overwritten_around(), 0);
    for (index_t b = 0; b < batches; ++b) {
      const index_t length = cut ? lengths[static_cast<std::size_t>(b)] : tokens;
      for (index_t h = 0; h < heads; ++h) {
        for (index_t i = 0; i < rank; ++i) {
          for (index_t d = 0; d < depth; ++d) {
            double wanted = 0;
            for (index_t t = 0; t < length; ++t) {
              wanted += heed::widen<double>(map(maps == 1 ? 0 : h, t, i)) *
                        heed::widen<double>(x.read()(b, h, t, d));
            }
            EXPECT_NEAR(static_cast<double>(out.view()(b, h, i, d)), wanted, tolerance)
                << tokens << " tokens, rank " << rank << ", " << b << " " << h << " " << i;
          }
        }
      }
    }
  }
}

TYPED_TEST(sequence_projection, is_the_sum_over_tokens) {
  for (const index_t tokens : {1, 127, 128, 129, 300}) {
    check<TypeParam, float, float, float>(tokens, 5, 1, false, 2e-5);
    check<TypeParam, float, float, float>(tokens, 16, 3, true, 2e-5);
  }
  check<TypeParam, Eigen::bfloat16, float, float>(130, 7, 3, true, 2e-5);
  check<TypeParam, float, Eigen::half, float>(130, 7, 1, false, 2e-5);
  check<TypeParam, double, float, double>(130, 7, 3, false, 1e-12);
}

TEST(sequence_projection_errors, name_both_values_and_leave_the_output) {
  tensor<float> x(1, 2, 8, 4), e(1, 2, 8, 3), out(1, 2, 3, 4);
  x.fill(1), e.fill(2);
  const float before = out.view()(0, 0, 0, 0);
  const auto map = [&](index_t heads, index_t rows, index_t rank) {
    return heed::tensor_view<const float, 3>(e.read().data(), {heads, rows, rank});
  };
  const auto message = [&](const auto& e_view, const auto& to) {
    return heed_test::error_of([&] { lowrank::project_sequence(x.read(), e_view, to); });
  };
  EXPECT_EQ(message(map(1, 7, 3), out.view()), "e: 7 rows are fewer than x's length 8");
  EXPECT_EQ(message(map(1, 8, 2), out.view()), "out: length 3 differs from e's rank's 2");
  tensor<float> shallow(1, 2, 3, 3);
  EXPECT_EQ(message(map(2, 8, 3), shallow.view()), "out: depth 3 differs from x's 4");
  EXPECT_TRUE(heed_test::is_nan(static_cast<double>(before)));
  EXPECT_TRUE(heed_test::is_nan(static_cast<double>(out.view()(0, 0, 0, 0))));
}

}  // namespace
