// A Llama checkpoint: config.json and model.safetensors of one folder, as float matrices.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "eigen.hpp"
#include "safetensors.hpp"

namespace example {

using index = Eigen::Index;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_vector = Eigen::Matrix<float, 1, Eigen::Dynamic>;

struct llama_config {
  index vocabulary = 0;
  index hidden = 0;
  index intermediate = 0;
  index layers = 0;
  index heads = 0;
  index key_heads = 0;
  index depth = 0;  // of one head
  index context = 0;
  float epsilon = 0;
  float theta = 0;

  index query_width() const { return heads * depth; }
  index key_width() const { return key_heads * depth; }
  // One row of queries, keys and values, side by side.
  index qkv_width() const { return query_width() + 2 * key_width(); }

  // Floating-point operations of the matrix products for one token; attention comes on top.
  double flops_per_token() const {
    const index layer = hidden * (qkv_width() + query_width() + 3 * intermediate);
    return 2.0 * static_cast<double>(layers * layer + vocabulary * hidden);
  }

  static llama_config open(const std::filesystem::path& path);
};

namespace detail {

// Reads the members of config.json; an error names the file, the key and the value.
class config_reader {
 public:
  explicit config_reader(const std::filesystem::path& path) : name_(path.string()) {
    std::ifstream stream(path);
    if (!stream) fail("cannot be opened for reading");
    try {
      config_ = nlohmann::json::parse(stream);
    } catch (const nlohmann::json::exception& error) {
      fail(std::string("is not JSON: ") + error.what());
    }
    if (!config_.is_object()) fail("is not a JSON object");
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw std::runtime_error(name_ + ": " + message);
  }

  // A size. The limit keeps every product of a few of them within 64 bits.
  index size(const char* key) const {
    const nlohmann::json& value = member(key);
    constexpr std::int64_t most = 1 << 20;
    if (!value.is_number_integer() || value < 1 || value > most) {
      fail(key, value, "an integer from 1 to " + std::to_string(most));
    }
    return value.get<index>();
  }
  index size(const char* key, index otherwise) const {
    return config_.contains(key) && !config_[key].is_null() ? size(key) : otherwise;
  }

  float positive(const char* key) const {
    const nlohmann::json& value = member(key);
    if (!value.is_number() || !(value.get<float>() > 0) || !std::isfinite(value.get<float>())) {
      fail(key, value, "a positive number");
    }
    return value.get<float>();
  }

  // What this example computes is one variant of the architecture; others are refused.
  void expect(const char* key, const nlohmann::json& expected) const {
    if (member(key) != expected) fail(key, member(key), expected.dump());
  }
  void expect_null(const char* key) const {
    if (config_.contains(key) && !config_[key].is_null()) fail(key, config_[key], "null");
  }

 private:
  const nlohmann::json& member(const char* key) const {
    const auto found = config_.find(key);
    if (found == config_.end()) fail(std::string("has no '") + key + "'");
    return *found;
  }
  [[noreturn]] void fail(const char* key, const nlohmann::json& value,
                         const std::string& expected) const {
    const std::string shown =
        value.is_structured() ? std::string("of type ") + value.type_name() : value.dump();
    fail(std::string("'") + key + "' is " + shown + ", but must be " + expected);
  }

  std::string name_;
  nlohmann::json config_;
};

}  // namespace detail

inline llama_config llama_config::open(const std::filesystem::path& path) {
  const detail::config_reader reader(path);
  reader.expect("model_type", "llama");
  reader.expect("hidden_act", "silu");
  reader.expect("tie_word_embeddings", true);
  reader.expect("attention_bias", false);
  reader.expect("mlp_bias", false);
  reader.expect("vocab_size", 256);  // a token is a byte
  reader.expect_null("rope_scaling");

  llama_config config;
  config.vocabulary = reader.size("vocab_size");
  config.hidden = reader.size("hidden_size");
  config.intermediate = reader.size("intermediate_size");
  config.layers = reader.size("num_hidden_layers");
  config.heads = reader.size("num_attention_heads");
  config.key_heads = reader.size("num_key_value_heads", config.heads);
  config.depth = reader.size("head_dim", config.hidden / config.heads);
  config.context = reader.size("max_position_embeddings");
  config.epsilon = reader.positive("rms_norm_eps");
  config.theta = reader.positive("rope_theta");
  if (config.heads % config.key_heads != 0) {
    reader.fail("num_key_value_heads " + std::to_string(config.key_heads) +
                " does not divide num_attention_heads " + std::to_string(config.heads));
  }
  if (config.depth < 2 || config.depth % 2 != 0) {
    reader.fail("head_dim " + std::to_string(config.depth) +
                " is not even, as the rotary embedding needs it");
  }
  return config;
}

struct llama_weights {
  struct layer {
    row_vector input_norm, post_norm;
    matrix qkv;      // [qkv_width, hidden]: the three projections stacked
    matrix o;        // [hidden, query_width]
    matrix gate_up;  // [2·intermediate, hidden]: gate stacked on up
    matrix down;     // [hidden, intermediate]
  };

  llama_config config;
  matrix embedding;  // [vocabulary, hidden], also the output projection
  std::vector<layer> layers;
  row_vector norm;

  // Reads config.json and model.safetensors.
  static llama_weights open(const std::filesystem::path& folder) {
    llama_weights weights;
    weights.config = llama_config::open(folder / "config.json");
    const llama_config& config = weights.config;
    const safetensors_file file = safetensors_file::open(folder / "model.safetensors");

    // Matrices of `columns` columns, stacked; allocated only once the file is known to have them.
    struct part {
      std::string name;
      index rows;
    };
    const auto stack = [&file](index columns, const std::vector<part>& parts) {
      std::vector<float> values;
      for (const part& p : parts) {
        const std::vector<float> more = file.as_float(p.name, {p.rows, columns});
        values.insert(values.end(), more.begin(), more.end());
      }
      const index rows = static_cast<index>(values.size()) / columns;
      return matrix(Eigen::Map<const matrix>(values.data(), rows, columns));
    };
    const auto vector = [&file](const std::string& name, index size) {
      const std::vector<float> values = file.as_float(name, {size});
      return row_vector(Eigen::Map<const row_vector>(values.data(), size));
    };

    weights.embedding = stack(config.hidden, {{"model.embed_tokens.weight", config.vocabulary}});
    weights.norm = vector("model.norm.weight", config.hidden);
    for (index i = 0; i < config.layers; ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
      layer& current = weights.layers.emplace_back();
      current.input_norm = vector(prefix + "input_layernorm.weight", config.hidden);
      current.post_norm = vector(prefix + "post_attention_layernorm.weight", config.hidden);
      current.qkv = stack(config.hidden, {{attention + "q_proj.weight", config.query_width()},
                                          {attention + "k_proj.weight", config.key_width()},
                                          {attention + "v_proj.weight", config.key_width()}});
      current.o = stack(config.query_width(), {{attention + "o_proj.weight", config.hidden}});
      current.gate_up = stack(config.hidden, {{mlp + "gate_proj.weight", config.intermediate},
                                              {mlp + "up_proj.weight", config.intermediate}});
      current.down = stack(config.intermediate, {{mlp + "down_proj.weight", config.hidden}});
    }
    return weights;
  }

  index parameters() const {
    index count = embedding.size() + norm.size();
    for (const layer& l : layers) {
      count += l.input_norm.size() + l.post_norm.size() + l.qkv.size() + l.o.size() +
               l.gate_up.size() + l.down.size();
    }
    return count;
  }
};

}  // namespace example
