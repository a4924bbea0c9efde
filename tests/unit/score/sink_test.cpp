#include <Eigen/Core>
#include <heed/score/sink.hpp>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;
using heed::tensor_view;

template <class T>
class sink_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(sink_of, element_types);

TYPED_TEST(sink_of, gives_the_logit_of_a_head) {
  const std::vector<TypeParam> logits{TypeParam(-10.f), TypeParam(0.5f), TypeParam(10.f)};
  const heed::sink sink{tensor_view<const TypeParam, 1>(logits.data(), {3})};
  sink.check({2, 3, 1, 1});
  for (index_t head = 0; head < 3; ++head) {
    const auto want = static_cast<double>(logits[static_cast<std::size_t>(head)]);
    EXPECT_EQ(static_cast<double>(sink.template logit<float>(head)), want);
    EXPECT_EQ(sink.template logit<double>(head), want);
  }
}

TYPED_TEST(sink_of, gives_one_logit_for_all_heads) {
  const heed::sink sink{TypeParam(0.25f)};
  for (const index_t heads : {1, 5, 64}) {
    sink.check({1, heads, 1, 1});
    EXPECT_EQ(sink.template logit<float>(heads - 1), 0.25f);
  }
}

TEST(sink, takes_views_that_may_write) {
  std::vector<float> logits{1.f, 2.f};
  const heed::sink sink{tensor_view<float, 1>(logits.data(), {2})};
  EXPECT_EQ(sink.logit<float>(1), 2.f);
}

TEST(sink, refuses_another_head_count) {
  const std::vector<float> logits(4);
  const heed::sink sink{tensor_view<const float, 1>(logits.data(), {4})};
  EXPECT_EQ(error_of([&] {
              sink.check({1, 8, 5, 5});
            }),
            "sink: logits have extent 4, call has 8 heads");
  EXPECT_EQ(error_of([&] { sink.check({1, 4, 5, 5}); }), "accepted");
}

}  // namespace
