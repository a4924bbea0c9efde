// Low-rank attention against cases that other projects' code produced (tests/vectors: lowrank, and
// Nyströmformer of hf).
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "heed/lowrank/agent.hpp"
#include "heed/lowrank/agent_bias.hpp"
#include "heed/lowrank/linformer.hpp"
#include "heed/lowrank/nystrom.hpp"
#include "support/backends.hpp"
#include "unit/lowrank/support.hpp"

namespace {

using heed::index_t;
using heed_test::vector_case;
using lowrank_test::array;
using lowrank_test::heads_of;
using lowrank_test::linear;
using lowrank_test::relative_rms;
namespace lowrank = heed::lowrank;

constexpr double tolerance = 1e-5;  // relative RMS of float

vector_case open_case(const std::string& name) {
  return vector_case(std::filesystem::path(HEED_TEST_VECTORS) / name);
}

// A module's output [B, L, C] from out [B, L, C] by its last layer, against the case.
void expect_module(const vector_case& c, const std::vector<float>& out, const char* layer) {
  const std::string name = std::string("w_") + layer;
  const std::vector<float> got =
      linear(out, array<float>(c.input(name + "_weight")), c.input(name + "_bias").as<float>());
  const std::vector<double> wanted = c.output("o").as<double>();
  const heed::tensor_view<const float, 4> view(got.data(),
                                               {1, 1, 1, static_cast<index_t>(got.size())});
  EXPECT_LE(relative_rms(view, wanted), tolerance);
}

template <class Backend>
class lowrank_cases : public ::testing::Test {};
TYPED_TEST_SUITE(lowrank_cases, heed_test::method_backends, heed_test::backend_name);

TEST(lowrank_case_list, is_complete) {
  std::set<std::string> names;
  for (const auto& folder : heed_test::list_cases("lowrank")) names.insert(folder.filename());
  EXPECT_EQ(names, (std::set<std::string>{"agent_attention_official", "linformer_share_onekv_n50",
                                          "linformer_std_n64", "nystrom_lucidrains_n64",
                                          "nystrom_official", "nystrom_pinv_iter"}));
}

TYPED_TEST(lowrank_cases, pseudo_inverse) {
  const vector_case c = open_case("lowrank/nystrom_pinv_iter");
  const array<float> x(c.input("x"));
  for (int iterations : {6, 20}) {
    std::vector<float> z(x.numbers.size(), NAN);
    const heed::tensor_view<float, 4> out(z.data(), x.template view<4>().extents());
    lowrank::pseudo_inverse<TypeParam>(x.template view<4>(), out,
                                       {iterations, lowrank::inverse_start::whole_tensor});
    const auto wanted = c.output(iterations == 6 ? "z6" : "z20").template as<double>();
    EXPECT_LE(relative_rms(out, wanted), 1e-4) << iterations;
    // Converged, it is the inverse, whatever the start.
    std::vector<double> in(x.numbers.begin(), x.numbers.end()), exact(in.size());
    const heed::tensor_view<double, 4> inverse(exact.data(), out.extents());
    lowrank::pseudo_inverse<TypeParam>(heed::tensor_view<const double, 4>(in.data(), out.extents()),
                                       inverse, {60, lowrank::inverse_start::each_matrix});
    EXPECT_LE(relative_rms(inverse, c.output("pinv").template as<double>()), 1e-9);
  }
}

TYPED_TEST(lowrank_cases, nystrom_official) {
  const vector_case c = open_case("lowrank/nystrom_official");
  const array<float> q(c.input("q")), k(c.input("k")), v(c.input("v"));
  const lowrank::landmarks how{8, {6, lowrank::inverse_start::whole_tensor}};
  std::vector<float> out_data(c.output("o").template as<double>().size(), NAN);
  const heed::tensor_view<float, 4> out(out_data.data(), v.template view<4>().extents());
  lowrank::nystrom<TypeParam>(q.template view<4>(), k.template view<4>(), v.template view<4>(), out,
                              how);
  EXPECT_LE(relative_rms(out, c.output("o").template as<double>()), tolerance);

  // Upstream multiplies q and k by the mask, so that rows behind a sequence are rows of zeros.
  const std::vector<float> mask = c.input("mask2").template as<float>();
  std::vector<index_t> lengths(2, 0);
  for (std::size_t i = 0; i < mask.size(); ++i) lengths[i / 64] += mask[i] != 0;
  EXPECT_EQ(lengths, (std::vector<index_t>{64, 50}));
  std::vector<double> wanted = c.output("o_mask2").template as<double>();
  array<float> masked_q = q;
  for (index_t h = 0; h < 3; ++h) {
    for (index_t i = lengths[1]; i < 64; ++i) {
      for (index_t d = 0; d < 16; ++d) {
        masked_q.numbers[static_cast<std::size_t>(((3 + h) * 64 + i) * 16 + d)] = 0;
      }
    }
  }
  lowrank::nystrom<TypeParam>(masked_q.template view<4>(), k.template view<4>(),
                              v.template view<4>(), out, how, heed::key_lengths{lengths});
  EXPECT_LE(relative_rms(out, wanted), tolerance);
  // And with lengths of queries the rows behind them are 0.
  lowrank::nystrom<TypeParam>(q.template view<4>(), k.template view<4>(), v.template view<4>(), out,
                              how, heed::key_lengths{lengths}, heed::query_lengths{lengths});
  for (index_t h = 0; h < 3; ++h) {
    for (index_t at = ((3 + h) * 64 + lengths[1]) * 20; at < (4 + h) * 64 * 20; ++at) {
      wanted[static_cast<std::size_t>(at)] = 0;
    }
  }
  EXPECT_LE(relative_rms(out, wanted), tolerance);
}

TYPED_TEST(lowrank_cases, nystrom_transformers) {
  const vector_case c = open_case("hf/nystromformer");
  const array<float> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
  std::vector<float> out_data(v.numbers.size(), NAN);
  const heed::tensor_view<float, 4> out(out_data.data(), v.template view<4>().extents());
  lowrank::nystrom<TypeParam>(q.template view<4>(), k.template view<4>(), v.template view<4>(), out,
                              lowrank::landmarks{8, {6, lowrank::inverse_start::whole_tensor}});
  EXPECT_LE(relative_rms(out, c.output("O").template as<double>()), tolerance);
}

TYPED_TEST(lowrank_cases, nystrom_module_with_convolution) {
  const vector_case c = open_case("lowrank/nystrom_lucidrains_n64");
  const std::vector<float> qkv =
      linear(c.input("x").template as<float>(), array<float>(c.input("w_to_qkv_weight")));
  const array<float> filter(c.input("w_res_conv_weight"));
  std::vector<float> out(2 * 64 * 24, NAN);
  lowrank::nystrom<TypeParam>(
      heads_of(qkv.data(), 2, 64, 72, 0, 3, 8), heads_of(qkv.data(), 2, 64, 72, 24, 3, 8),
      heads_of(qkv.data(), 2, 64, 72, 48, 3, 8), heads_of(out.data(), 2, 64, 24, 0, 3, 8),
      lowrank::landmarks{16, {6, lowrank::inverse_start::whole_tensor}},
      lowrank::depthwise{filter.template view<4>()});
  expect_module(c, out, "to_out_0");
}

TYPED_TEST(lowrank_cases, linformer_modules) {
  {
    const vector_case c = open_case("lowrank/linformer_std_n64");
    const auto x = c.input("x").template as<float>();
    const auto q = linear(x, array<float>(c.input("w_to_q_weight")));
    const auto k = linear(x, array<float>(c.input("w_to_k_weight")));
    const auto v = linear(x, array<float>(c.input("w_to_v_weight")));
    const array<float> e(c.input("w_proj_k")), f(c.input("w_proj_v"));
    std::vector<float> out(2 * 64 * 24, NAN);
    lowrank::linformer<TypeParam>(heads_of(q.data(), 2, 64, 24, 0, 3, 8),
                                  heads_of(k.data(), 2, 64, 24, 0, 3, 8),
                                  heads_of(v.data(), 2, 64, 24, 0, 3, 8), e.template view<2>(),
                                  f.template view<2>(), heads_of(out.data(), 2, 64, 24, 0, 3, 8));
    expect_module(c, out, "to_out");
  }
  {  // One KV head, values that are keys, one projection of 64 rows for 50 tokens.
    const vector_case c = open_case("lowrank/linformer_share_onekv_n50");
    const auto x = c.input("x").template as<float>();
    const auto q = linear(x, array<float>(c.input("w_to_q_weight")));
    const auto k = linear(x, array<float>(c.input("w_to_k_weight")));
    const array<float> e(c.input("w_proj_k"));
    std::vector<float> out(2 * 50 * 24, NAN);
    const auto keys = heads_of(k.data(), 2, 50, 8, 0, 1, 8);
    lowrank::linformer<TypeParam>(heads_of(q.data(), 2, 50, 24, 0, 3, 8), keys, keys,
                                  e.template view<2>(), e.template view<2>(),
                                  heads_of(out.data(), 2, 50, 24, 0, 3, 8));
    expect_module(c, out, "to_out");
  }
}

TYPED_TEST(lowrank_cases, agent_module) {
  const vector_case c = open_case("lowrank/agent_attention_official");
  const lowrank::grid tokens{8, 8}, agents{3, 3};
  const auto qkv = linear(c.input("x").template as<float>(), array<float>(c.input("w_qkv_weight")),
                          c.input("w_qkv_bias").template as<float>());
  std::vector<float> gather_data(3 * 9 * 64, NAN), spread_data(3 * 64 * 9, NAN);
  const heed::tensor_view<float, 3> gather(gather_data.data(), {3, 9, 64});
  const heed::tensor_view<float, 3> spread(spread_data.data(), {3, 64, 9});
  const array<float> an(c.input("w_an_bias")), ah(c.input("w_ah_bias")), aw(c.input("w_aw_bias"));
  const array<float> na(c.input("w_na_bias")), ha(c.input("w_ha_bias")), wa(c.input("w_wa_bias"));
  using table = heed::tensor_view<const float, 3>;
  lowrank::make_gather_bias(an.template view<4>(), table(ah.numbers.data(), {3, 9, 8}),
                            table(aw.numbers.data(), {3, 9, 8}), tokens, gather);
  lowrank::make_spread_bias(na.template view<4>(), table(ha.numbers.data(), {3, 8, 9}),
                            table(wa.numbers.data(), {3, 8, 9}), tokens, spread);
  const array<float> taps(c.input("w_dwc_weight")), bias(c.input("w_dwc_bias"));
  std::vector<float> out(2 * 64 * 24, NAN);
  lowrank::agent<TypeParam>(
      heads_of(qkv.data(), 2, 64, 72, 0, 3, 8), heads_of(qkv.data(), 2, 64, 72, 24, 3, 8),
      heads_of(qkv.data(), 2, 64, 72, 48, 3, 8), heads_of(out.data(), 2, 64, 24, 0, 3, 8),
      lowrank::pooled_agents{tokens, agents}, lowrank::gather_bias{gather},
      lowrank::spread_bias{spread},
      lowrank::depthwise{heed::tensor_view<const float, 4>(taps.numbers.data(), {3, 8, 3, 3}),
                         tokens, heed::tensor_view<const float, 2>(bias.numbers.data(), {3, 8})});
  expect_module(c, out, "proj");
}

}  // namespace
