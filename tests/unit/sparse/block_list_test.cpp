// block_list: the mask, tiles and runs that a list stands for, lists of masks and layouts, and what
// is refused.
#include "heed/sparse/block_list.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "heed/engine/hooks.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/global_tokens.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/sparse/row_list.hpp"
#include "support/sparse_lists.hpp"

namespace {

using heed::call_shape;
using heed::index_t;
using heed::position;
using heed::tile_extent;
using heed::visibility;
using heed_test::error_of;
namespace sparse = heed::sparse;

bool naive(const sparse::block_list& list, index_t group, const position& p) {
  const sparse::block_shape& s = list.shape;
  const index_t b = s.batches == 1 ? 0 : p.batch, h = s.heads == 1 ? 0 : p.head / group;
  const auto row = static_cast<std::size_t>((b * s.heads + h) * s.query_blocks + p.q / s.block_q);
  return std::count(list.blocks.begin() + list.offsets[row],
                    list.blocks.begin() + list.offsets[row + 1], p.k / s.block_k) != 0;
}

// Positions, packs, tiles, ranges and runs against the definition.
void check(const sparse::block_list& list, const sparse::block_list_view& mask,
           const call_shape& call) {
  const index_t group = call.heads / list.shape.heads;
  const index_t steps[] = {0, 1, 6, 64, 100, 191, 192, 7};
  for (index_t b = 0; b < call.batches; ++b) {
    for (index_t h = 0; h < call.heads; ++h) {
      for (index_t q = 0; q < call.queries; ++q) {
        for (index_t k = 0; k < call.keys; k += 64) {
          const int count = static_cast<int>(std::min<index_t>(64, call.keys - k));
          const position first{b, h, q, k, call.queries, call.keys};
          const std::uint64_t bits = heed::engine::visible_bits<float, 16>(mask, first, count);
          for (int c = 0; c < count; ++c) {
            position p = first;
            p.k += c;
            ASSERT_EQ(mask(p), naive(list, group, p)) << q << " " << p.k;
            ASSERT_EQ((bits >> c & 1) != 0, naive(list, group, p)) << q << " " << p.k;
          }
        }
      }
      for (index_t q_begin : steps) {
        for (index_t k_begin : steps) {
          const tile_extent t{b,
                              h,
                              q_begin,
                              std::min(call.queries, q_begin + 70),
                              k_begin,
                              std::min(call.keys, k_begin + 130),
                              call.queries,
                              call.keys};
          if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) continue;
          std::vector<bool> seen(static_cast<std::size_t>(call.keys));
          bool any = false, all = true;
          for (index_t q = t.q_begin; q < t.q_end; ++q) {
            for (index_t k = t.k_begin; k < t.k_end; ++k) {
              const bool here = naive(list, group, {b, h, q, k, call.queries, call.keys});
              any = any || here;
              all = all && here;
              if (here) seen[static_cast<std::size_t>(k)] = true;
            }
          }
          ASSERT_EQ(mask.tile(t), !any  ? visibility::none
                                  : all ? visibility::all
                                        : visibility::some);
          std::vector<bool> run(seen.size()), ranged(seen.size());
          index_t last = t.k_begin - 1;
          mask.for_each_key_run(t, [&](index_t begin, index_t end) {
            ASSERT_GT(begin, last);  // runs that touch are joined
            ASSERT_LT(begin, end);
            ASSERT_LE(end, t.k_end);
            last = end;
            std::fill(run.begin() + begin, run.begin() + end, true);
          });
          EXPECT_EQ(run, seen);
          for (const auto& range : mask.visible_keys(t)) {
            std::fill(ranged.begin() + range.begin, ranged.begin() + range.end, true);
          }
          for (std::size_t k = 0; k < seen.size(); ++k) ASSERT_LE(seen[k], ranged[k]);
        }
      }
    }
  }
}

TEST(block_list, is_a_mask) {
  unsigned seed = 1;
  for (const auto& [block_q, block_k] :
       {std::pair<index_t, index_t>{64, 64}, {1, 16}, {48, 5}, {7, 200}, {500, 1}}) {
    for (const call_shape call : {call_shape{2, 4, 199, 203}, call_shape{1, 2, 64, 300}}) {
      for (const auto& [batches, heads] :
           {std::pair<index_t, index_t>{1, 1}, {call.batches, 2}, {1, call.heads}}) {
        call_shape listed = call;
        listed.batches = batches, listed.heads = heads;
        const auto list =
            heed_test::random_list(sparse::blocks_of(listed, block_q, block_k), 0.3, ++seed);
        check(list, list.view().for_heads(call.heads), call);
        std::vector<std::uint64_t> bits;
        check(list, list.view().for_heads(call.heads).with_bits(bits), call);
      }
    }
  }
}

// Runs reach beyond the 4096 blocks that are marked at a time.
TEST(block_list, long_rows) {
  const call_shape call{1, 1, 2, 9000};
  const auto list = heed_test::random_list(sparse::blocks_of(call, 1, 1), 0.5, 11);
  std::vector<index_t> keys;
  list.view().for_each_key_run({0, 0, 0, 1, 3, 8999, 2, 9000}, [&](index_t begin, index_t end) {
    for (; begin < end; ++begin) keys.push_back(begin);
  });
  std::vector<index_t> wanted(list.blocks.begin(), list.blocks.begin() + list.offsets[1]);
  std::erase_if(wanted, [](index_t k) { return k < 3 || k >= 8999; });
  EXPECT_EQ(keys, wanted);
}

// A list of a mask has exactly the blocks in which something is visible.
TEST(block_list, of_any_mask) {
  const call_shape call{1, 2, 130, 170};
  const auto try_mask = [&](const auto& mask) {
    const auto list = sparse::list_of(mask, call, 32, 20);
    const auto view = list.view();
    for (index_t h = 0; h < 2; ++h) {
      for (index_t i = 0; i < 5; ++i) {
        const auto row = view.row(0, h, i);
        for (index_t j = 0; j < 9; ++j) {
          bool any = false;
          for (index_t q = i * 32; q < std::min<index_t>(130, i * 32 + 32); ++q) {
            for (index_t k = j * 20; k < std::min<index_t>(170, j * 20 + 20); ++k) {
              any = any || mask(position{0, h, q, k, 130, 170});
            }
          }
          ASSERT_EQ(std::count(row.begin(), row.end(), j) != 0, any) << h << " " << i << " " << j;
        }
      }
    }
  };
  try_mask(heed::causal{});
  try_mask((heed::window{10, 3} | heed::global_tokens{2}) & heed::causal{});
  try_mask(heed::mask{[](const position& p) { return (p.q + 3 * p.k + p.head) % 97 == 0; }});
}

TEST(block_list, of_a_layout) {
  const std::vector<std::uint8_t> layout = {1, 0, 1, 0, 0, 2, 0, 0, 0, 1, 1, 1};
  const auto list =
      sparse::list_of(heed::tensor_view<const std::uint8_t, 3>(layout.data(), {2, 2, 3}), 8, 16);
  EXPECT_EQ(list.offsets, (std::vector<index_t>{0, 2, 3, 3, 6}));
  EXPECT_EQ(list.blocks, (std::vector<index_t>{0, 2, 2, 0, 1, 2}));
  EXPECT_EQ(list.shape.block_q, 8);
}

TEST(block_list, refuses_what_does_not_fit) {
  sparse::block_list list{{1, 1, 2, 3, 4, 4}, {0, 2, 3}, {0, 2, 1}};
  EXPECT_EQ(error_of([&] { list.view(); }), "accepted");
  const auto with = [&](auto change) {
    sparse::block_list changed = list;
    change(changed);
    return error_of([&] { changed.view(); });
  };
  EXPECT_EQ(with([](auto& l) { l.shape.block_q = 0; }), "block list: block_q 0 is not positive");
  EXPECT_EQ(with([](auto& l) { l.shape.block_k = -1; }), "block list: block_k -1 is not positive");
  EXPECT_EQ(with([](auto& l) { l.shape.heads = -2; }), "block list: extent -2 is negative");
  EXPECT_EQ(with([](auto& l) { l.offsets.pop_back(); }),
            "block list: 2 offsets, must be one more than the 2 rows");
  EXPECT_EQ(with([](auto& l) { l.offsets[0] = 1; }),
            "block list: offsets start with 1, must start with 0");
  EXPECT_EQ(with([](auto& l) {
              l.offsets = {0, 3, 2};
              l.blocks = {0, 1, 2};
            }),
            "block list: offset 2 is 2, less than 3 before it");
  EXPECT_EQ(with([](auto& l) {
              l.blocks = {2, 0, 1};
            }),
            "block list: entry 1 of row 0 is 0, not greater than 2 before it");
  EXPECT_EQ(with([](auto& l) {
              l.blocks = {2, 2, 1};
            }),
            "block list: entry 1 of row 0 is 2, not greater than 2 before it");
  EXPECT_EQ(with([](auto& l) {
              l.blocks = {0, 3, 1};
            }),
            "block list: entry 1 of row 0 is 3, must lie in [0, 3)");
  EXPECT_EQ(with([](auto& l) {
              l.blocks = {0, 2, -1};
            }),
            "block list: entry 0 of row 1 is -1, must lie in [0, 3)");
  EXPECT_EQ(with([](auto& l) { l.blocks.push_back(2); }),
            "block list: offsets end with 3, there are 4 blocks");
  EXPECT_EQ(with([](auto& l) { l.offsets[2] = 5; }),
            "block list: offsets end with 5, there are 3 blocks");
  EXPECT_EQ(error_of([&] { sparse::blocks_of({1, 1, 8, 8}, 0, 4); }), "block_q: 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::blocks_of({1, 1, 8, 8}, 4, 0); }), "block_k: 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::row_list{list}; }),
            "row list: made of blocks of 4 keys, must be 1");
  EXPECT_EQ(error_of([&] {
              sparse::row_list({1, 1, 2, 5}, 1, {0, 1, 2}, {4, 5});
            }),
            "block list: entry 0 of row 1 is 5, must lie in [0, 5)");
  const auto check = [&](const call_shape& call) {
    return error_of([&] { list.view().check(call); });
  };
  EXPECT_EQ(check({1, 1, 8, 12}), "accepted");
  EXPECT_EQ(check({1, 1, 9, 12}), "block list: 2 query blocks, the call has 3");
  EXPECT_EQ(check({1, 1, 8, 13}), "block list: 3 key blocks, the call has 4");
  sparse::block_list three = list;
  three.shape.heads = 3;
  three.offsets = {0, 2, 3, 3, 3, 3, 3};
  EXPECT_EQ(error_of([&] { three.view().for_heads(4); }),
            "block list: head count 3 does not divide query head count 4");
  EXPECT_EQ(error_of([&] {
              three.view().check({1, 6, 8, 12});
            }),
            "block list: 3 query heads, the call has 6");
  three.shape = {3, 1, 2, 3, 4, 4};
  EXPECT_EQ(error_of([&] {
              three.view().check({2, 6, 8, 12});
            }),
            "block list: batch 3, the call has 2");
}

}  // namespace
