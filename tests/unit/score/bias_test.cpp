#include <Eigen/Core>
#include <heed/score/bias.hpp>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;
using heed::tensor_view;

static_assert(heed::score_function<heed::bias<float>>);

template <class T>
class bias_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(bias_of, element_types);

TYPED_TEST(bias_of, is_the_formula_with_every_axis_broadcast_or_not) {
  for (const call_shape& shape : odd_shapes) {
    for (int broadcast = 0; broadcast < 16; ++broadcast) {
      const auto extent = [&](int axis, index_t full) {
        return (broadcast >> axis & 1) != 0 ? index_t{1} : full;
      };
      const std::array<index_t, 4> extents{extent(0, shape.batches), extent(1, shape.heads),
                                           extent(2, shape.queries), extent(3, shape.keys)};
      const index_t padded = extents[3] + 3;
      const std::array<index_t, 4> strides{extents[1] * extents[2] * padded, extents[2] * padded,
                                           padded, 1};
      const auto values =
          random_values<TypeParam>(static_cast<std::size_t>(extents[0] * strides[0]), -5, 5, 11);
      const tensor_view<const TypeParam, 4> view(values.data(), extents, strides);
      SCOPED_TRACE(broadcast);
      expect_formula(heed::bias{view}, shape, [&](double s, const position& p) {
        return s +
               static_cast<double>(view(extents[0] == 1 ? 0 : p.batch, extents[1] == 1 ? 0 : p.head,
                                        extents[2] == 1 ? 0 : p.q, extents[3] == 1 ? 0 : p.k));
      });
    }
  }
}

TEST(bias, lifts_rank_2_and_3) {
  const call_shape shape{2, 3, 5, 7};
  const auto values = random_values<float>(3 * 5 * 7, -5, 5, 12);
  const tensor_view<const float, 3> heads(values.data(), {3, 5, 7});
  expect_formula(heed::bias{heads}, shape, [&](double s, const position& p) {
    return s + static_cast<double>(heads(p.head, p.q, p.k));
  });
  const tensor_view<const float, 2> rows(values.data(), {5, 7});
  expect_formula(heed::bias{rows}, shape, [&](double s, const position& p) {
    return s + static_cast<double>(rows(p.q, p.k));
  });
  const tensor_view<const float, 2> keys(values.data(), {1, 7});
  expect_formula(heed::bias{keys}, shape, [&](double s, const position& p) {
    return s + static_cast<double>(keys(0, p.k));
  });
}

// Bits: infinity as a number is not to be relied on under -ffast-math.
template <class T>
T minus_infinity_of() {
  return T(heed::narrow<T>(heed::minus_infinity<float>()));
}
template <>
double minus_infinity_of<double>() {
  return heed::minus_infinity<double>();
}

template <class T, class Real, int N>
void expect_visible_packs(const heed::bias<T>& bias, const call_shape& shape,
                          const std::vector<bool>& hidden) {
  for_each_position(shape, [&](const position& at) {
    if (at.k % N != 0) return;
    const auto p = make_pack_position<Real, N>(shape, at.batch, at.head, at.q, at.k);
    const auto visible = bias.visible(p);
    for (int lane = 0; lane < p.valid; ++lane) {
      EXPECT_EQ(visible[lane], !hidden[score_number(shape, at) + static_cast<std::size_t>(lane)]);
    }
  });
}

TYPED_TEST(bias_of, hides_keys_where_it_is_minus_infinity) {
  const call_shape shape{2, 2, 3, 19};
  const std::size_t count = 2 * 2 * 3 * 19;
  auto values = random_values<TypeParam>(count, -5, 5, 13);
  std::vector<bool> hidden(count);
  for (std::size_t i = 0; i < count; ++i) {
    hidden[i] = i % 3 == 0 || (i / 19) % 4 == 1;
    if (hidden[i]) values[i] = minus_infinity_of<TypeParam>();
    if (i % 7 == 4 && !hidden[i]) values[i] = TypeParam(-65504.f);  // large, but not infinite
  }
  const heed::bias bias{tensor_view<const TypeParam, 4>(values.data(), {2, 2, 3, 19})};
  for_each_position(shape, [&](const position& p) {
    EXPECT_EQ(bias.visible(p), !hidden[score_number(shape, p)]);
  });
  expect_visible_packs<TypeParam, float, 4>(bias, shape, hidden);
  expect_visible_packs<TypeParam, double, 2>(bias, shape, hidden);
#if defined(__AVX2__)
  expect_visible_packs<TypeParam, float, 8>(bias, shape, hidden);
#endif
#if defined(__AVX512F__)
  expect_visible_packs<TypeParam, float, 16>(bias, shape, hidden);
  expect_visible_packs<TypeParam, double, 8>(bias, shape, hidden);
#endif
}

TEST(bias, names_the_axis_that_does_not_fit) {
  const std::vector<float> values(2 * 3 * 4 * 5);
  const heed::bias bias{tensor_view<const float, 4>(values.data(), {2, 3, 4, 5})};
  EXPECT_EQ(error_of([&] { bias.check({2, 3, 4, 5}); }), "accepted");
  EXPECT_EQ(error_of([&] {
              bias.check({3, 3, 4, 5});
            }),
            "bias: batch axis has extent 2, call has 3 batches");
  EXPECT_EQ(error_of([&] {
              bias.check({2, 8, 4, 5});
            }),
            "bias: head axis has extent 3, call has 8 heads");
  EXPECT_EQ(error_of([&] {
              bias.check({2, 3, 1, 5});
            }),
            "bias: query axis has extent 4, call has 1 queries");
  EXPECT_EQ(error_of([&] {
              bias.check({2, 3, 4, 7});
            }),
            "bias: key axis has extent 5, call has 7 keys");
}

}  // namespace
