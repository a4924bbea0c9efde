// Stores under random operations hold what a plain copy of the tokens holds.
#include "heed/cache/contiguous.hpp"
#include "heed/cache/paged.hpp"
#include "support/cache_checks.hpp"

namespace {

namespace cache = heed::cache;
using heed::index_t;
using heed_test::plain_sequence;
using heed_test::tensor;

constexpr index_t heads = 3, depth = 5, value_depth = 7;

TEST(cache_stores, contiguous_under_random_use) {
  constexpr index_t batches = 2, capacity = 40;
  std::mt19937 random(11);
  cache::contiguous<float> store(batches, heads, capacity, depth, value_depth);
  std::vector<plain_sequence> plain(batches, plain_sequence(heads));
  for (unsigned step = 0; step < 600; ++step) {
    const auto what = random() % 10;
    if (what < 6) {
      const auto count = static_cast<index_t>(random() % 7);
      const auto k = tensor<float>(batches, heads, count, depth).fill(2 * step);
      const auto v = tensor<float>(batches, heads, count, value_depth).fill(2 * step + 1);
      if (store.size() + count > capacity) {
        EXPECT_NE(heed_test::error_of([&] { store.append(k.view(), v.view()); }), "accepted");
      } else {
        store.append(k.view(), v.view());
        for (index_t b = 0; b < batches; ++b) {
          plain[static_cast<std::size_t>(b)].append(k.view(), v.view(), b);
        }
      }
    } else if (what < 9) {
      const auto chosen = heed_test::random_choice(store.kept(), random, 40 + random() % 60);
      for (index_t b = 0; b < batches; ++b) {
        for (index_t h = 0; h < heads; ++h) {
          plain[static_cast<std::size_t>(b)].heads[static_cast<std::size_t>(h)].keep(
              chosen.at(b, h));
        }
      }
      store.keep(chosen);
    } else {
      // All sequences of a contiguous cache have seen the same tokens.
      const auto size = static_cast<index_t>(random() % static_cast<unsigned>(store.size() + 1));
      store.truncate(size);
      bool forgets = false;
      index_t left = 0;
      for (auto& sequence : plain) {
        for (auto& head : sequence.heads) head.truncate(size, forgets, left);
      }
      for (auto& sequence : plain) sequence.seen = forgets ? left : sequence.seen;
    }
    ASSERT_NO_FATAL_FAILURE(heed_test::expect_holds(store, plain)) << step;
  }
}

TEST(cache_stores, paged_under_random_use) {
  for (const index_t page_size : {1, 3, 8}) {
    const index_t pages = 120 / page_size;
    std::mt19937 random(static_cast<unsigned>(page_size));
    cache::paged<float> pool(heads, pages, page_size, depth, value_depth);
    std::vector<index_t> ids;
    std::vector<plain_sequence> plain;
    int refused = 0, shared = 0;
    for (unsigned step = 0; step < 1500; ++step) {
      const auto what = random() % 12;
      const std::size_t at = ids.empty() ? 0 : random() % ids.size();
      if (ids.empty() || what == 0) {
        ids.push_back(pool.add());
        plain.emplace_back(heads);
      } else if (what == 1 && ids.size() < 8) {
        ids.push_back(pool.fork(ids[at]));
        const plain_sequence copy = plain[at];
        plain.push_back(copy);
        ++shared;
      } else if (what == 2) {
        pool.free(ids[at]);
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at));
        plain.erase(plain.begin() + static_cast<std::ptrdiff_t>(at));
      } else if (what < 8) {
        const auto count = static_cast<index_t>(random() % 9);
        const auto k = tensor<float>(1, heads, count, depth).fill(2 * step);
        const auto v = tensor<float>(1, heads, count, value_depth).fill(2 * step + 1);
        const std::string message =
            heed_test::error_of([&] { pool.append(ids[at], k.view(), v.view()); });
        if (message == "accepted") {
          plain[at].append(k.view(), v.view(), 0);
        } else {
          EXPECT_NE(message.find("pages"), std::string::npos) << message;
          ++refused;
        }
      } else if (what < 11) {
        const auto chosen =
            heed_test::random_choice(pool.batch({ids[at]}).kept(), random, 50 + random() % 50);
        const std::string message = heed_test::error_of([&] { pool.keep(ids[at], chosen); });
        if (message == "accepted") {
          for (index_t h = 0; h < heads; ++h) {
            plain[at].heads[static_cast<std::size_t>(h)].keep(chosen.at(0, h));
          }
        } else {
          EXPECT_NE(message.find("compacting"), std::string::npos) << message;
          ++refused;
        }
      } else {
        const auto size =
            static_cast<index_t>(random() % static_cast<unsigned>(pool.size(ids[at]) + 1));
        pool.truncate(ids[at], size);
        plain[at].truncate(size);
      }
      ASSERT_NO_FATAL_FAILURE(heed_test::expect_holds(pool.batch(ids), plain)) << step;
      // No page is lost, and none is held twice unless it is shared.
      std::vector<index_t> held;
      for (const index_t id : ids) {
        const auto table = pool.table(id);
        ASSERT_EQ(static_cast<index_t>(table.size()), (pool.size(id) + page_size - 1) / page_size);
        held.insert(held.end(), table.begin(), table.end());
      }
      std::sort(held.begin(), held.end());
      held.erase(std::unique(held.begin(), held.end()), held.end());
      ASSERT_EQ(static_cast<index_t>(held.size()), pages - pool.free_pages());
    }
    EXPECT_GT(refused, 10);
    EXPECT_GT(shared, 10);
    for (const index_t id : ids) pool.free(id);
    EXPECT_EQ(pool.free_pages(), pages);
    EXPECT_EQ(pool.bytes_in_use(), 0);
  }
}

}  // namespace
