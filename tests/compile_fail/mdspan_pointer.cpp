// expect: the mdspan argument's accessor does not hand out plain pointers
#include <heed/core/view_of.hpp>

struct device_pointer {};
struct device_span {
  using element_type = float;
  struct shape {
    int extent(std::size_t) const { return 4; }
  };
  static constexpr std::size_t rank() { return 2; }
  shape extents() const { return {}; }
  int stride(std::size_t) const { return 1; }
  device_pointer data_handle() const { return {}; }
};
auto on_device(const device_span& q) { return heed::view_of(q); }
