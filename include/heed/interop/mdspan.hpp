// std::mdspan as tensor_view, and anything else that has its members: element_type, rank(),
// extents(), stride(axis), data_handle(). <mdspan> itself is not needed.
//
// The last axis must be contiguous (layout_right, or a layout_stride whose last stride is 1); the
// elements must be reachable by a plain pointer.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "../config.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class X>
concept mdspan_shaped = requires(const X& x, std::size_t axis) {
  typename X::element_type;
  { X::rank() } -> std::convertible_to<std::size_t>;
  { x.extents().extent(axis) } -> std::convertible_to<index_t>;
  { x.stride(axis) } -> std::convertible_to<index_t>;
  x.data_handle();
};

template <class X>
struct mdspan_traits {
  static constexpr int rank = static_cast<int>(X::rank());

  static constexpr auto view(const X& x) {
    using element_type = typename X::element_type;
    static_assert(rank >= 1, "heed: the mdspan argument has no axis");
    static_assert(std::is_convertible_v<decltype(x.data_handle()), element_type*>,
                  "heed: the mdspan argument's accessor does not hand out plain pointers");
    if constexpr (requires {
                    { x.is_strided() } -> std::convertible_to<bool>;
                  }) {
      if (!x.is_strided()) raise("mdspan argument: its layout has no strides");
    }
    typename tensor_view<element_type, rank>::shape extents{}, strides{};
    for (std::size_t axis = 0; axis < extents.size(); ++axis) {
      extents[axis] = static_cast<index_t>(x.extents().extent(axis));
      strides[axis] = static_cast<index_t>(x.stride(axis));
    }
    return tensor_view<element_type, rank>(x.data_handle(), extents, strides);
  }
};

}  // namespace detail

HEED_NAMESPACE_END
