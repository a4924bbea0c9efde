// Where an observer writes: a view with leading axes added, its extents checked.
#pragma once

#include "../../core/element.hpp"
#include "../../core/error.hpp"
#include "../../core/position.hpp"
#include "../../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace observer_detail {

// Extents that a target has to have, [batch, head, …], and what its last axes are called.
template <class T, int Rank>
void check_target(const char* name, const tensor_view<T, Rank>& target,
                  const index_t (&expected)[static_cast<std::size_t>(Rank)], const char* third,
                  const char* fourth = "") {
  const char* const axes[] = {"batch", "head count", third, fourth};
  for (int axis = 0; axis < Rank; ++axis) {
    if (target.extent(axis) != expected[axis]) {
      raise(message(name) << ": " << axes[axis] << " " << target.extent(axis)
                          << " differs from the call's " << expected[axis]);
    }
  }
}

// Every element becomes `value`.
template <class T>
void fill(const tensor_view<T, 4>& target, T value) {
  for (index_t b = 0; b < target.extent(0); ++b) {
    for (index_t h = 0; h < target.extent(1); ++h) {
      for (index_t i = 0; i < target.extent(2); ++i) {
        T* row = target.row(b, h, i);
        for (index_t j = 0; j < target.extent(3); ++j) row[j] = value;
      }
    }
  }
}
// [B, H, L] as one row per head.
template <class T>
void fill(const tensor_view<T, 3>& target, T value) {
  for (index_t b = 0; b < target.extent(0); ++b) {
    for (index_t h = 0; h < target.extent(1); ++h) {
      T* row = target.row(b, h);
      for (index_t i = 0; i < target.extent(2); ++i) row[i] = value;
    }
  }
}

}  // namespace observer_detail
HEED_NAMESPACE_END
