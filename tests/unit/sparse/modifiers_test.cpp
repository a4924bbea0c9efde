// Masks and scores over listed rows mean the operands: they are checked against the operands'
// shape, and a bias of −∞ hides a key whatever the key holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "heed/mask/causal.hpp"
#include "heed/routed/dispatch.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/sparse/attention.hpp"
#include "heed/sparse/bigbird.hpp"
#include "support/sparse_lists.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::tensor;
namespace sparse = heed::sparse;

struct fixture {
  tensor<float> q{1, 4, 16, 8}, k{1, 2, 24, 8}, v{1, 2, 24, 8}, out{1, 4, 16, 8};
  fixture() { q.fill(1), k.fill(2), v.fill(3); }
  void expect_untouched() {
    out.for_each([](float& x) { EXPECT_TRUE(heed_test::is_nan(static_cast<double>(x))); });
  }
};

sparse::block_list blocks(index_t block_k) {
  return heed_test::random_list(sparse::blocks_of({1, 1, 16, 24}, 8, block_k), 0.7, 1);
}

TEST(sparse_modifiers, arrays_are_checked_against_the_operands) {
  fixture x;
  const std::vector<float> slopes(3, 0.5f), table(15 * 24);
  const heed::alibi three{tensor_view<const float, 1>(slopes.data(), {3})};
  const heed::bias short_bias{tensor_view<const float, 2>(table.data(), {15, 24})};
  const auto message = [&](const auto& list, const auto& modifier) {
    return error_of([&] {
      sparse::attention(x.q.read(), x.k.read(), x.v.read(), x.out.view(), list, modifier);
    });
  };
  const auto dispatched = [&](const auto& modifier) {
    return error_of([&] {
      heed::routed::attention(x.q.read(), x.k.read(), x.v.read(), x.out.view(), blocks(8),
                              modifier);
    });
  };
  const sparse::row_list rows(blocks(1));
  // As the same modifiers over whole blocks say it.
  EXPECT_NE(message(blocks(8), three), "accepted");
  EXPECT_EQ(message(rows, three), message(blocks(8), three));
  EXPECT_EQ(dispatched(three), message(blocks(8), three));
  EXPECT_NE(message(blocks(8), short_bias), "accepted");
  EXPECT_EQ(message(rows, short_bias), message(blocks(8), short_bias));
  EXPECT_EQ(dispatched(short_bias), message(blocks(8), short_bias));
  x.expect_untouched();
}

TEST(sparse_modifiers, what_a_bias_hides_does_not_leak) {
  fixture x;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> table(16 * 24, 0.0f);
  for (const index_t key : {3, 10, 23}) {
    for (index_t i = 0; i < 16; ++i) table[static_cast<std::size_t>(i * 24 + key)] = -HUGE_VALF;
    for (index_t h = 0; h < 2; ++h) x.k.view()(0, h, key, 5) = x.v.view()(0, h, key, 2) = nan;
  }
  const heed::bias hiding{tensor_view<const float, 2>(table.data(), {16, 24})};
  const sparse::block_list wide = blocks(8);
  std::vector<index_t> offsets{0}, keys;
  for (index_t i = 0; i < 2; ++i) {
    for (index_t at = wide.offsets[static_cast<std::size_t>(i)];
         at < wide.offsets[static_cast<std::size_t>(i) + 1]; ++at) {
      for (index_t key = 0; key < 8; ++key) {
        keys.push_back(wide.blocks[static_cast<std::size_t>(at)] * 8 + key);
      }
    }
    offsets.push_back(static_cast<index_t>(keys.size()));
  }
  const sparse::row_list rows({1, 1, 16, 24}, 8, offsets, keys);
  tensor<float> by_blocks(1, 4, 16, 8), by_rows(1, 4, 16, 8), routed(1, 4, 16, 8);
  sparse::attention(x.q.read(), x.k.read(), x.v.read(), by_blocks.view(), wide, hiding);
  sparse::attention(x.q.read(), x.k.read(), x.v.read(), by_rows.view(), rows, hiding);
  heed::routed::attention(x.q.read(), x.k.read(), x.v.read(), routed.view(), wide, hiding);
  for (index_t i = 0; i < by_blocks.view().size(); ++i) {
    ASSERT_NEAR(by_blocks.view().data()[i], by_rows.view().data()[i], 2e-6f) << i;
    ASSERT_NEAR(by_blocks.view().data()[i], routed.view().data()[i], 2e-6f) << i;
  }
}

TEST(sparse_modifiers, random_blocks_of_other_heads) {
  tensor<float> q(1, 4, 24, 8), k(1, 2, 24, 8), out(1, 4, 24, 8);
  q.fill(1), k.fill(2);
  const std::vector<index_t> random(2 * 4 * 1, 2);
  EXPECT_EQ(error_of([&] {
              sparse::bigbird(q.read(), k.read(), k.read(), out.view(), 4,
                              tensor_view<const index_t, 3>(random.data(), {2, 4, 1}));
            }),
            "random: head count 2 is neither 1 nor q's 4");
}

// A list for every sequence of a ragged batch is that list's call for the sequence alone.
TEST(sparse_modifiers, sequences_of_a_ragged_batch_have_lists_of_their_own) {
  const std::vector<index_t> queries = {0, 9, 9, 30}, keys = {0, 20, 26, 50};
  tensor<float> q(1, 4, 30, 8), k(1, 2, 50, 8), v(1, 2, 50, 8), out(1, 4, 30, 8);
  q.fill(1), k.fill(2), v.fill(3);
  const sparse::block_list list =
      heed_test::random_list(sparse::blocks_of({3, 2, 21, 24}, 4, 8), 0.6, 1);
  sparse::attention(q.read(), k.read(), v.read(), out.view(), list, heed::ragged(queries, keys),
                    heed::causal{});
  for (std::size_t n = 0; n < 3; ++n) {
    const index_t count = queries[n + 1] - queries[n], held = keys[n + 1] - keys[n];
    const auto of = [&](const tensor<float>& x, const std::vector<index_t>& starts,
                        index_t length) { return x.read().slice(2, starts[n], length); };
    const sparse::block_list own =
        sparse::list_where(sparse::blocks_of({1, 2, count, held}, 4, 8),
                           [&](index_t, index_t h, index_t i, index_t j) {
                             const auto row = list.view().row(static_cast<index_t>(n), h, i);
                             return std::find(row.begin(), row.end(), j) != row.end();
                           });
    tensor<float> wanted(1, 4, count, 8);
    sparse::attention(of(q, queries, count), of(k, keys, held), of(v, keys, held), wanted.view(),
                      own, heed::causal{});
    const auto got = of(out, queries, count);
    for (index_t h = 0; h < 4; ++h) {
      for (index_t i = 0; i < count; ++i) {
        for (index_t d = 0; d < 8; ++d) {
          ASSERT_NEAR(static_cast<double>(got(0, h, i, d)),
                      static_cast<double>(wanted.read()(0, h, i, d)), 1e-6)
              << n << " " << i;
        }
      }
    }
  }
  // One that knows fewer sequences, or shorter ones, is refused.
  const auto message = [&](const heed::call_shape& call) {
    const sparse::block_list other = heed_test::random_list(sparse::blocks_of(call, 4, 8), 0.6, 1);
    return error_of([&] {
      sparse::attention(q.read(), k.read(), v.read(), out.view(), other,
                        heed::ragged(queries, keys));
    });
  };
  EXPECT_EQ(message({2, 1, 21, 24}), "block list: batch 2, the call has 3");
  EXPECT_EQ(message({3, 1, 16, 24}), "block list: 4 query blocks, the call has 6");
}

}  // namespace
