#include <Eigen/Core>
#include <heed/score/relative_table.hpp>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;
using heed::tensor_view;

static_assert(heed::score_function<heed::relative_table<float>>);

template <class T>
class relative_table_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(relative_table_of, element_types);

TYPED_TEST(relative_table_of, is_the_formula) {
  for (const call_shape& shape : odd_shapes) {
    for (const index_t radius : {0, 1, 3, 20, 100}) {
      for (const index_t heads : {index_t{1}, shape.heads}) {
        const index_t stride = 2 * radius + 4;
        const auto values =
            random_values<TypeParam>(static_cast<std::size_t>(heads * stride), -4, 4, 31);
        const tensor_view<const TypeParam, 2> table(values.data(), {heads, 2 * radius + 1},
                                                    {stride, 1});
        expect_formula(
            heed::relative_table{table, radius}, shape, [&](double s, const position& p) {
              auto entry = static_cast<index_t>(distance(p));
              if (entry > radius) entry = radius;
              if (entry < -radius) entry = -radius;
              return s + static_cast<double>(table(heads == 1 ? 0 : p.head, entry + radius));
            });
      }
    }
  }
}

TEST(relative_table, takes_one_row_for_all_heads) {
  const std::vector<float> values{1.f, 2.f, 3.f};
  const heed::relative_table table{tensor_view<const float, 1>(values.data(), {3}), 1};
  table.check({1, 8, 4, 4});
  EXPECT_EQ(table(0.f, position{0, 7, 2, 0, 4, 4}), 1.f);
  EXPECT_EQ(table(0.f, position{0, 7, 2, 2, 4, 4}), 2.f);
  EXPECT_EQ(table(0.f, position{0, 7, 2, 3, 4, 4}), 3.f);
}

// The table is exactly as long as it must be, so that a sanitizer sees a read beside it.
TEST(relative_table, reads_only_its_entries) {
  const call_shape shape{1, 1, 41, 41};
  for (index_t radius = 0; radius < 45; ++radius) {
    const std::vector<float> values(static_cast<std::size_t>(2 * radius + 1), 1.f);
    const heed::relative_table table{tensor_view<const float, 1>(values.data(), {2 * radius + 1}),
                                     radius};
    expect_formula_in<float>(
        table, shape, [](double s, const position&) { return s + 1; }, 1, 1e-6);
  }
}

TEST(relative_table, refuses_what_does_not_fit) {
  const std::vector<float> values(27);
  const tensor_view<const float, 2> view(values.data(), {3, 9});
  EXPECT_EQ(error_of([&] { heed::relative_table(view, 5); }),
            "relative_table: table has 9 distances, radius 5 needs 2·5 + 1");
  EXPECT_EQ(error_of([&] { heed::relative_table(view, -1); }),
            "relative_table: radius -1 is negative");
  EXPECT_NE(error_of([&] {
              heed::relative_table(tensor_view<const float, 2>(values.data(), {3, 8}), 4);
            }),
            "accepted");
  const heed::relative_table table{view, 4};
  EXPECT_EQ(error_of([&] { table.check({1, 3, 2, 2}); }), "accepted");
  EXPECT_EQ(error_of([&] {
              table.check({1, 6, 2, 2});
            }),
            "relative_table: head axis has extent 3, call has 6 heads");
}

}  // namespace
