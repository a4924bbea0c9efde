// Whether an output may be written while an input is read: it is the input itself, or apart from
// it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../core/error.hpp"
#include "../../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// Axes of extent above 1, widest stride first, as (extent, |stride|).
struct stride_layout {
  index_t extent[4] = {}, stride[4] = {};
  int axes = 0;
  bool nested = true;  // every stride steps over all that the narrower ones reach

  template <class T>
  explicit stride_layout(const tensor_view<T, 4>& view) {
    for (int axis = 0; axis < 4; ++axis) {
      if (view.extent(axis) <= 1) continue;
      const index_t step = view.stride(axis) < 0 ? -view.stride(axis) : view.stride(axis);
      int at = axes++;
      for (; at > 0 && stride[at - 1] < step; --at) {
        extent[at] = extent[at - 1];
        stride[at] = stride[at - 1];
      }
      extent[at] = view.extent(axis);
      stride[at] = step;
    }
    index_t reach = 0;
    for (int axis = axes - 1; axis >= 0; --axis) {
      nested = nested && stride[axis] > reach;
      reach += (extent[axis] - 1) * stride[axis];
    }
  }
};

// Whether two tensors of one layout, the second `distance` elements behind the first, share an
// element: whether distance = Σ step·stride with every |step| < extent.
inline bool shares_elements(const stride_layout& layout, index_t distance, int axis = 0) {
  // The first bound is known from axes already; it tells the compiler.
  if (axis >= 4 || axis == layout.axes) return distance == 0;
  index_t reach = 0;
  for (int inner = axis + 1; inner < layout.axes; ++inner) {
    reach += (layout.extent[inner] - 1) * layout.stride[inner];
  }
  // Nested strides leave two steps at most that the inner axes can complete.
  const index_t nearest = distance / layout.stride[axis];
  for (index_t step = nearest - 1; step <= nearest + 1; ++step) {
    const index_t rest = distance - step * layout.stride[axis];
    if (step <= -layout.extent[axis] || step >= layout.extent[axis]) continue;
    if (rest < -reach || rest > reach) continue;
    if (shares_elements(layout, rest, axis + 1)) return true;
  }
  return false;
}

// First and last byte address of a tensor that is not empty.
struct byte_span {
  std::uintptr_t begin, end;

  template <class T>
  explicit byte_span(const tensor_view<T, 4>& view) {
    index_t low = 0, high = 0;
    for (int axis = 0; axis < 4; ++axis) {
      const index_t reach = (view.extent(axis) - 1) * view.stride(axis);
      (reach < 0 ? low : high) += reach;
    }
    const auto size = static_cast<index_t>(sizeof(T));
    const auto base = reinterpret_cast<std::uintptr_t>(view.data());
    begin = base + static_cast<std::uintptr_t>(low * size);
    end = base + static_cast<std::uintptr_t>((high + 1) * size);
  }
};

// Refuses an out whose rows overlap each other, or that overlaps x without being x.
template <class T, class U>
void check_overlap(const tensor_view<T, 4>& x, const tensor_view<U, 4>& out) {
  if (out.empty()) return;
  const stride_layout layout(out);
  if (!layout.nested) raise("out: its strides let elements overlap");
  const byte_span from(x), to(out);
  if (from.end <= to.begin || to.end <= from.begin) return;
  bool same_strides = true;
  for (int axis = 0; axis < 4; ++axis) {
    same_strides = same_strides && (x.extent(axis) <= 1 || x.stride(axis) == out.stride(axis));
  }
  if constexpr (std::is_same_v<std::remove_const_t<T>, U>) {
    if (same_strides) {
      if (x.data() == out.data()) return;  // in place
      const std::uintptr_t bytes =
          from.begin < to.begin ? to.begin - from.begin : from.begin - to.begin;
      if (bytes % sizeof(T) == 0 &&
          !shares_elements(layout, static_cast<index_t>(bytes / sizeof(T)))) {
        return;
      }
    }
  }
  raise("out: overlaps x without being the same view");
}

}  // namespace detail

HEED_NAMESPACE_END
