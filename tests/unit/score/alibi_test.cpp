#include <Eigen/Core>
#include <heed/score/alibi.hpp>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;
using heed::tensor_view;

static_assert(heed::score_function<heed::alibi<float>>);
static_assert(heed::score_function<heed::alibi_for_heads>);

template <class T>
class alibi_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(alibi_of, element_types);

TYPED_TEST(alibi_of, is_the_formula) {
  for (const call_shape& shape : odd_shapes) {
    const auto slopes = random_values<TypeParam>(static_cast<std::size_t>(shape.heads), 0, 1, 3);
    const tensor_view<const TypeParam, 1> view(slopes.data(), {shape.heads});
    expect_formula(heed::alibi{view}, shape, [&](double s, const position& p) {
      return s -
             static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) * std::abs(distance(p));
    });
  }
}

TEST(alibi, penalises_the_distance_back_under_a_causal_mask) {
  std::vector<float> slopes{0.5f};
  const heed::alibi alibi{tensor_view<float, 1>(slopes.data(), {1})};
  // 2 queries after 5 keys: the last query is at key 4.
  EXPECT_EQ(alibi(10.f, position{0, 0, 1, 4, 2, 5}), 10.f);
  EXPECT_EQ(alibi(10.f, position{0, 0, 1, 0, 2, 5}), 8.f);
  EXPECT_EQ(alibi(10.f, position{0, 0, 0, 0, 2, 5}), 8.5f);
  EXPECT_EQ(alibi(10.f, position{0, 0, 0, 4, 2, 5}), 9.5f);
}

// The slopes that the authors' get_slopes gives.
double published_slope(int heads, int head) {
  int power = 1;
  while (2 * power <= heads) power *= 2;
  if (head < power) return std::pow(std::pow(2.0, -std::pow(2.0, 3 - std::log2(power))), head + 1);
  const double start = std::pow(2.0, -std::pow(2.0, 3 - std::log2(2 * power)));
  return std::pow(start, 2 * (head - power) + 1);
}

TEST(alibi_for_heads, has_the_published_slopes) {
  const heed::alibi_for_heads eight{8}, sixteen{16}, twelve{12};
  for (int head = 0; head < 8; ++head) {
    EXPECT_EQ(eight.slope(head), std::ldexp(1.0, -(head + 1))) << head;
    EXPECT_EQ(twelve.slope(head), std::ldexp(1.0, -(head + 1))) << head;
    EXPECT_EQ(sixteen.slope(2 * head + 1), std::ldexp(1.0, -(head + 1))) << head;
  }
  const double root_half = std::sqrt(0.5);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(twelve.slope(8 + i), std::ldexp(root_half, -i), 1e-15) << i;
  }
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(sixteen.slope(2 * i), std::ldexp(root_half, -i), 1e-15) << i;
  }
  EXPECT_EQ(heed::alibi_for_heads{1}.slope(0), std::ldexp(1.0, -8));
  for (const int heads : {1, 2, 3, 5, 7, 8, 9, 12, 16, 20, 24, 25, 32, 40, 71, 112, 128}) {
    const heed::alibi_for_heads alibi{heads};
    for (int head = 0; head < heads; ++head) {
      const double want = published_slope(heads, head);
      EXPECT_NEAR(alibi.slope(head), want, 1e-13 * want) << heads << ' ' << head;
    }
  }
}

TEST(alibi_for_heads, is_the_formula) {
  for (const call_shape& shape : odd_shapes) {
    expect_formula(heed::alibi_for_heads{shape.heads}, shape, [&](double s, const position& p) {
      return s - published_slope(static_cast<int>(shape.heads), static_cast<int>(p.head)) *
                     std::abs(distance(p));
    });
  }
}

TEST(alibi, refuses_another_head_count) {
  const std::vector<float> slopes(3);
  const heed::alibi alibi{tensor_view<const float, 1>(slopes.data(), {3})};
  EXPECT_EQ(error_of([&] {
              alibi.check({1, 8, 5, 5});
            }),
            "alibi: slopes have extent 3, call has 8 heads");
  EXPECT_EQ(error_of([&] { alibi.check({1, 3, 5, 5}); }), "accepted");
  EXPECT_EQ(error_of([&] {
              heed::alibi_for_heads{8}.check({1, 12, 5, 5});
            }),
            "alibi_for_heads: head count 8, call has 12 heads");
  EXPECT_EQ(error_of([&] { heed::alibi_for_heads{0}; }),
            "alibi_for_heads: head count 0 is not positive");
}

}  // namespace
