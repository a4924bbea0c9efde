// Combinations of masks: against predicates, the laws of the operators, what they leave alone.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <heed/mask/algebra.hpp>
#include <heed/mask/array_mask.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/mask.hpp>
#include <heed/mask/window.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/mask_checks.hpp"

namespace {

using heed::array_mask;
using heed::causal;
using heed::position;
using heed::tensor_view;
using heed::window;
using heed_test::answers;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shape;
using heed_test::mask_shapes;
using heed_test::random_flags;
using heed_test::tiles;
using pack_position = heed::pack_position<float, 4>;

// Random masks of one shape, which know their tiles exactly.
struct random_mask {
  random_mask(const mask_shape& shape, unsigned seed, unsigned period)
      : elements(random_flags(shape.queries * shape.keys, seed, period)),
        mask(tensor_view<const std::uint8_t, 2>(elements.data(), {shape.queries, shape.keys})) {}
  random_mask(const random_mask&) = delete;
  bool operator()(const position& p) const {
    return elements[static_cast<std::size_t>(p.q * p.keys + p.k)] != 0;
  }
  std::vector<std::uint8_t> elements;
  array_mask<std::uint8_t> mask;
};

template <class Action>
void for_random_masks(const Action& action) {
  unsigned seed = 0;
  for (const auto& shape : mask_shapes()) {
    for (const unsigned period : {1u, 2u, 60u}) {
      const random_mask a(shape, ++seed, 2), b(shape, ++seed, period);
      action(a, b, shape);
    }
  }
}

TEST(algebra, operators_are_those_of_predicates) {
  for_random_masks([](const random_mask& a, const random_mask& b, const mask_shape& shape) {
    expect_mask(
        a.mask & b.mask, [&](const position& p) { return a(p) && b(p); }, shape, tiles::right,
        keys::right);
    expect_mask(
        a.mask | b.mask, [&](const position& p) { return a(p) || b(p); }, shape, tiles::right,
        keys::right);
    expect_mask(
        !a.mask, [&](const position& p) { return !a(p); }, shape, tiles::exact, keys::right);
  });
}

// The two sides agree on every position, and say the same about tiles.
template <class Left, class Right>
void expect_equal(const Left& left, const Right& right, const mask_shape& shape) {
  expect_mask(
      left, [&](const position& p) { return bool(right(p)); }, shape, tiles::right, keys::right);
  for (index_t q = 0; q < shape.queries; q += 2) {
    for (index_t k = 0; k < shape.keys; k += 3) {
      const heed::tile_extent t{0,
                                0,
                                q,
                                std::min(q + 2, shape.queries),
                                k,
                                std::min(k + 3, shape.keys),
                                shape.queries,
                                shape.keys};
      EXPECT_EQ(left.tile(t), right.tile(t));
    }
  }
}

TEST(algebra, laws) {
  for_random_masks([](const random_mask& one, const random_mask& two, const mask_shape& shape) {
    const auto &a = one.mask, &b = two.mask;
    expect_equal(a & b, b & a, shape);
    expect_equal(a | b, b | a, shape);
    expect_equal(!(a & b), (!a) | !b, shape);
    expect_equal(!(a | b), (!a) & !b, shape);
    expect_equal(!!a, a, shape);
    expect_equal(!!!a, !a, shape);
    expect_equal(a & a, a, shape);
    expect_equal(a | a, a, shape);
  });
}

TEST(algebra, distributes) {
  const mask_shape shape{1, 1, 13, 32};
  const random_mask a(shape, 1, 2), b(shape, 2, 3), c(shape, 3, 4);
  expect_mask(
      a.mask & (b.mask | c.mask),
      [&](const position& p) { return (a(p) && b(p)) || (a(p) && c(p)); }, shape, tiles::right,
      keys::right);
  expect_mask((a.mask | b.mask) & (a.mask | c.mask),
              [&](const position& p) { return a(p) || (b(p) && c(p)); }, shape, tiles::right,
              keys::right);
}

TEST(algebra, double_negation_keeps_tiles_and_keys) {
  static_assert(std::is_same_v<decltype(!!causal{}), causal>);
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        !!causal{}, [](const position& p) { return causal{}(p); }, shape);
    expect_mask(
        !causal{}, [](const position& p) { return !causal{}(p); }, shape, tiles::exact,
        keys::right);
  }
}

TEST(algebra, keys_of_and_are_the_intersection_and_of_or_the_union) {
  const heed::tile_extent t{0, 0, 10, 12, 0, 40, 40, 40};
  const auto both = (window{3} & causal{}).visible_keys(t);
  ASSERT_EQ(both.size(), 1);
  EXPECT_EQ(both.begin()->begin, 7);
  EXPECT_EQ(both.begin()->end, 12);
  const auto either = (window{3} | causal{}).visible_keys(t);
  ASSERT_EQ(either.size(), 1);
  EXPECT_EQ(either.begin()->begin, 0);
  EXPECT_EQ(either.begin()->end, 15);
  EXPECT_EQ((!window{window::unlimited}).visible_keys(t).size(), 0);
  EXPECT_EQ((!causal{}).visible_keys(t).begin()->end, 40);
}

TEST(algebra, answers_packs_only_where_all_operands_do) {
  const heed::mask one_key{[](const position& p) { return p.k % 3 == 1; }};
  const heed::mask any_keys{[](const auto& p) { return p.k % 3 == 1; }};
  static_assert(answers<decltype(causal{} & any_keys), pack_position>);
  static_assert(answers<decltype((!any_keys) | window{2}), pack_position>);
  static_assert(!answers<decltype(causal{} & one_key), pack_position>);
  static_assert(!answers<decltype(one_key | causal{}), pack_position>);
  static_assert(!answers<decltype(!one_key), pack_position>);
  static_assert(!answers<decltype(causal{} & (any_keys | !one_key)), pack_position>);
  const auto truth = [](const position& p) { return causal{}(p) && p.k % 3 != 1; };
  for (const auto& shape : mask_shapes()) {
    expect_mask(causal{} & !one_key, truth, shape, tiles::right, keys::right);
    expect_mask(causal{} & !any_keys, truth, shape, tiles::right, keys::right);
  }
}

// A lambda that answers a pack with one bool for all lanes.
TEST(algebra, one_bool_stands_for_all_lanes) {
  const auto even_queries = [](const auto& p) { return p.q % 2 == 0; };
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        causal{} | even_queries, [](const position& p) { return causal{}(p) || p.q % 2 == 0; },
        shape, tiles::right, keys::right);
    expect_mask(
        heed::mask{even_queries} & even_queries, [](const position& p) { return p.q % 2 == 0; },
        shape, tiles::right, keys::right);
  }
}

TEST(algebra, checks_reach_every_operand) {
  const std::vector<std::uint8_t> elements(15);
  const array_mask array{tensor_view<const std::uint8_t, 2>(elements.data(), {3, 5})};
  const std::string message = "array_mask: key axis has extent 5, call has 6 keys";
  const heed::call_shape shape{1, 1, 3, 6};
  expect_error(message, [&] { (array & causal{}).check(shape); });
  expect_error(message, [&] { (causal{} & array).check(shape); });
  expect_error(message, [&] { (array | causal{}).check(shape); });
  expect_error(message, [&] { (causal{} | array).check(shape); });
  expect_error(message, [&] { (!array).check(shape); });
  expect_error(message, [&] { (causal{} & !(causal{} | array)).check(shape); });
  (causal{} & !(causal{} | array)).check({1, 1, 3, 5});
}

// ---- the operators leave other types alone -----------------------------------------------------

template <class L, class R>
concept combines = requires(const L& l, const R& r) {
  l& r;
};
template <class T>
concept negates = requires(const T& t) {
  !t;
};

struct no_mask {};
using function = std::function<bool(const position&)>;
using function_pointer = bool (*)(const position&);

static_assert(combines<causal, window> && negates<causal>);
static_assert(!combines<causal, no_mask> && !combines<no_mask, causal>);
static_assert(!combines<causal, int> && !combines<causal, bool> && !combines<double, causal>);
static_assert(!combines<causal, position> && !combines<position, position>);
static_assert(!combines<causal, function_pointer>);
static_assert(!negates<no_mask> && !negates<position> && !negates<heed::key_ranges>);
// Empty or not: what ! says of functions.
static_assert(std::is_same_v<decltype(!std::declval<const function&>()), bool>);
static_assert(std::is_same_v<decltype(!std::declval<function_pointer>()), bool>);
static_assert(
    std::is_same_v<decltype(heed::visibility::all & heed::visibility::some), heed::visibility>);
static_assert(
    std::is_same_v<decltype((std::declval<pack_position>().k < 3) & true), heed::lane_mask<4, 4>>);

// An enumeration, and a class of another library with an operator of its own.
namespace other_library {
struct flags {
  int bits;
  friend flags operator&(flags a, flags b) { return {a.bits & b.bits}; }
  friend flags operator|(flags a, flags b) { return {a.bits | b.bits}; }
  friend bool operator!(flags a) { return a.bits == 0; }
};
}  // namespace other_library

TEST(algebra, using_the_namespace_changes_no_other_type) {
  using namespace heed;
  const other_library::flags a{6}, b{3};
  EXPECT_EQ((a & b).bits, 2);
  EXPECT_EQ((a | b).bits, 7);
  EXPECT_FALSE(!a);
  EXPECT_EQ(6 & 3, 2);
}

}  // namespace
