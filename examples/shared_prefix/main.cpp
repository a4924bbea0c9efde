// A batch of continuations of one prompt: a decoding step that reads the prompt's keys and values
// once, and the same step with a copy of the prompt for each sequence.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <heed/heed.hpp>
#include <iomanip>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

using heed::index_t;
using floats = std::vector<float>;

constexpr index_t continuations = 16;       // sequences of the batch
constexpr index_t prompt = 2048, own = 32;  // keys that all share, and keys of each
constexpr index_t query_heads = 16, kv_heads = 4, depth = 64;

floats random_numbers(index_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  floats values(static_cast<std::size_t>(count));
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

// [batches, kv_heads, length, depth]
heed::tensor_view<const float, 4> view(const floats& values, index_t batches, index_t length) {
  return {values.data(), {batches, kv_heads, length, depth}};
}

// Each sequence's keys (or values) behind a copy of the prompt's.
floats with_copies(const floats& of_prompt, const floats& of_sequences) {
  floats all;
  for (index_t head = 0; head < continuations * kv_heads; ++head) {
    const auto first = of_prompt.begin() + head % kv_heads * prompt * depth;
    all.insert(all.end(), first, first + prompt * depth);
    const auto second = of_sequences.begin() + head * own * depth;
    all.insert(all.end(), second, second + own * depth);
  }
  return all;
}

// The fastest of a few calls, in milliseconds.
template <class Call>
double milliseconds(const Call& call) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 20; ++i) {
    const auto start = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best * 1e3;
}

int main() {
  const floats prompt_k = random_numbers(kv_heads * prompt * depth, 1);
  const floats prompt_v = random_numbers(kv_heads * prompt * depth, 2);
  const floats k = random_numbers(continuations * kv_heads * own * depth, 3);
  const floats v = random_numbers(continuations * kv_heads * own * depth, 4);
  const floats q_data = random_numbers(continuations * query_heads * depth, 5);
  const heed::tensor_view q(q_data.data(), {continuations, query_heads, index_t{1}, depth});
  floats shared(q_data.size()), copied(q_data.size());
  const auto rows = [](floats& out) {
    return heed::tensor_view(out.data(), {continuations, query_heads, index_t{1}, depth});
  };

  const double shared_time = milliseconds([&] {
    heed::shared_prefix_attention(q, view(prompt_k, 1, prompt), view(prompt_v, 1, prompt),
                                  view(k, continuations, own), view(v, continuations, own),
                                  rows(shared));
  });

  const floats all_k = with_copies(prompt_k, k), all_v = with_copies(prompt_v, v);
  const double copied_time = milliseconds([&] {
    heed::attention(q, view(all_k, continuations, prompt + own),
                    view(all_v, continuations, prompt + own), rows(copied));
  });

  float difference = 0;
  for (std::size_t i = 0; i < shared.size(); ++i) {
    difference = std::max(difference, std::abs(shared[i] - copied[i]));
  }
  const auto mebibytes = [](const floats& keys, const floats& own_keys) {
    return static_cast<double>(2 * (keys.size() + own_keys.size()) * sizeof(float)) / (1 << 20);
  };
  std::cout << continuations << " continuations of a prompt of " << prompt << " tokens, one step\n"
            << std::fixed << std::setprecision(2)  //
            << "  prompt shared: reads " << mebibytes(prompt_k, k) << " MiB of keys and values, "
            << shared_time << " ms\n"
            << "  prompt copied: reads " << mebibytes(all_k, {}) << " MiB of keys and values, "
            << copied_time << " ms\n"
            << std::scientific << "  largest difference: " << difference << '\n';
  return difference < 1e-5f ? 0 : 1;
}
