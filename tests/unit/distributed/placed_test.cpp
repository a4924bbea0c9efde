// Layouts, and masks and scores on the tokens of one process.
#include "heed/distributed/placed.hpp"

#include <gtest/gtest.h>

#include <set>

#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"

namespace {

using heed::index_t;
namespace distributed = heed::distributed;
using distributed::token_places;

// Every token has one owner, places ascend, and count_below is what counting gives.
template <class Layout>
void check_layout(index_t length, int processes) {
  SCOPED_TRACE("length " + std::to_string(length) + " processes " + std::to_string(processes));
  const Layout layout(length, processes);
  std::set<index_t> seen;
  for (int process = 0; process < processes; ++process) {
    const token_places places = layout.of(process);
    for (index_t i = 0; i < places.count; ++i) {
      EXPECT_TRUE(seen.insert(places[i]).second) << places[i];
      if (i > 0) {
        EXPECT_GT(places[i], places[i - 1]);
      }
      if (i > 0 && Layout::consecutive) {
        EXPECT_EQ(places[i], places[i - 1] + 1);
      }
    }
    for (index_t position = -3; position <= length + 3; ++position) {
      index_t below = 0;
      for (index_t i = 0; i < places.count; ++i) below += places[i] < position;
      EXPECT_EQ(places.count_below(position), below) << process << " " << position;
    }
  }
  EXPECT_EQ(static_cast<index_t>(seen.size()), length);
  if (length > 0) {
    EXPECT_EQ(*seen.rbegin(), length - 1);
  }
}
TEST(layout, every_token_has_one_owner) {
  for (index_t length : {0, 1, 3, 4, 5, 9, 16, 31, 64, 101}) {
    for (int processes : {1, 2, 3, 4, 7}) {
      check_layout<distributed::blocks>(length, processes);
      check_layout<distributed::striped>(length, processes);
      check_layout<distributed::zigzag>(length, processes);
    }
  }
}
TEST(layout, says_who_holds_what) {
  EXPECT_EQ(distributed::blocks(10, 4).of(3).first, 9);
  EXPECT_EQ(distributed::blocks(10, 4).of(3).count, 1);
  EXPECT_EQ(distributed::striped(10, 4).of(1)[2], 9);
  EXPECT_EQ(distributed::zigzag(16, 4).of(1)[1], 3);
  EXPECT_EQ(distributed::zigzag(16, 4).of(1)[2], 12);
}
TEST(layout, refuses_what_cannot_be_dealt) {
  const auto text_of = [](index_t length, int processes) -> std::string {
    try {
      const distributed::striped layout(length, processes);
    } catch (const heed::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(text_of(-1, 2), "layout: length -1 is negative");
  EXPECT_EQ(text_of(5, 0), "layout: process count 0 is not positive");
}

// Predicate, interval, tiles and keys of the mask on one process against the whole predicate.
template <class Layout, class Mask>
void check_mask(const Mask& mask, index_t queries, index_t keys) {
  const Layout q_layout(queries, 3), k_layout(keys, 3);
  for (int own = 0; own < 3; ++own) {
    for (int other = 0; other < 3; ++other) {
      const token_places q = q_layout.of(own), k = k_layout.of(other);
      const distributed::placed_mask<Mask, Layout::consecutive> placed{mask, {q, k, queries, keys}};
      const auto sees = [&](index_t i, index_t j) {
        heed::position p;
        p.q = q[i], p.k = k[j], p.queries = queries, p.keys = keys;
        return static_cast<bool>(mask(p));
      };
      heed::position p;
      p.queries = q.count, p.keys = k.count;
      for (p.q = 0; p.q < q.count; ++p.q) {
        for (p.k = 0; p.k < k.count; ++p.k) {
          EXPECT_EQ(placed(p), sees(p.q, p.k));
          if constexpr (heed::interval_mask<Mask>) {
            const heed::key_interval interval = placed.interval(p);
            EXPECT_EQ(p.k >= interval.begin && p.k < interval.end, sees(p.q, p.k));
          }
        }
      }
      for (index_t q0 = 0; q0 < q.count; q0 += 3) {
        for (index_t k0 = 0; k0 < k.count; k0 += 4) {
          const heed::tile_extent t{
              0, 0, q0, std::min(q0 + 3, q.count), k0, std::min(k0 + 4, k.count), q.count, k.count};
          int visible = 0, all = 0;
          std::set<index_t> visited;
          for (const auto& range : placed.visible_keys(t)) {
            for (index_t j = range.begin; j < range.end; ++j) visited.insert(j);
          }
          for (index_t i = t.q_begin; i < t.q_end; ++i) {
            for (index_t j = t.k_begin; j < t.k_end; ++j) {
              ++all;
              if (!sees(i, j)) continue;
              ++visible;
              EXPECT_TRUE(visited.count(j)) << i << " " << j;
            }
          }
          const heed::visibility answer = placed.tile(t);
          if (answer == heed::visibility::all) {
            EXPECT_EQ(visible, all);
          }
          if (answer == heed::visibility::none) {
            EXPECT_EQ(visible, 0);
          }
        }
      }
    }
  }
}
template <class Layout>
void check_masks() {
  for (const auto& [queries, keys] : {std::pair<index_t, index_t>{31, 31}, {17, 40}, {40, 17}}) {
    check_mask<Layout>(heed::causal{}, queries, keys);
    check_mask<Layout>(heed::window{5, 2}, queries, keys);
    check_mask<Layout>(heed::window{7} & heed::causal_upper_left{}, queries, keys);
    check_mask<Layout>(heed::mask{[](const auto& p) { return p.k % 3 == 0; }}, queries, keys);
  }
}
TEST(placed_mask, blocks) { check_masks<distributed::blocks>(); }
TEST(placed_mask, striped) { check_masks<distributed::striped>(); }
TEST(placed_mask, zigzag) { check_masks<distributed::zigzag>(); }

// A stripe knows its tiles as exactly as the whole: causal tiles below the diagonal are whole.
TEST(placed_mask, striped_causal_knows_its_tiles) {
  const distributed::striped layout(400, 4);
  const distributed::placed_mask<heed::causal, false> placed{
      heed::causal{}, {layout.of(1), layout.of(2), 400, 400}};
  EXPECT_EQ(placed.tile({0, 0, 50, 60, 0, 50, 100, 100}), heed::visibility::all);
  EXPECT_EQ(placed.tile({0, 0, 50, 60, 60, 100, 100, 100}), heed::visibility::none);
  EXPECT_EQ(placed.tile({0, 0, 50, 60, 40, 60, 100, 100}), heed::visibility::some);
  // Query 50 is at 201, key 50 at 202: it sees one key less than where both are on one process.
  heed::position p;
  p.q = 50, p.queries = p.keys = 100;
  EXPECT_EQ(placed.interval(p).end, 50);
}

}  // namespace
