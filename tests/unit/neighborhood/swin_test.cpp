// Swin's windows, versions 1 and 2: upstream modules, the oracle, every backend, errors.
#include "heed/neighborhood/swin.hpp"

#include "heed/neighborhood/swin_v2.hpp"
#include "support/backends.hpp"
#include "unit/neighborhood/support.hpp"

namespace {

using heed::index_t;
using heed_test::heads_of;
using heed_test::input_as;
using heed_test::layout;
using heed_test::tensor;
using heed_test::vector_case;
namespace neighborhood = heed::neighborhood;
namespace reference = heed::reference;

std::filesystem::path case_folder(const char* path) {
  return std::filesystem::path(HEED_TEST_VECTORS) / path;
}

template <class Backend>
class swin : public ::testing::Test {};
TYPED_TEST_SUITE(swin, heed_test::method_backends, heed_test::backend_name);

// The module of Swin: projections by plain loops, attention by us, on an 8×12 image.
template <class Backend>
void check_module(const char* name) {
  const vector_case c(case_folder("neighborhood") / name);
  SCOPED_TRACE(c.name);
  const auto x = c.input("x");
  const index_t batches = x.shape[0], height = x.shape[1], width = x.shape[2], n = height * width;
  const index_t channels = x.shape[3], heads = c.meta.at("attrs").at("heads").get<index_t>();
  const index_t window = c.meta.at("attrs").at("window").get<index_t>(),
                shift = c.meta.at("attrs").at("shift").get<index_t>();
  const auto table = input_as<double>(c, "w_relative_position_bias_table");
  const auto columns = static_cast<std::size_t>(channels);
  const std::vector<double> qkv =
      heed_test::project(input_as<double>(c, "x"), input_as<double>(c, "w_qkv_weight"),
                         input_as<double>(c, "w_qkv_bias"), columns);
  std::vector<double> out(x.as<float>().size(), NAN);
  const auto part = [&](index_t first) {
    return heads_of<const double>(qkv.data(), batches, n, 3 * channels, first * channels, heads,
                                  channels / heads);
  };
  neighborhood::swin<2, Backend>(
      part(0), part(1), part(2),
      heads_of(out.data(), batches, n, channels, 0, heads, channels / heads),
      {.grid = {height, width},
       .window = {window, window},
       .shift = {shift, shift},
       .mask_value = c.meta.at("attrs").at("mask_value").get<double>()},
      heed::tensor_view<const double, 2>(table.data(),
                                         {(2 * window - 1) * (2 * window - 1), heads}));
  const std::vector<double> got = heed_test::project(out, input_as<double>(c, "w_proj_weight"),
                                                     input_as<double>(c, "w_proj_bias"), columns);
  EXPECT_LE(heed_test::relative_rms(got, c.output("o").as<double>()), 1e-7);
}

TYPED_TEST(swin, upstream_modules) {
  check_module<TypeParam>("swin_w4");
  check_module<TypeParam>("swin_sw4");
}

template <class Backend, class T>
void expect_equal(const neighborhood::windows<2>& which, index_t batches, index_t heads,
                  index_t key_heads, index_t depth, layout how, double tolerance) {
  const index_t n = which.grid[0] * which.grid[1];
  tensor<T> q(batches, heads, n, depth, how), k(batches, key_heads, n, depth, how),
      v(batches, key_heads, n, depth + 1, how), out(batches, heads, n, depth + 1, how);
  q.fill(1), k.fill(2), v.fill(3);
  const index_t entries = (2 * which.window[0] - 1) * (2 * which.window[1] - 1);
  tensor<float> table(1, 1, entries, heads), lse(1, batches, heads, n);
  table.fill(4);
  const heed::tensor_view<const float, 2> table_view(table.read().data(), {entries, heads});
  tensor<double> wanted(batches, heads, n, depth + 1);
  std::vector<double> bias(table.read().data(), table.read().data() + entries * heads), wanted_lse;
  reference::options options;
  options.lse = &wanted_lse;
  reference::window_attention(q.read(), k.read(), v.read(), wanted.view(),
                              {which.grid[0], which.grid[1], which.window[0], which.window[1],
                               which.shift[0], which.shift[1], which.mask_value},
                              bias, options);
  neighborhood::swin<2, Backend>(
      q.read(), k.read(), v.read(), out.view(), which, table_view,
      heed::lse_to{heed::tensor_view<float, 3>(lse.view().data(), {batches, heads, n})});
  for (std::size_t i = 0; i < wanted_lse.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(lse.read().data()[i]), wanted_lse[i],
                (heed_test::lse_tolerance<Backend, T, float>(wanted_lse[i])))
        << i;
  }
  EXPECT_LE(heed_test::worst_error<T>(out.read(), wanted.read(), tolerance), tolerance);
  EXPECT_EQ(out.overwritten_around(), 0);
}

TYPED_TEST(swin, against_the_oracle) {
  expect_equal<TypeParam, float>({.grid = {14, 21}, .window = {7, 7}}, 2, 4, 2, 32,
                                 layout::by_token, 1e-5);
  expect_equal<TypeParam, float>({.grid = {14, 21}, .window = {7, 7}, .shift = {3, 3}}, 2, 2, 2, 20,
                                 layout::padded, 1e-5);
  expect_equal<TypeParam, float>(
      {.grid = {6, 20}, .window = {6, 10}, .shift = {2, 0}, .mask_value = -1.5}, 1, 2, 1, 7,
      layout::interleaved, 1e-5);
}

// transformers' Swin v2, four windows of 5×7 tokens.
TYPED_TEST(swin, upstream_cosine_scores) {
  const vector_case c(case_folder("hf/swinv2_cosine_cpb"));
  const auto q = input_as<float>(c, "Q"), k = input_as<float>(c, "K"), v = input_as<float>(c, "V"),
             scale = input_as<float>(c, "logit_scale"), w1 = input_as<float>(c, "cpb_w1"),
             b1 = input_as<float>(c, "cpb_b1"), w2 = input_as<float>(c, "cpb_w2");
  std::vector<float> out(q.size(), NAN);
  using view = heed::tensor_view<const float, 4>;
  const std::array<index_t, 4> shape{4, 3, 35, 20};
  neighborhood::swin_v2<2, TypeParam>(
      view(q.data(), shape), view(k.data(), shape), view(v.data(), shape),
      heed::tensor_view<float, 4>(out.data(), shape), {.grid = {5, 7}, .window = {5, 7}},
      heed::tensor_view<const float, 1>(scale.data(), {3}),
      neighborhood::log_position_bias<2, float>{
          {w1.data(), {512, 2}}, {b1.data(), {512}}, {w2.data(), {3, 512}}});
  EXPECT_LE(heed_test::relative_rms(out, c.output("O").template as<double>()), 1e-5);
}

// timm's Swin v2 module on one window, with its projections.
TYPED_TEST(swin, upstream_cosine_module) {
  const vector_case c(case_folder("vision/swinv2_window_timm"));
  std::vector<double> bias = input_as<double>(c, "w_q_bias");
  for (const char* name : {"w_k_bias", "w_v_bias"}) {
    const auto more = input_as<double>(c, name);
    bias.insert(bias.end(), more.begin(), more.end());
  }
  const std::vector<double> qkv =
      heed_test::project(input_as<double>(c, "x"), input_as<double>(c, "w_qkv_weight"), bias, 48);
  const std::vector<float> rows(qkv.begin(), qkv.end());
  std::vector<float> out(2 * 35 * 48, NAN);
  const auto scale = input_as<float>(c, "w_logit_scale"),
             w1 = input_as<float>(c, "w_cpb_mlp_0_weight"),
             b1 = input_as<float>(c, "w_cpb_mlp_0_bias"),
             w2 = input_as<float>(c, "w_cpb_mlp_2_weight");
  const auto part = [&](index_t first) {
    return heads_of<const float>(rows.data(), 2, 35, 144, first * 48, 3, 16);
  };
  neighborhood::swin_v2<2, TypeParam>(
      part(0), part(1), part(2), heads_of(out.data(), 2, 35, 48, 0, 3, 16),
      {.grid = {5, 7}, .window = {5, 7}}, heed::tensor_view<const float, 1>(scale.data(), {3}),
      neighborhood::log_position_bias<2, float>{
          {w1.data(), {512, 2}}, {b1.data(), {512}}, {w2.data(), {3, 512}}});
  const auto got =
      heed_test::project({out.begin(), out.end()}, input_as<double>(c, "w_proj_weight"),
                         input_as<double>(c, "w_proj_bias"), 48);
  EXPECT_LE(heed_test::relative_rms(got, c.output("y").template as<double>()), 1e-5);
}

TEST(swin_errors, what_does_not_fit) {
  std::vector<float> numbers(4096, 0.5f), out(4096, 42.f);
  const heed::tensor_view<const float, 4> x(numbers.data(), {1, 2, 24, 4});
  const heed::tensor_view<float, 4> to(out.data(), {1, 2, 24, 4});
  const heed::tensor_view<const float, 2> table(numbers.data(), {9, 2});
  const auto expect = [&](const std::string& text, const neighborhood::windows<2>& which) {
    heed_test::expect_error(text, [&] { neighborhood::swin<2>(x, x, x, to, which, table); });
    for (float value : out) ASSERT_EQ(value, 42.f);
  };
  expect("windows: window 2 of axis 1 does not divide the grid extent 3",
         {.grid = {8, 3}, .window = {2, 2}});
  expect("windows: shift 2 of axis 0 must lie in [0, 2)",
         {.grid = {4, 6}, .window = {2, 2}, .shift = {2, 0}});
  expect("windows: shift -1 of axis 1 must lie in [0, 2)",
         {.grid = {4, 6}, .window = {2, 2}, .shift = {0, -1}});
  expect("windows: mask_value is not finite",
         {.grid = {4, 6}, .window = {2, 2}, .mask_value = -HUGE_VAL});
  expect("neighborhood: window 8 of axis 0 is over the grid extent 4",
         {.grid = {4, 6}, .window = {8, 2}});
  expect("q: length 24 differs from the grid's 16 tokens", {.grid = {4, 4}, .window = {2, 2}});
  expect("swin: table is [9, 2], must be [15, 2]", {.grid = {4, 6}, .window = {2, 3}});
  const auto with_network = [&](index_t heads, index_t hidden, index_t scales) {
    neighborhood::swin_v2<2>(
        x, x, x, to, {.grid = {4, 6}, .window = {2, 2}},
        heed::tensor_view<const float, 1>(numbers.data(), {scales}),
        neighborhood::log_position_bias<2, float>{
            {numbers.data(), {hidden, 2}}, {numbers.data(), {8}}, {numbers.data(), {heads, 8}}});
  };
  heed_test::expect_error("swin_v2: w1 is [7, 2] and w2 [2, 8], must be [8, 2] and [2, 8]",
                          [&] { with_network(2, 7, 2); });
  heed_test::expect_error("swin_v2: w1 is [8, 2] and w2 [3, 8], must be [8, 2] and [2, 8]",
                          [&] { with_network(3, 8, 2); });
  heed_test::expect_error("swin_v2: logit_scale has extent 1, call has 2 heads",
                          [&] { with_network(2, 8, 1); });
  for (float value : out) ASSERT_EQ(value, 42.f);
}

}  // namespace
