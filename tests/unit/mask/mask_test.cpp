// mask{f}: lambdas and functions as masks.
#include <functional>
#include <heed/mask/mask.hpp>

#include "support/mask_checks.hpp"

namespace {

using heed::position;
using heed_test::answers;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shapes;
using heed_test::tiles;
using pack_position = heed::pack_position<float, 4>;

TEST(mask, written_for_any_position) {
  const index_t width = 3;
  const heed::mask m{[&](const auto& p) { return ((p.q + 2 * p.k) % width == 0) | (p.k < 2); }};
  static_assert(answers<decltype(m), pack_position>);
  for (const auto& shape : mask_shapes(2, 2)) {
    expect_mask(
        m, [](const position& p) { return (p.q + 2 * p.k) % 3 == 0 || p.k < 2; }, shape,
        tiles::right, keys::right);
  }
}

TEST(mask, that_does_not_look_at_the_key) {
  const heed::mask m{[](auto p) { return p.head == 1 && p.q % 2 == p.batch; }};
  for (const auto& shape : mask_shapes(2, 2)) {
    expect_mask(
        m, [](const position& p) { return p.head == 1 && p.q % 2 == p.batch; }, shape, tiles::right,
        keys::right);
  }
}

TEST(mask, written_for_one_key) {
  const heed::mask m{[](const position& p) { return p.q == p.k && p.keys > 5; }};
  static_assert(!answers<decltype(m), pack_position>);
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        m, [](const position& p) { return p.q == p.k && p.keys > 5; }, shape, tiles::right,
        keys::right);
  }
}

bool is_even(const position& p) { return p.k % 2 == 0; }

TEST(mask, of_functions) {
  const std::function<bool(const position&)> function = is_even;
  for (const auto& shape : mask_shapes()) {
    expect_mask(heed::mask{is_even}, is_even, shape, tiles::right, keys::right);
    expect_mask(heed::mask{function}, is_even, shape, tiles::right, keys::right);
  }
}

}  // namespace
