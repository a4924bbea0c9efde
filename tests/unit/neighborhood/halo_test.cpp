// HaloNet's blocks with a halo: timm's module, the oracle, every backend, errors.
#include "heed/neighborhood/halo.hpp"

#include "support/backends.hpp"
#include "unit/neighborhood/support.hpp"

namespace {

using heed::index_t;
using heed_test::input_as;
using heed_test::layout;
using heed_test::tensor;
namespace neighborhood = heed::neighborhood;
namespace reference = heed::reference;

template <class Backend>
class halo : public ::testing::Test {};
TYPED_TEST_SUITE(halo, heed_test::method_backends, heed_test::backend_name);

// x [2, 48, 8, 12], 1×1 convolutions: channels are the rows of a projection.
TYPED_TEST(halo, upstream_module) {
  const heed_test::vector_case c(std::filesystem::path(HEED_TEST_VECTORS) / "vision/halo_b4_h2");
  const index_t batches = 2, channels = 48, n = 96, heads = 3, depth = 16;
  const auto x = input_as<double>(c, "x");
  std::vector<double> tokens(x.size());  // [B, N, C]
  for (index_t i = 0; i < batches * channels * n; ++i) {
    const index_t b = i / (channels * n), channel = i / n % channels, token = i % n;
    tokens[static_cast<std::size_t>((b * n + token) * channels + channel)] =
        x[static_cast<std::size_t>(i)];
  }
  const auto q = heed_test::project(tokens, input_as<double>(c, "w_q_weight"), {}, 48);
  const auto kv = heed_test::project(tokens, input_as<double>(c, "w_kv_weight"), {}, 48);
  const auto height = input_as<double>(c, "w_pos_embed_height_rel"),
             width = input_as<double>(c, "w_pos_embed_width_rel");
  std::vector<double> out(x.size(), NAN);
  // Keys and values of a head lie side by side.
  const auto of_kv = [&](index_t first) {
    return heed::tensor_view<const double, 4>(kv.data() + first, {batches, heads, n, depth},
                                              {n * 96, 32, 96, 1});
  };
  neighborhood::halo<TypeParam>(
      heed_test::heads_of(q.data(), batches, n, channels, 0, heads, depth), of_kv(0), of_kv(16),
      heed_test::heads_of(out.data(), batches, n, channels, 0, heads, depth),
      {.grid = {8, 12}, .block = {4, 4}, .halo = {2, 2}},
      heed::tensor_view<const double, 2>(height.data(), {15, 16}),
      heed::tensor_view<const double, 2>(width.data(), {15, 16}));
  std::vector<double> got(x.size());
  for (index_t i = 0; i < batches * channels * n; ++i) {
    const index_t b = i / (channels * n), channel = i / n % channels, token = i % n;
    got[static_cast<std::size_t>(i)] =
        out[static_cast<std::size_t>((b * n + token) * channels + channel)];
  }
  EXPECT_LE(heed_test::relative_rms(got, c.output("y").template as<double>()), 1e-7);
}

template <class Backend, class T>
void expect_equal(const neighborhood::halo_blocks& which, index_t batches, index_t heads,
                  index_t key_heads, index_t depth, layout how, double tolerance) {
  const index_t keys = which.grid[0] * which.grid[1],
                queries = keys / which.query_stride / which.query_stride;
  tensor<T> q(batches, heads, queries, depth, how), k(batches, key_heads, keys, depth, how),
      v(batches, key_heads, keys, depth + 2, how), out(batches, heads, queries, depth + 2, how);
  q.fill(1, 0.5), k.fill(2), v.fill(3);
  const auto window = which.window();
  tensor<float> height(1, 1, 2 * window[0] - 1, depth), width(1, 1, 2 * window[1] - 1, depth);
  height.fill(4), width.fill(5);
  using table = heed::tensor_view<const float, 2>;
  neighborhood::halo<Backend>(q.read(), k.read(), v.read(), out.view(), which,
                              table(height.read().data(), {2 * window[0] - 1, depth}),
                              table(width.read().data(), {2 * window[1] - 1, depth}));
  const auto doubles = [](const tensor<float>& x) {
    const auto view = x.read();
    return std::vector<double>(view.data(), view.data() + view.size());
  };
  tensor<double> wanted(batches, heads, queries, depth + 2);
  reference::halo_attention(q.read(), k.read(), v.read(), wanted.view(),
                            {which.grid[0], which.grid[1], which.block[0], which.block[1],
                             which.halo[0], which.halo[1], which.query_stride},
                            doubles(height), doubles(width));
  EXPECT_LE(heed_test::worst_error<T>(out.read(), wanted.read(), tolerance), tolerance);
  EXPECT_EQ(out.overwritten_around(), 0);
}

TYPED_TEST(halo, against_the_oracle) {
  expect_equal<TypeParam, float>({.grid = {16, 24}, .block = {8, 8}, .halo = {3, 3}}, 2, 4, 2, 16,
                                 layout::by_token, 2e-5);
  expect_equal<TypeParam, float>(
      {.grid = {12, 10}, .block = {4, 2}, .halo = {1, 5}, .query_stride = 2}, 1, 2, 2, 7,
      layout::padded, 2e-5);
  // Stand-alone self-attention: a 5×5 window around every token.
  expect_equal<TypeParam, float>({.grid = {7, 6}, .block = {1, 1}, .halo = {2, 2}}, 1, 1, 1, 9,
                                 layout::interleaved, 2e-5);
  expect_equal<TypeParam, float>({.grid = {8, 8}, .block = {4, 8}}, 1, 2, 1, 8, layout::dense,
                                 2e-5);
}

TEST(halo_errors, what_does_not_fit) {
  std::vector<float> numbers(4096, 0.5f), out(4096, 42.f);
  const auto view = [&](index_t n) {
    return heed::tensor_view<const float, 4>(numbers.data(), {1, 2, n, 4});
  };
  const auto expect = [&](const std::string& text, const neighborhood::halo_blocks& which,
                          index_t queries, index_t keys, index_t entries = 15) {
    using table = heed::tensor_view<const float, 2>;
    heed_test::expect_error(text, [&] {
      neighborhood::halo(view(queries), view(keys), view(keys),
                         heed::tensor_view<float, 4>(out.data(), {1, 2, queries, 4}), which,
                         table(numbers.data(), {15, 4}), table(numbers.data(), {entries, 4}));
    });
    for (float value : out) ASSERT_EQ(value, 42.f);
  };
  expect("halo: block 3 of axis 1 does not divide the grid extent 8",
         {.grid = {8, 8}, .block = {4, 3}, .halo = {2, 2}}, 64, 64);
  expect("halo: halo -1 of axis 0 must lie in [0, 8]",
         {.grid = {8, 8}, .block = {4, 4}, .halo = {-1, 2}}, 64, 64);
  expect("halo: query_stride 3 does not divide the block 4 of axis 0",
         {.grid = {8, 8}, .block = {4, 4}, .halo = {2, 2}, .query_stride = 3}, 64, 64);
  expect("q: length 64 differs from the grid's 16 tokens",
         {.grid = {8, 8}, .block = {4, 4}, .halo = {2, 2}, .query_stride = 2}, 64, 64);
  expect("k: length 60 differs from the grid's 64 tokens",
         {.grid = {8, 8}, .block = {4, 4}, .halo = {2, 2}}, 64, 60);
  expect("width_rel: table is [13, 4], must be [15, 4]",
         {.grid = {8, 8}, .block = {4, 4}, .halo = {2, 2}}, 64, 64, 13);
}

}  // namespace
