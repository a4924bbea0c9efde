// Anything shaped like std::mdspan as a view. The class here stands in for it: the standard
// libraries that the tests run with do not have <mdspan> yet.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <heed/core/view_of.hpp>
#include <string>
#include <type_traits>
#include <vector>

#include "support/errors.hpp"

namespace {

using heed::index_t;
using heed::view_of;
using heed_test::error_of;

template <std::size_t Rank>
struct extents_of {
  std::array<int, Rank> values;
  constexpr int extent(std::size_t axis) const { return values[axis]; }
};

template <class T, std::size_t Rank>
class span_of {
 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;

  constexpr span_of(T* data, std::array<int, Rank> extents, std::array<int, Rank> strides,
                    bool strided = true)
      : data_(data), extents_{extents}, strides_(strides), strided_(strided) {}

  static constexpr std::size_t rank() { return Rank; }
  constexpr const extents_of<Rank>& extents() const { return extents_; }
  constexpr int stride(std::size_t axis) const { return strides_[axis]; }
  constexpr T* data_handle() const { return data_; }
  constexpr bool is_strided() const { return strided_; }

 private:
  T* data_;
  extents_of<Rank> extents_;
  std::array<int, Rank> strides_;
  bool strided_;
};

static_assert(heed::viewable<span_of<float, 3>>);
static_assert(heed::view_rank<span_of<const float, 3>&> == 3);
// Whether elements may be written is up to the element type, as for a pointer.
static_assert(std::is_same_v<heed::view_element<const span_of<float, 2>&>, float>);
static_assert(std::is_same_v<heed::view_element<span_of<float, 2>>, float>);
static_assert(std::is_same_v<heed::view_element<span_of<const float, 2>>, const float>);

TEST(view_of_mdspan, row_major) {
  std::vector<float> memory(24);
  const span_of<float, 3> span(memory.data(), {2, 3, 4}, {12, 4, 1});
  const auto view = view_of(span);
  EXPECT_EQ(view.data(), memory.data());
  EXPECT_EQ(view.extents(), (std::array<index_t, 3>{2, 3, 4}));
  EXPECT_EQ(view.strides(), (std::array<index_t, 3>{12, 4, 1}));
  view(1, 2, 3) = 9;
  EXPECT_EQ(memory.back(), 9);
}

TEST(view_of_mdspan, any_strides_before_the_last) {
  std::vector<double> memory(100);
  const auto view =
      view_of(span_of<const double, 4>(memory.data() + 50, {2, 3, 4, 5}, {0, -10, 20, 1}));
  EXPECT_EQ(view.strides(), (std::array<index_t, 4>{0, -10, 20, 1}));
  EXPECT_EQ(&view(1, 1, 1, 1), memory.data() + 61);
}

TEST(view_of_mdspan, output) {
  std::vector<float> memory(4);
  heed::output_view_of(span_of<float, 2>(memory.data(), {2, 2}, {2, 1}))(1, 0) = 3;
  EXPECT_EQ(memory[2], 3);
}

TEST(view_of_mdspan, layouts_that_are_refused) {
  std::vector<float> memory(24);
  EXPECT_EQ(error_of([&] {
              view_of(span_of<float, 2>(memory.data(), {4, 6}, {1, 4}));
            }),
            "tensor_view: last axis has stride 4, it must be contiguous (stride 1)");
  EXPECT_EQ(error_of([&] {
              view_of(span_of<float, 2>(memory.data(), {4, 6}, {6, 1}, false));
            }),
            "mdspan argument: its layout has no strides");
}

}  // namespace
