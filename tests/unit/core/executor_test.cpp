// The executors that need no other library: serial and thread_pool.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <heed/core/executor.hpp>
#include <heed/core/thread_pool.hpp>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "support/executor_checks.hpp"

namespace {

using heed::index_t;
using heed::thread_pool;

static_assert(heed::executor<heed::serial> && heed::executor<const heed::serial>);
static_assert(heed::executor<thread_pool>);

TEST(serial_executor, is_an_executor) {
  heed::serial executor;
  EXPECT_EQ(executor.workers(), 1);
  heed_test::check_executor(executor);
}

TEST(serial_executor, keeps_the_order) {
  std::vector<index_t> order;
  heed::serial().run(5, [&](index_t item, int) { order.push_back(item); });
  EXPECT_EQ(order, (std::vector<index_t>{0, 1, 2, 3, 4}));
}

class thread_pool_of : public testing::TestWithParam<int> {};

TEST_P(thread_pool_of, is_an_executor) {
  thread_pool pool{GetParam()};
  EXPECT_EQ(pool.workers(), GetParam());
  heed_test::check_executor(pool);
}

TEST_P(thread_pool_of, starts_runs_quickly) {
  thread_pool pool{GetParam()};
  // Far above what is expected, for slow machines and sanitizers: a pool that sleeps for a
  // millisecond in every run would miss it.
  EXPECT_LT(heed_test::seconds_of_tiny_runs(pool, 10000), 10.0);
}

INSTANTIATE_TEST_SUITE_P(workers, thread_pool_of, testing::Values(1, 2, 3, 8, 33));

TEST(thread_pool, has_a_worker_per_hardware_thread_by_default) {
  thread_pool pool;
  EXPECT_EQ(pool.workers(), std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
}

TEST(thread_pool, spreads_long_items_over_its_threads) {
  thread_pool pool{4};
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::set<int> workers;
  pool.run(16, [&](index_t, int worker) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const std::lock_guard<std::mutex> lock(mutex);
    threads.insert(std::this_thread::get_id());
    workers.insert(worker);
  });
  EXPECT_GT(threads.size(), 1u);
  EXPECT_EQ(threads.size(), workers.size());
  EXPECT_EQ(threads.count(std::this_thread::get_id()), 1u) << "the caller works too";
}

TEST(thread_pool, a_long_item_does_not_hold_up_the_others) {
  thread_pool pool{2};
  std::atomic<int> done{0};
  pool.run(20, [&](index_t item, int) {
    // Only another worker can do the remaining items meanwhile.
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (item == 0 && done.load() < 19 && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    if (item == 0) {
      EXPECT_EQ(done.load(), 19);
    }
    done.fetch_add(1);
  });
  EXPECT_EQ(done.load(), 20);
}

TEST(thread_pool, nested_runs_stay_on_their_thread) {
  thread_pool pool{4}, other{3};
  pool.run(12, [&](index_t, int worker) {
    const std::thread::id thread = std::this_thread::get_id();
    index_t expected = 0;
    pool.run(5, [&](index_t item, int inner_worker) {
      EXPECT_EQ(item, expected++);
      EXPECT_EQ(inner_worker, worker);
      EXPECT_EQ(std::this_thread::get_id(), thread);
    });
    expected = 0;
    other.run(5, [&](index_t item, int inner_worker) {
      EXPECT_EQ(item, expected++);
      EXPECT_EQ(inner_worker, 0);
      EXPECT_EQ(std::this_thread::get_id(), thread);
    });
  });
}

TEST(thread_pool, runs_of_different_threads_do_not_overlap) {
  thread_pool pool{3};
  std::atomic<int> inside{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        // The first item enters for its run, the last one to finish leaves.
        std::atomic<int> left{6};
        pool.run(6, [&](index_t, int) {
          int expected = 0;
          EXPECT_TRUE(inside.compare_exchange_strong(expected, t + 1) || expected == t + 1);
          if (left.fetch_sub(1) == 1) inside.store(0);
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(thread_pool, may_be_made_and_dropped_often) {
  for (int i = 0; i < 200; ++i) {
    thread_pool pool{1 + i % 5};
    if (i % 3 == 0) continue;  // without any run
    std::atomic<int> items{0};
    pool.run(i % 7, [&](index_t, int) { items.fetch_add(1); });
    EXPECT_EQ(items.load(), i % 7);
  }
}

TEST(thread_pool, works_again_after_sleeping) {
  thread_pool pool{3};
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    heed_test::check_every_item_once(pool);
  }
}

TEST(thread_pool, refuses_worker_counts_that_are_not_positive) {
  for (int workers : {0, -3}) {
    try {
      thread_pool pool{workers};
      ADD_FAILURE() << workers << " workers were accepted";
    } catch (const heed::invalid_argument& error) {
      EXPECT_EQ(error.what(),
                "thread_pool: worker count " + std::to_string(workers) + " is not positive");
    }
  }
}

}  // namespace
