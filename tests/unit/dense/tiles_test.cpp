// The work done is exactly the visible tiles: counts from the engine against a brute-force scan of
// every score.
#include <gtest/gtest.h>

#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/algebra.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/documents.hpp"
#include "heed/mask/global_tokens.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;

struct scan {
  index_t all = 0, some = 0;
};

// Looks at every score of every tile: a strip of rows of one KV head against 64 keys.
template <class Mask>
scan scan_tiles(const Mask& mask, index_t heads, index_t key_heads, index_t queries, index_t keys,
                index_t strip_rows, index_t tile_rows) {
  scan result;
  const index_t group = heads / key_heads, rows = group * queries;
  for (index_t key_head = 0; key_head < key_heads; ++key_head) {
    for (index_t tile = 0; tile < rows; tile += tile_rows) {
      const index_t tile_end = std::min(rows, tile + tile_rows);
      for (index_t strip = tile; strip < tile_end; strip += strip_rows) {
        for (index_t step = 0; step < keys; step += 64) {
          index_t visible = 0, count = 0;
          for (index_t r = strip; r < std::min(tile_end, strip + strip_rows); ++r) {
            for (index_t k = step; k < std::min(keys, step + 64); ++k) {
              ++count;
              visible += mask(
                  heed::position{0, key_head * group + r / queries, r % queries, k, queries, keys});
            }
          }
          if (visible == count) ++result.all;
          if (visible > 0 && visible < count) ++result.some;
        }
      }
    }
  }
  return result;
}

template <class Backend>
class tiles : public ::testing::Test {
 protected:
  template <class Mask>
  heed::tile_counts run(const Mask& mask, index_t heads, index_t key_heads, index_t queries,
                        index_t keys) {
    heed_test::tensor<float> q(1, heads, queries, 4), k(1, key_heads, keys, 4);
    heed_test::tensor<float> v(1, key_heads, keys, 4), out(1, heads, queries, 4);
    q.fill(1), k.fill(2), v.fill(3);
    heed::tile_counts counts;
    heed::attention<Backend>(q.read(), k.read(), v.read(), out.view(), mask,
                             heed::count_tiles{counts});
    return counts;
  }

  template <class Mask>
  void check(const char* name, const Mask& mask, index_t most_looked_at_in_vain_percent) {
    using Tiles = typename Backend::template tiles<float>;
    struct call {
      index_t heads, key_heads, queries, keys;
    };
    for (const call& c : {call{1, 1, 700, 700}, call{4, 2, 130, 257}, call{2, 1, 3, 1000},
                          call{8, 2, 1, 300}, call{1, 1, 513, 64}}) {
      const heed::tile_counts counts = run(mask, c.heads, c.key_heads, c.queries, c.keys);
      const index_t rows = c.heads / c.key_heads * c.queries;
      const bool in_place = rows <= heed::engine::blocking::current().rows_in_place &&
                            rows <= Tiles::most_rows_in_place;
      // Tiles never straddle the items that a call is cut into; tile rows are whole strips, so the
      // scan needs no more than the strips themselves.
      const scan wanted = scan_tiles(mask, c.heads, c.key_heads, c.queries, c.keys,
                                     in_place ? Tiles::most_rows_in_place : Tiles::strip_rows,
                                     Tiles::strip_rows * 1000000);
      EXPECT_EQ(counts.all, wanted.all) << name << " " << c.queries << "x" << c.keys;
      EXPECT_EQ(counts.some, wanted.some) << name << " " << c.queries << "x" << c.keys;
      EXPECT_LE(counts.none * 100, (counts.visited() + 8) * most_looked_at_in_vain_percent)
          << name << " " << c.queries << "x" << c.keys;
    }
  }
};
TYPED_TEST_SUITE(tiles, heed_test::all_backends, heed_test::backend_name);

TYPED_TEST(tiles, computed_are_exactly_the_visible_ones) {
  // Masks with key ranges look at few tiles in vain: only those between a tile of rows' range and a
  // strip's own.
  this->check("causal", heed::causal{}, 40);
  this->check("window", heed::window{40, 3}, 200);
  this->check("causal & window", heed::causal{} & heed::window{90}, 200);
  this->check("window | globals", heed::window{20} | heed::global_tokens{3}, 1000);
  this->check("!causal", !heed::causal{}, 200);
  // Without any answer about tiles a mask is exact too, it only looks at all of them.
  this->check("every 100th", heed::mask{[](const heed::position& p) { return p.k % 100 == 7; }},
              1000000);
  std::vector<index_t> ids(1000);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<index_t>(i) / 150;
  const heed::mask document_and_causal{[&](const heed::position& p) {
    return ids[static_cast<std::size_t>(p.q)] == ids[static_cast<std::size_t>(p.k)] && p.k <= p.q;
  }};
  this->check("documents & causal", document_and_causal, 1000000);
}

TYPED_TEST(tiles, without_a_mask_every_tile_is_taken_whole) {
  heed_test::tensor<float> q(1, 1, 100, 4), k(1, 1, 200, 4), v(1, 1, 200, 4), out(1, 1, 100, 4);
  q.fill(1), k.fill(2), v.fill(3);
  heed::tile_counts counts;
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::count_tiles{counts});
  constexpr index_t strip = TypeParam::template tiles<float>::strip_rows;
  EXPECT_EQ(counts.all, (100 + strip - 1) / strip * 4);
  EXPECT_EQ(counts.some, 0);
  EXPECT_EQ(counts.none, 0);
}

}  // namespace
