// The ONNX operators Attention (opsets 23 and 24) and FlexAttention, composed from heed's pieces,
// on ONNX's own node tests (tests/vectors/onnx). RotaryEmbedding is in tests/unit/position.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "heed/cache/contiguous.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/normalizer/factor.hpp"
#include "heed/observer/scores.hpp"
#include "heed/observer/weights.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/score.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed_test::npy_array;
using heed_test::vector_case;

template <class T>
std::vector<T> numbers_of(const npy_array& from) {
  std::vector<T> result;
  for (float x : from.as<float>()) result.push_back(heed::narrow<T>(x));
  return result;
}

// [B, H, L, D], or [B, L, H·D] with the head count as an attribute.
template <class T>
heed::tensor_view<T, 4> by_heads(T* data, const std::vector<std::int64_t>& shape, index_t heads) {
  if (shape.size() == 4) return {data, {shape[0], shape[1], shape[2], shape[3]}};
  const index_t depth = shape[2] / heads;
  return {data, {shape[0], heads, shape[1], depth}, {shape[1] * shape[2], depth, shape[2], 1}};
}

// ONNX's rule: |got − wanted| ≤ atol + rtol·|wanted|.
void expect_near(double got, double wanted, const vector_case& c, const std::string& what) {
  if (got == wanted) return;
  const double allowed = c.meta.at("runner_atol").get<double>() +
                         c.meta.at("runner_rtol").get<double>() * std::abs(wanted);
  EXPECT_NEAR(got, wanted, allowed) << c.name << " " << what;
}

// One opset-23/24 Attention node. T is the element type of its inputs.
template <class Backend, class T>
void run_attention_case(const vector_case& c) {
  const auto& attributes = c.meta.at("node").at("attributes");
  const npy_array q_array = c.input("Q"), k_array = c.input("K"), v_array = c.input("V");
  const std::vector<T> q_data = numbers_of<T>(q_array), k_data = numbers_of<T>(k_array),
                       v_data = numbers_of<T>(v_array);
  const index_t query_heads =
      attributes.value("q_num_heads", q_array.shape.size() == 4 ? q_array.shape[1] : 1);
  const index_t key_heads =
      attributes.value("kv_num_heads", k_array.shape.size() == 4 ? k_array.shape[1] : 1);
  const auto q = by_heads(q_data.data(), q_array.shape, query_heads);
  const auto new_k = by_heads(k_data.data(), k_array.shape, key_heads);
  const auto new_v = by_heads(v_data.data(), v_array.shape, key_heads);

  // Past and new keys in one cache.
  const bool has_past = c.has_input("past_key");
  const index_t past = has_past ? c.input("past_key").shape[2] : 0;
  heed::cache::contiguous<T> cache(q.extent(0), key_heads, past + new_k.extent(2), q.extent(3),
                                   new_v.extent(3));
  if (has_past) {
    const npy_array past_k = c.input("past_key"), past_v = c.input("past_value");
    const std::vector<T> past_k_data = numbers_of<T>(past_k), past_v_data = numbers_of<T>(past_v);
    cache.append(by_heads(past_k_data.data(), past_k.shape, key_heads),
                 by_heads(past_v_data.data(), past_v.shape, key_heads));
  }
  cache.append(new_k, new_v);
  for (const auto& [name, held] :
       {std::pair{"present_key", cache.keys()}, std::pair{"present_value", cache.values()}}) {
    if (!c.has_output(name)) continue;
    const std::vector<float> wanted = c.output(name).template as<float>();
    std::size_t i = 0;
    for (index_t b = 0; b < held.extent(0); ++b) {
      for (index_t h = 0; h < held.extent(1); ++h) {
        for (index_t l = 0; l < held.extent(2); ++l) {
          for (index_t d = 0; d < held.extent(3); ++d) {
            EXPECT_EQ(heed::widen<float>(held(b, h, l, d)), wanted[i++]) << c.name << " " << name;
          }
        }
      }
    }
  }

  // Masks: an additive array, a boolean array, lengths. A mask shorter than the keys goes with
  // lengths that leave out the rest.
  index_t keys = cache.size();
  std::vector<T> additive = {heed::narrow<T>(0.f)};
  std::vector<std::uint8_t> boolean = {1};
  heed::tensor_view<const T, 4> additive_view(additive.data(), {1, 1, 1, 1});
  heed::tensor_view<const std::uint8_t, 4> boolean_view(boolean.data(), {1, 1, 1, 1});
  if (c.has_input("attn_mask")) {
    const npy_array mask = c.input("attn_mask");
    std::array<index_t, 4> extents = {1, 1, 1, 1};
    std::copy_backward(mask.shape.begin(), mask.shape.end(), extents.end());
    keys = std::min(keys, extents[3]);
    if (mask.dtype == "|b1") {
      boolean = mask.as<std::uint8_t>();
      boolean_view = {boolean.data(), extents};
    } else {
      additive = numbers_of<T>(mask);
      additive_view = {additive.data(), extents};
    }
  }
  std::vector<index_t> lengths(static_cast<std::size_t>(q.extent(0)), keys);
  if (c.has_input("nonpad_kv_seqlen")) {
    lengths = c.input("nonpad_kv_seqlen").template as<std::int64_t>();
  }
  const bool causal = attributes.value("is_causal", 0) != 0;
  // ONNX aligns causality at the upper left, shifted by the past; with lengths, at the lower right.
  const bool external = c.has_input("nonpad_kv_seqlen");
  const heed::mask window{[=](const auto& at) {
    return at.k <= (causal ? at.q + (external ? at.keys - at.queries : past) : at.keys);
  }};
  const double cap = attributes.value("softcap", 0.0);
  const heed::score capped{
      [cap](auto s, auto p) { return cap > 0 ? heed::softcap{cap}(s, p) : s; }};
  const heed::scale scale(
      attributes.value("scale", 1 / std::sqrt(static_cast<double>(q.extent(3)))));

  // The optional score output: scaled products (mode 0), after the cap (1), after the mask (2), or
  // the softmax itself (3).
  const bool wants_scores = c.has_output("qk_matmul_output");
  const int mode = attributes.value("qk_matmul_output_mode", 0);
  const index_t rows = q.extent(0) * q.extent(1) * q.extent(2);
  std::vector<double> noted(static_cast<std::size_t>(rows * keys),
                            -std::numeric_limits<double>::infinity());
  const auto note_at = [&](int stage) {
    return heed::score{[&, stage](float s, const heed::position& p) {
      if (stage == std::min(mode, 2)) {
        noted[static_cast<std::size_t>(
            ((p.batch * q.extent(1) + p.head) * q.extent(2) + p.q) * keys + p.k)] =
            static_cast<double>(s);
      }
      return s;
    }};
  };

  const npy_array y = c.output("Y");
  const std::vector<double> wanted = y.as<double>();
  std::vector<T> out_data(wanted.size());
  std::vector<float> lse_data(static_cast<std::size_t>(rows));
  const auto out = by_heads(out_data.data(), y.shape, query_heads);
  heed::attention<Backend>(q, cache.keys().slice(2, 0, keys), cache.values().slice(2, 0, keys), out,
                           window, heed::array_mask{boolean_view}, heed::key_lengths{lengths},
                           scale, note_at(0), capped, note_at(1), heed::bias{additive_view},
                           note_at(2),
                           heed::lse_to{heed::tensor_view<float, 3>(
                               lse_data.data(), {q.extent(0), q.extent(1), q.extent(2)})});
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    expect_near(heed::widen<double>(out_data[i]), wanted[i], c, "Y " + std::to_string(i));
  }
  if (!wants_scores) return;
  const std::vector<double> scores = c.output("qk_matmul_output").template as<double>();
  ASSERT_EQ(scores.size(), noted.size()) << c.name;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const std::size_t row = i / static_cast<std::size_t>(keys);
    heed::position p;
    p.q = static_cast<index_t>(row) % q.extent(2);
    p.k = static_cast<index_t>(i) % keys;
    p.head = static_cast<index_t>(row) / q.extent(2) % q.extent(1);
    p.batch = static_cast<index_t>(row) / q.extent(2) / q.extent(1);
    p.queries = q.extent(2);
    p.keys = keys;
    double got = noted[i];
    const bool hidden = !window(p) || !heed::array_mask{boolean_view}(p);
    if (mode >= 2 && hidden) got = -std::numeric_limits<double>::infinity();
    if (mode == 3) {
      const double lse = static_cast<double>(lse_data[row]);
      got = std::isinf(got) || std::isinf(lse) ? 0 : std::exp(got - lse);
    }
    expect_near(got, scores[i], c, "qk_matmul_output " + std::to_string(i));
  }
  // What observers say: the scores behind the mask, and the softmax.
  if constexpr (std::is_same_v<T, float>) {
    if (mode < 2) return;
    std::vector<float> seen(scores.size());
    const heed::tensor_view<float, 4> target(seen.data(),
                                             {q.extent(0), q.extent(1), q.extent(2), keys});
    const auto observe = [&](const auto& observer) {
      heed::attention<Backend>(q, cache.keys().slice(2, 0, keys), cache.values().slice(2, 0, keys),
                               out, window, heed::array_mask{boolean_view},
                               heed::key_lengths{lengths}, scale, capped, heed::bias{additive_view},
                               observer);
    };
    mode == 2 ? observe(heed::scores_to{target}) : observe(heed::weights_to{target});
    for (std::size_t i = 0; i < scores.size(); ++i) {
      expect_near(static_cast<double>(seen[i]), scores[i], c, "observed " + std::to_string(i));
    }
  }
}

template <class Backend>
class onnx_cases : public ::testing::Test {};
TYPED_TEST_SUITE(onnx_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(onnx_cases, attention) {
  int done = 0;
  for (const auto& folder : heed_test::list_cases("onnx")) {
    const vector_case c(folder);
    if (c.meta.at("node").at("op_type").template get<std::string>() != "Attention") continue;
    SCOPED_TRACE(c.name);
    if (c.input("Q").dtype == "<f2") {
      run_attention_case<TypeParam, Eigen::half>(c);
    } else {
      run_attention_case<TypeParam, float>(c);
    }
    ++done;
  }
  EXPECT_EQ(done, 46);
}

TYPED_TEST(onnx_cases, flex_attention) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("onnx")) {
    const vector_case c(folder);
    if (c.meta.at("node").at("op_type").template get<std::string>() != "FlexAttention") continue;
    SCOPED_TRACE(c.name);
    const npy_array q_array = c.input("Q"), k_array = c.input("K"), v_array = c.input("V");
    const std::vector<float> q_data = q_array.as<float>(), k_data = k_array.as<float>(),
                             v_data = v_array.as<float>();
    const auto q = by_heads(q_data.data(), q_array.shape, 0);
    const auto k = by_heads(k_data.data(), k_array.shape, 0);
    const auto v = by_heads(v_data.data(), v_array.shape, 0);
    const npy_array y = c.output("Y");
    const std::vector<double> wanted = y.as<double>();
    std::vector<float> out_data(wanted.size());
    const auto out = by_heads(out_data.data(), y.shape, 0);
    // The graphs of the score_mod and prob_mod attributes, by hand.
    if (c.name == "test_flexattention_causal_mask") {
      heed::attention<TypeParam>(q, k, v, out, heed::causal_upper_left{});
    } else if (c.name == "test_flexattention_score_mod") {
      heed::attention<TypeParam>(q, k, v, out, heed::score{[](auto s, auto) { return s + 0.5f; }});
    } else if (c.name == "test_flexattention_prob_mod") {
      heed::attention<TypeParam>(q, k, v, out, heed::factor{[](auto) { return 0.5f; }});
    } else if (c.name == "test_flexattention_soft_cap") {
      heed::attention<TypeParam>(q, k, v, out, heed::softcap{20});
    } else {
      EXPECT_FALSE(c.meta.at("node").at("attributes").contains("score_mod"));
      heed::attention<TypeParam>(q, k, v, out);
    }
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      expect_near(static_cast<double>(out_data[i]), wanted[i], c, "Y " + std::to_string(i));
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 7u);
}

}  // namespace
