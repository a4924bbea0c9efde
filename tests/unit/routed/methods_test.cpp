// MoBA, NSA, Routing Transformer and BiFormer against the oracles of reference/routed.hpp, and what
// they refuse.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/reference/routed.hpp"
#include "heed/routed/biformer.hpp"
#include "heed/routed/moba.hpp"
#include "heed/routed/nsa.hpp"
#include "heed/routed/routing_transformer.hpp"
#include "support/backends.hpp"
#include "support/sparse_lists.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;
namespace routed = heed::routed;
namespace sparse = heed::sparse;

template <class Backend>
class routed_methods : public ::testing::Test {};
TYPED_TEST_SUITE(routed_methods, heed_test::method_backends, heed_test::backend_name);

template <class Got>
void expect_close(const Got& got, tensor<double>& wanted) {
  EXPECT_LE(heed_test::worst_error(got.read(), wanted.read(), 5e-6), 1e-5);
  EXPECT_EQ(got.overwritten_around(), 0);
}

TYPED_TEST(routed_methods, moba) {
  heed::thread_pool pool(2);
  for (const auto& [queries, keys, chunk, topk] :
       {std::array<index_t, 4>{150, 150, 16, 3}, {70, 133, 9, 4}, {1, 90, 8, 2}, {40, 40, 64, 2}}) {
    SCOPED_TRACE(queries);
    tensor<float> q(2, 4, queries, 24, layout::interleaved), k(2, 2, keys, 24, layout::by_token),
        v(2, 2, keys, 17, layout::padded), out(2, 4, queries, 17, layout::padded);
    q.fill(1), k.fill(2), v.fill(3);
    tensor<double> wanted(2, 4, queries, 17);
    std::vector<double> wanted_lse;
    reference::options how;
    how.lse = &wanted_lse;
    reference::moba(q.read(), k.read(), v.read(), wanted.view(), chunk, topk, how);
    std::vector<float> lse(wanted_lse.size(), NAN);
    routed::moba<TypeParam>(q.read(), k.read(), v.read(), out.view(), chunk, topk, heed::on{pool},
                            heed::lse_to{tensor_view<float, 3>(lse.data(), {2, 4, queries})});
    expect_close(out, wanted);
    for (std::size_t i = 0; i < lse.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(lse[i]), wanted_lse[i], 1e-5) << i;
    }
  }
}

TYPED_TEST(routed_methods, nsa) {
  const index_t length = 110, block = 8, count = 5;
  tensor<float> q(2, 4, length, 20, layout::by_token), k(2, 2, length, 20), v(2, 2, length, 12),
      gate(2, 4, length, 3), out(2, 4, length, 12, layout::by_token);
  q.fill(1), k.fill(2), v.fill(3), gate.fill(4);
  const sparse::table keys = sparse::pooled_means(k.read(), block);
  const sparse::table values = sparse::pooled_means(v.read(), block);
  std::vector<float> gates[3];
  for (index_t branch = 0; branch < 3; ++branch) {
    for (index_t r = 0; r < 2 * 4 * length; ++r) {
      gates[branch].push_back(gate.read().data()[r * 3 + branch]);
    }
  }
  const auto view = [&](int branch) {
    return tensor_view<const float, 3>(gates[branch].data(), {2, 4, length});
  };
  routed::nsa_options how;
  how.block = block, how.count = count, how.window = 13;
  routed::nsa<TypeParam>(q.read(), k.read(), v.read(), keys.view(), values.view(),
                         routed::nsa_gates<float>{view(0), view(1), view(2)}, how, out.view());
  tensor<double> wanted(2, 4, length, 12);
  reference::nsa(
      q.read(), k.read(), v.read(), keys.view(), values.view(),
      [&](int branch, index_t b, index_t h, index_t i) {
        return static_cast<double>(view(branch)(b, h, i));
      },
      block, count, 13, wanted.view());
  expect_close(out, wanted);
}

// Without channels all scores are equal, whatever the scale: of equal blocks the first ones.
TEST(routed_methods, nsa_selects_without_channels) {
  const tensor<float> q(1, 2, 48, 0), k(1, 1, 6, 0);
  routed::nsa_options how;
  how.block = 8, how.count = 4;
  const sparse::block_list list = routed::nsa_list(q.read(), k.read(), how);
  const auto row = list.view().row(0, 0, 42);
  EXPECT_EQ(std::vector<index_t>(row.begin(), row.end()), (std::vector<index_t>{0, 1, 4, 5}));
}

TYPED_TEST(routed_methods, routing_transformer) {
  for (const bool causal : {false, true}) {
    tensor<float> q(2, 3, 50, 16, layout::by_token), k(2, 3, 70, 16, layout::padded),
        v(2, 3, 70, 11, layout::interleaved), means(1, 3, 5, 16), out(2, 3, 50, 11, layout::padded);
    q.fill(1), k.fill(2), v.fill(3), means.fill(4);
    const float nothing = 0;
    const tensor_view<const float, 4> no_keys(&nothing, {3, 5, 0, 16}),
        no_values(&nothing, {3, 5, 0, 11});
    const tensor_view<const float, 3> of_head(means.read().data(), {3, 5, 16});
    routed::cluster_options how{12, 20, causal};
    routed::routing_transformer<TypeParam>(q.read(), k.read(), v.read(), of_head, no_keys,
                                           no_values, how, out.view());
    tensor<double> wanted(2, 3, 50, 11);
    reference::routing_transformer(q.read(), k.read(), v.read(), means.read(), 12, 20, causal,
                                   wanted.view());
    expect_close(out, wanted);
  }
}

// Memories of clusters are read in whatever order heads and clusters lie.
TYPED_TEST(routed_methods, memories_of_clusters_have_any_strides) {
  tensor<float> q(2, 3, 50, 16), v(2, 3, 50, 11), means(1, 3, 5, 16);
  q.fill(1), v.fill(2), means.fill(3);
  const tensor_view<const float, 3> of_head(means.read().data(), {3, 5, 16});
  const auto run = [&](layout how) {
    tensor<float> k(3, 5, 6, 16, how), values(3, 5, 6, 11, how), out(2, 3, 50, 11);
    k.fill(4), values.fill(5);
    routed::routing_transformer<TypeParam>(q.read(), q.read(), v.read(), of_head, k.read(),
                                           values.read(), {12, 20, true}, out.view());
    return std::vector<float>(out.read().data(), out.read().data() + 2 * 3 * 50 * 11);
  };
  const std::vector<float> wanted = run(layout::dense);
  EXPECT_EQ(run(layout::by_token), wanted);
  EXPECT_EQ(run(layout::padded), wanted);
}

TYPED_TEST(routed_methods, biformer) {
  for (const auto& [height, width, windows, topk] :
       {std::array<index_t, 4>{12, 8, 4, 3}, {9, 15, 3, 1}, {4, 4, 2, 4}, {5, 5, 1, 1}}) {
    const index_t length = height * width;
    tensor<float> q(2, 3, length, 10, layout::by_token), k(2, 3, length, 10, layout::interleaved),
        v(2, 3, length, 7, layout::padded), out(2, 3, length, 7, layout::by_token);
    q.fill(1), k.fill(2), v.fill(3);
    routed::region_options how;
    how.height = height, how.width = width, how.windows = windows, how.topk = topk;
    routed::biformer<TypeParam>(q.read(), k.read(), v.read(), how, out.view());
    tensor<double> wanted(2, 3, length, 7);
    reference::biformer(q.read(), k.read(), v.read(), height, width, windows, topk, wanted.view());
    expect_close(out, wanted);
  }
}

// The message of a call on `out`, which must keep its poison.
template <class Call>
std::string error_of(tensor<float>& out, const Call& call) {
  const std::string text = heed_test::error_of(call);
  out.for_each([](float& x) { EXPECT_TRUE(heed_test::is_nan(static_cast<double>(x))); });
  return text;
}

TEST(routed_errors, are_clear_and_come_first) {
  tensor<float> q(1, 4, 16, 8), k(1, 2, 16, 8), odd(1, 3, 16, 8), longer(1, 2, 20, 8),
      out(1, 4, 16, 8);
  q.fill(1), k.fill(2), odd.fill(3), longer.fill(4);
  const auto with = [&](const auto& call) { return error_of(out, call); };
  const auto moba = [&](const tensor<float>& keys, index_t chunk, index_t topk) {
    return with([&] { routed::moba(q.read(), keys.read(), keys.read(), out.view(), chunk, topk); });
  };
  EXPECT_EQ(moba(k, 4, 0), "top_k: count 0 is not positive");
  EXPECT_EQ(moba(k, 0, 2), "block: 0 is not positive");
  EXPECT_EQ(moba(odd, 4, 2), "k: head count 3 does not divide query head count 4");

  std::vector<float> numbers(64, 1.0f);
  const tensor_view<const float, 3> gate(numbers.data(), {1, 4, 16}),
      short_gate(numbers.data(), {1, 4, 15});
  const sparse::table pooled = sparse::pooled_means(k.read(), 4);
  const auto nsa = [&](const tensor<float>& keys, const routed::nsa_options& how,
                       const tensor_view<const float, 3>& g) {
    return with([&] {
      routed::nsa(q.read(), keys.read(), keys.read(), pooled.view(), pooled.view(),
                  routed::nsa_gates<float>{gate, gate, g}, how, out.view());
    });
  };
  EXPECT_EQ(nsa(k, {4, 2, 4, 0}, gate),
            "nsa: count 2, must be 3 at least: the first block, the own and the one before it are "
            "always selected");
  EXPECT_EQ(nsa(k, {4, 3, 4, 0}, {nullptr, {1, 4, 16}}),
            "gates: data is null, extents are [1, 4, 16]");
  EXPECT_EQ(nsa(k, {0, 2, 4, 0}, gate), "block_k: 0 is not positive");
  EXPECT_EQ(nsa(k, {4, 2, 0, 0}, gate), "nsa: window 0 is not positive");
  EXPECT_EQ(nsa(k, {8, 2, 4, 0}, gate), "k_cmp: length 4 differs from the number of blocks, 2");
  EXPECT_EQ(nsa(k, {4, 2, 4, 0}, short_gate), "gates: [1, 4, 15] differs from q's [1, 4, 16]");
  EXPECT_EQ(nsa(longer, {4, 2, 4, 0}, gate), "q: length 16 differs from k's 20");

  const tensor_view<const float, 3> means(numbers.data(), {4, 2, 8}),
      thin(numbers.data(), {4, 2, 7});
  const tensor_view<const float, 4> memory(numbers.data(), {4, 2, 0, 8});
  const auto cluster = [&](const tensor<float>& keys, const tensor_view<const float, 3>& m,
                           const routed::cluster_options& how) {
    return with([&] {
      routed::routing_transformer(q.read(), keys.read(), keys.read(), m, memory, memory, how,
                                  out.view());
    });
  };
  EXPECT_EQ(cluster(k, means, {4, 4, false}), "k: head count 2, must be 4");
  EXPECT_EQ(cluster(q, thin, {4, 4, false}), "means: depth 7, must be 8");
  EXPECT_EQ(cluster(q, means, {0, 4, false}), "top_k: count 0 is not positive");
  EXPECT_EQ(cluster(q, means, {17, 4, false}), "clusters: take 17 of 16 tokens");

  const auto regions = [&](const routed::region_options& how) {
    return with([&] { routed::biformer(q.read(), q.read(), q.read(), how, out.view()); });
  };
  EXPECT_EQ(regions({4, 4, 3, 1, 0}), "regions: 3 windows do not divide an image of 4 by 4");
  EXPECT_EQ(regions({4, 8, 2, 1, 0}), "q: length 16 differs from the image's 32");
  EXPECT_EQ(regions({4, 4, 2, 5, 0}), "regions: topk 5 is more than the 4 regions");
  EXPECT_EQ(regions({4, 4, 2, 0, 0}), "top_k: count 0 is not positive");
  const tensor_view<const float, 3> even(numbers.data(), {32, 2, 1});
  const tensor_view<const float, 1> bias(numbers.data(), {32});
  EXPECT_EQ(with([&] { routed::add_depthwise(q.read(), even, bias, 4, 4, out.view()); }),
            "weight: [32, 2, 1] with 32 biases, must be one odd square and one bias for each of 32 "
            "channels");
  const tensor_view<const float, 3> one(numbers.data(), {32, 1, 1});
  const auto convolve = [&](const tensor_view<const float, 4>& x, index_t height, index_t width) {
    return with([&] { routed::add_depthwise(x, one, bias, height, width, out.view()); });
  };
  EXPECT_EQ(convolve(q.read(), -4, -4), "x: length 16 differs from an image of -4 by -4");
  EXPECT_EQ(convolve(out.read(), 4, 4), "out: overlaps x, in the row at its byte 0");
  EXPECT_EQ(convolve({nullptr, {1, 4, 16, 8}}, 4, 4), "x: data is null, extents are [1, 4, 16, 8]");

  // What routing reads before it calls attention.
  const tensor_view<const float, 4> nothing(nullptr, {1, 4, 16, 8});
  const std::string null = "data is null, extents are [1, 4, 16, 8]";
  EXPECT_EQ(with([&] { routed::moba(nothing, q.read(), q.read(), out.view(), 4, 2); }),
            "q: " + null);
  EXPECT_EQ(with([&] { routed::moba(q.read(), nothing, q.read(), out.view(), 4, 2); }),
            "k: " + null);
  EXPECT_EQ(with([&] {
              routed::biformer(q.read(), nothing, q.read(), {4, 4, 2, 1, 0}, out.view());
            }),
            "k: " + null);
  EXPECT_EQ(with([&] {
              routed::routing_transformer(nothing, q.read(), q.read(), means, memory, memory,
                                          {4, 4, false}, out.view());
            }),
            "q: " + null);
}

// No heads: nothing to route, nothing to write, no error.
TEST(routed_methods, of_no_heads_do_nothing) {
  const tensor_view<const float, 4> none(nullptr, {1, 0, 16, 8}), blocks(nullptr, {1, 0, 4, 8});
  const tensor_view<float, 4> out(nullptr, {1, 0, 16, 8});
  const tensor_view<const float, 3> gate(nullptr, {1, 0, 16}), means(nullptr, {0, 2, 8});
  const tensor_view<const float, 4> memory(nullptr, {0, 2, 0, 8});
  EXPECT_NO_THROW(routed::moba(none, none, none, out, 4, 2));
  EXPECT_NO_THROW(routed::nsa(none, none, none, blocks, blocks,
                              routed::nsa_gates<float>{gate, gate, gate}, {4, 3, 4, 0}, out));
  EXPECT_NO_THROW(
      routed::routing_transformer(none, none, none, means, memory, memory, {4, 4, false}, out));
  EXPECT_NO_THROW(routed::biformer(none, none, none, {4, 4, 2, 1, 0}, out));
}

}  // namespace
