// thread_pool: an executor with threads of its own.
//
// The calling thread works too. Each worker has an equal run of neighbouring items, takes them one
// by one, and then takes from the others' runs, so that items need not be equally long: neighbours
// often share keys and values, which stay in one core's cache, and no counter is fought over. Which
// thread computes an item is left to chance; results do not depend on it.
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
    const auto all = static_cast<std::size_t>(workers);
    threads_.reserve(all - 1);
    seats_ = std::vector<seat>(all - 1);
    shares_ = std::vector<share>(all);
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
    const std::lock_guard<std::mutex> turn(one_run_);
    run_job(work, count);
  }

 private:
  struct job {
    const void* body = nullptr;
    void (*call)(const void* body, index_t item, int worker) = nullptr;
  };
  // Items [next, end) of the current job, one worker's to begin with.
  struct alignas(64) share {
    std::atomic<index_t> next{0};
    std::atomic<index_t> end{0};
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

  // What a thread of the pool is told, and tells: each has a line of its own, so that handing out a
  // job is one store per thread, and no lock. A type that the system can wait for by itself, or
  // all threads would meet in the standard library's counters.
  enum seat_state : int { idle, called, at_work, leaving };
  struct alignas(64) seat {
    std::atomic<int> state{idle};
  };

  void start() {
    for (int worker = 1; worker < workers_; ++worker) {
      threads_.emplace_back([this, worker] { serve(seats_[seat_of(worker)], worker); });
    }
  }
  static std::size_t seat_of(int worker) { return static_cast<std::size_t>(worker - 1); }

  void stop() {
    tell_all(leaving);
    for (std::thread& thread : threads_) thread.join();
  }

  // Two loops, so that no store waits for the one before.
  void tell_all(seat_state state) {
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      seats_[i].state.store(state, std::memory_order_release);
    }
    // Who goes to sleep says so before he looks at the state again. (A thread sanitizer, which does
    // not know fences, needs none here: it is about who has to be woken alone.)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif
    std::atomic_thread_fence(std::memory_order_seq_cst);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
    for (std::size_t i = 0; i < threads_.size(); ++i) seats_[i].state.notify_one();
  }

  // Says to the processor that this thread waits.
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }

  // The state of a seat when it is no longer `former`. At first without sleeping, since waking a
  // thread takes longer than many an item; and at the very first without leaving the core.
  static int changed(const seat& from, int former) {
    constexpr int pauses = 256, yields = 64;
    int state = from.state.load(std::memory_order_acquire);
    for (int i = 0; i < pauses + yields && state == former; ++i) {
      i < pauses ? pause() : std::this_thread::yield();
      state = from.state.load(std::memory_order_acquire);
    }
    while (state == former) {
      from.state.wait(former, std::memory_order_acquire);
      state = from.state.load(std::memory_order_acquire);
    }
    return state;
  }

  // The current thread's place while it is at work. A body that throws leaves other threads at work
  // on dead objects: better to end here.
  template <class Work>
  void at_place(int worker, const Work& work) noexcept {
    current_place() = {this, worker};
    work();
    current_place() = {};
  }

  // The items of the worker's own share, then what is left of the others'.
  void do_items(const job& work, int worker) {
    at_place(worker, [&] {
      for (int i = 0; i < workers_; ++i) {
        share& from = shares_[static_cast<std::size_t>((worker + i) % workers_)];
        const index_t end = from.end.load(std::memory_order_relaxed);
        while (from.next.load(std::memory_order_relaxed) < end) {
          const index_t item = from.next.fetch_add(1, std::memory_order_relaxed);
          if (item < end) work.call(work.body, item, worker);
        }
      }
    });
  }

  void run_job(const job& work, index_t count) {
    if (workers_ == 1 || count == 1) {  // a single item is done before another thread is awake
      at_place(0, [&] {
        for (index_t item = 0; item < count; ++item) work.call(work.body, item, 0);
      });
      return;
    }
    index_t begin = 0;
    for (index_t i = 0; i < workers_; ++i) {
      share& own = shares_[static_cast<std::size_t>(i)];
      // i·count / workers, without the product that might not fit.
      const index_t end = count / workers_ * (i + 1) + count % workers_ * (i + 1) / workers_;
      own.next.store(begin, std::memory_order_relaxed);
      own.end.store(end, std::memory_order_relaxed);
      begin = end;
    }
    job_ = &work;
    tell_all(called);
    do_items(work, 0);

    // Threads that have not begun yet are not waited for.
    for (seat& from : seats_) {
      int expected = called;
      if (!from.state.compare_exchange_strong(expected, idle, std::memory_order_acq_rel) &&
          expected == at_work) {
        changed(from, at_work);
      }
    }
  }

  // What a thread of the pool does until the end.
  void serve(seat& own, int worker) {
    for (;;) {
      int state = changed(own, idle);
      if (state == leaving) return;
      if (!own.state.compare_exchange_strong(state, at_work, std::memory_order_acq_rel)) {
        continue;  // done already
      }
      do_items(*job_, worker);
      own.state.store(idle, std::memory_order_seq_cst);
      own.state.notify_one();
    }
  }

  const int workers_;
  std::vector<std::thread> threads_;
  std::vector<seat> seats_;
  std::vector<share> shares_;
  const job* job_ = nullptr;  // what threads are called for
  std::mutex one_run_;
};

HEED_NAMESPACE_END
