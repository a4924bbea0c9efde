// window: both sides, unlimited and symmetric, together with causal, wrong distances.
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>

#include "support/mask_checks.hpp"

namespace {

using heed::position;
using heed::window;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::mask_shapes;

// Distance from the key to the query, positive for keys before it.
index_t distance(const position& p) { return p.q + (p.keys - p.queries) - p.k; }

constexpr index_t huge = index_t{1} << 62;

TEST(window, both_sides) {
  for (const index_t left : {index_t{0}, index_t{1}, index_t{4}, index_t{20}, huge}) {
    for (const index_t right : {index_t{0}, index_t{3}, index_t{17}, huge}) {
      SCOPED_TRACE(testing::Message() << "left " << left << ", right " << right);
      const auto truth = [=](const position& p) {
        return distance(p) <= left && -distance(p) <= right;
      };
      for (const auto& shape : mask_shapes()) expect_mask(window{left, right}, truth, shape);
    }
  }
}

TEST(window, one_argument_is_symmetric) {
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        window{5}, [](const position& p) { return distance(p) <= 5 && -distance(p) <= 5; }, shape);
  }
}

TEST(window, unlimited_sides) {
  constexpr index_t unlimited = window::unlimited;
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        window{unlimited, 0}, [](const position& p) { return distance(p) >= 0; }, shape);
    expect_mask(
        window{3, unlimited}, [](const position& p) { return distance(p) <= 3; }, shape);
    expect_mask(
        window{unlimited}, [](const position&) { return true; }, shape);
  }
}

TEST(window, with_causal_is_classified_exactly) {
  for (const index_t reach : {0, 1, 6, 30}) {
    const auto truth = [=](const position& p) { return distance(p) >= 0 && distance(p) <= reach; };
    for (const auto& shape : mask_shapes()) {
      expect_mask(window{reach} & heed::causal{}, truth, shape);
      expect_mask(heed::causal{} & window{reach, window::unlimited}, truth, shape);
      expect_mask(window{reach, 0}, truth, shape);
    }
  }
}

// A window may be wider than the 32-bit lanes of float scores.
TEST(window, wider_than_the_lanes_of_a_pack) {
  heed::pack_position<float, 4> p;
  p.q = 9;
  p.queries = p.keys = 10;
  for (int lane = 0; lane < 4; ++lane) p.k.v[lane] = lane;
  const auto seen = window{(index_t{1} << 32) + 1, 0}(p);
  for (int lane = 0; lane < 4; ++lane) EXPECT_TRUE(seen[lane]);
}

TEST(window, negative_distances) {
  expect_error("window: reach -2 is negative (-1 stands for unlimited)", [] { window{-2}; });
  expect_error("window: left -7 is negative (-1 stands for unlimited)", [] { window{-7, 0}; });
  expect_error("window: right -3 is negative (-1 stands for unlimited)", [] { window{0, -3}; });
}

}  // namespace
