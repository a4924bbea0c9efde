// openmp: an executor on OpenMP's threads, for programs that use OpenMP anyway. Needs -fopenmp.
#pragma once

#include "../config.hpp"
#include "error.hpp"
#include "executor.hpp"

#if defined(_OPENMP)
#include <omp.h>

HEED_NAMESPACE_BEGIN

class openmp {
 public:
  // As many workers as OpenMP would use (OMP_NUM_THREADS, omp_set_num_threads).
  openmp() : openmp(omp_get_max_threads()) {}
  explicit openmp(int workers) : workers_(workers) {
    if (workers < 1) raise(message("openmp: worker count ") << workers << " is not positive");
  }

  int workers() const { return workers_; }

  // A run from inside a parallel region gets what OpenMP grants there: one thread, unless nested
  // parallelism is switched on.
  template <class Body>
  void run(index_t count, const Body& body) const {
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers_)
    for (index_t item = 0; item < count; ++item) body(item, omp_get_thread_num());
  }

 private:
  int workers_;
};

HEED_NAMESPACE_END

#else

HEED_NAMESPACE_BEGIN

// The header itself may be included everywhere; only its use needs the compiler's help.
class openmp {
 public:
  template <class Count = int>
  explicit openmp(Count = 0) {
    static_assert(sizeof(Count) == 0,
                  "heed: heed::openmp needs OpenMP, which is switched on by -fopenmp");
  }
  int workers() const { return 1; }
  template <class Body>
  void run(index_t, const Body&) const {}
};

HEED_NAMESPACE_END

#endif
