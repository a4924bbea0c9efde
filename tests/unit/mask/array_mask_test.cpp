// array_mask: every broadcast, rank and layout, tiles and keys by scanning, wrong extents.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <heed/mask/array_mask.hpp>
#include <heed/mask/causal.hpp>
#include <memory>
#include <vector>

#include "support/mask_checks.hpp"

namespace {

using heed::array_mask;
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

template <class T>
void expect_array(const std::vector<T>& elements, const std::array<index_t, 4>& extents,
                  const mask_shape& shape) {
  expect_mask(
      array_mask{tensor_view<const T, 4>(elements.data(), extents)},
      [&](const position& p) {
        const index_t at[] = {p.batch, p.head, p.q, p.k};
        index_t offset = 0;
        for (std::size_t axis = 0; axis < 4; ++axis) {
          offset = offset * extents[axis] + (extents[axis] == 1 ? 0 : at[axis]);
        }
        return elements[static_cast<std::size_t>(offset)] != 0;
      },
      shape, tiles::exact, keys::hull);
}

TEST(array_mask, every_axis_may_be_broadcast) {
  const mask_shape shape{2, 3, 13, 37};
  for (unsigned broadcast = 0; broadcast < 16; ++broadcast) {
    const auto extent = [&](unsigned axis, index_t full) {
      return (broadcast >> axis & 1u) != 0 ? 1 : full;
    };
    const std::array<index_t, 4> extents{extent(0, 2), extent(1, 3), extent(2, 13), extent(3, 37)};
    const index_t count = extents[0] * extents[1] * extents[2] * extents[3];
    for (const unsigned period : {1u, 2u, 30u, 1000000u}) {
      SCOPED_TRACE(testing::Message() << "broadcast " << broadcast << ", period " << period);
      expect_array(random_flags<std::uint8_t>(count, broadcast, period), extents, shape);
      expect_array(random_flags<std::int64_t>(count, broadcast, period), extents, shape);
    }
  }
}

TEST(array_mask, many_shapes) {
  for (const auto& shape : mask_shapes(1, 2)) {
    const index_t count = shape.heads * shape.queries * shape.keys;
    for (const unsigned period : {2u, 40u}) {
      expect_array(random_flags<std::int32_t>(count, 11, period),
                   {1, shape.heads, shape.queries, shape.keys}, shape);
    }
  }
}

TEST(array_mask, lower_ranks_and_bool) {
  constexpr index_t heads = 2, queries = 5, key_count = 19;
  const auto bytes = random_flags(heads * queries * key_count, 3);
  const std::unique_ptr<bool[]> flags(new bool[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), flags.get());
  const mask_shape shape{2, heads, queries, key_count};
  expect_mask(
      array_mask{tensor_view<const bool, 2>(flags.get(), {queries, key_count})},
      [&](const position& p) { return flags[static_cast<std::size_t>(p.q * key_count + p.k)]; },
      shape, tiles::exact, keys::hull);
  expect_mask(
      array_mask{tensor_view<bool, 3>(flags.get(), {heads, queries, key_count})},
      [&](const position& p) {
        return flags[static_cast<std::size_t>((p.head * queries + p.q) * key_count + p.k)];
      },
      shape, tiles::exact, keys::hull);
}

TEST(array_mask, strides_and_padding) {
  constexpr index_t heads = 2, queries = 5, key_count = 19, padded = 24;
  // [query, head, padded key] seen as [head, query, key].
  const auto elements = random_flags<std::int16_t>(queries * heads * padded, 4);
  const tensor_view<const std::int16_t, 3> view(elements.data(), {heads, queries, key_count},
                                                {padded, heads * padded, 1});
  expect_mask(
      array_mask{view},
      [&](const position& p) {
        return elements[static_cast<std::size_t>((p.q * heads + p.head) * padded + p.k)] != 0;
      },
      mask_shape{1, heads, queries, key_count}, tiles::exact, keys::hull);
}

TEST(array_mask, long_rows_are_searched_in_chunks) {
  constexpr index_t key_count = 500;
  const auto expect_found = [](index_t first, index_t last) {
    std::vector<std::uint8_t> row(key_count, 0);
    row[static_cast<std::size_t>(first)] = row[static_cast<std::size_t>(last)] = 255;
    const array_mask m{tensor_view<const std::uint8_t, 2>(row.data(), {1, key_count})};
    const auto ranges = m.visible_keys({0, 0, 0, 9, 0, key_count, 9, key_count});
    ASSERT_EQ(ranges.size(), 1);
    EXPECT_EQ(ranges.begin()->begin, first);
    EXPECT_EQ(ranges.begin()->end, last + 1);
  };
  for (index_t k = 0; k < key_count; ++k) {
    expect_found(0, k);
    expect_found(k, k);
    expect_found(k, key_count - 1);
  }
}

TEST(array_mask, extents_that_do_not_fit) {
  const std::vector<std::uint8_t> elements(2 * 3 * 4 * 5);
  const array_mask m{tensor_view<const std::uint8_t, 4>(elements.data(), {2, 3, 4, 5})};
  m.check({2, 3, 4, 5});
  expect_error("array_mask: batch axis has extent 2, call has 6 batches", [&] {
    m.check({6, 3, 4, 5});
  });
  expect_error("array_mask: head axis has extent 3, call has 6 heads", [&] {
    m.check({2, 6, 4, 5});
  });
  expect_error("array_mask: query axis has extent 4, call has 3 queries", [&] {
    m.check({2, 3, 3, 5});
  });
  expect_error("array_mask: key axis has extent 5, call has 7 keys", [&] {
    m.check({2, 3, 4, 7});
  });
}

}  // namespace
