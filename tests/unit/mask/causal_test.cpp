// causal and causal_upper_left.
#include <heed/mask/causal.hpp>

#include "support/mask_checks.hpp"

namespace {

using heed::position;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::mask_shapes;

TEST(causal, aligns_the_last_query_with_the_last_key) {
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        heed::causal{}, [](const position& p) { return p.queries - 1 - p.q <= p.keys - 1 - p.k; },
        shape);
  }
}

TEST(causal, upper_left_aligns_the_first_query_with_the_first_key) {
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        heed::causal_upper_left{}, [](const position& p) { return p.k <= p.q; }, shape);
  }
}

TEST(causal, more_queries_than_keys_leave_the_first_queries_without_keys) {
  const heed::tile_extent t{0, 0, 0, 3, 0, 4, 7, 4};
  EXPECT_EQ(heed::causal{}.tile(t), heed::visibility::none);
  EXPECT_EQ(heed::causal{}.visible_keys(t).size(), 0);
}

// Positions far beyond 32 bits: lanes of float scores hold 32-bit keys.
TEST(causal, queries_beyond_the_lanes_of_a_pack) {
  heed::pack_position<float, 4> p;
  p.keys = 100;
  p.first_key = 0;
  for (int lane = 0; lane < 4; ++lane) p.k.v[lane] = lane;
  const index_t far = index_t{1} << 32;
  p.q = far;
  p.queries = far + 1;
  EXPECT_TRUE(heed::causal_upper_left{}(p)[3]);
  p.q = 0;
  p.queries = far + 50;
  EXPECT_FALSE(heed::causal{}(p)[0]);
}

}  // namespace
