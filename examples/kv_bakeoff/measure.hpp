// What is measured: bits per byte of code that the model has not seen, digits recalled from lines
// far back, time and memory.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../generate/evaluate.hpp"
#include "attention.hpp"

namespace bakeoff {

using model = example::transformer<evicting_attention>;
using example::bytes;

// Distances in bytes from a needle's line to the end of the text.
inline constexpr std::array<index, 4> needle_distances = {256, 1024, 2048, 3400};

struct result {
  std::string policy;
  int percent = 100;
  index budget = 0;
  double bits_per_byte = 0;
  std::array<double, needle_distances.size()> recalled{};  // share of the digits
  double tokens_per_second = 0;                            // one token at a time
  double attention_microseconds = 0;                       // per such token, eviction included
  index bytes = 0;
};

// Tokens in pieces; use(logits of a piece, its first token).
template <class Use>
void stream(model& m, example::token_span text, index piece, const Use& use) {
  for (std::size_t at = 0; at < text.size(); at += static_cast<std::size_t>(piece)) {
    const std::size_t count = std::min(static_cast<std::size_t>(piece), text.size() - at);
    use(m.forward(text.subspan(at, count), example::logits::all), at);
  }
}

inline void measure_bits(model& m, example::token_span text, index piece, result& r) {
  m.clear();
  double sum = 0;
  std::size_t predicted = 0;
  const auto add = [&](const example::matrix& rows, std::size_t at) {
    for (index i = 0; i < rows.rows(); ++i) {
      const std::size_t next = at + static_cast<std::size_t>(i) + 1;
      if (next >= text.size()) return;
      sum -= example::log_probability(rows.row(i), text[next]);
      ++predicted;
    }
  };
  // The last tokens one by one: that is what generating costs.
  constexpr std::size_t timed = 64;
  const std::size_t head = text.size() - timed;
  stream(m, text.first(head), piece, add);
  const double before = m.seconds(), attention_before = m.attention_seconds();
  stream(m, text.subspan(head), 1,
         [&](const example::matrix& rows, std::size_t at) { add(rows, head + at); });
  r.bits_per_byte = sum / std::log(2.0) / static_cast<double>(predicted);
  r.tokens_per_second = timed / (m.seconds() - before);
  r.attention_microseconds = (m.attention_seconds() - attention_before) / timed * 1e6;
  r.bytes = m.attention().bytes();
}

// Lines name_i = 12345 at all distances among lines of code; then the model is asked for each.
inline void measure_needles(model& m, const bytes& code, index piece, int trials, result& r,
                            const std::function<void()>& done) {
  std::mt19937 random(7);
  std::array<int, needle_distances.size()> right{};
  for (int trial = 0; trial < trials; ++trial, done()) {
    constexpr std::size_t length = 3600;
    const std::size_t begin = 8192 + static_cast<std::size_t>(trial) * length;
    std::string text(code.begin() + static_cast<std::ptrdiff_t>(begin),
                     code.begin() + static_cast<std::ptrdiff_t>(begin + length));
    std::replace(text.begin(), text.end(), '\0', '\n');
    std::array<std::string, needle_distances.size()> digits;
    for (std::size_t i = 0; i < digits.size(); ++i) {  // the nearest first: the others stay put
      const std::size_t at =
          text.rfind('\n', length - static_cast<std::size_t>(needle_distances[i]));
      digits[i] = std::to_string(10000 + random() % 90000);
      text.insert(at == std::string::npos ? 0 : at + 1,
                  "name_" + std::to_string(i) + " = " + digits[i] + "\n");
    }
    text = '\0' + text.substr(0, text.rfind('\n') + 1);
    m.clear();
    const auto feed = [&](const std::string& more, index step, const auto& use) {
      const bytes tokens(more.begin(), more.end());
      stream(m, tokens, step, use);
    };
    const auto ignore = [](const example::matrix&, std::size_t) {};
    feed(text, piece, ignore);
    for (std::size_t i = 0; i < digits.size(); ++i) {
      // One token at a time, as when generating; the model sees the true digits before each.
      const std::string question = "assert name_" + std::to_string(i) + " == ";
      index answer = -1;
      feed(question, 1,
           [&](const example::matrix& rows, std::size_t) { rows.row(0).maxCoeff(&answer); });
      for (const char digit : digits[i]) {
        right[i] += answer == digit ? 1 : 0;
        feed(std::string(1, digit), 1,
             [&](const example::matrix& rows, std::size_t) { rows.row(0).maxCoeff(&answer); });
      }
      feed("\n", 1, ignore);
    }
  }
  for (std::size_t i = 0; i < right.size(); ++i) r.recalled[i] = right[i] / (5.0 * trials);
}

}  // namespace bakeoff
