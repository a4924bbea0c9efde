// thread_pool: an executor with threads of its own.
//
// The calling thread works too. Items are taken one by one from a shared counter, so that they need
// not be equally long. Which thread computes an item is left to chance; results do not depend on
// it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
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
    threads_.reserve(static_cast<std::size_t>(workers - 1));
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

  void start() {
    for (int worker = 1; worker < workers_; ++worker) {
      threads_.emplace_back([this, worker] { serve(worker); });
    }
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(state_);
      stopping_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    work_arrived_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // Waits for a little while without sleeping, since waking a thread takes longer than many an
  // item.
  template <class Condition>
  static void spin_until(const Condition& condition) {
    constexpr int spins = 64;
    for (int i = 0; i < spins && !condition(); ++i) std::this_thread::yield();
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
      {
        const std::lock_guard<std::mutex> lock(state_);
        job_ = &work;
        generation_.fetch_add(1, std::memory_order_release);
      }
      work_arrived_.notify_all();
    }
    do_items(work, 0);
    if (alone) return;

    // Threads that have not begun yet are not waited for; they will find no job.
    std::unique_lock<std::mutex> lock(state_);
    job_ = nullptr;
    if (working_.load(std::memory_order_relaxed) == 0) return;
    lock.unlock();
    spin_until([&] { return working_.load(std::memory_order_relaxed) == 0; });
    lock.lock();
    threads_left_.wait(lock, [&] { return working_.load(std::memory_order_relaxed) == 0; });
  }

  // What a thread of the pool does until the end.
  void serve(int worker) {
    std::uint32_t seen = 0;
    for (;;) {
      spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });

      std::unique_lock<std::mutex> lock(state_);
      work_arrived_.wait(
          lock, [&] { return generation_.load(std::memory_order_relaxed) != seen || stopping_; });
      seen = generation_.load(std::memory_order_relaxed);
      if (stopping_) return;
      job* const work = job_;
      if (work == nullptr) continue;  // done already
      working_.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();

      do_items(*work, worker);

      lock.lock();
      if (working_.fetch_sub(1, std::memory_order_relaxed) == 1) threads_left_.notify_one();
    }
  }

  const int workers_;
  std::vector<std::thread> threads_;
  std::mutex one_run_;

  std::mutex state_;  // guards what follows; the atomics are also watched without it
  std::condition_variable work_arrived_, threads_left_;
  job* job_ = nullptr;
  bool stopping_ = false;
  std::atomic<std::uint32_t> generation_{0};  // counts jobs
  std::atomic<int> working_{0};               // threads at work on the job, without the caller
};

HEED_NAMESPACE_END
