// Masks, scores and sinks behind pointers: what comes back is what the objects themselves say of
// every row of a tile, across the borders of query heads.
#include "heed/engine/erased_hooks.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "heed/backend/select.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/sparse/block_list.hpp"

namespace {

using heed::index_t;
using heed::position;
using heed::tile_extent;
using heed::visibility;
namespace engine = heed::engine;

constexpr index_t queries = 5, keys = 200;

// Eight rows from query 3 of head 2 on: two queries of that head, all of the next, one of the last.
engine::tile_rows_at three_heads(index_t first_key) {
  return {{1, 2, 3, first_key, queries, keys}, 8};
}

TEST(erased_hooks, rows_go_on_in_the_next_head) {
  std::vector<std::pair<index_t, index_t>> seen;
  three_heads(64).for_each([&](int row, const position& p) {
    EXPECT_EQ(row, static_cast<int>(seen.size()));
    EXPECT_EQ(p.batch, 1);
    EXPECT_EQ(p.k, 64);
    EXPECT_EQ(p.queries, queries);
    EXPECT_EQ(p.keys, keys);
    seen.emplace_back(p.head, p.q);
  });
  const std::vector<std::pair<index_t, index_t>> wanted = {{2, 3}, {2, 4}, {3, 0}, {3, 1},
                                                           {3, 2}, {3, 3}, {3, 4}, {4, 0}};
  EXPECT_EQ(seen, wanted);
}

TEST(erased_hooks, extents_end_where_heads_do) {
  std::vector<std::tuple<index_t, index_t, index_t>> seen;
  three_heads(64).for_each_extent(128, [&](const tile_extent& t) {
    EXPECT_EQ(t.batch, 1);
    EXPECT_EQ(t.k_begin, 64);
    EXPECT_EQ(t.k_end, 128);
    EXPECT_EQ(t.queries, queries);
    EXPECT_EQ(t.keys, keys);
    seen.emplace_back(t.head, t.q_begin, t.q_end);
  });
  const std::vector<std::tuple<index_t, index_t, index_t>> wanted = {
      {2, 3, 5}, {3, 0, 5}, {4, 0, 1}};
  EXPECT_EQ(seen, wanted);
}

TEST(erased_hooks, bits_are_the_masks_own_and_what_any_and_all_rows_see) {
  // Different for every head, query and key.
  const heed::mask scattered{
      [](const position& p) { return (p.head * 7 + p.q * 3 + p.k * 5) % 11 < 6 || p.k == 70; }};
  const engine::mask_calls calls = engine::calls_of<float, 4>(scattered);
  for (const int count : {64, 17, 1}) {
    const engine::tile_rows_at rows = three_heads(64);
    std::vector<std::uint64_t> bits(9, 42);
    const engine::seen_bits seen = calls.visible(rows, count, bits.data());
    std::uint64_t any = 0, all = ~std::uint64_t{0} >> (64 - count);
    rows.for_each([&](int row, position p) {
      std::uint64_t wanted = 0;
      for (int c = 0; c < count; ++c, ++p.k) {
        if (scattered(p)) wanted |= std::uint64_t{1} << c;
      }
      EXPECT_EQ(bits[static_cast<std::size_t>(row)], wanted) << "row " << row;
      any |= wanted, all &= wanted;
    });
    EXPECT_EQ(bits[8], 42u);
    EXPECT_EQ(seen.by_any, any);
    EXPECT_EQ(seen.by_all, all);
    EXPECT_EQ(all != 0, count > 6);  // key 70 alone is seen by all rows
  }
}

TEST(erased_hooks, a_tile_is_all_or_none_where_it_is_so_for_every_head) {
  struct by_head {
    index_t first, last;  // visible heads
    bool operator()(const position& p) const { return first <= p.head && p.head <= last; }
    visibility tile(const tile_extent& t) const {
      return first <= t.head && t.head <= last ? visibility::all : visibility::none;
    }
  };
  const auto classify = [](index_t first, index_t last) {
    const by_head mask{first, last};
    return engine::calls_of<float, 4>(mask).classify(three_heads(0), 64);
  };
  EXPECT_EQ(classify(2, 4), visibility::all);
  for (index_t head = 2; head <= 4; ++head) EXPECT_EQ(classify(head, head), visibility::some);
  EXPECT_EQ(classify(5, 9), visibility::none);
}

TEST(erased_hooks, a_mask_keeps_what_it_knows_of_keys) {
  const heed::window near(10, 0);
  const engine::mask_calls of_window = engine::calls_of<float, 4>(near);
  const tile_extent t{0, 0, 50, 60, 0, 200, 200, 200};
  const heed::key_ranges ranges = of_window.visible_keys(t);
  ASSERT_EQ(ranges.size(), 1);
  EXPECT_EQ(ranges.begin()->begin, 40);
  EXPECT_EQ(ranges.begin()->end, 60);
  EXPECT_EQ(of_window.runs_of, nullptr);
  EXPECT_EQ(of_window.query_block, 0);
  EXPECT_TRUE(of_window.hides_some());
  EXPECT_FALSE(engine::mask_calls{}.hides_some());

  const std::vector<index_t> offsets = {0, 2, 3}, blocks = {0, 2, 1};
  const heed::sparse::block_list_view list({1, 1, 2, 3, 32, 64}, offsets, blocks);
  const auto causal_list = list & heed::causal{};
  const engine::mask_calls of_list = engine::calls_of<float, 4>(causal_list);
  EXPECT_EQ(of_list.query_block, 32);
  std::vector<std::pair<index_t, index_t>> runs;
  const auto keep = [&](index_t begin, index_t end) { runs.emplace_back(begin, end); };
  ASSERT_NE(of_list.runs_of, nullptr);
  of_list.for_each_key_run({0, 0, 0, 32, 0, 192, 64, 192}, engine::run_visitor(keep));
  const std::vector<std::pair<index_t, index_t>> wanted = {{0, 64}, {128, 160}};
  EXPECT_EQ(runs, wanted);
}

TEST(erased_hooks, scores_are_applied_to_scaled_values_in_order) {
  const heed::score place{
      [](auto s, auto p) { return s + static_cast<float>(100 * p.head + 10 * p.q); }};
  const heed::score twice{[](auto s, auto) { return s + s; }};
  const std::tuple scores(place, twice);
  const engine::score_calls<float> calls = engine::calls_of_scores<float, 4>(scores);
  const engine::tile_rows_at rows = three_heads(64);
  constexpr index_t stride = 72;
  std::vector<float> s(8 * stride, 3.f);
  engine::apply_to_tile<float, 4>(calls, rows, 6, 0.5f, s.data(), stride);
  rows.for_each([&](int row, const position& p) {
    for (int c = 0; c < 6; ++c) {
      const float wanted =
          2 * (1.5f + 100.f * static_cast<float>(p.head) + 10.f * static_cast<float>(p.q));
      EXPECT_EQ(s[static_cast<std::size_t>(row * stride + c)], wanted);
    }
  });
  EXPECT_EQ(s[64], 3.f);  // behind the step
  EXPECT_TRUE(engine::change_scores(calls));
  EXPECT_FALSE(engine::change_scores(engine::score_calls<float>{}));
}

TEST(erased_hooks, a_source_keeps_its_terms_and_scales_where_rows_are_kept) {
  using tiles = heed::backend::vec::tiles<float, float>;
  using view = heed::tensor_view<const float, 4>;
  const engine::source_of<view, view, engine::everything, std::tuple<>> bare{};
  EXPECT_FALSE((engine::erased<tiles, false>(bare).mask.hides_some()));
  EXPECT_FALSE(engine::change_scores(engine::erased<tiles, false>(bare).scores));
  EXPECT_TRUE(engine::change_scores(engine::erased<tiles, true>(bare).scores));
}

TEST(erased_hooks, a_sink_gives_its_heads_logits) {
  const std::vector<float> logits = {0.5f, -2.f, 7.f};
  const heed::sink sink{heed::tensor_view<const float, 1>(logits.data(), {3})};
  const engine::sink_calls<double> calls(sink);
  EXPECT_TRUE(calls.exists());
  for (index_t h = 0; h < 3; ++h) {
    EXPECT_EQ(calls.logit(h), static_cast<double>(logits[static_cast<std::size_t>(h)]));
  }
  EXPECT_FALSE(engine::sink_calls<double>(engine::no_sink{}).exists());
}

}  // namespace
