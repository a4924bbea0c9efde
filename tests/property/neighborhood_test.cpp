// neighborhood::attention = heed::attention with the neighborhood's mask, over random grids,
// windows, strides, dilations and causal axes.
#include "heed/neighborhood/attention.hpp"
#include "heed/neighborhood/mask.hpp"
#include "unit/neighborhood/support.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;
namespace neighborhood = heed::neighborhood;

template <int N>
void expect_dense_with_its_mask(unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](index_t limit) {
    return static_cast<index_t>(random() % static_cast<unsigned>(limit));
  };
  constexpr index_t longest[] = {0, 300, 26, 9};
  neighborhood::pattern<N> which;
  std::string text;
  for (std::size_t a = 0; a < which.grid.size(); ++a) {
    which.grid[a] = 1 + below(longest[N]);
    which.window[a] = 1 + below(below(2) == 0 ? which.grid[a] : 1 + which.grid[a] / 4);
    which.stride[a] = below(2) == 0 ? 1 : 1 + below(which.window[a]);
    which.dilation[a] = below(2) == 0 ? 1 : 1 + below(which.grid[a] / which.window[a]);
    which.causal[a] = below(3) == 0;
    for (index_t x : {which.grid[a], which.window[a], which.stride[a], which.dilation[a],
                      index_t{which.causal[a]}}) {
      text += std::to_string(x) + " ";
    }
    text += "/ ";
  }
  SCOPED_TRACE(text);
  const index_t batches = 1 + below(2), key_heads = 1 + below(2), n = which.tokens();
  const index_t heads = key_heads * (1 + below(2)), depth = 1 + below(20);
  const auto how = heed_test::layouts[static_cast<std::size_t>(below(4))];
  tensor<float> q(batches, heads, n, depth, how), k(batches, key_heads, n, depth, how),
      v(batches, key_heads, n, depth, how), got(batches, heads, n, depth, how);
  tensor<double> wanted(batches, heads, n, depth);
  q.fill(seed), k.fill(seed + 1), v.fill(seed + 2);
  std::vector<float> got_lse(static_cast<std::size_t>(batches * heads * n));
  std::vector<double> wanted_lse(got_lse.size());
  neighborhood::attention<N>(
      q.read(), k.read(), v.read(), got.view(), which,
      heed::lse_to{heed::tensor_view<float, 3>(got_lse.data(), {batches, heads, n})});
  heed::attention(
      q.read(), k.read(), v.read(), wanted.view(), neighborhood::mask<N>(which),
      heed::lse_to{heed::tensor_view<double, 3>(wanted_lse.data(), {batches, heads, n})});
  EXPECT_LE(heed_test::worst_error<float>(got.read(), wanted.read()), 1e-5);
  for (std::size_t i = 0; i < got_lse.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(got_lse[i]), wanted_lse[i], 2e-5) << i;
  }
}

TEST(neighborhood, one_axis) {
  for (unsigned seed = 0; seed < 150; ++seed) expect_dense_with_its_mask<1>(seed);
}
TEST(neighborhood, two_axes) {
  for (unsigned seed = 0; seed < 120; ++seed) expect_dense_with_its_mask<2>(1000 + seed);
}
TEST(neighborhood, three_axes) {
  for (unsigned seed = 0; seed < 100; ++seed) expect_dense_with_its_mask<3>(2000 + seed);
}

}  // namespace
