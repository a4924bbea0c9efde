#include <Eigen/Core>
#include <heed/score/kerple.hpp>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;
using heed::tensor_view;

static_assert(heed::score_function<heed::kerple_log<float>>);
static_assert(heed::score_function<heed::kerple_power<float>>);

template <class T>
class kerple_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(kerple_of, element_types);

template <class T>
struct parameters {
  std::vector<T> values1, values2;
  parameters(index_t heads, double low1, double high1, double low2, double high2)
      : values1(random_values<T>(static_cast<std::size_t>(heads), low1, high1, 21)),
        values2(random_values<T>(static_cast<std::size_t>(heads), low2, high2, 22)) {}
  tensor_view<const T, 1> view1() const {
    return {values1.data(), {static_cast<index_t>(values1.size())}};
  }
  tensor_view<const T, 1> view2() const {
    return {values2.data(), {static_cast<index_t>(values2.size())}};
  }
  double r1(const position& p) const {
    return static_cast<double>(values1[static_cast<std::size_t>(p.head)]);
  }
  double r2(const position& p) const {
    return static_cast<double>(values2[static_cast<std::size_t>(p.head)]);
  }
};

std::vector<call_shape> shapes() {
  std::vector<call_shape> result = odd_shapes;
  result.push_back({1, 2, 2, 5000});
  return result;
}

TYPED_TEST(kerple_of, logarithm_is_the_formula) {
  for (const call_shape& shape : shapes()) {
    for (const double high : {0.01, 2.0, 100.0}) {
      const parameters<TypeParam> r(shape.heads, 0.1, 3, high / 100, high);
      expect_formula(
          heed::kerple_log{r.view1(), r.view2()}, shape,
          [&](double s, const position& p) {
            return s - r.r1(p) * std::log(1 + r.r2(p) * std::abs(distance(p)));
          },
          // 1 + r2·d rounds to 1 ± 6e-8: near the query that is large beside the logarithm.
          {.relative_float = 2e-5, .relative_double = 4e-14});
    }
  }
}

TYPED_TEST(kerple_of, power_is_the_formula) {
  for (const call_shape& shape : shapes()) {
    for (const double high : {0.1, 1.0, 1.99}) {
      const parameters<TypeParam> r(shape.heads, 0.1, 3, high / 2, high);
      expect_formula(heed::kerple_power{r.view1(), r.view2()}, shape,
                     [&](double s, const position& p) {
                       return s - r.r1(p) * std::pow(std::abs(distance(p)), r.r2(p));
                     },
                     {.relative_float = 4e-6, .relative_double = 1e-14});
    }
  }
}

TEST(kerple, leaves_the_score_at_distance_0) {
  const std::vector<float> r1{2.f}, r2{0.25f};
  const tensor_view<const float, 1> view1(r1.data(), {1}), view2(r2.data(), {1});
  const position p{0, 0, 1, 4, 2, 5};
  EXPECT_EQ(heed::kerple_log(view1, view2)(1.25f, p), 1.25f);
  EXPECT_EQ(heed::kerple_power(view1, view2)(1.25f, p), 1.25f);
  const auto at = make_pack_position<float, 4>({1, 1, 2, 5}, 0, 0, 1, 4);
  EXPECT_EQ(heed::kerple_log(view1, view2)(pack<float, 4>(1.25f), at)[0], 1.25f);
  EXPECT_EQ(heed::kerple_power(view1, view2)(pack<float, 4>(1.25f), at)[0], 1.25f);
}

TEST(kerple, takes_views_that_may_write) {
  std::vector<float> r1{2.f}, r2{0.25f};
  tensor_view<float, 1> view1(r1.data(), {1}), view2(r2.data(), {1});
  EXPECT_EQ(heed::kerple_power(view1, view2)(0.f, position{0, 0, 0, 16, 17, 17}), -4.f);
  EXPECT_FLOAT_EQ(heed::kerple_log(view1, view2)(0.f, position{0, 0, 0, 16, 17, 17}),
                  -2.f * std::log(5.f));
}

TEST(kerple, refuses_bad_parameters) {
  const auto error = [](std::vector<float> r1, std::vector<float> r2, bool power) {
    const tensor_view<const float, 1> view1(r1.data(), {static_cast<index_t>(r1.size())});
    const tensor_view<const float, 1> view2(r2.data(), {static_cast<index_t>(r2.size())});
    return error_of([&] {
      if (power) {
        heed::kerple_power(view1, view2).check({1, 2, 3, 3});
      } else {
        heed::kerple_log(view1, view2).check({1, 2, 3, 3});
      }
    });
  };
  EXPECT_EQ(error({1, 1}, {1, 1}, true), "accepted");
  EXPECT_EQ(error({1, 1}, {1, 2}, true), "accepted");
  EXPECT_EQ(error({1, 1}, {1, 200}, false), "accepted");
  EXPECT_EQ(error({1, 1}, {1, 1, 1}, true), "kerple_power: r2 has extent 3, r1 has 2");
  EXPECT_EQ(error({1, -0.5f}, {1, 1}, true),
            "kerple_power: r1 of head 1 is -0.5, which is not positive");
  EXPECT_EQ(error({1, 1}, {0, 1}, false), "kerple_log: r2 of head 0 is 0, which is not positive");
  EXPECT_EQ(error({1, 1}, {1, 2.5f}, true), "kerple_power: r2 of head 1 is 2.5, which exceeds 2");
  EXPECT_EQ(error({1, 1, 1}, {1, 1, 1}, false),
            "kerple_log: r1 and r2 have extent 3, call has 2 heads");
  EXPECT_EQ(error({1}, {1}, true), "kerple_power: r1 and r2 have extent 1, call has 2 heads");
}

}  // namespace
