// The index function and the mask of neighborhoods: NATTEN's own masks bit by bit, and the checks
// that every mask must pass.
#include "heed/neighborhood/mask.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "heed/engine/hooks.hpp"
#include "heed/reference/neighborhood.hpp"
#include "support/mask_checks.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed::position;
using heed::neighborhood::mask;
using heed::neighborhood::pattern;

template <int N>
pattern<N> pattern_of(const heed_test::json_value& c) {
  pattern<N> which;
  for (std::size_t a = 0; a < static_cast<std::size_t>(N); ++a) {
    which.grid[a] = c.at("shape")[a].get<index_t>();
    which.window[a] = c.at("window")[a].get<index_t>();
    which.stride[a] = c.at("stride")[a].get<index_t>();
    which.dilation[a] = c.at("dilation")[a].get<index_t>();
    which.causal[a] = c.at("causal")[a].get<int>() != 0;
  }
  return which;
}

template <int N>
std::vector<heed::reference::neighborhood_axis> axes_of(const pattern<N>& which) {
  std::vector<heed::reference::neighborhood_axis> axes;
  for (std::size_t a = 0; a < which.grid.size(); ++a) {
    axes.push_back(
        {which.grid[a], which.window[a], which.stride[a], which.dilation[a], which.causal[a]});
  }
  return axes;
}

// Bits of a case as upstream packs them: the first key is the highest bit of the first byte.
template <int N>
void check_case(const heed_test::json_value& c, const heed_test::npy_array& file) {
  const pattern<N> which = pattern_of<N>(c);
  const mask<N> ours(which);
  const auto axes = axes_of(which);
  const index_t n = which.tokens(), bytes = (n + 7) / 8;
  ASSERT_EQ(file.shape, (std::vector<std::int64_t>{n, bytes}));
  const std::vector<std::uint8_t> bits = file.as<std::uint8_t>();
  for (index_t q = 0; q < n; ++q) {
    std::vector<std::uint8_t> one_by_one(static_cast<std::size_t>(bytes)), by_words(one_by_one),
        by_definition(one_by_one);
    const auto set = [](std::vector<std::uint8_t>& row, index_t k) {
      row[static_cast<std::size_t>(k / 8)] |= static_cast<std::uint8_t>(0x80u >> k % 8);
    };
    position p{0, 0, q, 0, n, n};
    for (p.k = 0; p.k < n; ++p.k) {
      if (ours(p)) set(one_by_one, p.k);
      if (heed::reference::sees(axes, q, p.k)) set(by_definition, p.k);
    }
    for (p.k = 0; p.k < n; p.k += 64) {
      const int count = static_cast<int>(n - p.k < 64 ? n - p.k : 64);
      const std::uint64_t word = heed::engine::visible_bits<float, 1>(ours, p, count);
      for (int i = 0; i < count; ++i) {
        if ((word >> i & 1) != 0) set(by_words, p.k + i);
      }
    }
    const std::vector<std::uint8_t> wanted(bits.begin() + q * bytes,
                                           bits.begin() + (q + 1) * bytes);
    ASSERT_EQ(one_by_one, wanted) << "query " << q;
    ASSERT_EQ(by_words, wanted) << "query " << q;
    ASSERT_EQ(by_definition, wanted) << "query " << q;
  }
}

TEST(neighborhood_mask, equals_those_of_natten_bit_by_bit) {
  const std::filesystem::path folder = std::filesystem::path(HEED_TEST_VECTORS) / "natten_masks";
  const auto cases = heed_test::read_json(folder / "index.json").at("cases");
  int done = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto c = cases[i];
    const std::string file = c.at("file").get<std::string>();
    SCOPED_TRACE(file);
    const heed_test::npy_array bits = heed_test::read_npy(folder / file);
    switch (c.at("shape").size()) {
      case 1:
        check_case<1>(c, bits);
        break;
      case 2:
        check_case<2>(c, bits);
        break;
      default:
        check_case<3>(c, bits);
    }
    ++done;
  }
  EXPECT_EQ(done, 162);
}

template <int N>
void check_mask(const pattern<N>& which) {
  const index_t n = which.tokens();
  const auto axes = axes_of(which);
  heed_test::expect_mask(
      mask<N>(which), [&](const position& p) { return heed::reference::sees(axes, p.q, p.k); },
      {1, 1, n, n}, heed_test::tiles::right, heed_test::keys::right);
}

TEST(neighborhood_mask, keys_of_tiles) {
  check_mask<1>({.grid = {40}, .window = {5}});
  check_mask<1>({.grid = {41}, .window = {6}, .stride = {4}, .dilation = {5}});
  check_mask<1>({.grid = {37}, .window = {7}, .stride = {3}, .causal = {true}});
  check_mask<2>({.grid = {5, 9}, .window = {3, 4}});
  check_mask<2>({.grid = {7, 6}, .window = {2, 3}, .dilation = {3, 2}, .causal = {true, false}});
  check_mask<3>({.grid = {3, 4, 4}, .window = {2, 3, 1}});
}

TEST(neighborhood_mask, numbers_that_make_no_neighborhood) {
  using heed_test::expect_error;
  const auto make = [](pattern<2> which) { return [which] { mask<2>{which}; }; };
  expect_error("neighborhood: grid extent 0 of axis 1 is less than 1",
               make({.grid = {4, 0}, .window = {1, 1}}));
  expect_error("neighborhood: grid extent -3 of axis 0 is less than 1",
               make({.grid = {-3, 4}, .window = {1, 1}}));
  expect_error("neighborhood: window 0 of axis 0 is less than 1",
               make({.grid = {4, 4}, .window = {0, 1}}));
  expect_error("neighborhood: window 5 of axis 1 is over the grid extent 4",
               make({.grid = {4, 4}, .window = {3, 5}}));
  expect_error("neighborhood: stride 0 of axis 0 is less than 1",
               make({.grid = {4, 4}, .window = {3, 3}, .stride = {0, 1}}));
  expect_error("neighborhood: stride 4 of axis 1 is over the window 3",
               make({.grid = {8, 8}, .window = {3, 3}, .stride = {3, 4}}));
  expect_error("neighborhood: dilation -1 of axis 0 is less than 1",
               make({.grid = {4, 4}, .window = {3, 3}, .dilation = {-1, 1}}));
  expect_error("neighborhood: window 3 of axis 1 with dilation 3 is over the grid extent 8",
               make({.grid = {9, 8}, .window = {3, 3}, .dilation = {3, 3}}));
  expect_error("neighborhood: grid has more than 2147483392 tokens",
               make({.grid = {1 << 16, 1 << 16}, .window = {3, 3}}));
  const mask<2> ours(pattern<2>{.grid = {4, 5}, .window = {3, 3}});
  expect_error("q: length 19 differs from the grid's 20 tokens", [&] {
    ours.check({1, 1, 19, 20});
  });
  expect_error("k: length 21 differs from the grid's 20 tokens", [&] {
    ours.check({1, 1, 20, 21});
  });
}

}  // namespace
