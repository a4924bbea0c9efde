// global_tokens: the first tokens, flags of one sequence or two, wrong extents.
#include <cstdint>
#include <heed/mask/causal.hpp>
#include <heed/mask/global_tokens.hpp>
#include <heed/mask/window.hpp>
#include <vector>

#include "support/mask_checks.hpp"

namespace {

using heed::global_tokens;
using heed::position;
using heed::tensor_view;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shapes;
using heed_test::random_flags;
using heed_test::tiles;

index_t token_of_query(const position& p) { return p.q + p.keys - p.queries; }

TEST(global_tokens, the_first_tokens) {
  for (const index_t count : {0, 1, 4, 20, 100}) {
    for (const auto& shape : mask_shapes()) {
      expect_mask(
          global_tokens{count},
          [=](const position& p) {
            const index_t own = token_of_query(p);
            return p.k < count || (0 <= own && own < count);
          },
          shape);
    }
  }
}

TEST(global_tokens, flags_of_one_sequence) {
  for (const unsigned period : {1u, 3u, 20u}) {
    for (const auto& shape : mask_shapes(2, 1)) {
      if (shape.queries > shape.keys) continue;
      const auto flags = random_flags(2 * shape.keys, 5, period);
      expect_mask(
          global_tokens{tensor_view<const std::uint8_t, 2>(flags.data(), {2, shape.keys})},
          [&](const position& p) {
            const auto flag = [&](index_t token) {
              return flags[static_cast<std::size_t>(p.batch * p.keys + token)] != 0;
            };
            return flag(token_of_query(p)) || flag(p.k);
          },
          shape, tiles::exact, period == 3 ? keys::right : keys::exact);
    }
  }
}

TEST(global_tokens, flags_of_two_sequences) {
  for (const auto& shape : mask_shapes(2, 1)) {
    const auto query_flags = random_flags<int>(shape.queries, 1, 5);
    const auto key_flags = random_flags<int>(2 * shape.keys, 2, 4);
    expect_mask(
        global_tokens{tensor_view<const int, 1>(query_flags.data(), {shape.queries}),
                      tensor_view<const int, 2>(key_flags.data(), {2, shape.keys})},
        [&](const position& p) {
          return query_flags[static_cast<std::size_t>(p.q)] != 0 ||
                 key_flags[static_cast<std::size_t>(p.batch * p.keys + p.k)] != 0;
        },
        shape, tiles::exact, keys::right);
  }
}

TEST(global_tokens, bool_flags_and_one_element_for_all) {
  const bool flags[] = {false, true};
  for (const auto& shape : mask_shapes(2, 1)) {
    expect_mask(
        global_tokens{tensor_view<const bool, 1>(flags, {1}),
                      tensor_view<const bool, 2>(flags, {2, 1})},
        [](const position& p) { return p.batch == 1; }, shape);
  }
}

TEST(global_tokens, with_window_and_causal_they_are_attention_sinks) {
  const auto sinks = (global_tokens{4} | heed::window{6}) & heed::causal{};
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        sinks,
        [](const position& p) {
          const index_t own = token_of_query(p);
          return p.k <= own && (p.k < 4 || own - p.k <= 6);
        },
        shape, tiles::right, keys::right);
  }
  const auto ranges = sinks.visible_keys({0, 0, 50, 52, 0, 100, 100, 100});
  ASSERT_EQ(ranges.size(), 2);
  EXPECT_EQ(ranges.begin()[0].end, 4);
  EXPECT_EQ(ranges.begin()[1].begin, 44);
  EXPECT_EQ(ranges.begin()[1].end, 52);
}

// Queries before the first token of a ragged batch's sequence are no tokens, so not global.
TEST(global_tokens, queries_before_the_first_token) {
  const std::vector<int> flags(9, 1);
  const std::vector<int> no_flags(9, 0);
  const heed::tile_extent t{0, 0, 0, 4, 0, 4, 7, 4};
  const global_tokens every{tensor_view<const int, 1>(flags.data(), {9})};
  EXPECT_EQ(every.tile(t), heed::visibility::all);  // by the keys
  const global_tokens none{tensor_view<const int, 1>(no_flags.data(), {9})};
  EXPECT_EQ(none.tile(t), heed::visibility::none);
  EXPECT_EQ(none.visible_keys(t).size(), 0);
  std::vector<int> first(9, 0);
  first[0] = 1;
  const global_tokens one{tensor_view<const int, 1>(first.data(), {9})};
  heed::position p;
  p.queries = 7;
  p.keys = 4;
  for (p.q = 0; p.q < 7; ++p.q) {
    for (p.k = 0; p.k < 4; ++p.k) {
      EXPECT_EQ(one(p), p.q == 3 || p.k == 0);
      EXPECT_EQ(global_tokens{1}(p), p.q == 3 || p.k == 0);
    }
  }
  EXPECT_EQ(one.tile({0, 0, 0, 4, 1, 4, 7, 4}), heed::visibility::some);
  EXPECT_EQ(one.tile({0, 0, 0, 3, 1, 4, 7, 4}), heed::visibility::none);
}

TEST(global_tokens, errors) {
  expect_error("global_tokens: count -3 is negative", [] { global_tokens{-3}; });
  const std::vector<int> flags(20);
  const global_tokens shared{tensor_view<const int, 2>(flags.data(), {2, 5})};
  expect_error("global_tokens: batch axis of flags has extent 2, call has 4 batches", [&] {
    shared.check({4, 1, 5, 5});
  });
  expect_error("global_tokens: token axis of flags has extent 5, call has 6 keys", [&] {
    shared.check({2, 1, 5, 6});
  });
  expect_error("global_tokens: call has 8 queries, one array of flags gives them only 5 tokens",
               [&] {
                 shared.check({2, 1, 8, 5});
               });
  const global_tokens separate{tensor_view<const int, 1>(flags.data(), {5}),
                               tensor_view<const int, 1>(flags.data(), {4})};
  expect_error("global_tokens: token axis of query flags has extent 5, call has 3 queries", [&] {
    separate.check({2, 1, 3, 4});
  });
  expect_error("global_tokens: token axis of key flags has extent 4, call has 3 keys", [&] {
    separate.check({2, 1, 5, 3});
  });
}

}  // namespace
