// The executor on OpenMP's threads.
#include <gtest/gtest.h>

#include <heed/core/openmp_executor.hpp>
#include <string>

#include "support/executor_checks.hpp"

namespace {

using heed::openmp;

static_assert(heed::executor<openmp>);

class openmp_of : public testing::TestWithParam<int> {};

TEST_P(openmp_of, is_an_executor) {
  openmp executor{GetParam()};
  EXPECT_EQ(executor.workers(), GetParam());
  heed_test::check_executor(executor);
}

INSTANTIATE_TEST_SUITE_P(workers, openmp_of, testing::Values(1, 2, 3));

TEST(openmp, does_many_tiny_runs) {
  openmp executor{2};
  // Few of them: OpenMP's threads wait busily, which is slow where cores are shared.
  EXPECT_GT(heed_test::seconds_of_tiny_runs(executor, 500), 0.0);
}

TEST(openmp, has_workers_by_default) {
  openmp executor;
  EXPECT_GE(executor.workers(), 1);
  heed_test::check_every_item_once(executor);
}

TEST(openmp, refuses_worker_counts_that_are_not_positive) {
  for (int workers : {0, -3}) {
    try {
      openmp executor{workers};
      ADD_FAILURE() << workers << " workers were accepted";
    } catch (const heed::invalid_argument& error) {
      EXPECT_EQ(error.what(),
                "openmp: worker count " + std::to_string(workers) + " is not positive");
    }
  }
}

}  // namespace
