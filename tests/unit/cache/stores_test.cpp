// The ring, quantised and paged stores: what they hold, attention over them against the same
// attention over the whole sequence, and what they refuse.
#include <Eigen/Core>

#include "heed/cache/attention.hpp"
#include "heed/cache/paged.hpp"
#include "heed/cache/policies/quest.hpp"
#include "heed/cache/quantized.hpp"
#include "heed/cache/ring.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/reference/cache.hpp"
#include "support/backends.hpp"
#include "support/cache_checks.hpp"

namespace {

namespace cache = heed::cache;
namespace reference = heed::reference;
using heed::index_t;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::tensor;

constexpr index_t heads = 4, key_heads = 2, depth = 16, value_depth = 24;

template <class Backend>
class cache_stores : public testing::Test {};
TYPED_TEST_SUITE(cache_stores, heed_test::method_backends, heed_test::backend_name);

// Streaming through the ring, in chunks of any size, is the mask of sinks and window over
// everything at once.
TYPED_TEST(cache_stores, ring_is_a_window_mask_with_sinks) {
  constexpr index_t length = 230;
  const auto q = tensor<float>(2, heads, length, depth).fill(1);
  const auto k = tensor<float>(2, key_heads, length, depth).fill(2);
  const auto v = tensor<float>(2, key_heads, length, value_depth).fill(3);
  for (const auto& sizes :
       {std::array<index_t, 3>{4, 20, 1}, {0, 7, 5}, {3, 70, 30}, {10, 1, 4}, {300, 5, 9}}) {
    const index_t sinks = sizes[0], window = sizes[1], longest = sizes[2];
    SCOPED_TRACE(testing::Message() << sinks << " sinks, window " << window << ", " << longest);
    cache::ring<float> ring(2, key_heads, sinks, window, depth, value_depth, longest);
    tensor<float> out(2, heads, length, value_depth);
    std::mt19937 random(static_cast<unsigned>(window));
    for (index_t at = 0; at < length;) {
      const auto any = static_cast<index_t>(random() % static_cast<unsigned>(longest)) + 1;
      const index_t count = std::min(any, length - at);
      ring.append(k.view().slice(2, at, count), v.view().slice(2, at, count));
      heed::attention<TypeParam>(q.view().slice(2, at, count), ring, out.view().slice(2, at, count),
                                 heed::causal{});
      at += count;
      ASSERT_LE(ring.size(), sinks + window + longest - 1);
      ASSERT_EQ(ring.seen(), at);
    }
    tensor<double> wanted(2, heads, length, value_depth);
    reference::options how;
    how.visible = [&](const heed::position& p) {
      return p.k <= p.q && (p.k < sinks || p.k > p.q - window);
    };
    reference::attention(q.view(), k.view(), v.view(), wanted.view(), how);
    EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 1e-5);
  }
}

// The error of quantised keys and values stays within that of their codes.
TYPED_TEST(cache_stores, quantized_is_attention_over_the_codes) {
  const auto q = tensor<float>(1, heads, 3, depth).fill(1);
  const auto k = tensor<float>(1, key_heads, 140, depth).fill(2);
  const auto v = tensor<float>(1, key_heads, 140, value_depth).fill(3);
  cache::quantized<> store(1, key_heads, 140, depth, value_depth, 8);
  for (index_t at = 0; at < 140; at += 35) {
    store.append(k.view().slice(2, at, 35), v.view().slice(2, at, 35));
  }
  std::mt19937 random(3);
  const auto tokens = heed_test::random_choice(store.kept(), random, 50);
  store.keep(tokens);
  for (index_t h = 0; h < key_heads; ++h) {
    const auto& list = tokens.at(0, h);
    for (std::size_t i = 0; i < list.size(); ++i) {
      ASSERT_EQ(store.kept().at(0, h)[i], list[i]);
      const auto check = [&](const auto& view, const tensor<float>& x) {
        for (index_t d = 0; d < x.read().extent(3); ++d) {
          const auto slot = static_cast<index_t>(i);
          const auto scale = static_cast<double>(view.scales()(0, h, slot, d / 8));
          EXPECT_NEAR(view.value(0, h, slot, d), static_cast<double>(x.read()(0, h, list[i], d)),
                      0.5001 * scale);
          EXPECT_LE(scale, 5.0 / 127);
        }
      };
      check(store.keys(), k);
      check(store.values(), v);
    }
  }
  tensor<float> out(1, heads, 3, value_depth);
  heed::attention<TypeParam>(q.view(), store, out.view(), heed::causal{});
  tensor<double> wanted(1, heads, 3, value_depth), exact(1, heads, 3, value_depth);
  reference::options how;
  how.visible = [&](const heed::position& p) {
    const auto list = store.kept().at(0, p.head / 2);
    return p.k < static_cast<index_t>(list.size()) &&
           list[static_cast<std::size_t>(p.k)] <= p.q + 140 - 3;
  };
  reference::attention(q.view(), store.keys(), store.values(), wanted.view(), how);
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 2e-5);
  how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
  reference::attention_over_kept(
      q.view(), k.view(), v.view(), exact.view(),
      [&](index_t, index_t h) -> const std::vector<index_t>& { return tokens.at(0, h); }, how);
  EXPECT_LE(heed_test::worst_error(out.read(), exact.read()), 0.05);
}

TEST(stores, take_any_element_type) {
  const auto k = tensor<double>(1, key_heads, 9, depth).fill(1);
  cache::ring<Eigen::half> ring(1, key_heads, 2, 4, depth);
  cache::paged<Eigen::bfloat16> pool(key_heads, 3, 4, depth);
  const index_t id = pool.add();
  for (index_t i = 0; i < 9; ++i) {
    ring.append(k.view().slice(2, i, 1), k.view().slice(2, i, 1));
    pool.append(id, k.view().slice(2, i, 1), k.view().slice(2, i, 1));
  }
  const auto batch = pool.batch({id});
  const index_t held[] = {0, 1, 6, 7, 8, 5};
  for (index_t h = 0; h < key_heads; ++h) {
    for (index_t d = 0; d < depth; ++d) {
      for (std::size_t slot = 0; slot < 6; ++slot) {
        const index_t position = ring.kept().at(0, h)[slot];
        EXPECT_EQ(position, held[slot]);
        EXPECT_EQ(static_cast<float>(ring.keys()(0, h, static_cast<index_t>(slot), d)),
                  static_cast<float>(Eigen::half(k.read()(0, h, position, d))));
      }
      for (index_t i = 0; i < 9; ++i) {
        EXPECT_EQ(static_cast<float>(batch.values().row(0, h, i)[d]),
                  static_cast<float>(Eigen::bfloat16(static_cast<float>(k.read()(0, h, i, d)))));
      }
    }
  }
}

TEST(stores, four_bits) {
  const auto k = tensor<float>(1, 1, 6, 8).fill(1);
  cache::quantized<heed::int4_pair> store(1, 1, 6, 8);
  EXPECT_EQ(store.bytes(), 0);
  store.append(k.view(), k.view());
  for (index_t i = 0; i < 6; ++i) {
    for (index_t d = 0; d < 8; ++d) {
      const double scale = static_cast<double>(store.keys().scales()(0, 0, i, 0));
      EXPECT_NEAR(store.keys().value(0, 0, i, d), static_cast<double>(k.read()(0, 0, i, d)),
                  0.5001 * scale);
    }
  }
  EXPECT_EQ(error_of([] { cache::quantized<heed::int4_pair>(1, 1, 6, 7); }),
            "cache: depth 7 is odd, codes of four bits lie in pairs");
}

TEST(stores, sequences_of_a_pool_grow_in_place) {
  const auto k = tensor<float>(1, key_heads, 4, depth).fill(1);
  cache::paged<float> pool(key_heads, 16, 4, depth);
  const auto grow = [&](index_t id) { pool.append(id, k.read(), k.read()); };
  const index_t a = pool.add(), b = pool.add(), c = pool.add();
  for (int i = 0; i < 3; ++i) grow(a), grow(b);
  grow(c);
  const auto expect_neighbours = [&](index_t id) {
    const auto table = pool.table(id);
    for (std::size_t i = 1; i < table.size(); ++i) EXPECT_EQ(table[i], table[i - 1] + 1);
  };
  expect_neighbours(a), expect_neighbours(b);
  EXPECT_EQ(pool.table(a)[0], 0);
  EXPECT_EQ(pool.table(b)[0], 8);  // the middle of what was free
  // Where there is no room the largest gap serves, until every page is taken once.
  while (pool.free_pages() > 0) grow(a);
  std::vector<int> used(16, 0);
  for (const index_t id : {a, b, c}) {
    for (const index_t page : pool.table(id)) ++used[static_cast<std::size_t>(page)];
  }
  EXPECT_EQ(used, std::vector<int>(16, 1));
}

TEST(stores, pages_are_shared_until_they_are_written) {
  const auto k = tensor<float>(1, key_heads, 10, depth).fill(1);
  const auto some = [&](index_t count) { return k.view().slice(2, 0, count); };
  cache::paged<float> pool(key_heads, 6, 4, depth);
  EXPECT_EQ(pool.bytes(), 0);
  const index_t a = pool.add();
  pool.append(a, some(10), some(10));
  EXPECT_EQ(pool.free_pages(), 3);
  const index_t b = pool.fork(a), c = pool.fork(b);
  EXPECT_EQ(pool.free_pages(), 3);
  EXPECT_EQ(pool.table(a)[2], pool.table(c)[2]);
  pool.append(b, some(1), some(1));  // its last page is copied, the others are not
  EXPECT_EQ(pool.free_pages(), 2);
  EXPECT_EQ(pool.table(a)[1], pool.table(b)[1]);
  EXPECT_NE(pool.table(a)[2], pool.table(b)[2]);
  pool.free(a);
  EXPECT_EQ(pool.free_pages(), 2);
  pool.append(c, some(1), some(1));  // the page is its own by now
  EXPECT_EQ(pool.free_pages(), 2);
  EXPECT_EQ(pool.add(), a);
  EXPECT_EQ(pool.bytes_in_use(), 4 * 4 * key_heads * 2 * depth * 4);

  // Too few pages: one error, and nothing has changed.
  EXPECT_EQ(error_of([&] { pool.append(b, some(10), some(10)); }),
            "paged: appending 10 tokens needs 3 pages, 2 of 6 are free");
  EXPECT_EQ(pool.size(b), 11);
  EXPECT_EQ(pool.free_pages(), 2);
  cache::kept_tokens tokens(1, key_heads);
  for (index_t h = 0; h < key_heads; ++h) tokens.at(0, h) = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const index_t filler = pool.add();
  pool.append(filler, some(8), some(8));
  EXPECT_EQ(error_of([&] { pool.keep(b, tokens); }),
            "paged: compacting 9 tokens needs 2 pages, 0 of 6 are free");
  EXPECT_EQ(pool.size(b), 11);
  pool.free(filler);
  pool.keep(b, tokens);
  EXPECT_EQ(pool.size(b), 9);
  EXPECT_EQ(pool.seen(b), 11);
}

TEST(stores, refuse_what_does_not_fit) {
  EXPECT_EQ(error_of([] { cache::ring<float>(1, 1, -1, 4, 8); }),
            "ring: -1 sinks are outside [0, 2147483648]");
  EXPECT_EQ(error_of([] { cache::ring<float>(1, 1, 0, 0, 8); }),
            "ring: window 0 is outside [1, 2147483648]");
  EXPECT_EQ(error_of([] { cache::ring<float>(1, 1, 0, 4, 8, 8, 0); }),
            "ring: longest_append 0 is outside [1, 2147483648]");
  EXPECT_EQ(error_of([] { cache::ring<float>(1, -2, 0, 4, 8); }),
            "cache: key head count -2 is negative");
  const auto k = tensor<float>(1, 1, 6, 8).fill(1);
  cache::ring<float> ring(1, 1, 2, 3, 8, 8, 4);
  EXPECT_EQ(error_of([&] { ring.append(k.view(), k.view()); }),
            "cache: appending 6 tokens at once to a ring that takes 4");
  EXPECT_EQ(error_of([&] { ring.append(k.view(), k.view().slice(2, 0, 2)); }),
            "v: length 2 is not k's length 6");
  EXPECT_EQ(ring.seen(), 0);

  // Of tokens that are gone no query has a window.
  const auto attend = [&](index_t queries) {
    tensor<float> out(1, 1, queries, 8);
    const std::string text = error_of(
        [&] { heed::attention(k.view().slice(2, 0, queries), ring, out.view(), heed::causal{}); });
    return text;
  };
  for (index_t at = 0; at < 6; at += 3) {
    ring.append(k.view().slice(2, at, 3), k.view().slice(2, at, 3));
  }
  EXPECT_EQ(attend(6), "accepted");  // all tokens are there
  for (index_t at = 0; at < 6; at += 3) {
    ring.append(k.view().slice(2, at, 3), k.view().slice(2, at, 3));
  }
  EXPECT_EQ(attend(4), "accepted");
  EXPECT_EQ(attend(5), "q: length 5, the ring has the windows of the last 4 tokens");

  const tensor_view<const float, 4> null(nullptr, {1, 1, 2, 8});
  const std::string null_data = "data is null, extents are [1, 1, 2, 8]";
  const auto two = k.view().slice(2, 0, 2);
  EXPECT_EQ(error_of([&] { ring.append(null, two); }), "k: " + null_data);
  EXPECT_EQ(error_of([&] { ring.append(two, null); }), "v: " + null_data);
  EXPECT_EQ(error_of([&] { cache::page_bounds(1, 1, 4, 8).append(null); }), "k: " + null_data);
  EXPECT_EQ(ring.seen(), 12);

  EXPECT_EQ(error_of([] { cache::quantized<>(1, 1, 4, 8, 8, 0); }),
            "cache: a scale for 0 channels, must be at least 1");
  cache::quantized<> store(1, 1, 4, 8);
  EXPECT_EQ(error_of([&] { store.append(k.view(), k.view()); }),
            "cache: appending 6 tokens to 0 of capacity 4");
  auto odd = tensor<float>(1, 1, 2, 8).fill(1);
  odd.view()(0, 0, 1, 3) = HUGE_VALF;
  EXPECT_EQ(error_of([&] { store.append(k.view().slice(2, 0, 2), odd.view()); }),
            "v[0, 0, 1, 3] is not a finite float");
  EXPECT_EQ(store.size(), 0);

  EXPECT_EQ(error_of([] { cache::paged<float>(1, 4, 0, 8); }), "paged: page size 0 is less than 1");
  EXPECT_EQ(error_of([] { cache::paged<float>(1, -4, 2, 8); }), "cache: page count -4 is negative");
  cache::paged<float> pool(1, 2, 4, 8);
  const index_t id = pool.add();
  EXPECT_EQ(error_of([&] { pool.append(id + 1, k.view(), k.view()); }),
            "paged: sequence 1 does not exist");
  EXPECT_EQ(error_of([&] { pool.batch({0, -1}); }), "paged: sequence -1 does not exist");
  pool.append(id, k.view(), k.view());
  EXPECT_EQ(error_of([&] { pool.truncate(id, 7); }), "cache: truncating 6 tokens to 7");
  pool.free(id);
  EXPECT_EQ(error_of([&] { pool.size(id); }), "paged: sequence 0 does not exist");
}

}  // namespace
