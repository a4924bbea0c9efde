// main() of tests that run on several processes: every process runs every test, process 0 reports,
// the others print only what fails.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>

#include "heed/distributed/detail/mpi.hpp"

namespace distributed_test {

class failures_only : public ::testing::EmptyTestEventListener {
 public:
  explicit failures_only(int rank) : rank_(rank) {}
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.failed()) {
      std::printf("process %d: %s:%d: %s\n", rank_, result.file_name(), result.line_number(),
                  result.message());
      std::fflush(stdout);
    }
  }

 private:
  int rank_;
};

}  // namespace distributed_test

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  ::testing::InitGoogleTest(&argc, argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new distributed_test::failures_only(rank));
  }
  const int result = RUN_ALL_TESTS();
  MPI_Finalize();
  return result;
}
