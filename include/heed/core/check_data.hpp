// A tensor without memory, where its extents say that it has elements.
#pragma once

#include "error.hpp"
#include "tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace detail {

// Raises "NAME: data is null, extents are […]".
template <class T, int Rank>
void check_data(const char* name, const tensor_view<T, Rank>& x) {
  if (x.data() != nullptr || x.empty()) return;
  message text(name);
  text << ": data is null, extents are [" << x.extent(0);
  for (int axis = 1; axis < Rank; ++axis) text << ", " << x.extent(axis);
  raise(text << "]");
}

}  // namespace detail
HEED_NAMESPACE_END
