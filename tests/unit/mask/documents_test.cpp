// documents: packed and unordered ids of every integer type, one array or two, wrong extents.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <heed/mask/causal.hpp>
#include <heed/mask/documents.hpp>
#include <random>
#include <vector>

#include "support/mask_checks.hpp"

namespace {

using heed::documents;
using heed::position;
using heed::tensor_view;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shapes;
using heed_test::tiles;

// Ids that never decrease: documents of random lengths, one sequence after another.
template <class Id>
std::vector<Id> packed_ids(index_t batches, index_t tokens, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<Id> ids;
  for (index_t b = 0; b < batches; ++b) {
    int id = static_cast<int>(generator() % 5);
    for (index_t i = 0; i < tokens; ++i) {
      id += generator() % 6 == 0 ? static_cast<int>(1 + generator() % 2) : 0;
      ids.push_back(static_cast<Id>(id));
    }
  }
  return ids;
}

template <class Id>
std::vector<Id> random_ids(index_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<Id> ids;
  for (index_t i = 0; i < count; ++i) ids.push_back(static_cast<Id>(generator() % 3));
  return ids;
}

template <class Id>
struct ids_test : testing::Test {};
using id_types = testing::Types<std::int8_t, std::uint8_t, std::int16_t, std::int32_t,
                                std::uint32_t, std::int64_t, std::uint64_t, char, bool>;
TYPED_TEST_SUITE(ids_test, id_types);

// Ids in storage of their own, since std::vector<bool> has none.
template <class Id>
struct id_array {
  explicit id_array(const std::vector<Id>& values) : data(new Id[values.size() + 1]{}) {
    for (std::size_t i = 0; i < values.size(); ++i) data[i] = values[i];
  }
  id_array(const id_array&) = delete;
  ~id_array() { delete[] data; }
  const Id& operator[](index_t i) const { return data[i]; }
  Id* data;
};

TYPED_TEST(ids_test, packed_sequences) {
  for (const auto& shape : mask_shapes(2, 2)) {
    if (shape.queries > shape.keys) continue;
    const id_array<TypeParam> ids(packed_ids<TypeParam>(2, shape.keys, 7));
    expect_mask(
        documents{tensor_view<const TypeParam, 2>(ids.data, {2, shape.keys})},
        [&](const position& p) {
          const index_t own = p.q + p.keys - p.queries;
          return ids[p.batch * p.keys + own] == ids[p.batch * p.keys + p.k];
        },
        shape);
  }
}

TYPED_TEST(ids_test, queries_and_keys_of_different_sequences) {
  for (const auto& shape : mask_shapes(2, 1)) {
    const id_array<TypeParam> query_ids(random_ids<TypeParam>(shape.queries, 1));
    const id_array<TypeParam> key_ids(random_ids<TypeParam>(2 * shape.keys, 2));
    expect_mask(
        documents{tensor_view<const TypeParam, 1>(query_ids.data, {shape.queries}),
                  tensor_view<TypeParam, 2>(key_ids.data, {2, shape.keys})},
        [&](const position& p) { return query_ids[p.q] == key_ids[p.batch * p.keys + p.k]; }, shape,
        tiles::right, keys::right);
  }
}

TEST(documents, ids_that_come_back) {
  for (const auto& shape : mask_shapes()) {
    if (shape.queries > shape.keys) continue;
    const std::vector<int> ids = random_ids<int>(shape.keys, 3);
    expect_mask(
        documents{tensor_view<const int, 1>(ids.data(), {shape.keys})},
        [&](const position& p) {
          return ids[static_cast<std::size_t>(p.q + p.keys - p.queries)] ==
                 ids[static_cast<std::size_t>(p.k)];
        },
        shape, tiles::right, keys::right);
  }
}

TEST(documents, one_element_serves_all_tokens) {
  const int one = 1;
  const std::vector<int> ids{0, 1, 2};
  for (const auto& shape : mask_shapes(3, 1)) {
    expect_mask(
        documents{tensor_view<const int, 2>(ids.data(), {3, 1}),
                  tensor_view<const int, 1>(&one, {1})},
        [](const position& p) { return p.batch == 1; }, shape);
  }
}

// In a ragged batch a sequence may be shorter than what was checked: queries before the first token
// belong to no document, and no id is read for them.
TEST(documents, queries_before_the_first_token) {
  const std::vector<int> ids(9, 4);
  const documents m{tensor_view<const int, 1>(ids.data(), {9})};
  heed::position p;
  p.queries = 7;
  p.keys = 4;
  for (p.q = 0; p.q < 7; ++p.q) {
    for (p.k = 0; p.k < 4; ++p.k) EXPECT_EQ(m(p), p.q >= 3);
  }
  heed::tile_extent t{0, 0, 0, 3, 0, 4, 7, 4};
  EXPECT_EQ(m.tile(t), heed::visibility::none);
  EXPECT_EQ(m.visible_keys(t).size(), 0);
  t.q_end = 4;
  EXPECT_EQ(m.tile(t), heed::visibility::some);
  EXPECT_EQ(m.visible_keys(t).size(), 1);
  t.q_begin = 3;
  EXPECT_EQ(m.tile(t), heed::visibility::all);
}

TEST(documents, long_sequences_are_searched_in_chunks) {
  constexpr index_t length = 700;
  std::vector<int> ids;
  for (index_t i = 0; i < length; ++i) ids.push_back(static_cast<int>(i / 130));
  const documents m{tensor_view<const int, 1>(ids.data(), {length})};
  for (index_t q = 0; q < length; q += 11) {
    const auto ranges = m.visible_keys({0, 0, q, q + 1, 0, length, length, length});
    ASSERT_EQ(ranges.size(), 1);
    EXPECT_EQ(ranges.begin()->begin, q / 130 * 130);
    EXPECT_EQ(ranges.begin()->end, std::min<index_t>(length, q / 130 * 130 + 130));
  }
}

TEST(documents, extents_that_do_not_fit) {
  const std::vector<int> ids(20);
  const auto view = [&](index_t batches, index_t tokens) {
    return tensor_view<const int, 2>(ids.data(), {batches, tokens});
  };
  const documents shared{view(2, 5)};
  expect_error("documents: batch axis of ids has extent 2, call has 3 batches", [&] {
    shared.check({3, 1, 5, 5});
  });
  expect_error("documents: token axis of ids has extent 5, call has 7 keys", [&] {
    shared.check({2, 1, 5, 7});
  });
  expect_error("documents: call has 6 queries, one array of ids gives them only 5 tokens", [&] {
    shared.check({2, 1, 6, 5});
  });
  const documents separate{view(2, 5), view(2, 4)};
  separate.check({2, 9, 5, 4});
  expect_error("documents: batch axis of query ids has extent 2, call has 3 batches", [&] {
    separate.check({3, 1, 5, 4});
  });
  expect_error("documents: token axis of query ids has extent 5, call has 6 queries", [&] {
    separate.check({2, 1, 6, 4});
  });
  expect_error("documents: token axis of key ids has extent 4, call has 5 keys", [&] {
    separate.check({2, 1, 5, 5});
  });
  const documents other_batch{view(1, 5), view(2, 4)};
  expect_error("documents: batch axis of key ids has extent 2, call has 3 batches", [&] {
    other_batch.check({3, 1, 5, 4});
  });
}

}  // namespace
