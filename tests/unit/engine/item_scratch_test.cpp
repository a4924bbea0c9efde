// Scratch of a work item: every array has room for what the tile loop and its session put there.
#include "heed/engine/item_scratch.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "heed/backend/select.hpp"
#include "support/backends.hpp"

namespace {

using heed::index_t;

template <class Backend>
class item_scratch : public ::testing::Test {};
TYPED_TEST_SUITE(item_scratch, heed_test::all_backends, heed_test::backend_name);

// Blocks of keys, and rows that are kept whole (row_keys > 0), which the vectors' tiles alone do.
template <class Tiles>
void check_room(index_t tile_rows, index_t depth, index_t value_depth, index_t block_keys,
                index_t row_keys) {
  using heed::detail::bump;
  using real = typename Tiles::real;
  heed::engine::item_scratch<Tiles> scratch;
  const auto lay_out = [&](bump& memory) {
    scratch.take(memory, tile_rows, depth, value_depth, block_keys, row_keys, 100);
  };
  bump counted;
  lay_out(counted);
  heed::workspace workspace;
  bump taken(workspace.reserve(counted.bytes()));
  lay_out(taken);

  // As the tile loop counts: strips of the tile, or the one strip that reads its keys in place.
  constexpr index_t rows = heed::engine::item_scratch<Tiles>::rows;
  const index_t strips = (std::max(tile_rows, rows) + Tiles::strip_rows - 1) / Tiles::strip_rows;
  const index_t height = strips * Tiles::strip_rows;
  const index_t scored_rows = row_keys > 0 ? height : rows;
  const index_t keys = row_keys > 0 ? row_keys : block_keys;
  const index_t slots = keys / Tiles::step_keys * (row_keys > 0 ? strips : 1);
  const typename Tiles::session session(false, 1, scratch.scores, keys);
  ASSERT_GE(session.stride(), keys);

  struct area {
    const char* name;
    const void* begin;
    index_t bytes;
  };
  std::vector<area> areas;
  const auto add = [&]<class T>(const char* name, const T* begin, index_t count) {
    areas.push_back({name, begin, count * static_cast<index_t>(sizeof(T))});
  };
  add("queries", scratch.queries, strips * Tiles::query_strip_size(depth));
  add("weighted", scratch.weighted, height * Tiles::padded(value_depth));
  add("maximum", scratch.maximum, height);
  add("sum", scratch.sum, height);
  add("shrink", scratch.shrink, rows);
  add("scores", scratch.scores, (scored_rows - 1) * session.stride() + keys);
  add("bits", scratch.bits, slots * rows);
  add("wanted", scratch.wanted, block_keys / Tiles::step_keys);
  add("steps", scratch.steps, slots);
  add("partial", scratch.partial, slots);
  add("first", scratch.first, slots);
  add("last", scratch.last, slots);
  if (row_keys > 0) {
    add("runs", scratch.runs, slots);
    add("scored", scratch.scored, strips);
    add("added", scratch.added, strips);
  }
  add("terms", scratch.terms, 100);
  const auto* const begin = reinterpret_cast<const std::byte*>(scratch.queries);
  for (std::size_t i = 0; i < areas.size(); ++i) {
    const std::byte* const next = i + 1 < areas.size()
                                      ? static_cast<const std::byte*>(areas[i + 1].begin)
                                      : begin + counted.bytes();
    EXPECT_GE(next - static_cast<const std::byte*>(areas[i].begin), areas[i].bytes)
        << areas[i].name << ", " << tile_rows << " rows, depth " << depth << ", " << block_keys
        << " keys of a block, " << row_keys << " of a row, element of " << sizeof(real) << " bytes";
  }
}

TYPED_TEST(item_scratch, arrays_have_room) {
  using single = typename TypeParam::template tiles<float, float, float, float, float>;
  using twice = typename TypeParam::template tiles<double, double, double, double, double>;
  using words = typename TypeParam::template tiles<float, Eigen::bfloat16, Eigen::bfloat16,
                                                   Eigen::bfloat16, Eigen::bfloat16>;
  for (const index_t tile_rows : {1, 6, 17, 66, 132}) {
    for (const index_t depth : {1, 64, 111}) {
      for (const index_t keys : {64, 512}) {
        check_room<words>(tile_rows, depth, depth + 7, keys, 0);
        for (const index_t row_keys : {0, 64, 4096}) {
          check_room<single>(tile_rows, depth, depth + 7, keys, row_keys);
          check_room<twice>(tile_rows, depth, depth + 7, keys, row_keys);
        }
      }
    }
  }
}

}  // namespace
