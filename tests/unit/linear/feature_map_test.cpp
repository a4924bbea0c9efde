// Feature maps on rows of every length, one formula each, on every backend.
#include "heed/linear/feature_map.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/backends.hpp"

namespace {

using heed::index_t;
namespace linear = heed::linear;

template <class Backend>
class feature_map : public ::testing::Test {};
TYPED_TEST_SUITE(feature_map, heed_test::all_backends, heed_test::backend_name);

// Applies a map to rows of `depth` numbers and compares with φ(row, channel).
template <class Backend, class Real, class Map, class Formula>
void check(const Map& map, const Formula& formula, double tolerance) {
  static_assert(linear::feature_map<Map>);
  using vectors = heed::backend::vectors<Backend, Real>;
  for (const index_t depth : {1, 2, 7, 16, 33, 64}) {
    const index_t width = vectors::padded(depth), rows = 3;
    std::vector<Real> from(static_cast<std::size_t>(rows * width), Real(0)), to(from.size());
    for (index_t i = 0; i < rows; ++i) {
      for (index_t d = 0; d < depth; ++d) {
        from[static_cast<std::size_t>(i * width + d)] =
            static_cast<Real>(std::sin(static_cast<double>(5 * i + d)) * 4 - 0.5);
      }
    }
    linear::token_rows<Real> x;
    x.first = from.data(), x.stride = width, x.count = rows, x.depth = depth;
    ASSERT_EQ(map.features(depth), depth);
    map.template map<Backend, Real>(x, to.data(), width);
    for (index_t i = 0; i < rows; ++i) {
      const std::vector<double> row(from.begin() + i * width, from.begin() + i * width + depth);
      for (index_t d = 0; d < depth; ++d) {
        const double wanted = formula(row, static_cast<std::size_t>(d));
        EXPECT_NEAR(static_cast<double>(to[static_cast<std::size_t>(i * width + d)]), wanted,
                    tolerance * (1 + std::abs(wanted)))
            << "depth " << depth << " row " << i << " channel " << d;
      }
    }
  }
}
template <class Backend, class Map, class Formula>
void check_both(const Map& map, const Formula& formula) {
  check<Backend, float>(map, formula, 1e-6);
  check<Backend, double>(map, formula, 1e-14);
}

TYPED_TEST(feature_map, identity) {
  check_both<TypeParam>(linear::identity{},
                        [](const std::vector<double>& x, std::size_t d) { return x[d]; });
}
TYPED_TEST(feature_map, elu_plus_one) {
  check_both<TypeParam>(linear::elu_plus_one, [](const std::vector<double>& x, std::size_t d) {
    return x[d] > 0 ? x[d] + 1 : std::exp(x[d]);
  });
}
TYPED_TEST(feature_map, relu) {
  check_both<TypeParam>(linear::relu, [](const std::vector<double>& x, std::size_t d) {
    return x[d] > 0 ? x[d] : 0;
  });
}
TYPED_TEST(feature_map, l2_normalized) {
  for (const double epsilon : {1e-6, 0.25}) {
    check_both<TypeParam>(linear::l2_normalized{epsilon},
                          [epsilon](const std::vector<double>& x, std::size_t d) {
                            double square = epsilon;
                            for (const double e : x) square += e * e;
                            return x[d] / std::sqrt(square);
                          });
  }
}
TYPED_TEST(feature_map, any_functor_of_packs) {
  const linear::elementwise square{[](auto x) { return x * x; }};
  check_both<TypeParam>(square,
                        [](const std::vector<double>& x, std::size_t d) { return x[d] * x[d]; });
}

}  // namespace
