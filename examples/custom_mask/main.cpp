// A mask and a score of one's own, each a few lines, compared with the library's plain
// double-precision attention.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <heed/heed.hpp>
#include <heed/mask/mask.hpp>
#include <heed/reference/dense.hpp>
#include <heed/score/score.hpp>
#include <iostream>
#include <random>
#include <vector>

int main() {
  const heed::index_t batches = 1, heads = 4, length = 200, depth = 32;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto numbers = [&] {
    std::vector<float> values(static_cast<std::size_t>(batches * heads * length * depth));
    std::generate(values.begin(), values.end(), [&] { return normal(random); });
    return values;
  };
  const std::vector<float> q = numbers(), k = numbers(), v = numbers();
  std::vector<float> out(q.size());
  const auto view = [&](auto& values) {
    return heed::tensor_view(values.data(), {batches, heads, length, depth});
  };

  // Every query sees the 16 keys up to its own, and every fourth key before them. p.k may be
  // several keys at once: comparisons then give one answer per key, which & and | combine.
  const heed::mask band_and_every_fourth{
      [](const auto& p) { return (p.k <= p.q) & ((p.k > p.q - 16) | (p.k % 4 == 0)); }};
  // The further a key is, the less it counts.
  const heed::score nearer_is_better{
      [](auto s, const auto& p) { return s - 0.1f * (p.aligned_q() - p.k); }};

  heed::attention(view(q), view(k), view(v), view(out), band_and_every_fourth, nearer_is_better);

  // The same functions tell the reference what to compute.
  std::vector<double> expected;
  heed::reference::options options;
  options.visible = band_and_every_fourth;
  options.scores = {nearer_is_better};
  heed::reference::attention(view(q), view(k), view(v), expected, options);

  double difference = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(out[i]) - expected[i]));
  }
  std::cout << "out begins with " << out[0] << ' ' << out[1] << ' ' << out[2] << '\n'
            << "largest difference from the double-precision reference: " << difference << '\n';
  return difference < 1e-5 ? 0 : 1;
}
