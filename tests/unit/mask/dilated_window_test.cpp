// dilated_window: steps to both sides, sizes up to the end of the range, wrong sizes.
#include <cstdint>
#include <heed/mask/causal.hpp>
#include <heed/mask/dilated_window.hpp>
#include <heed/mask/window.hpp>

#include "support/mask_checks.hpp"

namespace {

using heed::dilated_window;
using heed::position;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shapes;
using heed_test::tiles;

// Steps of the dilation from the key to the query: n with i - k = n·dilation, in [-right, left].
bool within_steps(const position& p, index_t left, index_t right, index_t dilation) {
  const index_t own = p.q + p.keys - p.queries;
  for (index_t n = -p.queries - p.keys; n <= p.queries + p.keys; ++n) {
    if (-right <= n && n <= left && own - n * dilation == p.k) return true;
  }
  return false;
}

TEST(dilated_window, both_sides) {
  for (const index_t dilation : {1, 2, 3, 7, 50}) {
    for (const index_t left : {0, 1, 4}) {
      for (const index_t right : {0, 3}) {
        SCOPED_TRACE(testing::Message() << left << ", " << right << ", " << dilation);
        const auto truth = [=](const position& p) {
          return within_steps(p, left, right, dilation);
        };
        for (const auto& shape : mask_shapes()) {
          expect_mask(dilated_window{left, right, dilation}, truth, shape, tiles::exact,
                      keys::hull);
        }
      }
    }
  }
}

TEST(dilated_window, symmetric_and_causal) {
  for (const auto& shape : mask_shapes()) {
    expect_mask(
        dilated_window{3, 4}, [](const position& p) { return within_steps(p, 3, 3, 4); }, shape,
        tiles::exact, keys::hull);
    expect_mask(
        dilated_window{3, 4} & heed::causal{},
        [](const position& p) { return within_steps(p, 3, 0, 4); }, shape, tiles::exact,
        keys::right);
  }
}

TEST(dilated_window, dilation_one_is_window) {
  for (const auto& shape : mask_shapes()) {
    const heed::window plain{6, 2};
    expect_mask(
        dilated_window{6, 2, 1}, [&](const position& p) { return plain(p); }, shape);
  }
}

TEST(dilated_window, unlimited_sides) {
  constexpr index_t unlimited = dilated_window::unlimited;
  for (const auto& shape : mask_shapes()) {
    const auto multiple = [](const position& p) { return (p.q + p.keys - p.queries - p.k) % 5; };
    expect_mask(
        dilated_window{unlimited, 5}, [&](const position& p) { return multiple(p) == 0; }, shape,
        tiles::exact, keys::hull);
    expect_mask(
        dilated_window{unlimited, 0, 5},
        [&](const position& p) { return multiple(p) == 0 && p.k <= p.q + p.keys - p.queries; },
        shape, tiles::exact, keys::hull);
  }
}

TEST(dilated_window, sizes_near_the_end_of_the_range) {
  constexpr index_t largest = INT64_MAX;
  for (const auto& shape : mask_shapes()) {
    const auto own_key = [](const position& p) { return p.q + p.keys - p.queries == p.k; };
    expect_mask(dilated_window{1, largest}, own_key, shape);
    expect_mask(dilated_window{largest, largest}, own_key, shape);
    expect_mask(dilated_window{0, 0, largest - 1}, own_key, shape);
    expect_mask(
        dilated_window{largest, 1}, [](const position&) { return true; }, shape);
  }
}

TEST(dilated_window, sizes_out_of_range) {
  expect_error("dilated_window: steps -2 is negative (-1 stands for unlimited)", [] {
    dilated_window{-2, 3};
  });
  expect_error("dilated_window: left -4 is negative (-1 stands for unlimited)", [] {
    dilated_window{-4, 0, 3};
  });
  expect_error("dilated_window: right -9 is negative (-1 stands for unlimited)", [] {
    dilated_window{0, -9, 3};
  });
  expect_error("dilated_window: dilation 0 is not positive", [] { dilated_window{2, 0}; });
  expect_error("dilated_window: dilation -1 is not positive", [] { dilated_window{2, 2, -1}; });
}

}  // namespace
