// quantize(): codes and scales are within half a step of what they stand for, for every grouping,
// layout and element type; and what does not fit is refused before anything is written.
#include "heed/core/quantize.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::int4_pair;
using heed::quantized_view;
using heed::scale_groups;
using heed_test::expect_error;
using heed_test::layout;
using heed_test::tensor;

template <class Code, class T>
void check_round_trip(const scale_groups& groups, bool with_zeros, layout how) {
  const index_t tokens = (37 - 1) / groups.tokens + 1, channels = (24 - 1) / groups.channels + 1;
  tensor<T> x(2, 3, 37, 24, how);
  x.fill(1).for_each([](T& e) { e = heed::narrow<T>(heed::widen<double>(e) + 0.75); });
  for (index_t d = 0; d < 24; ++d) x.view()(1, 2, 5, d) = heed::narrow<T>(0.0);
  for (index_t d = 0; d < 24; ++d) x.view()(1, 1, 6, d) = heed::narrow<T>(-3.0);
  tensor<Code> codes(2, 3, 37, 24 / heed::codes_per_element<Code>, how);
  tensor<float> scales(2, 3, tokens, channels, how), zeros(2, 3, tokens, channels, how);
  if (with_zeros) {
    heed::quantize(x.read(), codes.view(), scales.view(), zeros.view(), groups);
  } else {
    heed::quantize(x.read(), codes.view(), scales.view(), groups);
  }
  const auto view = with_zeros
                        ? quantized_view<Code, 4>(codes.view(), scales.view(), zeros.view(), groups)
                        : quantized_view<Code, 4>(codes.view(), scales.view(), groups);
  double range = 0;
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < 3; ++h) {
      for (index_t i = 0; i < 37; ++i) {
        for (index_t d = 0; d < 24; ++d) {
          const double scale = scales.view()(b, h, i / groups.tokens, d / groups.channels);
          const double truth = heed::widen<double>(x.read()(b, h, i, d));
          // Scales and zeros are rounded to float.
          ASSERT_LE(std::abs(view.value(b, h, i, d) - truth), 0.5001 * scale + 1e-6)
              << b << " " << h << " " << i << " " << d;
          range = scale > range ? scale : range;
        }
      }
    }
  }
  const double levels = std::is_same_v<Code, int4_pair> ? 16 : 256;
  EXPECT_LE(range, 10 / levels);  // a scale is no larger than the elements need
  EXPECT_EQ(codes.overwritten_around() + scales.overwritten_around() + zeros.overwritten_around(),
            0);
}

template <class Code>
void check_all() {
  int turn = 0;
  for (const scale_groups& groups :
       {heed::per_token, heed::per_channel, scale_groups{32, 1}, scale_groups{5, 7}}) {
    for (const bool zeros : {false, true}) {
      const layout how = heed_test::layouts[static_cast<std::size_t>(turn++ % 4)];
      check_round_trip<Code, float>(groups, zeros, how);
      check_round_trip<Code, double>(groups, zeros, how);
      check_round_trip<Code, Eigen::half>(groups, zeros, how);
      check_round_trip<Code, Eigen::bfloat16>(groups, zeros, how);
    }
  }
}

TEST(quantize, eight_bits) { check_all<std::int8_t>(); }
TEST(quantize, four_bits) { check_all<int4_pair>(); }

TEST(quantize, empty) {
  std::vector<float> none;
  heed::quantize(heed::tensor_view<const float, 2>(none.data(), {0, 8}),
                 heed::tensor_view<std::int8_t, 2>(nullptr, {0, 8}),
                 heed::tensor_view<float, 2>(nullptr, {0, 1}));
}

TEST(quantize, errors) {
  std::vector<float> x(64, 1), scales(64, 42);
  std::vector<std::int8_t> codes(64, 7);
  const heed::tensor_view<float, 2> from(x.data(), {4, 8}), some(scales.data(), {4, 1});
  const heed::tensor_view<std::int8_t, 2> to(codes.data(), {4, 8});
  expect_error("quantize: axis 2 of the codes stands for 3 elements, x has 4", [&] {
    heed::quantize(from, heed::tensor_view<std::int8_t, 2>(codes.data(), {3, 8}),
                   heed::tensor_view<float, 2>(scales.data(), {3, 1}));
  });
  expect_error("quantized: scales have token groups 4, the codes need 1",
               [&] { heed::quantize(from, to, some, heed::per_channel); });
  expect_error("quantized: zeros have channel groups 2, the codes need 1", [&] {
    heed::quantize(from, to, some, heed::tensor_view<float, 2>(scales.data(), {4, 2}));
  });
  expect_error("quantized: groups of 0 tokens and 1 channels, each must be at least 1", [&] {
    heed::quantize(from, to, some, scale_groups{0, 1});
  });
  expect_error("quantized: data of scales is null", [&] {
    heed::quantize(from, to, heed::tensor_view<float, 2>(nullptr, {4, 1}));
  });
  expect_error("quantize: data of codes is null", [&] {
    heed::quantize(from, heed::tensor_view<std::int8_t, 2>(nullptr, {4, 8}), some);
  });
  x[3 * 8 + 5] = std::numeric_limits<float>::infinity();
  expect_error("quantize: x[0, 0, 3, 5] is not a finite float",
               [&] { heed::quantize(from, to, some); });
  for (const float scale : scales) EXPECT_EQ(scale, 42);
  for (const std::int8_t code : codes) EXPECT_EQ(code, 7);
}

// Attention's own checks see the depth that codes stand for, and every array of an operand.
TEST(quantize, attention_errors) {
  std::vector<float> q(64, 1), out(64, 42), scales(64, 1);
  std::vector<std::int8_t> codes(256, 1);
  using view = heed::tensor_view<float, 2>;
  const quantized_view<int4_pair, 2> four(
      heed::tensor_view<const int4_pair, 2>(reinterpret_cast<const int4_pair*>(codes.data()),
                                            {6, 8}),
      view(scales.data(), {6, 1}));
  expect_error("k: depth 16 differs from q's 8", [&] {
    heed::attention(view(q.data(), {2, 8}), four, four, view(out.data(), {2, 16}));
  });
  for (const float x : out) EXPECT_EQ(x, 42);
  const quantized_view<std::int8_t, 2> eight(
      heed::tensor_view<const std::int8_t, 2>(codes.data(), {6, 8}), view(scales.data(), {6, 1}));
  expect_error("out: overlaps scales, in the row at its byte 16", [&] {
    heed::attention(view(q.data(), {2, 8}), eight, eight, view(scales.data() + 4, {2, 8}));
  });
  expect_error("out: overlaps v, in the row at its byte 0", [&] {
    const quantized_view<std::int8_t, 2> inside(
        heed::tensor_view<const std::int8_t, 2>(reinterpret_cast<std::int8_t*>(out.data()), {6, 8}),
        view(scales.data(), {6, 1}));
    heed::attention(view(q.data(), {2, 8}), eight, inside, view(out.data(), {2, 8}));
  });
}

}  // namespace
