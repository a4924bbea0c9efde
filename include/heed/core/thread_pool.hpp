// thread_pool: an executor with threads of its own.
//
// The calling thread works too. Items are taken one by one from a shared counter, so that they need
// not be equally long. Which thread computes an item is left to chance; results do not depend on
// it.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "../config.hpp"
#include "error.hpp"
#include "executor.hpp"

HEED_NAMESPACE_BEGIN

class thread_pool {
 public:
  // As many workers as the machine runs at once.
  thread_pool() : thread_pool(hardware_workers()) {}

  // `workers` counts the calling thread: workers - 1 threads are started.
  explicit thread_pool(int workers) : workers_(workers) {
    if (workers < 1) {
      raise(message("thread_pool: worker count ") << workers << " is not positive");
    }
    const auto others = static_cast<std::size_t>(workers - 1);
    threads_.reserve(others);
    seats_ = std::vector<seat>(others);
#if defined(HEED_HAS_EXCEPTIONS)
    try {
      start();
    } catch (...) {  // the system has no more threads
      stop();
      throw;
    }
#else
    start();
#endif
  }

  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { stop(); }

  int workers() const { return workers_; }

  // Runs of different threads wait for each other. A run from inside a body, of this pool or
  // another one, is done by that body's thread alone, in order; in this pool's bodies it keeps its
  // worker number.
  template <class Body>
  void run(index_t count, const Body& body) {
    if (count <= 0) return;
    const place& here = current_place();
    if (here.pool != nullptr) {
      const int worker = here.pool == this ? here.worker : 0;
      for (index_t item = 0; item < count; ++item) body(item, worker);
      return;
    }
    job work;
    work.body = &body;
    work.call = [](const void* erased, index_t item, int worker) {
      (*static_cast<const Body*>(erased))(item, worker);
    };
    work.count = count;
    const std::lock_guard<std::mutex> turn(one_run_);
    run_job(work);
  }

 private:
  struct job {
    const void* body = nullptr;
    void (*call)(const void* body, index_t item, int worker) = nullptr;
    index_t count = 0;
    std::atomic<index_t> next{0};
  };

  // Where the current thread is: in a body of `pool`, as `worker`.
  struct place {
    const thread_pool* pool = nullptr;
    int worker = 0;
  };
  static place& current_place() {
    static thread_local place here;
    return here;
  }

  static int hardware_workers() {
    const unsigned count = std::thread::hardware_concurrency();  // 0 where it is not known
    return count == 0 ? 1 : static_cast<int>(count);
  }

  // Where a thread finds its work. Each has a line of its own, so that handing out work is one
  // store per thread, and no lock.
  struct alignas(64) seat {
    std::atomic<job*> work{nullptr};
  };
  // What a seat holds besides jobs: its thread is at work, its thread shall end.
  static job* at_work() {
    static job mark;
    return &mark;
  }
  static job* leave() {
    static job mark;
    return &mark;
  }
  static void give(seat& to, job* work) {
    to.work.store(work, std::memory_order_release);
    to.work.notify_one();
  }

  void start() {
    for (int worker = 1; worker < workers_; ++worker) {
      threads_.emplace_back([this, worker] { serve(seats_[seat_of(worker)], worker); });
    }
  }
  static std::size_t seat_of(int worker) { return static_cast<std::size_t>(worker - 1); }

  void stop() {
    for (std::size_t i = 0; i < threads_.size(); ++i) give(seats_[i], leave());
    for (std::thread& thread : threads_) thread.join();
  }

  // The work of a seat when it is no longer `former`. At first without sleeping, since waking a
  // thread takes longer than many an item.
  static job* changed(const seat& from, job* former) {
    constexpr int spins = 64;
    job* work = from.work.load(std::memory_order_acquire);
    for (int i = 0; i < spins && work == former; ++i) {
      std::this_thread::yield();
      work = from.work.load(std::memory_order_acquire);
    }
    while (work == former) {
      from.work.wait(former, std::memory_order_acquire);
      work = from.work.load(std::memory_order_acquire);
    }
    return work;
  }

  // A body that throws leaves other threads at work on dead objects: better to end here.
  void do_items(job& work, int worker) noexcept {
    place& here = current_place();
    here = {this, worker};
    for (;;) {
      const index_t item = work.next.fetch_add(1, std::memory_order_relaxed);
      if (item >= work.count) break;
      work.call(work.body, item, worker);
    }
    here = {};
  }

  void run_job(job& work) {
    // A single item is done before another thread is awake.
    const bool alone = workers_ == 1 || work.count == 1;
    if (!alone) {
      for (std::size_t i = 0; i < threads_.size(); ++i) give(seats_[i], &work);
    }
    do_items(work, 0);
    if (alone) return;

    // Threads that have not begun yet are not waited for: their seats are emptied.
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      job* expected = &work;
      if (!seats_[i].work.compare_exchange_strong(expected, nullptr, std::memory_order_acq_rel) &&
          expected == at_work()) {
        changed(seats_[i], at_work());
      }
    }
  }

  // What a thread of the pool does until the end.
  void serve(seat& own, int worker) {
    for (;;) {
      job* work = changed(own, nullptr);
      if (work == leave()) return;
      if (!own.work.compare_exchange_strong(work, at_work(), std::memory_order_acq_rel)) {
        continue;  // done already
      }
      do_items(*work, worker);
      give(own, nullptr);
    }
  }

  const int workers_;
  std::vector<std::thread> threads_;
  std::vector<seat> seats_;
  std::mutex one_run_;
};

HEED_NAMESPACE_END
