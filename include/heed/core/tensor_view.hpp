// tensor_view<T, Rank>: where a tensor lies, without owning it: pointer, extents, strides.
//
// Strides count elements. The last axis is contiguous (stride 1, unless it has at most one
// element); the others are arbitrary: offset, transposed, padded, or 0 for a broadcast axis.
// Attention operands are [batch, head, length, depth]; rank 2 and 3 are lifted to 4 by leading axes
// of extent 1.
#pragma once

#include <array>
#include <limits>
#include <type_traits>

#include "../config.hpp"
#include "error.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// Strides of a dense row-major tensor.
HEED_NOINLINE constexpr void row_major_strides(const index_t* extents, index_t* strides, int rank) {
  index_t step = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    strides[axis] = step;
    if (extents[axis] > 0 && __builtin_mul_overflow(step, extents[axis], &step)) {
      raise(message("tensor_view: element count overflows 64 bits at axis ")
            << axis << " of extent " << extents[axis]);
    }
  }
}

// What every view promises: extents that are not negative, offsets that fit, a contiguous last
// axis.
HEED_NOINLINE constexpr void check_layout(const index_t* extents, const index_t* strides,
                                          int rank) {
  index_t reach = 0;
  for (int axis = 0; axis < rank; ++axis) {
    if (extents[axis] < 0) {
      raise(message("tensor_view: axis ") << axis << " has negative extent " << extents[axis]);
    }
    index_t span = 0;
    const index_t distance = strides[axis] < 0 ? -strides[axis] : strides[axis];
    if (extents[axis] > 1 && (__builtin_mul_overflow(extents[axis] - 1, distance, &span) ||
                              __builtin_add_overflow(reach, span, &reach) ||
                              reach > std::numeric_limits<index_t>::max() / 16)) {
      raise(message("tensor_view: axis ")
            << axis << " of extent " << extents[axis] << " and stride " << strides[axis]
            << " overflows 64-bit offsets");
    }
  }
  if (extents[rank - 1] > 1 && strides[rank - 1] != 1) {
    raise(message("tensor_view: last axis has stride ")
          << strides[rank - 1] << ", it must be contiguous (stride 1)");
  }
}

}  // namespace detail

template <class T, int Rank>
class tensor_view {
  static_assert(Rank >= 1, "heed: a tensor_view has at least one axis");

 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  static constexpr int rank = Rank;
  using shape = std::array<index_t, Rank>;

  constexpr tensor_view() = default;

  // Row-major and dense.
  constexpr tensor_view(T* data, const shape& extents)
      : data_(data), extents_(extents), strides_(row_major(extents)) {
    check();
  }

  // Throws when an extent is negative, when the last axis is not contiguous, or when the highest
  // offset does not fit into 64 bits.
  constexpr tensor_view(T* data, const shape& extents, const shape& strides)
      : data_(data), extents_(extents), strides_(strides) {
    check();
  }

  // A view that may write is also a view that may read.
  constexpr operator tensor_view<const T, Rank>() const requires(!std::is_const_v<T>) {
    return tensor_view<const T, Rank>(data_, extents_, strides_);
  }

  constexpr T* data() const { return data_; }
  constexpr index_t extent(int axis) const { return extents_[static_cast<std::size_t>(axis)]; }
  constexpr index_t stride(int axis) const { return strides_[static_cast<std::size_t>(axis)]; }
  constexpr const shape& extents() const { return extents_; }
  constexpr const shape& strides() const { return strides_; }

  constexpr index_t size() const {
    index_t count = 1;
    for (index_t extent : extents_) count *= extent;
    return count;
  }
  constexpr bool empty() const {
    for (index_t extent : extents_) {
      if (extent == 0) return true;
    }
    return false;
  }

  // Element at one index per axis; nothing is checked.
  template <class... Index>
  requires(sizeof...(Index) == static_cast<std::size_t>(Rank)) constexpr T& operator()(
      Index... index) const {
    return data_[offset(index...)];
  }
  // Start of the innermost row at one index for every axis but the last.
  template <class... Index>
  requires(sizeof...(Index) + 1 ==
           static_cast<std::size_t>(Rank)) constexpr T* row(Index... index) const {
    return data_ + offset(index...);
  }

  // The same elements seen with leading axes of extent 1.
  template <int NewRank>
  constexpr tensor_view<T, NewRank> lifted() const {
    static_assert(NewRank >= Rank, "heed: lifting cannot drop axes");
    typename tensor_view<T, NewRank>::shape extents{}, strides{};
    constexpr int added = NewRank - Rank;
    for (int axis = 0; axis < NewRank; ++axis) {
      const auto at = static_cast<std::size_t>(axis);
      extents[at] = axis < added ? 1 : extent(axis - added);
      strides[at] = axis < added ? 0 : stride(axis - added);
    }
    return tensor_view<T, NewRank>(data_, extents, strides);
  }

  // Elements begin, begin + 1, … of one axis.
  constexpr tensor_view slice(int axis, index_t begin, index_t count) const {
    if (begin < 0 || count < 0 || begin > extent(axis) - count) {
      raise(message("slice: range [") << begin << ", " << begin + count << ") leaves axis " << axis
                                      << " of extent " << extent(axis));
    }
    shape extents = extents_;
    extents[static_cast<std::size_t>(axis)] = count;
    T* data = data_ == nullptr ? data_ : data_ + begin * stride(axis);
    return tensor_view(data, extents, strides_);
  }

  // Axes in another order: permuted({0, 2, 1, 3}) turns [B, L, H, D] into [B, H, L, D].
  constexpr tensor_view permuted(const std::array<int, Rank>& order) const {
    shape extents{}, strides{};
    std::array<bool, Rank> seen{};
    for (std::size_t axis = 0; axis < static_cast<std::size_t>(Rank); ++axis) {
      if (order[axis] < 0 || order[axis] >= Rank || seen[static_cast<std::size_t>(order[axis])]) {
        raise(message("permuted: axis ")
              << order[axis] << " is not part of a permutation of rank " << Rank);
      }
      seen[static_cast<std::size_t>(order[axis])] = true;
      extents[axis] = extent(order[axis]);
      strides[axis] = stride(order[axis]);
    }
    return tensor_view(data_, extents, strides);
  }

 private:
  template <class... Index>
  constexpr index_t offset(Index... index) const {
    index_t sum = 0;
    std::size_t axis = 0;
    ((sum += static_cast<index_t>(index) * strides_[axis++]), ...);
    return sum;
  }

  static constexpr shape row_major(const shape& extents) {
    shape strides{};
    detail::row_major_strides(extents.data(), strides.data(), Rank);
    return strides;
  }
  constexpr void check() const { detail::check_layout(extents_.data(), strides_.data(), Rank); }

  T* data_ = nullptr;
  shape extents_{};
  shape strides_{};
};

template <class T, std::size_t Rank>
tensor_view(T*, const index_t (&)[Rank]) -> tensor_view<T, static_cast<int>(Rank)>;
template <class T, std::size_t Rank>
tensor_view(T*, std::array<index_t, Rank>) -> tensor_view<T, static_cast<int>(Rank)>;

template <class T>
inline constexpr bool is_tensor_view = false;
template <class T, int Rank>
inline constexpr bool is_tensor_view<tensor_view<T, Rank>> = true;

HEED_NAMESPACE_END
