// The executor on oneTBB's threads.
#include <gtest/gtest.h>

#include <atomic>
#include <heed/core/tbb_executor.hpp>
#include <string>
#include <vector>

#include "support/executor_checks.hpp"

namespace {

using heed::tbb_executor;

static_assert(heed::executor<tbb_executor>);

class tbb_of : public testing::TestWithParam<int> {};

TEST_P(tbb_of, is_an_executor) {
  tbb_executor executor{GetParam()};
  EXPECT_EQ(executor.workers(), GetParam());
  heed_test::check_executor(executor);
}

INSTANTIATE_TEST_SUITE_P(workers, tbb_of, testing::Values(1, 2, 3));

// A thread that waits for its inner run must not begin another outer item: the worker number, and
// with it the scratch memory, of the item around would be used twice.
TEST(tbb_executor, waiting_threads_do_not_begin_other_items) {
  tbb_executor executor{4};
  std::vector<std::atomic<bool>> busy(4);
  executor.run(200, [&](heed::index_t, int worker) {
    const auto at = static_cast<std::size_t>(worker);
    EXPECT_FALSE(busy[at].exchange(true));
    std::atomic<long> sum{0};
    executor.run(50, [&](heed::index_t item, int) { sum.fetch_add(item); });
    EXPECT_EQ(sum.load(), 49 * 50 / 2);
    busy[at].store(false);
  });
}

TEST(tbb_executor, does_many_tiny_runs) {
  tbb_executor executor{2};
  EXPECT_GT(heed_test::seconds_of_tiny_runs(executor, 10000), 0.0);
}

TEST(tbb_executor, has_workers_by_default) {
  tbb_executor executor;
  EXPECT_GE(executor.workers(), 1);
  heed_test::check_every_item_once(executor);
}

TEST(tbb_executor, refuses_worker_counts_that_are_not_positive) {
  for (int workers : {0, -3}) {
    try {
      tbb_executor executor{workers};
      ADD_FAILURE() << workers << " workers were accepted";
    } catch (const heed::invalid_argument& error) {
      EXPECT_EQ(error.what(),
                "tbb_executor: worker count " + std::to_string(workers) + " is not positive");
    }
  }
}

}  // namespace
