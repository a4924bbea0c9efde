// block_pattern: block sizes against tile sizes, every broadcast, wrong extents.
#include <array>
#include <cstdint>
#include <heed/mask/block_pattern.hpp>
#include <vector>

#include "support/mask_checks.hpp"

namespace {

using heed::block_pattern;
using heed::position;
using heed::tensor_view;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shape;
using heed_test::mask_shapes;
using heed_test::random_flags;
using heed_test::tiles;

index_t block_count(index_t length, index_t block) { return (length + block - 1) / block; }

TEST(block_pattern, blocks_of_many_sizes) {
  for (const index_t block_q : {1, 3, 8, 100}) {
    for (const index_t block_k : {1, 2, 5, 16, 100}) {
      for (const auto& shape : mask_shapes(1, 2)) {
        SCOPED_TRACE(testing::Message() << block_q << " x " << block_k);
        const index_t rows = block_count(shape.queries, block_q);
        const index_t columns = block_count(shape.keys, block_k);
        const auto layout = random_flags(2 * rows * columns, 8);
        // Beyond eight ranges of keys the closest are joined.
        const bool few_ranges = columns <= 2 * heed::key_ranges::capacity;
        expect_mask(
            block_pattern{tensor_view<const std::uint8_t, 3>(layout.data(), {2, rows, columns}),
                          block_q, block_k},
            [&](const position& p) {
              const index_t row = p.head * rows + p.q / block_q;
              return layout[static_cast<std::size_t>(row * columns + p.k / block_k)] != 0;
            },
            shape, tiles::exact, few_ranges ? keys::exact : keys::right);
      }
    }
  }
}

TEST(block_pattern, every_axis_may_be_broadcast) {
  const mask_shape shape{2, 3, 20, 29};
  for (unsigned broadcast = 0; broadcast < 16; ++broadcast) {
    const auto extent = [&](unsigned axis, index_t full) {
      return (broadcast >> axis & 1u) != 0 ? 1 : full;
    };
    const std::array<index_t, 4> extents{extent(0, 2), extent(1, 3), extent(2, 4), extent(3, 5)};
    const auto layout =
        random_flags<int>(extents[0] * extents[1] * extents[2] * extents[3], broadcast);
    expect_mask(
        block_pattern{tensor_view<const int, 4>(layout.data(), extents), 6, 7},
        [&](const position& p) {
          const index_t at[] = {p.batch, p.head, p.q / 6, p.k / 7};
          index_t offset = 0;
          for (std::size_t axis = 0; axis < 4; ++axis) {
            offset = offset * extents[axis] + (extents[axis] == 1 ? 0 : at[axis]);
          }
          return layout[static_cast<std::size_t>(offset)] != 0;
        },
        shape);
  }
}

TEST(block_pattern, one_block_as_large_as_an_integer) {
  const bool layout[] = {true};
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        block_pattern{tensor_view<const bool, 2>(layout, {1, 1}), INT64_MAX, INT64_MAX},
        [](const position&) { return true; }, shape);
  }
}

TEST(block_pattern, errors) {
  const std::vector<int> layout(2 * 3 * 4 * 5);
  const tensor_view<const int, 4> view(layout.data(), {2, 3, 4, 5});
  expect_error("block_pattern: query block size 0 is not positive",
               [&] { block_pattern(view, 0, 1); });
  expect_error("block_pattern: key block size -16 is not positive",
               [&] { block_pattern(view, 1, -16); });
  const block_pattern m{view, 8, 16};
  m.check({2, 3, 25, 65});
  m.check({2, 3, 32, 80});
  expect_error("block_pattern: batch axis has extent 2, call has 3 batches", [&] {
    m.check({3, 3, 32, 80});
  });
  expect_error("block_pattern: head axis has extent 3, call has 2 heads", [&] {
    m.check({2, 2, 32, 80});
  });
  expect_error("block_pattern: query block axis has extent 4, call has 5 query blocks", [&] {
    m.check({2, 3, 33, 80});
  });
  expect_error("block_pattern: key block axis has extent 5, call has 6 key blocks", [&] {
    m.check({2, 3, 32, 81});
  });
}

}  // namespace
