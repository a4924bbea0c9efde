// Shuffles of vectors against loops over their lanes, for every width that some target has.
#include <gtest/gtest.h>

#include <algorithm>
#include <heed/backend/detail/lane_operations.hpp>

namespace {

using heed::pack;

template <class Pack>
class lane_operations : public testing::Test {
 public:
  using real = typename Pack::value_type;
  static constexpr int lanes = Pack::size;
  // Rows of small whole numbers, whose sums are exact, and none of which is like another.
  static real element(int row, int lane) {
    return static_cast<real>((row * 37 + lane * 101) % 1009 - 500);
  }
  Pack rows[lanes];
  lane_operations() {
    for (int row = 0; row < lanes; ++row) {
      for (int lane = 0; lane < lanes; ++lane) rows[row].v[lane] = element(row, lane);
    }
  }
};
using packs = testing::Types<pack<float, 2>, pack<float, 4>, pack<float, 8>, pack<float, 16>,
                             pack<double, 2>, pack<double, 4>, pack<double, 8>>;
TYPED_TEST_SUITE(lane_operations, packs);

TYPED_TEST(lane_operations, transpose_makes_rows_columns) {
  heed::backend::detail::transpose(this->rows);
  for (int row = 0; row < this->lanes; ++row) {
    for (int lane = 0; lane < this->lanes; ++lane) {
      ASSERT_EQ(this->rows[row][lane], this->element(lane, row)) << row << ' ' << lane;
    }
  }
}

TYPED_TEST(lane_operations, sum_each_has_the_sum_of_vector_i_in_lane_i) {
  const auto sums = heed::backend::detail::sum_each(this->rows);
  for (int row = 0; row < this->lanes; ++row) {
    ASSERT_EQ(sums[row], heed::sum_lanes(this->rows[row])) << row;
  }
}

TYPED_TEST(lane_operations, join_group_each_has_that_of_vector_i_in_lane_i_of_every_group) {
  constexpr int group =
      heed::backend::detail::lanes_of_group<typename TypeParam::value_type, TypeParam::size>;
  const auto top = heed::backend::detail::join_group_each(
      this->rows, [](TypeParam a, TypeParam b) { return heed::max(a, b); });
  for (int lane = 0; lane < this->lanes; ++lane) {
    ASSERT_EQ(top[lane], heed::max_lanes(this->rows[lane % group])) << lane;
  }
}

}  // namespace
