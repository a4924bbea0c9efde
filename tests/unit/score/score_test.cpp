#include <heed/score/score.hpp>
#include <type_traits>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;

TEST(score, calls_a_generic_function_with_packs) {
  int calls = 0;
  const heed::score score{[&calls](auto s, auto p) {
    ++calls;
    return s - 0.1f * (p.q - p.k);
  }};
  static_assert(heed::score_function<std::remove_const_t<decltype(score)>>);
  const auto p = make_pack_position<float, 4>({1, 1, 6, 11}, 0, 0, 5, 8);
  const auto result = score(pack<float, 4>(2.f), p);
  EXPECT_EQ(calls, 1);
  for (int lane = 0; lane < p.valid; ++lane) {
    EXPECT_FLOAT_EQ(result[lane], 2.f - 0.1f * static_cast<float>(5 - (8 + lane)));
  }
}

TEST(score, is_the_formula_for_a_generic_function) {
  const heed::score score{[](auto s, auto p) { return s - 0.125f * (p.q - p.k); }};
  for (const call_shape& shape : odd_shapes) {
    expect_formula(score, shape, [](double s, const position& p) {
      return s - 0.125 * static_cast<double>(p.q - p.k);
    });
  }
}

TEST(score, takes_functions_of_packs_that_choose_by_position) {
  const heed::score score{[](auto s, auto p) {
    return heed::select(p.k == decltype(p.k)(p.q), s + decltype(s)(1), heed::tanh(s));
  }};
  for (const call_shape& shape : odd_shapes) {
    expect_formula(score, shape,
                   [](double s, const position& p) { return p.k == p.q ? s + 1 : std::tanh(s); });
  }
}

TEST(score, may_return_the_same_number_for_all_keys) {
  const heed::score score{[](auto, auto p) { return 0.5 * static_cast<double>(p.q + p.head); }};
  for (const call_shape& shape : odd_shapes) {
    expect_formula(score, shape, [](double, const position& p) {
      return 0.5 * static_cast<double>(p.q + p.head);
    });
  }
}

double alternating(double s, const position& p) {
  if ((p.batch + p.head + p.q + p.k) % 2 == 0) return s + std::sqrt(static_cast<double>(p.k));
  return p.keys == p.queries ? s : -s;
}

TEST(score, falls_back_to_single_keys) {
  int calls = 0;
  // With a position by value, by reference, and generic in one argument only.
  const heed::score by_value{[&calls](double s, position p) {
    ++calls;
    return alternating(s, p);
  }};
  const heed::score by_reference{[](double s, const position& p) { return alternating(s, p); }};
  const heed::score generic_score{
      [](auto s, const position& p) { return alternating(static_cast<double>(s), p); }};
  const heed::score generic_position{[](double s, auto p) { return alternating(s, p); }};
  const heed::score function{alternating};
  for (const call_shape& shape : odd_shapes) {
    expect_formula(by_value, shape, alternating);
    expect_formula(by_reference, shape, alternating);
    expect_formula(generic_score, shape, alternating);
    expect_formula(generic_position, shape, alternating);
    expect_formula(function, shape, alternating);
  }
  calls = 0;
  const auto p = make_pack_position<float, 4>({1, 1, 6, 11}, 0, 0, 5, 8);
  by_value(pack<float, 4>(2.f), p);
  EXPECT_EQ(calls, p.valid);  // lanes behind the last key are not computed
}

TEST(score, keeps_the_state_of_its_function) {
  const std::vector<float> table{1.f, 2.f, 4.f, 8.f, 16.f, 32.f, 64.f};
  const heed::score score{[&table](auto s, auto p) { return s * heed::lookup(table.data(), p.k); }};
  const auto formula = [](double s, const position& p) {
    return s * static_cast<double>(1 << p.k);
  };
  expect_formula_in<float>(score, {2, 3, 5, 7}, formula, 3, 4e-7);
}

TEST(score, derivative_is_the_second_function) {
  const heed::score square{[](auto s, auto) { return s * s; }, [](auto s, auto) { return s + s; }};
  const heed::score by_key{
      [](float s, const heed::position& p) { return s * static_cast<float>(p.k); },
      [](float, const heed::position& p) { return static_cast<float>(p.k); }};
  const auto packs = heed_test::make_pack_position<float, 4>({1, 1, 1, 9}, 0, 0, 0, 4);
  EXPECT_EQ(square.derivative(3.f, heed::position{}), 6.f);
  EXPECT_EQ(square.derivative(heed::pack<float, 4>(1.5f), packs)[3], 3.f);
  EXPECT_EQ(by_key.derivative(heed::pack<float, 4>(1.f), packs)[2], 6.f);
  static_assert(heed::differentiable_score<std::remove_const_t<decltype(square)>>);
  const heed::score without{[](auto s, auto) { return s; }};
  static_assert(!heed::differentiable_score<std::remove_const_t<decltype(without)>>);
}

}  // namespace
