// view_of for views themselves, and for a user's own type.
#include <gtest/gtest.h>

#include <heed/core/view_of.hpp>
#include <type_traits>
#include <vector>

namespace {

// Owns its elements, [rows, 4].
struct table {
  std::vector<float> values = std::vector<float>(12);
};
// Refers to someone else's.
struct column_pair {
  double* first;
};
struct unrelated {};

}  // namespace

template <>
struct heed::view_traits<table> {
  static constexpr int rank = 2;
  static constexpr bool owns_memory = true;
  static tensor_view<float, 2> view(table& x) { return {x.values.data(), {3, 4}}; }
  static tensor_view<const float, 2> view(const table& x) { return {x.values.data(), {3, 4}}; }
};

template <>
struct heed::view_traits<column_pair> {
  static constexpr int rank = 1;
  static tensor_view<double, 1> view(const column_pair& x) { return {x.first, {2}}; }
};

namespace {

using heed::tensor_view;
using heed::view_of;

static_assert(heed::viewable<tensor_view<float, 3>> && heed::viewable<tensor_view<float, 3>&>);
static_assert(heed::view_rank<const tensor_view<float, 3>&> == 3);
static_assert(heed::viewable<table> && heed::view_rank<table&> == 2);
static_assert(!heed::viewable<unrelated> && !heed::viewable<std::vector<float>>);
static_assert(!heed::viewable<int> && !heed::viewable<int*> && !heed::viewable<float (&)[3]>);

static_assert(std::is_same_v<heed::view_element<table&>, float>);
static_assert(std::is_same_v<heed::view_element<const table&>, const float>);
static_assert(std::is_same_v<heed::view_element<table>, const float>);
static_assert(std::is_same_v<heed::view_element<column_pair>, double>);

TEST(view_of, views_are_themselves) {
  std::vector<float> memory(24);
  const tensor_view<float, 3> view(memory.data(), {2, 3, 4});
  const auto same = view_of(view);
  static_assert(std::is_same_v<decltype(same), const tensor_view<float, 3>>);
  EXPECT_EQ(same.data(), view.data());
  EXPECT_EQ(same.extents(), view.extents());
  EXPECT_EQ(same.strides(), view.strides());
  // A view is no owner: a temporary one may be written through.
  heed::output_view_of(tensor_view<float, 1>(memory.data(), {24}))(5) = 2;
  EXPECT_EQ(memory[5], 2);
  static_assert(std::is_same_v<decltype(view_of(tensor_view<const float, 1>())),
                               tensor_view<const float, 1>>);
}

TEST(view_of, other_types_join_by_view_traits) {
  table t;
  heed::output_view_of(t)(2, 3) = 5;
  EXPECT_EQ(t.values.back(), 5);
  EXPECT_EQ(view_of(t).data(), t.values.data());
  double pair[] = {1, 2};
  EXPECT_EQ(view_of(column_pair{pair})(1), 2);
}

}  // namespace
