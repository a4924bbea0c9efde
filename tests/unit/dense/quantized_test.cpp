// Keys and values as integer codes with scales: the same attention as over what the codes stand
// for, for every grouping of scales, prefill and decode, and beside keys of other types.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>

#include "heed/core/quantize.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::int4_pair;
using heed::quantized_view;
using heed::scale_groups;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

// Codes and scales with a memory of their own.
template <class Code>
struct quantized_tensor {
  quantized_tensor(index_t batches, index_t heads, index_t length, index_t depth,
                   const scale_groups& groups, bool with_zeros, layout how, unsigned seed)
      : codes(batches, heads, length, depth / heed::codes_per_element<Code>, how),
        scales(batches, heads, count(length, groups.tokens), count(depth, groups.channels), how),
        zeros(batches, heads, count(length, groups.tokens), count(depth, groups.channels), how),
        groups_(groups),
        with_zeros_(with_zeros) {
    std::mt19937 generator(seed);
    codes.for_each([&](Code& code) {
      const auto bits = static_cast<std::uint8_t>(generator());
      if constexpr (std::is_same_v<Code, int4_pair>) {
        code = int4_pair{bits};
      } else {
        code = static_cast<Code>(bits);
      }
    });
    const float unit = std::is_same_v<Code, int4_pair> ? 0.1f : 0.01f;
    std::uniform_real_distribution<float> spread(0.5f, 2.0f);
    scales.for_each([&](float& scale) { scale = unit * spread(generator); });
    zeros.for_each([&](float& zero) { zero = 4 * (spread(generator) - 1); });
  }
  quantized_view<Code, 4> view() {
    return with_zeros_ ? quantized_view<Code, 4>(codes.view(), scales.view(), zeros.view(), groups_)
                       : quantized_view<Code, 4>(codes.view(), scales.view(), groups_);
  }

  tensor<Code> codes;
  tensor<float> scales, zeros;

 private:
  static index_t count(index_t extent, index_t group) {
    return extent == 0 ? 0 : (extent - 1) / group + 1;
  }
  scale_groups groups_;
  bool with_zeros_;
};

struct grouping {
  const char* name;
  scale_groups keys, values;
};
const grouping groupings[] = {
    {"per token", heed::per_token, heed::per_token},
    {"per channel", heed::per_channel, heed::per_channel},
    {"channel and 32 tokens, token", {32, 1}, heed::per_token},
    {"16 channels and 50 tokens", {50, 16}, {50, 16}},
    {"24 channels", {1, 24}, {1, 24}},
    {"3 tokens", {3, scale_groups::whole}, {3, 1}},
};

template <class Backend>
class quantized : public ::testing::Test {
 protected:
  template <class Code, class T>
  void check(index_t queries, index_t keys, index_t depth, index_t value_depth,
             const grouping& groups, bool zeros, layout how) {
    tensor<T> q(2, 4, queries, depth, how), out(2, 4, queries, value_depth, how);
    q.fill(1);
    quantized_tensor<Code> k(2, 2, keys, depth, groups.keys, zeros, how, 2);
    quantized_tensor<Code> v(2, 2, keys, value_depth, groups.values, zeros, how, 3);
    tensor<double> truth(2, 4, queries, value_depth), plain = truth;
    reference::options causal;
    causal.visible = [](const heed::position& p) { return heed::causal{}(p); };
    reference::attention(q.read(), k.view(), v.view(), truth.view(), causal);
    heed::attention<Backend>(q.read(), k.view(), v.view(), out.view(), heed::causal{});
    double tolerance = 1e-4;
    if (sizeof(T) == 2) {
      reference::plain<T>(q.read(), k.view(), v.view(), plain.view(), causal);
      tolerance += 2 * heed_test::worst_error(plain.read(), truth.read());
    }
    EXPECT_LE(heed_test::worst_error(out.read(), truth.read()), tolerance)
        << groups.name << ", " << queries << "x" << keys << ", depths " << depth << " and "
        << value_depth << ", zeros " << zeros << ", layout " << int(how);
    EXPECT_EQ(out.overwritten_around(), 0);
  }

  // All shapes, or one of `every`: the oracle takes its time.
  template <class Code, class T>
  void check_shapes(int every) {
    int turn = 0;
    for (const grouping& groups : groupings) {
      for (const auto& [queries, keys] : {std::pair<index_t, index_t>{1, 700},
                                          {2, 67},
                                          {1, 1},
                                          {3, 0},
                                          {5, 130},
                                          {9, 64},
                                          {70, 200}}) {
        for (const auto& [depth, value_depth] :
             {std::pair<index_t, index_t>{2, 2}, {40, 72}, {128, 128}, {300, 66}, {64, 256}}) {
          if (++turn % every != 0) continue;
          check<Code, T>(queries, keys, depth, value_depth, groups, turn % 2 == 0,
                         heed_test::layouts[static_cast<std::size_t>(turn % 4)]);
        }
      }
    }
  }
};
TYPED_TEST_SUITE(quantized, heed_test::all_backends, heed_test::backend_name);

TYPED_TEST(quantized, eight_bits) { this->template check_shapes<std::int8_t, float>(1); }
TYPED_TEST(quantized, four_bits) { this->template check_shapes<int4_pair, float>(1); }
TYPED_TEST(quantized, eight_bits_bfloat16) {
  this->template check_shapes<std::int8_t, Eigen::bfloat16>(5);
}
TYPED_TEST(quantized, four_bits_half) { this->template check_shapes<int4_pair, Eigen::half>(5); }
using quantized_natively = quantized<heed::backend::native>;
TEST_F(quantized_natively, eight_bits_double) {
  check<std::int8_t, double>(5, 130, 40, 72, groupings[2], true, layout::padded);
  check<std::int8_t, double>(1, 130, 40, 72, groupings[0], true, layout::padded);
}
TYPED_TEST(quantized, odd_depths) {
  for (const grouping& groups : groupings) {
    for (const index_t depth : {1, 59, 111, 577}) {
      for (const index_t queries : {1, 3, 40}) {
        this->template check<std::int8_t, float>(queries, 150, depth, depth, groups, true,
                                                 layout::padded);
      }
    }
  }
}

// Beside keys and values of other types under one softmax.
TYPED_TEST(quantized, beside_floats) {
  for (const index_t queries : {1, 40}) {
    tensor<float> q(1, 4, queries, 64), out(1, 4, queries, 64);
    tensor<Eigen::half> k(1, 2, 100, 64), v(1, 2, 100, 64);
    q.fill(1), k.fill(2), v.fill(3);
    quantized_tensor<std::int8_t> k8(1, 2, 90, 64, heed::per_token, false, layout::dense, 4);
    quantized_tensor<std::int8_t> v8(1, 2, 90, 64, heed::per_token, false, layout::dense, 5);
    quantized_tensor<int4_pair> k4(1, 2, 150, 64, heed::per_channel, true, layout::dense, 6);
    tensor<Eigen::half> v4(1, 2, 150, 64);
    v4.fill(7);
    tensor<double> truth(1, 4, queries, 64);
    reference::attention(q.read(),
                         {{k.read(), v.read()}, {k8.view(), v8.view()}, {k4.view(), v4.read()}},
                         truth.view());
    heed::attention<TypeParam>(
        q.read(),
        heed::sources{heed::source{k.read(), v.read()}, heed::source{k8.view(), v8.view()},
                      heed::source{k4.view(), v4.read()}},
        out.view());
    EXPECT_LE(heed_test::worst_error(out.read(), truth.read()), 1e-4);
  }
}

// Scales that do not suit integer products: negative, infinite behind a mask, and queries that have
// no reciprocal, are infinite, or zero.
TYPED_TEST(quantized, unusual_scales_and_queries) {
  for (const index_t queries : {1, 2, 40}) {
    for (const int unusual : {0, 1, 2, 3}) {
      tensor<float> q(1, 2, queries, 48), out(1, 2, queries, 48);
      q.fill(1);
      quantized_tensor<std::int8_t> k(1, 1, 200, 48, heed::per_token, true, layout::dense, 2);
      quantized_tensor<std::int8_t> v(1, 1, 200, 48, heed::per_token, true, layout::dense, 3);
      if (unusual == 0) v.scales.view()(0, 0, 150, 0) *= -1, k.scales.view()(0, 0, 20, 0) *= -1;
      if (unusual == 1) {
        v.scales.view()(0, 0, 199, 0) = std::numeric_limits<float>::infinity();
        k.scales.view()(0, 0, 199, 0) = std::numeric_limits<float>::quiet_NaN();
      }
      if (unusual == 2) q.for_each([](float& x) { x *= 1e-36f; });
      if (unusual == 3) q.for_each([](float& x) { x = 0; });
      reference::options how;
      how.key_lengths = {199};
      tensor<double> truth(1, 2, queries, 48);
      reference::attention(q.read(), k.view(), v.view(), truth.view(), how);
      const index_t lengths[] = {199};
      heed::attention<TypeParam>(q.read(), k.view(), v.view(), out.view(),
                                 heed::key_lengths{lengths});
      EXPECT_LE(heed_test::worst_error(out.read(), truth.read()), 1e-4)
          << queries << " queries, case " << unusual;
    }
  }
}

}  // namespace
