// Routed methods against cases that other projects' code produced (tests/vectors: block_routed,
// sparse).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "heed/routed/biformer.hpp"
#include "heed/routed/moba.hpp"
#include "heed/routed/nsa.hpp"
#include "heed/routed/routing_transformer.hpp"
#include "support/backends.hpp"
#include "support/case_array.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::case_array;
using heed_test::relative_error;
using heed_test::vector_case;
namespace routed = heed::routed;
namespace sparse = heed::sparse;

constexpr double bound = 1e-5;

vector_case open(const std::string& path) {
  return vector_case(std::filesystem::path(HEED_TEST_VECTORS) / path);
}
// [B, L, H, D] seen as [B, H, L, D].
template <class T>
tensor_view<const T, 4> by_token(const case_array<T>& x) {
  return x.view().permuted({0, 2, 1, 3});
}

template <class Backend>
class routed_cases : public ::testing::Test {};
TYPED_TEST_SUITE(routed_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(routed_cases, moba) {
  for (const char* name : {"moba_single", "moba_chunk_gt_len"}) {
    const vector_case c = open(std::string("block_routed/") + name);
    SCOPED_TRACE(name);
    const case_array<float> q(c.input("q")), k(c.input("k")), v(c.input("v"));
    const case_array<double> wanted(c.output("o"));
    const std::vector<std::int64_t> borders = c.input("cu_seqlens").template as<std::int64_t>();
    std::vector<float> numbers(wanted.numbers.size(), NAN);
    // [S, H, D], one sequence behind the other.
    const auto part = [&](auto* data, std::size_t s) {
      const index_t heads = q.extent(1), depth = q.extent(2);
      return tensor_view<std::remove_pointer_t<decltype(data)>, 4>(
          data + borders[s] * heads * depth, {1, heads, borders[s + 1] - borders[s], depth},
          {0, depth, heads * depth, 1});
    };
    for (std::size_t s = 0; s + 1 < borders.size(); ++s) {
      routed::moba<TypeParam>(part(q.numbers.data(), s), part(k.numbers.data(), s),
                              part(v.numbers.data(), s), part(numbers.data(), s),
                              c.meta.at("attrs").at("chunk").template get<index_t>(),
                              c.meta.at("attrs").at("topk").template get<index_t>());
      EXPECT_LE(relative_error(part(numbers.data(), s), part(wanted.numbers.data(), s)), bound);
    }
  }
}

TYPED_TEST(routed_cases, nsa) {
  const vector_case c = open("block_routed/nsa_T96_b16_s3");
  const auto& a = c.meta.at("attrs");
  const case_array<float> q(c.input("q")), k(c.input("k")), v(c.input("v"));
  const case_array<double> k_cmp(c.output("k_cmp")), v_cmp(c.output("v_cmp"));
  const case_array<double> o_cmp(c.output("o_cmp")), o_slc(c.output("o_slc"));
  const case_array<std::int64_t> wanted(c.output("block_indices"));
  routed::nsa_options how;
  how.block = a.at("block_size");
  how.count = a.at("S");
  how.window = 20;
  how.scale = a.at("scale");
  const index_t length = q.extent(1), heads = q.extent(2);
  const sparse::table keys = sparse::pooled_means(by_token(k), how.block);
  const sparse::table values = sparse::pooled_means(by_token(v), how.block);
  EXPECT_LE(relative_error(keys.view(), by_token(k_cmp)), bound);
  EXPECT_LE(relative_error(values.view(), by_token(v_cmp)), bound);

  const auto list = routed::nsa_list(by_token(q), keys.view(), how);
  for (index_t h = 0; h < k.extent(2); ++h) {
    for (index_t i = 0; i < length; ++i) {
      std::vector<index_t> blocks;
      for (index_t n = 0; n < how.count; ++n) {
        if (wanted.view()(0, i, h, n) >= 0) blocks.push_back(wanted.view()(0, i, h, n));
      }
      std::sort(blocks.begin(), blocks.end());
      const auto row = list.view().row(0, h, i);
      EXPECT_EQ(std::vector<index_t>(row.begin(), row.end()), blocks) << h << " " << i;
    }
  }
  // Each branch alone, by gates of 1 and 0, then all of them.
  const std::vector<float> ones(static_cast<std::size_t>(heads * length), 1.0f),
      zeros(ones.size(), 0.0f);
  const auto gate = [&](const std::vector<float>& x) {
    return tensor_view<const float, 3>(x.data(), {1, heads, length});
  };
  std::vector<float> numbers(o_cmp.numbers.size(), NAN);
  const tensor_view<float, 4> out(numbers.data(), {1, heads, length, v.extent(3)});
  const auto run = [&](const auto& x, const auto& y, const auto& z) {
    routed::nsa<TypeParam>(by_token(q), by_token(k), by_token(v), keys.view(), values.view(),
                           routed::nsa_gates<float>{gate(x), gate(y), gate(z)}, how, out);
  };
  run(ones, zeros, zeros);
  EXPECT_LE(relative_error(out, by_token(o_cmp)), bound);
  run(zeros, ones, zeros);
  EXPECT_LE(relative_error(out, by_token(o_slc)), bound);
  std::vector<double> sum(numbers.begin(), numbers.end());
  run(ones, zeros, zeros);
  for (std::size_t i = 0; i < sum.size(); ++i)
    sum[i] = 0.5 * sum[i] + 2.0 * static_cast<double>(numbers[i]);
  run(zeros, zeros, ones);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] -= static_cast<double>(numbers[i]);
  run(std::vector<float>(ones.size(), 2.0f), std::vector<float>(ones.size(), 0.5f),
      std::vector<float>(ones.size(), -1.0f));
  EXPECT_LE(relative_error(out, tensor_view<const double, 4>(sum.data(), out.extents())), bound);
}

TYPED_TEST(routed_cases, routing_transformer) {
  for (const char* name : {"routing_kmeans_noncausal", "routing_kmeans_causal"}) {
    const vector_case c = open(std::string("sparse/") + name);
    SCOPED_TRACE(name);
    const auto& a = c.meta.at("attrs");
    const case_array<float> q(c.input("q")), k(c.input("k")), v(c.input("v"));
    const case_array<float> means(c.input("means"));
    const case_array<float> memory_k(c.input("mem_key")), memory_v(c.input("mem_value"));
    const case_array<double> wanted(c.output("o"));
    routed::cluster_options how;
    how.queries = how.keys = a.at("window_size");
    how.causal = a.at("causal");
    std::vector<float> numbers(wanted.numbers.size(), NAN);
    const tensor_view<float, 4> out(numbers.data(), wanted.view().extents());
    routed::routing_transformer<TypeParam>(q.view(), k.view(), v.view(), means.view<3>(),
                                           memory_k.view(), memory_v.view(), how, out);
    EXPECT_LE(relative_error(out, wanted.view()), bound);
  }
}

// x·wᵀ + b for x [rows, n].
std::vector<float> linear(const std::vector<float>& x, const case_array<float>& weight,
                          const case_array<float>& bias) {
  const auto n = static_cast<std::size_t>(weight.extent(1)), m = bias.numbers.size();
  std::vector<float> result;
  for (std::size_t row = 0; row < x.size() / n; ++row) {
    for (std::size_t j = 0; j < m; ++j) {
      double sum = static_cast<double>(bias.numbers[j]);
      for (std::size_t i = 0; i < n; ++i) {
        sum += static_cast<double>(x[row * n + i]) * static_cast<double>(weight.numbers[j * n + i]);
      }
      result.push_back(static_cast<float>(sum));
    }
  }
  return result;
}

TYPED_TEST(routed_cases, biformer) {
  for (const char* name : {"biformer_bra_7x7w_top4", "biformer_bra_rect_top1"}) {
    const vector_case c = open(std::string("block_routed/") + name);
    SCOPED_TRACE(name);
    const auto& a = c.meta.at("attrs");
    const case_array<float> x(c.input("x"));
    const index_t batches = x.extent(0), channels = x.extent(3);
    routed::region_options how;
    how.height = x.extent(1);
    how.width = x.extent(2);
    how.windows = a.at("n_win");
    how.topk = a.at("topk");
    const index_t heads = a.at("num_heads"), length = how.height * how.width;
    const index_t depth = channels / heads;
    const std::vector<float> qkv = linear(x.numbers, case_array<float>(c.input("w_qkv_qkv_weight")),
                                          case_array<float>(c.input("w_qkv_qkv_bias")));
    const auto operand = [&](index_t which) {
      return tensor_view<const float, 4>(qkv.data() + which * channels,
                                         {batches, heads, length, depth},
                                         {length * 3 * channels, depth, 3 * channels, 1});
    };
    const auto routes = routed::region_routes(operand(0), operand(1), how);
    EXPECT_EQ(routes, c.output("r_idx").template as<std::int64_t>());
    std::vector<float> numbers(x.numbers.size(), NAN);
    const tensor_view<float, 4> out(numbers.data(), {batches, heads, length, depth},
                                    {length * channels, depth, channels, 1});
    routed::biformer<TypeParam>(operand(0), operand(1), operand(2), how, out);
    const case_array<float> weight(c.input("w_lepe_weight")), bias(c.input("w_lepe_bias"));
    routed::add_depthwise(operand(2),
                          tensor_view<const float, 3>(weight.numbers.data(), {channels, 3, 3}),
                          bias.template view<1>(), how.height, how.width, out);
    const std::vector<float> projected = linear(numbers, case_array<float>(c.input("w_wo_weight")),
                                                case_array<float>(c.input("w_wo_bias")));
    const case_array<double> wanted(c.output("o"));
    EXPECT_LE(relative_error(tensor_view<const float, 4>(
                                 projected.data(), {batches, how.height, how.width, channels}),
                             wanted.view()),
              bound);
  }
}

}  // namespace
