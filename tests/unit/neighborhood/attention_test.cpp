// neighborhood::attention against the oracle: one to three axes, layouts, element types, modifiers,
// every backend.
#include "heed/neighborhood/attention.hpp"

#include "heed/core/thread_pool.hpp"
#include "heed/mask/mask.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "unit/neighborhood/support.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace neighborhood = heed::neighborhood;
namespace reference = heed::reference;

template <class Backend>
class neighborhood_attention : public ::testing::Test {};
TYPED_TEST_SUITE(neighborhood_attention, heed_test::method_backends, heed_test::backend_name);

template <class Backend, class T, int N>
void expect_equal(const neighborhood::pattern<N>& which, index_t batches, index_t heads,
                  index_t key_heads, index_t depth, layout how, double tolerance) {
  const index_t n = which.tokens();
  tensor<T> q(batches, heads, n, depth, how), k(batches, key_heads, n, depth, how),
      v(batches, key_heads, n, depth + 3, how), out(batches, heads, n, depth + 3, how);
  q.fill(1), k.fill(2), v.fill(3);
  std::array<index_t, static_cast<std::size_t>(N) + 1> shape{heads};
  index_t entries = heads;
  for (std::size_t a = 0; a < which.window.size(); ++a) {
    shape[a + 1] = 2 * which.window[a] - 1;
    entries *= shape[a + 1];
  }
  tensor<float> table(1, 1, 1, entries);
  table.fill(4);
  const heed::tensor_view<const float, N + 1> table_view(table.read().data(), shape);
  neighborhood::attention<N, Backend>(q.read(), k.read(), v.read(), out.view(), which,
                                      neighborhood::relative_bias{table_view});
  tensor<double> wanted(batches, heads, n, depth + 3);
  const std::vector<double> bias(table.read().data(), table.read().data() + entries);
  reference::neighborhood_attention(q.read(), k.read(), v.read(), wanted.view(),
                                    heed_test::axes_of(which), bias);
  EXPECT_LE(heed_test::worst_error<T>(out.read(), wanted.read(), tolerance), tolerance);
  EXPECT_EQ(out.overwritten_around(), 0);
}

TYPED_TEST(neighborhood_attention, one_axis) {
  expect_equal<TypeParam, float, 1>({.grid = {1}, .window = {1}}, 1, 1, 1, 3, layout::dense, 1e-5);
  expect_equal<TypeParam, float, 1>({.grid = {300}, .window = {13}}, 2, 2, 1, 20, layout::by_token,
                                    1e-5);
  expect_equal<TypeParam, float, 1>(
      {.grid = {131}, .window = {8}, .stride = {3}, .dilation = {5}, .causal = {true}}, 1, 1, 1, 16,
      layout::padded, 1e-5);
}

TYPED_TEST(neighborhood_attention, two_axes) {
  expect_equal<TypeParam, float, 2>({.grid = {14, 17}, .window = {7, 7}}, 2, 4, 2, 32,
                                    layout::by_token, 1e-5);
  expect_equal<TypeParam, float, 2>(
      {.grid = {23, 19}, .window = {4, 5}, .stride = {2, 5}, .dilation = {3, 1}}, 1, 2, 2, 7,
      layout::interleaved, 1e-5);
  expect_equal<TypeParam, float, 2>({.grid = {9, 40}, .window = {9, 3}, .causal = {true, false}}, 1,
                                    1, 1, 8, layout::dense, 1e-5);
}

TYPED_TEST(neighborhood_attention, three_axes) {
  expect_equal<TypeParam, float, 3>({.grid = {4, 9, 11}, .window = {3, 5, 3}}, 1, 2, 1, 16,
                                    layout::padded, 1e-5);
  expect_equal<TypeParam, float, 3>({.grid = {6, 6, 8},
                                     .window = {3, 2, 4},
                                     .stride = {1, 2, 4},
                                     .dilation = {2, 1, 2},
                                     .causal = {true, false, true}},
                                    2, 1, 1, 5, layout::dense, 1e-5);
}

TYPED_TEST(neighborhood_attention, element_types) {
  const neighborhood::pattern<2> which{.grid = {12, 13}, .window = {5, 3}};
  expect_equal<TypeParam, double, 2>(which, 1, 2, 2, 12, layout::padded, 1e-12);
  expect_equal<TypeParam, Eigen::bfloat16, 2>(which, 1, 2, 2, 32, layout::by_token, 3e-2);
}

// The modifiers that dense attention has, in terms of tokens.
TYPED_TEST(neighborhood_attention, modifiers) {
  const neighborhood::pattern<2> which{.grid = {11, 12}, .window = {5, 5}};
  const index_t batches = 2, heads = 2, n = which.tokens();
  tensor<float> q(batches, heads, n, 16), k(batches, heads, n, 16), v(batches, heads, n, 16),
      out(batches, heads, n, 16), lse(1, batches, heads, n), bias(batches, heads, n, n);
  q.fill(1), k.fill(2), v.fill(3), bias.fill(4);
  bias.view()(1, 0, 30, 31) = -INFINITY;
  // Every third token of an odd query is hidden; the rows of key 40 hold NaN and are hidden too.
  const auto visible = [](const heed::position& p) {
    return (p.q % 2 == 0 || p.k % 3 != 0) && p.k != 40 && p.q != 7;
  };
  for (index_t d = 0; d < 16; ++d) v.view()(0, 1, 40, d) = k.view()(0, 1, 40, d) = NAN;
  const auto shifted = [](float s, const heed::position& p) {
    return s + 0.01f * static_cast<float>((p.k - p.q) * (p.batch + 1) + p.head);
  };
  const float logit = 0.5f;
  heed::workspace memory;
  neighborhood::attention<2, TypeParam>(
      q.read(), k.read(), v.read(), out.view(), which, heed::softcap{5.f}, heed::mask{visible},
      heed::score{shifted}, heed::bias{bias.read()}, heed::sink{logit}, heed::scale{0.3},
      heed::scratch{memory},
      heed::lse_to{heed::tensor_view<float, 3>(lse.view().data(), {batches, heads, n})});
  tensor<double> wanted(batches, heads, n, 16);
  std::vector<double> wanted_lse;
  reference::options options;
  options.scale = 0.3;
  options.visible = visible;
  options.sinks.assign(heads, 0.5);
  options.lse = &wanted_lse;
  options.scores = {[](double s, const heed::position&) { return 5 * std::tanh(s / 5); },
                    [](double s, const heed::position& p) {
                      return s + 0.01 * static_cast<double>((p.k - p.q) * (p.batch + 1) + p.head);
                    },
                    [&](double s, const heed::position& p) {
                      return s + static_cast<double>(bias.read()(p.batch, p.head, p.q, p.k));
                    }};
  reference::neighborhood_attention(q.read(), k.read(), v.read(), wanted.view(),
                                    heed_test::axes_of(which), {}, options);
  EXPECT_LE(heed_test::worst_error<float>(out.read(), wanted.read()), 2e-5);
  for (std::size_t i = 0; i < wanted_lse.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(lse.read().data()[i]), wanted_lse[i], 2e-5) << i;
  }
}

// No threads, many threads: the same bits. A second call needs no memory.
TYPED_TEST(neighborhood_attention, executors) {
  const neighborhood::pattern<2> which{.grid = {28, 28}, .window = {7, 7}, .dilation = {2, 1}};
  const index_t n = which.tokens();
  tensor<float> q(1, 3, n, 24), alone(1, 3, n, 24), together(1, 3, n, 24);
  q.fill(1);
  heed::workspace memory;
  neighborhood::attention<2, TypeParam>(q.read(), q.read(), q.read(), alone.view(), which,
                                        heed::scratch{memory});
  const index_t held = memory.size();
  neighborhood::attention<2, TypeParam>(q.read(), q.read(), q.read(), alone.view(), which,
                                        heed::scratch{memory});
  EXPECT_EQ(memory.size(), held);
  heed::thread_pool pool(3);
  neighborhood::attention<2, TypeParam>(q.read(), q.read(), q.read(), together.view(), which,
                                        heed::on{pool});
  EXPECT_EQ(std::memcmp(alone.read().data(), together.read().data(),
                        sizeof(float) * static_cast<std::size_t>(3 * n * 24)),
            0);
}

// NATTEN 2-D through flex_attention, 8×16 tokens and a 7×7 window.
TYPED_TEST(neighborhood_attention, upstream_case) {
  const heed_test::vector_case c(std::filesystem::path(HEED_TEST_VECTORS) / "flex" /
                                 "natten2d_8x16_k7x7");
  const auto q = heed_test::input_as<float>(c, "Q"), k = heed_test::input_as<float>(c, "K"),
             v = heed_test::input_as<float>(c, "V");
  std::vector<float> out(q.size(), NAN), lse(256, NAN);
  using view = heed::tensor_view<const float, 4>;
  const std::array<index_t, 4> shape{1, 2, 128, 20};
  neighborhood::attention<2, TypeParam>(
      view(q.data(), shape), view(k.data(), shape), view(v.data(), shape),
      heed::tensor_view<float, 4>(out.data(), shape), {.grid = {8, 16}, .window = {7, 7}},
      heed::scale{c.meta.at("attrs").at("scale").template get<double>()},
      heed::lse_to{heed::tensor_view<float, 3>(lse.data(), {1, 2, 128})});
  EXPECT_LE(heed_test::relative_rms(out, c.output("O").template as<double>()), 1e-6);
  EXPECT_LE(heed_test::relative_rms(lse, c.output("lse").template as<double>()), 1e-6);
}

}  // namespace
