#include <Eigen/Core>
#include <heed/score/t5_bias.hpp>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;
using heed::tensor_view;

static_assert(heed::score_function<heed::t5_relative_bias<float>>);

// The bucket function of the published code, step by step, in float. Volatile, so that
// -ffast-math does not change a step.
index_t published_bucket(index_t relative, index_t buckets, index_t max_distance,
                         bool bidirectional) {
  index_t result = 0;
  if (bidirectional) {
    buckets /= 2;
    if (relative > 0) result += buckets;
    relative = relative < 0 ? -relative : relative;
  } else {
    relative = -std::min<index_t>(relative, 0);
  }
  const index_t exact = buckets / 2;
  if (relative < exact) return result + relative;
  const volatile float ratio = static_cast<float>(relative) / static_cast<float>(exact);
  const volatile float numerator = std::log(static_cast<float>(ratio));
  const volatile float denominator =
      static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(exact)));
  const volatile float quotient = numerator / denominator;
  const volatile float product = quotient * static_cast<float>(buckets - exact);
  return result + std::min(exact + static_cast<index_t>(product), buckets - 1);
}

struct setting {
  index_t buckets, max_distance;
  bool bidirectional;
};
const std::vector<setting> settings{
    {32, 128, true}, {32, 128, false}, {32, 64, true},       {8, 20, true},
    {7, 33, true},   {6, 9, false},    {2, 2, false},        {3, 1000, false},
    {4, 2, true},    {320, 800, true}, {512, 100000, false},
};

TEST(t5_relative_bias, has_the_published_buckets) {
  for (const auto& [buckets, max_distance, bidirectional] : settings) {
    const std::vector<float> values(static_cast<std::size_t>(buckets));
    const heed::t5_relative_bias bias{tensor_view<const float, 2>(values.data(), {buckets, 1}),
                                      max_distance, bidirectional};
    const index_t farthest = 3 * max_distance + 5;
    for (index_t relative = -farthest; relative <= farthest; ++relative) {
      const index_t want = published_bucket(relative, buckets, max_distance, bidirectional);
      ASSERT_EQ(bias.bucket(relative), want) << buckets << ' ' << max_distance << ' ' << relative;
      if (relative % 4 != 0) continue;
      const auto four = bias.bucket(pack<std::int32_t, 4>(relative));
      ASSERT_EQ(four[0], want) << relative;
      ASSERT_EQ(four[3], want) << relative;
      ASSERT_EQ((bias.bucket(pack<std::int64_t, 2>(relative))[1]), want) << relative;
    }
    for (const index_t relative : {index_t{1} << 20, index_t{0x7fffffff}}) {
      const index_t ahead = bidirectional ? buckets / 2 + buckets / 2 - 1 : 0;
      const index_t back = bidirectional ? buckets / 2 - 1 : buckets - 1;
      EXPECT_EQ(bias.bucket(relative), ahead);
      EXPECT_EQ(bias.bucket(-relative), back);
      EXPECT_EQ((bias.bucket(pack<std::int32_t, 4>(relative))[2]), ahead);
      EXPECT_EQ((bias.bucket(pack<std::int32_t, 4>(-relative))[2]), back);
    }
  }
}

TEST(t5_relative_bias, has_the_buckets_of_t5) {
  const std::vector<float> values(32);
  const tensor_view<const float, 2> table(values.data(), {32, 1});
  // First distance of each logarithmic bucket, for 32 buckets up to distance 128.
  const std::vector<index_t> encoder{8, 12, 16, 23, 32, 46, 64, 91};
  const std::vector<index_t> decoder{16, 19, 21, 24, 27, 31, 35, 40,
                                     46, 52, 59, 67, 77, 87, 99, 113};
  for (std::size_t i = 0; i < encoder.size(); ++i) {
    const auto bucket = static_cast<index_t>(8 + i);
    EXPECT_EQ(heed::t5_relative_bias{table}.bucket(-encoder[i]), bucket);
    EXPECT_EQ(heed::t5_relative_bias{table}.bucket(-encoder[i] + 1), bucket - 1);
    EXPECT_EQ(heed::t5_relative_bias{table}.bucket(encoder[i]), 16 + bucket);
    EXPECT_EQ(heed::t5_relative_bias{table}.bucket(encoder[i] - 1), 16 + bucket - 1);
  }
  const heed::t5_relative_bias causal{table, 128, false};
  for (std::size_t i = 0; i < decoder.size(); ++i) {
    const auto bucket = static_cast<index_t>(16 + i);
    EXPECT_EQ(causal.bucket(-decoder[i]), bucket) << decoder[i];
    EXPECT_EQ(causal.bucket(-decoder[i] + 1), bucket - 1) << decoder[i];
  }
  EXPECT_EQ(causal.bucket(index_t{5}), 0);
}

template <class T>
class t5_relative_bias_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(t5_relative_bias_of, element_types);

TYPED_TEST(t5_relative_bias_of, is_the_formula) {
  std::vector<call_shape> shapes = odd_shapes;
  shapes.push_back({1, 2, 3, 300});
  shapes.push_back({1, 2, 300, 9});
  for (const call_shape& shape : shapes) {
    for (const auto& [buckets, max_distance, bidirectional] : settings) {
      if (buckets > 32) continue;
      const index_t stride = shape.heads + 2;
      const auto values =
          random_values<TypeParam>(static_cast<std::size_t>(buckets * stride), -6, 6, 41);
      const tensor_view<const TypeParam, 2> table(values.data(), {buckets, shape.heads},
                                                  {stride, 1});
      const heed::t5_relative_bias bias{table, max_distance, bidirectional};
      const setting at{buckets, max_distance, bidirectional};
      expect_formula(bias, shape, [&](double s, const position& p) {
        return s + static_cast<double>(
                       table(published_bucket(static_cast<index_t>(distance(p)), at.buckets,
                                              at.max_distance, at.bidirectional),
                             p.head));
      });
    }
  }
}

TEST(t5_relative_bias, refuses_what_does_not_fit) {
  const std::vector<float> values(4096);
  const auto make = [&](index_t buckets, index_t max_distance, bool bidirectional) {
    return error_of([&] {
      heed::t5_relative_bias(tensor_view<const float, 2>(values.data(), {buckets, 2}), max_distance,
                             bidirectional);
    });
  };
  EXPECT_EQ(make(3, 128, true), "t5_relative_bias: table has 3 buckets, at least 4 are needed");
  EXPECT_EQ(make(1, 128, false), "t5_relative_bias: table has 1 buckets, at least 2 are needed");
  EXPECT_EQ(make(0, 128, false), "t5_relative_bias: table has 0 buckets, at least 2 are needed");
  EXPECT_EQ(make(1026, 9999, true),
            "t5_relative_bias: table has 1026 buckets, at most 1024 are possible");
  EXPECT_EQ(make(514, 9999, false),
            "t5_relative_bias: table has 514 buckets, at most 512 are possible");
  EXPECT_EQ(make(32, 8, true),
            "t5_relative_bias: max_distance 8 does not exceed the 8 distances that have buckets of "
            "their own");
  EXPECT_EQ(make(32, 3000000000, true),
            "t5_relative_bias: max_distance 3000000000 exceeds 2147483647");
  EXPECT_EQ(make(32, 9, true), "accepted");
  const heed::t5_relative_bias bias{tensor_view<const float, 2>(values.data(), {32, 2})};
  EXPECT_EQ(error_of([&] { bias.check({1, 2, 3, 3}); }), "accepted");
  EXPECT_EQ(error_of([&] {
              bias.check({1, 8, 3, 3});
            }),
            "t5_relative_bias: head axis of the table has extent 2, call has 8 heads");
}

}  // namespace
