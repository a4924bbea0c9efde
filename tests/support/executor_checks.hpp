// What every executor has to do, as checks for one executor of any type.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <heed/core/executor.hpp>
#include <thread>
#include <vector>

namespace heed_test {

using heed::index_t;

// Every item exactly once, for counts around the number of workers.
template <heed::executor E>
void check_every_item_once(E& executor) {
  for (index_t count : {-1, 0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count < 0 ? 0 : count));
    executor.run(count, [&](index_t item, int) {
      ASSERT_TRUE(item >= 0 && item < count);
      calls[static_cast<std::size_t>(item)].fetch_add(1);
    });
    for (const std::atomic<int>& n : calls) ASSERT_EQ(n.load(), 1);
  }
}

// Worker numbers are in range, and no two calls with the same number overlap.
template <heed::executor E>
void check_workers(E& executor) {
  const int workers = executor.workers();
  std::vector<std::atomic<bool>> busy(static_cast<std::size_t>(workers));
  // Not atomic on purpose: a thread sanitizer sees when two threads share a worker number.
  std::vector<long> sums(static_cast<std::size_t>(workers) * 16);
  executor.run(500, [&](index_t item, int worker) {
    ASSERT_TRUE(worker >= 0 && worker < workers);
    const auto at = static_cast<std::size_t>(worker);
    ASSERT_FALSE(busy[at].exchange(true));
    for (index_t i = 0; i < item % 50; ++i) sums[16 * at] += i;
    if (item % 7 == 0) std::this_thread::yield();
    busy[at].store(false);
  });
}

// What the items wrote is there when run returns, without further synchronisation.
template <heed::executor E>
void check_results_are_visible(E& executor) {
  std::vector<index_t> squares(300);
  for (int round = 0; round < 100; ++round) {
    executor.run(300, [&](index_t item, int) {
      squares[static_cast<std::size_t>(item)] = item * item + round;
    });
    for (index_t i = 0; i < 300; ++i) {
      ASSERT_EQ(squares[static_cast<std::size_t>(i)], i * i + round);
    }
  }
}

// Seconds that many runs of a few items take.
template <heed::executor E>
double seconds_of_tiny_runs(E& executor, int runs) {
  std::atomic<long> items{0};
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < runs; ++i) {
    executor.run(4, [&](index_t, int) { items.fetch_add(1, std::memory_order_relaxed); });
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(items.load(), 4L * runs);
  return seconds.count();
}

// A body may run something itself.
template <heed::executor E>
void check_nested_runs(E& executor) {
  constexpr index_t outer = 20, inner = 30;
  std::vector<std::atomic<int>> calls(outer * inner);
  executor.run(outer, [&](index_t a, int) {
    executor.run(inner, [&](index_t b, int worker) {
      EXPECT_TRUE(worker >= 0 && worker < executor.workers());
      calls[static_cast<std::size_t>(a * inner + b)].fetch_add(1);
    });
  });
  for (const std::atomic<int>& n : calls) EXPECT_EQ(n.load(), 1);
}

// Several threads may use one executor at the same time.
template <heed::executor E>
void check_runs_from_several_threads(E& executor) {
  constexpr int threads = 4, runs = 50;
  constexpr index_t count = 40;
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(threads) * count);
  std::vector<std::thread> callers;
  for (int t = 0; t < threads; ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < runs; ++i) {
        std::vector<std::atomic<bool>> busy(static_cast<std::size_t>(executor.workers()));
        executor.run(count, [&](index_t item, int worker) {
          EXPECT_FALSE(busy[static_cast<std::size_t>(worker)].exchange(true));
          calls[static_cast<std::size_t>(t * count + item)].fetch_add(1);
          busy[static_cast<std::size_t>(worker)].store(false);
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::atomic<int>& n : calls) EXPECT_EQ(n.load(), runs);
}

template <heed::executor E>
void check_executor(E& executor) {
  check_every_item_once(executor);
  check_workers(executor);
  check_results_are_visible(executor);
  check_nested_runs(executor);
  check_runs_from_several_threads(executor);
}

}  // namespace heed_test
