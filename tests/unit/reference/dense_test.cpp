// The double-precision oracle against cases that other implementations made, and its own rules:
// lengths, padding, sinks, several key sources, ragged batches, errors.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <heed/reference/dense.hpp>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "support/errors.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed::is_minus_infinity;  // by its bits, so that -ffast-math does not change it
using heed::position;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::vector_case;
namespace reference = heed::reference;

// An array in memory with its shape, up to rank 4.
template <class T>
struct tensor {
  std::vector<T> values;
  std::array<index_t, 4> shape{1, 1, 1, 1};

  tensor() = default;
  explicit tensor(const heed_test::npy_array& array) : values(array.as<T>()) {
    set_shape(array.shape);
  }
  tensor(std::vector<T> data, const std::vector<index_t>& extents) : values(std::move(data)) {
    set_shape(extents);
  }
  static tensor random(const std::vector<index_t>& extents, unsigned seed) {
    index_t count = 1;
    for (index_t extent : extents) count *= extent;
    std::mt19937 bits(seed);
    std::normal_distribution<double> normal;
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) value = heed::narrow<T>(normal(bits));
    return tensor(std::move(values), extents);
  }

  tensor_view<const T, 4> view() const { return {values.data(), shape}; }
  tensor_view<T, 4> view() { return {values.data(), shape}; }
  // [batch, length, head, depth] in memory, seen as [batch, head, length, depth].
  tensor_view<const T, 4> heads_last() const { return view().permuted({0, 2, 1, 3}); }

 private:
  void set_shape(const std::vector<index_t>& extents) {
    for (std::size_t i = 0; i < extents.size(); ++i) {
      shape[4 - extents.size() + i] = extents[i];
    }
  }
};

template <class T>
tensor<T> input(const vector_case& c, const char* name) {
  return tensor<T>(c.input(name));
}
template <class T>
tensor<T> output(const vector_case& c, const char* name) {
  return tensor<T>(c.output(name));
}

vector_case external(const std::string& path) {
  return vector_case(std::filesystem::path(HEED_TEST_VECTORS) / path);
}

// Equal up to the precision that the expected values are stored in.
void expect_close(tensor_view<const double, 4> actual, tensor_view<const double, 4> expected,
                  double tolerance = 1e-9) {
  ASSERT_EQ(actual.extents(), expected.extents());
  for (index_t b = 0; b < actual.extent(0); ++b) {
    for (index_t h = 0; h < actual.extent(1); ++h) {
      for (index_t i = 0; i < actual.extent(2); ++i) {
        for (index_t d = 0; d < actual.extent(3); ++d) {
          const double a = actual(b, h, i, d), e = expected(b, h, i, d);
          if (is_minus_infinity(e) || is_minus_infinity(a)) {
            ASSERT_EQ(is_minus_infinity(a), is_minus_infinity(e)) << b << ' ' << h << ' ' << i;
          } else {
            ASSERT_NEAR(a, e, tolerance * std::max(1.0, std::abs(e)))
                << b << ' ' << h << ' ' << i << ' ' << d;
          }
        }
      }
    }
  }
}

tensor<double> result_of(std::vector<double> values, index_t batches, index_t heads, index_t length,
                         index_t depth) {
  return tensor<double>(std::move(values), {batches, heads, length, depth});
}

// What is computed from one set of options.
struct results {
  tensor<double> out, lse, weights;
};

template <class Q, class K, class V>
results attend(const Q& q, const K& k, const V& v, reference::options how = {}) {
  const index_t batches = q.extent(0), heads = q.extent(1), length = q.extent(2);
  std::vector<double> out, lse, weights;
  how.lse = &lse;
  how.weights = &weights;
  reference::attention(q, k, v, out, how);
  return {result_of(std::move(out), batches, heads, length, v.extent(3)),
          result_of(std::move(lse), batches, heads, length, 1),
          result_of(std::move(weights), batches, heads, length, k.extent(2))};
}

bool lower_right_causal(const position& p) { return p.k <= p.q + p.keys - p.queries; }

reference::predicate from_array(const tensor<std::uint8_t>& mask) {
  return [&mask](const position& p) {
    const auto view = mask.view();
    return view(view.extent(0) == 1 ? 0 : p.batch, view.extent(1) == 1 ? 0 : p.head, p.q, p.k) != 0;
  };
}

// ---- cases of flash-attention and flash-linear-attention
// -----------------------------------------

// Lengths of sequences from a mask that is true on their tokens, which come first.
std::vector<index_t> lengths_of(const heed_test::npy_array& mask) {
  const std::vector<bool> values = mask.as<bool>();
  const auto width = static_cast<std::size_t>(mask.shape[1]);
  std::vector<index_t> lengths;
  for (std::size_t b = 0; b < static_cast<std::size_t>(mask.shape[0]); ++b) {
    index_t length = 0;
    for (std::size_t i = 0; i < width; ++i) {
      if (!values[b * width + i]) continue;
      EXPECT_EQ(static_cast<index_t>(i), length) << "the mask is not a prefix";
      ++length;
    }
    lengths.push_back(length);
  }
  return lengths;
}

class external_dense : public testing::TestWithParam<const char*> {};

TEST_P(external_dense, output) {
  const vector_case c = external(std::string("dense/") + GetParam());
  const auto& attributes = c.meta["attrs"];
  const auto q = input<float>(c, "q"), k = input<float>(c, "k"), v = input<float>(c, "v");
  const auto expected = output<double>(c, "o");

  reference::options how;
  const bool causal = attributes.value("causal", false);
  const bool windowed = attributes.contains("window_size") && !attributes["window_size"].is_null();
  const auto window = windowed ? attributes["window_size"] : heed_test::json_value();
  how.visible = [&](const position& p) {
    const index_t aligned = p.q + p.keys - p.queries;
    if (windowed && !window.is_array() && aligned - p.k >= window.get<index_t>()) return false;
    if (windowed && window.is_array() &&
        (p.k < aligned - window[0].get<index_t>() || p.k > aligned + window[1].get<index_t>())) {
      return false;
    }
    return !causal || p.k <= aligned;
  };
  if (c.has_input("sink_bias")) how.sinks = c.input("sink_bias").as<double>();
  if (c.has_input("query_padding_mask")) {
    how.query_lengths = lengths_of(c.input("query_padding_mask"));
    how.key_lengths = lengths_of(c.input("key_padding_mask"));
  }

  const results r = attend(q.heads_last(), k.heads_last(), v.heads_last(), how);
  expect_close(r.out.view(), expected.heads_last());

  if (!c.has_output("max_logits")) return;
  // The largest score of a row, from its weight and the lse: log w = s - lse. Or it is the sink.
  const auto highest = output<double>(c, "max_logits");  // [B, T, H]
  const auto weights = r.weights.view();
  for (index_t b = 0; b < weights.extent(0); ++b) {
    for (index_t h = 0; h < weights.extent(1); ++h) {
      for (index_t i = 0; i < weights.extent(2); ++i) {
        double largest = 0;
        for (index_t j = 0; j < weights.extent(3); ++j) {
          largest = std::max(largest, weights(b, h, i, j));
        }
        double score = std::log(largest) + r.lse.view()(b, h, i, 0);
        if (!how.sinks.empty()) score = std::max(score, how.sinks[static_cast<std::size_t>(h)]);
        ASSERT_NEAR(score, highest.view()(0, b, i, h), 1e-9);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(cases, external_dense,
                         testing::Values("flash_attn_br_113x203_d40", "flash_attn_decode_d59",
                                         "flash_attn_large_logits", "flash_attn_padded_q_k_causal",
                                         "flash_attn_sq_gt_sk_fullymasked", "flash_attn_window_5_7",
                                         "attn_causal_gqa", "attn_full_noncausal",
                                         "attn_sink_gptoss", "attn_window7"),
                         [](const auto& parameter) { return std::string(parameter.param); });

TEST(reference_dense, ragged_decode_with_an_empty_sequence) {
  const vector_case c = external("dense/decode_varlen_len0");
  const auto q = input<float>(c, "q"), k = input<float>(c, "k"), v = input<float>(c, "v");
  const auto expected = output<double>(c, "o");
  const std::vector<index_t> cu_k = c.input("cu_seqlens").as<index_t>();
  std::vector<index_t> cu_q;
  for (std::size_t n = 0; n < cu_k.size(); ++n) cu_q.push_back(static_cast<index_t>(n));
  std::vector<double> out;
  reference::ragged_attention(q.heads_last(), k.heads_last(), v.heads_last(), out, cu_q, cu_k);
  expect_close(result_of(std::move(out), 1, 4, 6, 24).view(), expected.heads_last());
}

// Forgetting attention: s_ij + Σ_{l=j+1..i} g_l.
TEST(reference_dense, forgetting_gates_as_score) {
  const vector_case c = external("dense/forgetting_wNone");
  const auto q = input<float>(c, "q"), k = input<float>(c, "k"), v = input<float>(c, "v");
  const auto gates = input<double>(c, "g");  // [B, T, H]
  const auto expected = output<double>(c, "o");
  reference::options how;
  how.visible = lower_right_causal;
  how.scores = {[&](double score, const position& p) {
    for (index_t l = p.k + 1; l <= p.q; ++l) score += gates.view()(0, p.batch, l, p.head);
    return score;
  }};
  const results r = attend(q.heads_last(), k.heads_last(), v.heads_last(), how);
  expect_close(r.out.view(), expected.heads_last());
}

// ---- cases of flex_attention
// ---------------------------------------------------------------------

class external_flex : public testing::TestWithParam<const char*> {};

TEST_P(external_flex, output_lse_and_scores) {
  const std::string name = GetParam();
  const vector_case c = external("flex/" + name);
  const auto q = input<float>(c, "Q"), k = input<float>(c, "K"), v = input<float>(c, "V");
  tensor<std::uint8_t> mask;
  reference::options how;
  how.scale = c.meta["attrs"]["scale"].get<double>();
  if (c.has_input("mask")) {
    mask = input<std::uint8_t>(c, "mask");
    how.visible = from_array(mask);
  }
  tensor<double> bias;
  if (name == "alibi_causal") {
    bias = input<double>(c, "slopes");
    how.scores = {[&](double s, const position& p) {
      return s + bias.view()(0, 0, 0, p.head) * static_cast<double>(p.k - p.q);
    }};
  } else if (name == "bias_table") {
    bias = input<double>(c, "table");
    how.scores = {
        [&](double s, const position& p) { return s + bias.view()(0, 0, p.head, p.k - p.q + 64); }};
  } else if (name == "dense_bias") {
    bias = input<double>(c, "bias");
    how.scores = {
        [&](double s, const position& p) { return s + bias.view()(0, p.head, p.q, p.k); }};
  } else if (name == "relative_position") {
    how.scores = {[](double s, const position& p) { return s + static_cast<double>(p.q - p.k); }};
  } else if (name == "score_multiply") {
    how.scores = {
        [](double s, const position& p) { return s * (1 + static_cast<double>(p.head)); }};
  }

  results r = attend(q.view(), k.view(), v.view(), how);
  expect_close(r.out.view(), output<double>(c, "O").view());
  const auto lse = output<double>(c, "lse");  // [B, H, L]
  const tensor_view<const double, 4> lse_as_column(lse.values.data(),
                                                   {lse.shape[1], lse.shape[2], lse.shape[3], 1});
  expect_close(r.lse.view(), lse_as_column);

  if (!c.has_output("scores")) return;
  // The scores before masking, as a second call without the mask sees them.
  const auto scores = output<double>(c, "scores");
  how.visible = nullptr;
  how.scores.push_back([&](double s, const position& p) {
    if (p.q < 8) {
      EXPECT_NEAR(s, scores.view()(p.batch, p.head, p.q, p.k), 1e-9 * std::max(1.0, std::abs(s)));
    }
    return s;
  });
  attend(q.view(), k.view(), v.view(), how);
}

INSTANTIATE_TEST_SUITE_P(cases, external_flex,
                         testing::Values("alibi_causal", "bias_table", "block_diagonal_16",
                                         "causal", "causal_gqa_dv", "dense_bias", "dilated_window",
                                         "document_causal", "full", "key_padding",
                                         "natten2d_8x16_k7x7", "relative_position",
                                         "score_multiply", "sliding_window_causal",
                                         "strided_sparse"),
                         [](const auto& parameter) { return std::string(parameter.param); });

TEST(reference_dense, key_lengths_as_flex_masks_them) {
  const vector_case c = external("flex/key_padding");
  const auto q = input<float>(c, "Q"), k = input<float>(c, "K"), v = input<float>(c, "V");
  reference::options how;
  how.key_lengths = c.input("key_len").as<index_t>();
  expect_close(attend(q.view(), k.view(), v.view(), how).out.view(), output<double>(c, "O").view());
}

// ---- 16-bit cases of PyTorch
// ---------------------------------------------------------------------

template <class T>
tensor<T> bits_input(const vector_case& c, const char* name) {
  const auto array = c.input(name);
  std::vector<T> values;
  for (std::uint16_t bits : array.as<std::uint16_t>()) values.push_back(std::bit_cast<T>(bits));
  return tensor<T>(std::move(values), array.shape);
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

template <class T>
void check_low_precision(const vector_case& c) {
  const auto q = bits_input<T>(c, "Q"), k = bits_input<T>(c, "K"), v = bits_input<T>(c, "V");
  for (const std::string mask : {"full", "causal_lr"}) {
    SCOPED_TRACE(mask);
    reference::options how;
    how.scale = c.meta["attrs"]["scale"].get<double>();
    if (mask == "causal_lr") how.visible = lower_right_causal;
    const results r = attend(q.view(), k.view(), v.view(), how);

    // The truth is stored as float.
    const auto truth = c.output(mask + "_truth").as<double>();
    const auto lse = c.output(mask + "_lse_truth").as<double>();
    ASSERT_EQ(r.out.values.size(), truth.size());
    for (std::size_t i = 0; i < truth.size(); ++i) {
      ASSERT_NEAR(r.out.values[i], truth[i], 1e-6 * std::abs(truth[i]) + 1e-12) << i;
    }
    ASSERT_EQ(r.lse.values.size(), lse.size());
    for (std::size_t i = 0; i < lse.size(); ++i) {
      if (is_minus_infinity(lse[i])) {
        ASSERT_TRUE(is_minus_infinity(r.lse.values[i])) << i;
      } else {
        ASSERT_NEAR(r.lse.values[i], lse[i], 1e-6 * std::abs(lse[i]) + 1e-7) << i;
      }
    }

    // The plain implementation makes errors of the size that PyTorch's plain one makes. They agree
    // but for the order of summation, which moves a score or an output by one unit in the last
    // place here and there.
    std::vector<double> plain;
    reference::plain<T>(q.view(), k.view(), v.view(), plain, how);
    std::vector<double> stored;
    std::size_t equal = 0;
    for (std::uint16_t bits : c.output(mask + "_plain").as<std::uint16_t>()) {
      stored.push_back(heed::widen<double>(std::bit_cast<T>(bits)));
      if (stored.back() == plain[stored.size() - 1]) ++equal;
    }
    const double error = largest_difference(plain, truth);
    const double stored_error =
        c.meta["attrs"]["max_abs_error"].at(mask)["err_plain"].get<double>();
    EXPECT_NEAR(largest_difference(stored, truth), stored_error, 1e-6);
    EXPECT_LT(error, 1.05 * stored_error);
    EXPECT_GT(error, 0.95 * stored_error);
    EXPECT_GT(static_cast<double>(equal), 0.98 * static_cast<double>(plain.size()));
  }
}

class external_low_precision : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(external_low_precision, truth_and_plain) {
  const vector_case c(GetParam());
  if (c.meta["attrs"]["dtype"] == "bfloat16") {
    check_low_precision<Eigen::bfloat16>(c);
  } else {
    check_low_precision<Eigen::half>(c);
  }
}

INSTANTIATE_TEST_SUITE_P(cases, external_low_precision,
                         testing::ValuesIn(heed_test::list_cases("lowp")),
                         [](const auto& parameter) { return parameter.param.filename().string(); });

// ---- rules of its own
// ----------------------------------------------------------------------------

TEST(reference_dense, two_keys_by_hand) {
  // Scores 1 and 3, so the weights are 1 / (1 + e²) and e² / (1 + e²).
  const tensor<double> q({2.0}, {1, 1}), k({0.5, 1.5}, {2, 1}), v({10.0, 20.0}, {2, 1});
  const results r = attend(q.view(), k.view(), v.view());
  const double e2 = std::exp(2.0);
  EXPECT_NEAR(r.out.values[0], (10 + 20 * e2) / (1 + e2), 1e-14);
  EXPECT_NEAR(r.lse.values[0], std::log(std::exp(1.0) + std::exp(3.0)), 1e-14);
  EXPECT_NEAR(r.weights.values[0], 1 / (1 + e2), 1e-15);
  EXPECT_NEAR(r.weights.values[1], e2 / (1 + e2), 1e-15);
}

TEST(reference_dense, scores_apply_in_order_after_the_scale) {
  const tensor<double> q({2.0}, {1, 1}), k({3.0}, {1, 1}), v({1.0}, {1, 1});
  reference::options how;
  how.scale = 0.5;
  how.scores = {[](double s, const position&) { return s + 1; },
                [](double s, const position&) { return s * 10; }};
  EXPECT_EQ(attend(q.view(), k.view(), v.view(), how).lse.values[0], 40.0);
}

TEST(reference_dense, masked_keys_are_not_read) {
  auto q = tensor<float>::random({2, 4, 5, 8}, 1);
  auto k = tensor<float>::random({2, 2, 9, 8}, 2), v = tensor<float>::random({2, 2, 9, 6}, 3);
  reference::options how;
  how.visible = [](const position& p) { return p.k != 4 && p.k != 7; };
  const results clean = attend(q.view(), k.view(), v.view(), how);
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < 2; ++h) {
      for (index_t j : {4, 7}) {
        k.view()(b, h, j, 3) = std::numeric_limits<float>::quiet_NaN();
        v.view()(b, h, j, 0) = std::numeric_limits<float>::infinity();
      }
    }
  }
  const results poisoned = attend(q.view(), k.view(), v.view(), how);
  EXPECT_EQ(clean.out.values, poisoned.out.values);
  EXPECT_EQ(clean.lse.values, poisoned.lse.values);
  EXPECT_EQ(clean.weights.values, poisoned.weights.values);

  // A score of -inf hides the value too, but not the key.
  how.visible = nullptr;
  how.scores = {[](double s, const position& p) {
    return p.k == 4 || p.k == 7 ? heed::minus_infinity<double>() : s;
  }};
  EXPECT_EQ(clean.out.values, attend(q.view(), k.view(), v.view(), how).out.values);
}

TEST(reference_dense, rows_without_keys) {
  const auto q = tensor<double>::random({1, 2, 3, 4}, 1),
             k = tensor<double>::random({1, 1, 5, 4}, 2),
             v = tensor<double>::random({1, 1, 5, 4}, 3);
  reference::options how;
  how.visible = [](const position& p) { return p.q != 1; };
  results r = attend(q.view(), k.view(), v.view(), how);
  for (index_t h = 0; h < 2; ++h) {
    EXPECT_TRUE(is_minus_infinity(r.lse.view()(0, h, 1, 0)));
    for (index_t d = 0; d < 4; ++d) EXPECT_EQ(r.out.view()(0, h, 1, d), 0.0);
    for (index_t j = 0; j < 5; ++j) EXPECT_EQ(r.weights.view()(0, h, 1, j), 0.0);
    EXPECT_FALSE(is_minus_infinity(r.lse.view()(0, h, 0, 0)));
  }

  how.sinks = {0.25, heed::minus_infinity<double>()};
  r = attend(q.view(), k.view(), v.view(), how);
  EXPECT_NEAR(r.lse.view()(0, 0, 1, 0), 0.25, 1e-15);
  EXPECT_EQ(r.out.view()(0, 0, 1, 0), 0.0);
  EXPECT_TRUE(is_minus_infinity(r.lse.view()(0, 1, 1, 0)));
}

TEST(reference_dense, a_sink_is_a_key_without_value) {
  const auto q = tensor<double>::random({1, 2, 3, 4}, 1),
             k = tensor<double>::random({1, 2, 5, 4}, 2),
             v = tensor<double>::random({1, 2, 5, 4}, 3);
  // One more key of zeros, whose score is the sink, and whose value is 0.
  tensor<double> longer_k(std::vector<double>(48), {1, 2, 6, 4}), longer_v = longer_k;
  for (index_t h = 0; h < 2; ++h) {
    for (index_t j = 0; j < 5; ++j) {
      for (index_t d = 0; d < 4; ++d) {
        longer_k.view()(0, h, j, d) = k.view()(0, h, j, d);
        longer_v.view()(0, h, j, d) = v.view()(0, h, j, d);
      }
    }
  }
  reference::options with_sink, with_key;
  with_sink.sinks = {1.5, -3.0};
  with_key.scores = {
      [](double s, const position& p) { return p.k < 5 ? s : (p.head == 0 ? 1.5 : -3.0); }};
  const results a = attend(q.view(), k.view(), v.view(), with_sink);
  const results b = attend(q.view(), longer_k.view(), longer_v.view(), with_key);
  expect_close(a.out.view(), b.out.view(), 1e-14);
  expect_close(a.lse.view(), b.lse.view(), 1e-14);
}

TEST(reference_dense, lengths_and_padding_give_each_sequence_alone) {
  const auto q = tensor<float>::random({3, 4, 6, 8}, 1),
             k = tensor<float>::random({3, 2, 10, 8}, 2),
             v = tensor<float>::random({3, 2, 10, 5}, 3);
  reference::options how;
  how.query_lengths = {6, 0, 4};
  how.left_padding = {0, 3, 2};
  how.key_lengths = {10, 7, 5};
  how.visible = [&](const position& p) {
    const auto b = static_cast<std::size_t>(p.batch);
    EXPECT_EQ(p.queries, how.query_lengths[b]);
    EXPECT_EQ(p.keys, how.key_lengths[b]);
    EXPECT_TRUE(p.q >= 0 && p.q < p.queries && p.k >= 0 && p.k < p.keys);
    return lower_right_causal(p);
  };
  const results r = attend(q.view(), k.view(), v.view(), how);
  for (index_t b = 0; b < 3; ++b) {
    const auto at = static_cast<std::size_t>(b);
    reference::options alone;
    alone.visible = lower_right_causal;
    const results one =
        attend(q.view().slice(0, b, 1).slice(2, 0, how.query_lengths[at]),
               k.view().slice(0, b, 1).slice(2, how.left_padding[at], how.key_lengths[at]),
               v.view().slice(0, b, 1).slice(2, how.left_padding[at], how.key_lengths[at]), alone);
    for (index_t h = 0; h < 4; ++h) {
      for (index_t i = 0; i < 6; ++i) {
        const bool real = i < how.query_lengths[at];
        if (real) {
          EXPECT_EQ(r.lse.view()(b, h, i, 0), one.lse.view()(0, h, i, 0));
        } else {
          EXPECT_TRUE(is_minus_infinity(r.lse.view()(b, h, i, 0)));
        }
        for (index_t d = 0; d < 5; ++d) {
          EXPECT_EQ(r.out.view()(b, h, i, d), real ? one.out.view()(0, h, i, d) : 0.0);
        }
        for (index_t j = 0; j < 10; ++j) {
          const index_t key = j - how.left_padding[at];
          const bool counted = real && key >= 0 && key < how.key_lengths[at];
          EXPECT_EQ(r.weights.view()(b, h, i, j), counted ? one.weights.view()(0, h, i, key) : 0.0);
        }
      }
    }
  }
}

TEST(reference_dense, left_padding_alone_reaches_to_the_last_key) {
  const auto q = tensor<float>::random({1, 1, 2, 4}, 1), k = tensor<float>::random({1, 1, 6, 4}, 2);
  reference::options how;
  how.left_padding = {4};
  const results a = attend(q.view(), k.view(), k.view(), how);
  const auto tail = k.view().slice(2, 4, 2);
  EXPECT_EQ(a.out.values, attend(q.view(), tail, tail).out.values);
}

TEST(reference_dense, several_sources_are_one_set_of_keys) {
  const auto q = tensor<float>::random({2, 4, 5, 8}, 1),
             k = tensor<float>::random({2, 2, 12, 8}, 2),
             v = tensor<float>::random({2, 2, 12, 6}, 3);
  reference::options whole;
  whole.visible = [](const position& p) { return p.k < 5 || (p.k - 5) % 3 != 1; };
  whole.scores = {[](double s, const position& p) { return p.k < 5 ? s : s - 0.5; }};
  const results expected = attend(q.view(), k.view(), v.view(), whole);

  std::vector<reference::key_source> sources(2);
  sources[0].k = k.view().slice(2, 0, 5);
  sources[0].v = v.view().slice(2, 0, 5);
  sources[1].k = k.view().slice(2, 5, 7);
  sources[1].v = v.view().slice(2, 5, 7);
  sources[1].visible = [](const position& p) {
    EXPECT_EQ(p.keys, 7);
    return p.k % 3 != 1;
  };
  sources[1].scores = {[](double s, const position&) { return s - 0.5; }};
  std::vector<double> out, lse, weights;
  reference::options how;
  how.lse = &lse;
  how.weights = &weights;
  reference::attention(q.view(), sources, out, how);
  EXPECT_EQ(out, expected.out.values);
  EXPECT_EQ(lse, expected.lse.values);
  EXPECT_EQ(weights, expected.weights.values);

  // Sources of other types and head counts.
  const auto shared = tensor<double>::random({2, 1, 3, 8}, 4);
  const auto shared_v = tensor<double>::random({2, 1, 3, 6}, 5);
  sources.resize(1);
  sources.push_back({shared.view(), shared_v.view()});
  reference::attention(q.view(), sources, out, how);
  double total = 0;
  for (double w : weights) total += w;
  EXPECT_NEAR(total, 2 * 4 * 5, 1e-9);
}

TEST(reference_dense, ragged_equals_each_sequence_alone) {
  const auto q = tensor<float>::random({1, 4, 11, 8}, 1),
             k = tensor<float>::random({1, 2, 20, 8}, 2),
             v = tensor<float>::random({1, 2, 20, 8}, 3);
  const std::vector<index_t> cu_q = {0, 3, 3, 10}, cu_k = {0, 8, 12, 19};
  reference::options how;
  how.visible = [](const position& p) {
    EXPECT_NE(p.batch, 1);  // it has no query
    EXPECT_EQ(p.queries, p.batch == 0 ? 3 : 7);
    return lower_right_causal(p);
  };
  std::vector<double> out, lse;
  how.lse = &lse;
  reference::ragged_attention(q.view(), k.view(), v.view(), out, cu_q, cu_k, how);
  const auto all = result_of(out, 1, 4, 11, 8);
  for (std::size_t n : {0u, 2u}) {
    reference::options alone;
    alone.visible = lower_right_causal;
    const auto keys = k.view().slice(2, cu_k[n], cu_k[n + 1] - cu_k[n]);
    const auto values = v.view().slice(2, cu_k[n], cu_k[n + 1] - cu_k[n]);
    const auto queries = q.view().slice(2, cu_q[n], cu_q[n + 1] - cu_q[n]);
    const results one = attend(queries, keys, values, alone);
    expect_close(all.view().slice(2, cu_q[n], cu_q[n + 1] - cu_q[n]), one.out.view(), 0);
  }
  // The query behind the last sequence belongs to none.
  EXPECT_EQ(all.view()(0, 3, 10, 0), 0.0);
  EXPECT_TRUE(is_minus_infinity(lse[10]));
}

TEST(reference_dense, element_types_and_strides) {
  const auto q = tensor<Eigen::half>::random({2, 3, 4, 8}, 1);
  const auto k = tensor<Eigen::bfloat16>::random({2, 1, 7, 8}, 2);
  const auto v = tensor<double>::random({2, 7, 1, 5}, 3);
  const results r = attend(q.view(), k.view(), v.heads_last());
  tensor<double> q_wide({}, {2, 3, 4, 8}), k_wide({}, {2, 1, 7, 8});
  for (Eigen::half x : q.values) q_wide.values.push_back(static_cast<double>(x));
  for (Eigen::bfloat16 x : k.values) k_wide.values.push_back(static_cast<double>(x));
  EXPECT_EQ(r.out.values, attend(q_wide.view(), k_wide.view(), v.heads_last()).out.values);
}

TEST(reference_dense, matrices_and_written_views) {
  using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix q = matrix::Random(3, 4), k = matrix::Random(5, 4), v = matrix::Random(5, 2);
  std::vector<double> memory(3 * 7, 99.0);
  reference::attention(q, k, v,
                       tensor_view<double, 4>(memory.data() + 1, {1, 1, 3, 2}, {0, 0, 7, 1}));
  const matrix scores = q * k.transpose() / 2.0;
  for (int i = 0; i < 3; ++i) {
    const Eigen::RowVectorXd weights =
        scores.row(i).array().exp() / scores.row(i).array().exp().sum();
    const Eigen::RowVectorXd expected = weights * v;
    const double* row = memory.data() + 7 * i;
    EXPECT_TRUE(row[0] == 99 && row[3] == 99);
    EXPECT_NEAR(row[1], expected(0), 1e-14);
    EXPECT_NEAR(row[2], expected(1), 1e-14);
  }
}

TEST(reference_dense, empty_axes) {
  const auto q = tensor<float>::random({2, 2, 3, 4}, 1),
             none = tensor<float>::random({2, 2, 0, 4}, 2);
  const results no_keys = attend(q.view(), none.view(), none.view());
  for (double x : no_keys.out.values) EXPECT_EQ(x, 0.0);
  for (double x : no_keys.lse.values) EXPECT_TRUE(is_minus_infinity(x));
  EXPECT_TRUE(attend(none.view(), q.view(), q.view()).out.values.empty());

  // Without a depth all scores are 0.
  const auto flat = tensor<float>::random({2, 2, 3, 0}, 3);
  const results mean = attend(flat.view(), flat.view(), q.view());
  EXPECT_NEAR(mean.lse.values[0], std::log(3.0), 1e-15);
  EXPECT_NEAR(mean.out.values[0],
              (q.values[0] + static_cast<double>(q.values[4]) + q.values[8]) / 3, 1e-7);

  const auto no_batch = tensor<float>::random({0, 2, 3, 4}, 4);
  EXPECT_TRUE(attend(no_batch.view(), no_batch.view(), no_batch.view()).out.values.empty());
}

TEST(reference_dense, plain_in_double_is_the_oracle) {
  const auto q = tensor<double>::random({1, 2, 9, 8}, 1),
             k = tensor<double>::random({1, 1, 12, 8}, 2);
  std::vector<double> a, b, c;
  reference::attention(q.view(), k.view(), k.view(), a);
  reference::plain<double>(q.view(), k.view(), k.view(), b);
  reference::plain<float>(q.view(), k.view(), k.view(), c);
  EXPECT_EQ(a, b);
  EXPECT_GT(largest_difference(a, c), 0.0);
  EXPECT_LT(largest_difference(a, c), 1e-6);
}

// ---- errors
// --------------------------------------------------------------------------------------

struct shapes {
  std::vector<index_t> q{2, 4, 3, 8}, k{2, 2, 5, 8}, v{2, 2, 5, 6};
};

std::string message_of_shapes(const std::function<void(shapes&, reference::options&)>& change) {
  shapes s;
  reference::options how;
  change(s, how);
  const auto q = tensor<float>::random(s.q, 1), k = tensor<float>::random(s.k, 2),
             v = tensor<float>::random(s.v, 3);
  std::vector<double> out;
  return error_of([&] { reference::attention(q.view(), k.view(), v.view(), out, how); });
}

TEST(reference_dense, refuses_operands_that_do_not_fit) {
  const auto message = message_of_shapes;
  EXPECT_EQ(message([](shapes& s, auto&) { s.k[1] = s.v[1] = 3; }),
            "k: head count 3 does not divide query head count 4");
  EXPECT_EQ(message([](shapes& s, auto&) { s.k[1] = s.v[1] = 0; }),
            "k: head count 0 does not divide query head count 4");
  EXPECT_EQ(message([](shapes& s, auto&) { s.k[0] = 1; }),
            "k: batch count 1 is not q's batch count 2");
  EXPECT_EQ(message([](shapes& s, auto&) { s.v[0] = 1; }),
            "v: batch count 1 is not q's batch count 2");
  EXPECT_EQ(message([](shapes& s, auto&) { s.k[3] = 7; }), "k: depth 7 is not q's depth 8");
  EXPECT_EQ(message([](shapes& s, auto&) { s.v[1] = 4; }),
            "v: head count 4 is not k's head count 2");
  EXPECT_EQ(message([](shapes& s, auto&) { s.v[2] = 6; }), "v: length 6 is not k's length 5");
  EXPECT_EQ(message([](auto&, auto& how) { how.sinks = {1.0}; }),
            "sinks: 1 logits for 4 query heads");
  EXPECT_EQ(message([](auto&, auto& how) { how.key_lengths = {5}; }),
            "key_lengths: 1 entries for 2 batch entries");
  EXPECT_EQ(message([](auto&, auto& how) {
              how.key_lengths = {5, 6};
            }),
            "key_lengths: 6 is outside [0, 5]");
  EXPECT_EQ(message([](auto&, auto& how) {
              how.query_lengths = {-1, 3};
            }),
            "query_lengths: -1 is outside [0, 3]");
  EXPECT_EQ(message([](auto&, auto& how) {
              how.left_padding = {2, 0};
              how.key_lengths = {4, 5};
            }),
            "key_lengths: 4 keys after 2 of left padding leave the key length 5");
}

TEST(reference_dense, refuses_outputs_and_sources_that_do_not_fit) {
  const auto q = tensor<float>::random({1, 2, 3, 4}, 1), k = tensor<float>::random({1, 2, 5, 4}, 2);
  std::vector<double> memory(100);
  const auto out = [&](std::array<index_t, 4> shape) {
    return tensor_view<double, 4>(memory.data(), shape);
  };
  const auto message = [&](std::array<index_t, 4> shape) {
    return error_of([&] { reference::attention(q.view(), k.view(), k.view(), out(shape)); });
  };
  EXPECT_EQ(message({2, 2, 3, 4}), "out: batch count 2 is not q's batch count 1");
  EXPECT_EQ(message({1, 3, 3, 4}), "out: head count 3 is not q's head count 2");
  EXPECT_EQ(message({1, 2, 4, 4}), "out: length 4 is not q's length 3");
  EXPECT_EQ(message({1, 2, 3, 5}), "v: depth 4 is not out's depth 5");

  const std::vector<reference::key_source> sources{{k.view(), k.view()}};
  reference::options how;
  how.visible = lower_right_causal;
  EXPECT_EQ(error_of([&] { reference::attention(q.view(), sources, memory, how); }),
            "options: visible, scores, key_lengths and left_padding belong to each key source");
  EXPECT_EQ(error_of([&] {
              reference::attention(q.view(), std::vector<reference::key_source>{}, memory);
            }),
            "sources: none is given, so the values have no depth");
}

TEST(reference_dense, refuses_cumulative_lengths_that_do_not_fit) {
  const auto q = tensor<float>::random({1, 2, 3, 4}, 1), k = tensor<float>::random({1, 2, 5, 4}, 2);
  const auto two = tensor<float>::random({2, 2, 3, 4}, 3);
  std::vector<double> out;
  const auto message = [&](const auto& queries, std::vector<index_t> cu_q,
                           std::vector<index_t> cu_k, const reference::options& how = {}) {
    const auto& keys = queries.shape[0] == 1 ? k : two;
    return error_of([&] {
      reference::ragged_attention(queries.view(), keys.view(), keys.view(), out, cu_q, cu_k, how);
    });
  };
  EXPECT_EQ(message(q, {0, 2, 1}, {0, 2, 5}), "cu_q: 1 is outside [2, 3]");
  EXPECT_EQ(message(q, {0, 2, 3}, {0, 2, 6}), "cu_k: 6 is outside [2, 5]");
  EXPECT_EQ(message(q, {-1, 2, 3}, {0, 2, 5}), "cu_q: -1 is outside [0, 3]");
  EXPECT_EQ(message(q, {}, {0, 2, 5}), "cu_q: it is empty, it must begin with 0");
  EXPECT_EQ(message(q, {0, 3}, {0, 2, 5}), "cu_k: 3 entries do not match the 2 of cu_q");
  EXPECT_EQ(message(two, {0, 3}, {0, 3}), "q: batch count 2 of a ragged batch is not 1");
  reference::options how;
  how.query_lengths = {3};
  EXPECT_EQ(message(q, {0, 3}, {0, 5}, how),
            "options: lengths of a ragged batch come from cu_q and cu_k");
}

}  // namespace
