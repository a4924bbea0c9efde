// workspace: scratch memory that its owner keeps between calls, so that calls do not allocate.
// detail::bump carves typed arrays out of it.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "../config.hpp"
#include "error.hpp"

HEED_NAMESPACE_BEGIN

// A block of memory that grows when more is asked for. One call at a time may use it: concurrent
// calls need a workspace each.
class workspace {
 public:
  // A cache line, and the widest vector register.
  static constexpr index_t alignment = 64;

  workspace() = default;
  ~workspace() { release(); }

  workspace(workspace&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        inner_(std::exchange(other.inner_, nullptr)) {}
  workspace& operator=(workspace&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(inner_, other.inner_);
    return *this;
  }

  // At least `size` bytes, aligned, with unspecified contents. Pointers from an earlier call are
  // valid no longer when the block had to grow.
  std::byte* reserve(index_t size) {
    if (size < 0 || size > largest) {
      raise(message("workspace: ") << size << " bytes are outside [0, " << largest << "]");
    }
    if (size > size_) {
      // By half at least: a cache that grows by one token per call must not allocate in every call.
      const index_t grown = size_ + size_ / 2 > size ? size_ + size_ / 2 : size;
      release_block();  // first, since the contents are not kept
      data_ = allocate(grown);
      size_ = grown;
    }
    return data_;
  }

  // A second workspace that is kept along with this one, for calls that are made while this one's
  // memory is in use.
  workspace& inner() {
    if (inner_ == nullptr) inner_ = new workspace;
    return *inner_;
  }

  // Gives the memory back.
  void release() noexcept {
    release_block();
    delete std::exchange(inner_, nullptr);
  }

  // Bytes that are held.
  index_t size() const { return size_ + (inner_ != nullptr ? inner_->size() : 0); }

 private:
  // Leaves room for growth by half.
  static constexpr index_t largest = std::numeric_limits<index_t>::max() / 2;

  static std::byte* allocate(index_t size) {
    const auto bytes = static_cast<std::size_t>(size);
#if defined(HEED_HAS_EXCEPTIONS)
    return static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}));
#else
    void* data = ::operator new (bytes, std::align_val_t{alignment}, std::nothrow);
    if (data == nullptr) raise(message("workspace: ") << size << " bytes are not available");
    return static_cast<std::byte*>(data);
#endif
  }

  void release_block() noexcept {
    ::operator delete (data_, std::align_val_t{alignment});
    data_ = nullptr;
    size_ = 0;
  }

  std::byte* data_ = nullptr;
  index_t size_ = 0;
  workspace* inner_ = nullptr;
};

// The calling thread's own workspace, for calls that name none. It lives as long as its thread; a
// call inside another call on the same thread (from a score functor, say) gets one of its own.
class thread_workspace {
 public:
  thread_workspace() : outermost_(!in_use()) { in_use() = true; }
  ~thread_workspace() {
    if (outermost_) in_use() = false;
  }
  thread_workspace(const thread_workspace&) = delete;
  thread_workspace& operator=(const thread_workspace&) = delete;

  workspace& get() { return outermost_ ? kept() : own_; }

  // Gives the calling thread's memory back.
  static void release() { kept().release(); }

 private:
  static workspace& kept() {
    static thread_local workspace memory;
    return memory;
  }
  static bool& in_use() {
    static thread_local bool used = false;
    return used;
  }

  bool outermost_;
  workspace own_;
};

namespace detail {

// Hands out arrays one behind the other, each aligned like the workspace. The same code runs twice:
// without memory it counts the bytes, with memory it gets the pointers.
//
//   float* scores = nullptr;
//   const auto lay_out = [&](bump& memory) { scores = memory.take<float>(count); };
//   bump counted;
//   lay_out(counted);
//   bump taken(scratch.reserve(counted.bytes()));
//   lay_out(taken);
class bump {
 public:
  bump() = default;
  explicit bump(std::byte* memory) : memory_(memory) {}

  // `count` elements with unspecified values; null while counting.
  template <class T>
  T* take(index_t count) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T> &&
                      alignof(T) <= static_cast<std::size_t>(workspace::alignment),
                  "heed: scratch arrays are raw memory, their elements must be plain values");
    return reinterpret_cast<T*>(take_bytes(count, static_cast<index_t>(sizeof(T))));
  }

  index_t bytes() const { return used_; }

 private:
  // Not a template, so that it is compiled once.
  HEED_NOINLINE std::byte* take_bytes(index_t count, index_t element) {
    index_t size = 0, end = 0;
    if (count < 0 || __builtin_mul_overflow(count, element, &size) ||
        __builtin_add_overflow(size, workspace::alignment - 1, &size) ||
        __builtin_add_overflow(used_, size / workspace::alignment * workspace::alignment, &end)) {
      raise(message("workspace: an array of ")
            << count << " elements of " << element << " bytes overflows 64-bit sizes");
    }
    std::byte* array = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ = end;
    return array;
  }

  std::byte* memory_ = nullptr;
  index_t used_ = 0;
};

}  // namespace detail

HEED_NAMESPACE_END
