// The stream of random_numbers: SplitMix64's own numbers, and the moments of what is made of them.
#include "heed/core/random.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace {

TEST(random_numbers, bits_are_those_of_splitmix64) {
  heed::random_numbers numbers(0);
  EXPECT_EQ(numbers.bits(), 0xe220a8397b1dcdafu);
  EXPECT_EQ(numbers.bits(), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(numbers.bits(), 0x06c45d188009454fu);
  heed::random_numbers other(1);
  EXPECT_NE(other.bits(), 0xe220a8397b1dcdafu);
}

TEST(random_numbers, have_the_moments_of_their_distributions) {
  heed::random_numbers numbers(7);
  constexpr int count = 200000;
  double sum = 0, squares = 0, fourths = 0, uniform_sum = 0, least = 1, most = 0;
  for (int i = 0; i < count; ++i) {
    const double u = numbers.uniform(), x = numbers.normal();
    uniform_sum += u, least = std::fmin(least, u), most = std::fmax(most, u);
    sum += x, squares += x * x, fourths += x * x * x * x;
  }
  EXPECT_GT(least, 0);
  EXPECT_LT(most, 1);
  EXPECT_NEAR(uniform_sum / count, 0.5, 0.005);
  EXPECT_NEAR(sum / count, 0, 0.01);
  EXPECT_NEAR(squares / count, 1, 0.02);
  EXPECT_NEAR(fourths / count, 3, 0.15);
}

}  // namespace
