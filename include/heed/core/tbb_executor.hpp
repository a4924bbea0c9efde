// tbb_executor: an executor on oneTBB's threads, for programs that use TBB anyway. Needs its
// headers, and linking with TBB::tbb.
#pragma once

#include "../config.hpp"
#include "error.hpp"
#include "executor.hpp"

#if defined(__has_include)
#if __has_include(<tbb/task_arena.h>)
#define HEED_HAS_TBB 1
#endif
#endif

#if defined(HEED_HAS_TBB)
#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

HEED_NAMESPACE_BEGIN

class tbb_executor {
 public:
  // As many workers as TBB would use.
  tbb_executor() : tbb_executor(tbb::this_task_arena::max_concurrency()) {}
  explicit tbb_executor(int workers) : workers_(workers), arena_(checked(workers)) {}

  int workers() const { return workers_; }

  template <class Body>
  void run(index_t count, const Body& body) {
    if (count <= 0) return;
    // An arena of one thread has a second slot for the work of callers that find the first one
    // taken: its index would be no worker of ours. Alone, the calling thread needs no arena.
    if (workers_ == 1) return serial{}.run(count, body);
    arena_.execute([&] {
      // Isolated: a thread that waits for the end of a run inside a body must not begin another
      // item of the run around it, whose worker number, and scratch memory, is in use.
      tbb::this_task_arena::isolate([&] {
        tbb::parallel_for(
            tbb::blocked_range<index_t>(0, count, 1),
            [&](const tbb::blocked_range<index_t>& items) {
              const int worker = tbb::this_task_arena::current_thread_index();
              for (index_t item = items.begin(); item < items.end(); ++item) body(item, worker);
            },
            tbb::simple_partitioner());
      });
    });
  }

 private:
  static int checked(int workers) {
    if (workers < 1) {
      raise(message("tbb_executor: worker count ") << workers << " is not positive");
    }
    return workers;
  }

  int workers_;
  tbb::task_arena arena_;
};

HEED_NAMESPACE_END

#else

HEED_NAMESPACE_BEGIN

// The header itself may be included everywhere; only its use needs TBB.
class tbb_executor {
 public:
  template <class Count = int>
  explicit tbb_executor(Count = 0) {
    static_assert(sizeof(Count) == 0,
                  "heed: heed::tbb_executor needs the headers of oneTBB, <tbb/task_arena.h>");
  }
  int workers() const { return 1; }
  template <class Body>
  void run(index_t, const Body&) const {}
};

HEED_NAMESPACE_END

#endif
