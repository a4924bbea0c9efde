// Memory for the rows of a store, taken when the first token arrives, aligned and never cleared.
#pragma once

#include <tuple>
#include <utility>

#include "../../core/workspace.hpp"

HEED_NAMESPACE_BEGIN
namespace cache::detail {

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
    heed::detail::bump taken(memory_.reserve(counted.bytes() > 0 ? counted.bytes() : 1));
    lay_out(taken);
  }
  bool allocated() const { return memory_.size() > 0; }
  template <std::size_t I>
  auto* get() const {
    return std::get<I>(arrays_);
  }
  index_t bytes() const { return memory_.size(); }

 private:
  std::tuple<Elements*...> arrays_{};
  workspace memory_;
};

}  // namespace cache::detail
HEED_NAMESPACE_END
