// Masks that say a row's visible keys as one interval say the same key by key.
#include <gtest/gtest.h>

#include <vector>

#include "heed/mask/algebra.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/prefix_lm.hpp"
#include "heed/mask/window.hpp"

namespace {

using heed::index_t;

template <heed::interval_mask Mask>
void check(const Mask& mask) {
  int visible = 0, hidden = 0;
  for (index_t queries : {1, 5, 12}) {
    for (index_t keys : {0, 1, 7, 12, 30}) {
      for (index_t batch : {0, 1}) {
        for (index_t q = 0; q < queries; ++q) {
          for (index_t k = 0; k < keys; ++k) {
            const heed::position p{batch, 0, q, k, queries, keys};
            const heed::key_interval seen = mask.interval(p);
            const bool inside = k >= seen.begin && k < seen.end;
            EXPECT_EQ(inside, mask(p)) << queries << "x" << keys << " q " << q << " k " << k;
            ++(inside ? visible : hidden);
          }
        }
      }
    }
  }
  EXPECT_GT(visible, 0);
  EXPECT_GT(hidden, 0);
}

TEST(interval, agrees_with_the_mask_key_by_key) {
  const std::vector<index_t> prefixes = {3, 9};
  const heed::prefix_lm by_sequence(heed::tensor_view<const index_t, 1>(prefixes.data(), {2}));
  check(heed::causal{});
  check(heed::causal_upper_left{});
  check(heed::window{2});
  check(heed::window{0, 4});
  check(heed::window{4, heed::window::unlimited});
  check(heed::prefix_lm{4});
  check(by_sequence);
  check(heed::causal{} & heed::window{3});
  check(heed::prefix_lm{6} & heed::window{5, 2} & heed::causal{});
}

TEST(interval, is_not_claimed_where_a_row_may_see_several) {
  static_assert(!heed::interval_mask<decltype(heed::causal{} | heed::window{3})>);
  static_assert(!heed::interval_mask<decltype(!heed::causal{})>);
  static_assert(heed::interval_mask<decltype(heed::causal{} & heed::window{3})>);
}

}  // namespace
