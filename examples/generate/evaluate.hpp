// Measures a model: bits per byte of a text, and its agreement with stored results and with itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "safetensors.hpp"
#include "transformer.hpp"

namespace example {

using bytes = std::vector<std::uint8_t>;

// The first `most` bytes of a file, or all of them.
inline bytes read_bytes(const std::filesystem::path& path,
                        std::size_t most = std::numeric_limits<std::size_t>::max()) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path.string() + ": cannot be opened for reading");
  bytes text;
  for (char c; text.size() < most && stream.get(c);) text.push_back(static_cast<std::uint8_t>(c));
  if (stream.bad()) throw std::runtime_error(path.string() + ": cannot be read");
  return text;
}

// Natural logarithm of the probability of each token: log softmax(logits)[token].
template <class Row>
double log_probability(const Row& row, std::uint8_t token) {
  const double largest = row.maxCoeff();
  double sum = 0;
  for (index i = 0; i < row.size(); ++i) sum += std::exp(static_cast<double>(row[i]) - largest);
  return static_cast<double>(row[token]) - largest - std::log(sum);
}

// Log-probabilities of tokens 1, 2, … of a text that fits into the context.
inline std::vector<double> log_probabilities(language_model& model, token_span tokens) {
  model.clear();
  const matrix& rows = model.forward(tokens, logits::all);
  std::vector<double> result;
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    result.push_back(log_probability(rows.row(static_cast<index>(i) - 1), tokens[i]));
  }
  return result;
}

// Told how much of a long step is done, from 0 to 1.
using progress_function = std::function<void(double)>;

// Average over consecutive windows of a text, every byte but each window's first predicted.
inline double bits_per_byte(language_model& model, token_span text, index window,
                            const progress_function& progress = {}) {
  if (window < 2 || window > model.context()) {
    throw std::runtime_error("window of " + std::to_string(window) + " bytes is not from 2 to " +
                             std::to_string(model.context()) + ", the context");
  }
  double sum = 0;
  std::size_t predicted = 0;
  for (std::size_t begin = 0; begin < text.size(); begin += static_cast<std::size_t>(window)) {
    const std::size_t size = std::min(text.size() - begin, static_cast<std::size_t>(window));
    for (const double p : log_probabilities(model, text.subspan(begin, size))) sum += p;
    predicted += size - 1;
    if (progress) {
      progress(static_cast<double>(begin + size) / static_cast<double>(text.size()));
    }
  }
  if (predicted == 0) {
    throw std::runtime_error("a text of " + std::to_string(text.size()) +
                             " bytes has none to predict; at least 2 are needed");
  }
  return -sum / std::log(2.0) / static_cast<double>(predicted);
}

// Largest differences from the double-precision run that golden.safetensors holds.
struct golden_deviation {
  double log_probability = 0;
  double logits = 0;  // of the last 64 positions
};

inline golden_deviation compare_with_golden(language_model& model, const safetensors_file& golden) {
  bytes tokens;
  for (const std::int32_t token : golden.as_int32("tokens")) {
    if (token < 0 || token > 255) {
      throw std::runtime_error("golden token " + std::to_string(token) + " is not a byte");
    }
    tokens.push_back(static_cast<std::uint8_t>(token));
  }
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::vector<float> expected = golden.as_float("logprob", {count - 1});
  const std::vector<float> expected_logits = golden.as_float("logits_last64", {64, 256});

  model.clear();
  const matrix& rows = model.forward(tokens, logits::all);
  // A NaN is an infinite deviation; std::max would drop it.
  const auto worse = [](double& worst, double difference) {
    if (!(std::abs(difference) <= worst)) {
      worst =
          std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::abs(difference);
    }
  };
  golden_deviation result;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double p = log_probability(rows.row(static_cast<index>(i)), tokens[i + 1]);
    worse(result.log_probability, p - static_cast<double>(expected[i]));
  }
  const Eigen::Map<const matrix> last(expected_logits.data(), 64, 256);
  for (index i = 0; i < 64; ++i) {
    for (index j = 0; j < 256; ++j) {
      worse(result.logits, static_cast<double>(rows(count - 64 + i, j)) - last(i, j));
    }
  }
  return result;
}

// Largest difference between the logits of one prefill and of the same text token by token.
inline double compare_decode_with_prefill(language_model& model, token_span tokens,
                                          const progress_function& progress = {}) {
  model.clear();
  const matrix prefill = model.forward(tokens, logits::all);
  model.clear();
  double worst = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const matrix& step = model.forward(tokens.subspan(i, 1), logits::last);
    const double difference =
        (step.row(0) - prefill.row(static_cast<index>(i))).cwiseAbs().maxCoeff();
    if (!(difference <= worst)) {
      worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
    }
    if (progress) progress(static_cast<double>(i + 1) / static_cast<double>(tokens.size()));
  }
  return worst;
}

}  // namespace example
