// Memory for the rows of a store, taken when the first token arrives, aligned and never cleared.
// Large blocks ask for huge pages: attention reads all rows once per token, and every page is an
// entry of the page table to look up.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "../../core/workspace.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

HEED_NAMESPACE_BEGIN
namespace cache::detail {

// Bytes of a page that one entry finds where small pages need 512.
inline constexpr index_t huge_page = index_t{1} << 21;

// The first huge page's begin in a block with one to spare. What the system does not give costs
// time, and nothing else.
inline std::byte* in_huge_pages(std::byte* block, [[maybe_unused]] index_t size) {
  const auto address = static_cast<index_t>(reinterpret_cast<std::uintptr_t>(block) % huge_page);
  std::byte* const begin = address == 0 ? block : block + (huge_page - address);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(begin, static_cast<std::size_t>(size), MADV_HUGEPAGE);
#endif
  return begin;
}

// Arrays of `rows` rows each, in one block: Element of one array may differ from the next.
template <class... Elements>
class rows_memory {
 public:
  rows_memory() = default;
  rows_memory(rows_memory&& other) noexcept
      : arrays_(std::exchange(other.arrays_, {})), memory_(std::move(other.memory_)) {}
  rows_memory& operator=(rows_memory&& other) noexcept {
    std::swap(arrays_, other.arrays_);
    std::swap(memory_, other.memory_);
    return *this;
  }

  // Does nothing where the memory is there.
  template <class... Widths>
  void allocate(index_t rows, Widths... widths) {
    if (allocated()) return;
    const auto lay_out = [&](heed::detail::bump& memory) {
      arrays_ = std::tuple<Elements*...>{memory.take<Elements>(rows * widths)...};
    };
    heed::detail::bump counted;
    lay_out(counted);
    const index_t size = counted.bytes();
    const bool large = size >= huge_page;
    std::byte* const block = memory_.reserve(large ? size + huge_page : size > 0 ? size : 1);
    heed::detail::bump taken(large ? in_huge_pages(block, size) : block);
    lay_out(taken);
  }
  bool allocated() const { return memory_.size() > 0; }
  template <std::size_t I>
  auto* get() const {
    return std::get<I>(arrays_);
  }
  // Of the arrays: what alignment leaves over is never touched.
  index_t bytes() const { return memory_.size() - (memory_.size() > huge_page ? huge_page : 0); }

 private:
  std::tuple<Elements*...> arrays_{};
  workspace memory_;
};

}  // namespace cache::detail
HEED_NAMESPACE_END
