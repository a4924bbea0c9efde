// The example's language model: its attention is heed's, so that its agreement with a run in double
// precision, computed elsewhere, is a test of the whole library path: rotary embedding, cache,
// causal attention with fewer key heads than query heads, prefill and decode.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <heed/reference/dense.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../../examples/generate/evaluate.hpp"
#include "../../../examples/generate/llama.hpp"
#include "../../../examples/generate/safetensors.hpp"
#include "support/backends.hpp"

namespace {

using example::bytes;
using example::index;
using example::llama;
using example::llama_config;
using example::llama_weights;
using example::logits;
using example::matrix;
using example::safetensors_file;
using example::token_span;

std::filesystem::path model_folder() {
  return std::filesystem::path(HEED_EXAMPLE_MODELS) / "pybyte";
}
const llama_weights& weights() {
  static const llama_weights loaded = llama_weights::open(model_folder());
  return loaded;
}
const safetensors_file& golden() {
  static const safetensors_file loaded =
      safetensors_file::open(model_folder() / "golden.safetensors");
  return loaded;
}
bytes held_out(std::size_t count) {
  return example::read_bytes(model_folder() / "held_out.txt", count);
}

// ---- with a backend -----------------------------------------------------------------------------

// The same queries, keys and values on every backend: unit/dense/real_activations_test.
template <class Backend>
class generate_with : public ::testing::Test {
 protected:
  heed::thread_pool pool_{2};
};

TYPED_TEST_SUITE(generate_with, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(generate_with, agrees_with_double_precision) {
  llama<TypeParam, float> model(weights(), this->pool_, 1024);
  const example::golden_deviation worst = example::compare_with_golden(model, golden());
  EXPECT_LE(worst.log_probability, 2e-3);
  EXPECT_LE(worst.logits, 2e-3);
}

TYPED_TEST(generate_with, decode_gives_what_prefill_gives) {
  llama<TypeParam, float> model(weights(), this->pool_, 300);
  EXPECT_LE(example::compare_decode_with_prefill(model, held_out(300)), 1e-4);
}

// In 16 bits the operands are rounded, nothing else.
TYPED_TEST(generate_with, sixteen_bit_operands_predict_as_well) {
  const bytes text = held_out(TypeParam::name == "scalar" ? 1024 : 2048);  // it is slow
  const auto bits = [&]<class Operand>(Operand) {
    llama<TypeParam, Operand> model(weights(), this->pool_, 1024);
    return example::bits_per_byte(model, text, 1024);
  };
  const double expected = bits(float());
  EXPECT_GT(expected, 0.5);
  EXPECT_LT(expected, 1.5);
  EXPECT_NEAR(bits(Eigen::bfloat16()), expected, 5e-3);
  EXPECT_NEAR(bits(Eigen::half()), expected, 1e-3);
}

// ---- the model ----------------------------------------------------------------------------------

TEST(generate, prefill_may_come_in_pieces) {
  heed::thread_pool pool(2);
  const bytes text = held_out(500);
  llama<> model(weights(), pool, 500);
  const matrix whole = model.forward(text, logits::all);
  model.clear();
  index done = 0;
  double worst = 0;
  for (const std::size_t piece : {1u, 130u, 2u, 300u, 67u}) {
    const matrix& rows =
        model.forward(token_span(text).subspan(static_cast<std::size_t>(done), piece), logits::all);
    worst =
        std::max<double>(worst, (rows - whole.middleRows(done, rows.rows())).cwiseAbs().maxCoeff());
    done += rows.rows();
  }
  EXPECT_EQ(done, 500);
  EXPECT_EQ(model.size(), 500);
  EXPECT_LE(worst, 1e-4);
}

TEST(generate, threads_do_not_change_a_bit) {
  const bytes text = held_out(600);
  const auto run = [&](int threads) -> matrix {
    heed::thread_pool pool(threads);
    llama<> model(weights(), pool, 600);
    return model.forward(text, logits::all);
  };
  const matrix one = run(1);
  EXPECT_EQ(run(2), one);
  EXPECT_EQ(run(5), one);
}

TEST(generate, the_last_row_is_the_last_of_all_rows) {
  heed::thread_pool pool(1);
  const bytes text = held_out(40);
  llama<> model(weights(), pool, 64);
  const matrix all = model.forward(text, logits::all);
  model.clear();
  const matrix& last = model.forward(text, logits::last);
  ASSERT_EQ(last.rows(), 1);
  EXPECT_LE((last.row(0) - all.row(39)).cwiseAbs().maxCoeff(), 1e-4f);
}

// Text like what the model was trained on: it must find a number that it read 1000 bytes before.
TEST(generate, recalls_a_number) {
  const bytes filler = held_out(1000);
  bytes text = {0};
  const auto append = [&](const std::string& line) {
    text.insert(text.end(), line.begin(), line.end());
  };
  append("import os\n\nvalue_3 = 48213\n\n");
  text.insert(text.end(), filler.begin() + 1, filler.end());
  append("\nassert value_3 == ");

  heed::thread_pool pool(2);
  llama<> model(weights(), pool, 2048);
  const matrix* rows = &model.forward(text, logits::last);
  std::string written;
  while (written.size() < 5) {
    index likeliest = 0;
    rows->row(0).maxCoeff(&likeliest);
    written.push_back(static_cast<char>(likeliest));
    const auto next = static_cast<std::uint8_t>(likeliest);
    rows = &model.forward(token_span(&next, 1), logits::last);
  }
  EXPECT_EQ(written, "48213");
}

// Queries, keys and values of a real model, stored after the rotary embedding.
TEST(generate, attention_on_stored_queries_and_keys) {
  for (const std::string layer : {"layer1", "layer3"}) {
    const std::vector<float> q = golden().as_float(layer + ".q", {4, 1024, 64}),
                             k = golden().as_float(layer + ".k", {2, 1024, 64}),
                             v = golden().as_float(layer + ".v", {2, 1024, 64});
    std::vector<float> out(q.size());
    // The last 200 queries against all keys keep the reference quick.
    constexpr heed::index_t queries = 200;
    const auto queries_view = heed::tensor_view(q.data(), {1, 4, 1024, 64});
    const auto q_view = queries_view.slice(2, 1024 - queries, queries);
    const auto k_view = heed::tensor_view(k.data(), {1, 2, 1024, 64});
    const auto v_view = heed::tensor_view(v.data(), {1, 2, 1024, 64});
    const auto out_view =
        heed::tensor_view(out.data(), {1, 4, 1024, 64}).slice(2, 1024 - queries, queries);
    heed::attention(q_view, k_view, v_view, out_view, heed::causal{});

    std::vector<double> expected;
    heed::reference::options options;
    options.visible = heed::causal{};
    heed::reference::attention(q_view, k_view, v_view, expected, options);
    double worst = 0;
    for (heed::index_t h = 0; h < 4; ++h) {
      for (heed::index_t i = 0; i < queries; ++i) {
        for (heed::index_t d = 0; d < 64; ++d) {
          const double oracle = expected[static_cast<std::size_t>((h * queries + i) * 64 + d)];
          worst =
              std::max(worst, std::abs(out_view(0, h, i, d) - oracle) - 5e-6 * std::abs(oracle));
        }
      }
    }
    EXPECT_LE(worst, 1e-5) << layer;
  }
}

// ---- what is refused ----------------------------------------------------------------------------

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(generate, too_many_tokens_are_refused) {
  heed::thread_pool pool(1);
  const bytes text = held_out(11);
  EXPECT_EQ(error_of([&] { llama<>(weights(), pool, 5000); }),
            "context 5000 is not from 1 to the model's 4096");
  llama<> model(weights(), pool, 10);
  EXPECT_EQ(error_of([&] { model.forward(text, logits::all); }),
            "0 tokens and 11 more do not fit into the context of 10");
  EXPECT_EQ(error_of([&] { model.forward({}, logits::all); }), "forward needs at least one token");
  EXPECT_EQ(error_of([&] { example::bits_per_byte(model, text, 11); }),
            "window of 11 bytes is not from 2 to 10, the context");
}

TEST(generate, a_config_that_does_not_fit_is_refused) {
  const std::filesystem::path path =
      std::filesystem::path(::testing::TempDir()) / "generate_test_config.json";
  std::ifstream original(model_folder() / "config.json");
  const auto valid = nlohmann::json::parse(original);
  const auto with = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json config = valid;
    change(config);
    std::ofstream(path) << config;
    return error_of([&] { llama_config::open(path); });
  };
  const std::string start = path.string() + ": ";
  EXPECT_EQ(with([](auto&) {}), "");
  EXPECT_EQ(with([](auto& c) { c.erase("hidden_size"); }), start + "has no 'hidden_size'");
  EXPECT_EQ(with([](auto& c) { c["hidden_size"] = -3; }),
            start + "'hidden_size' is -3, but must be an integer from 1 to 1048576");
  EXPECT_EQ(with([](auto& c) { c["rope_theta"] = "big"; }),
            start + "'rope_theta' is \"big\", but must be a positive number");
  EXPECT_EQ(with([](auto& c) { c["hidden_act"] = "gelu"; }),
            start + "'hidden_act' is \"gelu\", but must be \"silu\"");
  EXPECT_EQ(with([](auto& c) {
              c["rope_scaling"] = {{"factor", 2}};
            }),
            start + "'rope_scaling' is of type object, but must be null");
  EXPECT_EQ(with([](auto& c) { c["num_key_value_heads"] = 3; }),
            start + "num_key_value_heads 3 does not divide num_attention_heads 4");
  EXPECT_EQ(with([](auto& c) { c["head_dim"] = 63; }),
            start + "head_dim 63 is not even, as the rotary embedding needs it");
  std::filesystem::remove(path);
  EXPECT_EQ(error_of([&] { llama_config::open(path); }), start + "cannot be opened for reading");
}

}  // namespace
