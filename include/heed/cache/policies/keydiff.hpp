// KeyDiff: keys that point away from the mean direction stay.
//
//   score_j = −cos(k_j, a),  a = mean over tokens of k / ‖k‖
//
// Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
// Resource-Constrained Environments", 2025. No query is needed.
#pragma once

#include "../policy.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

struct keydiff {
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    const index_t depth = e.k.extent(3);
    std::vector<double> anchor(static_cast<std::size_t>(depth));
    constexpr double least = 1e-12;  // of a norm that is divided by
    e.for_each_head([&](index_t b, index_t h) {
      const index_t slots = e.slots(b, h);
      const auto dot = [&](index_t j, auto other) {
        double sum = 0;
        for (index_t d = 0; d < depth; ++d) sum += e.key(b, h, j, d) * other(d);
        return sum;
      };
      const auto norm = [&](index_t j) {
        const double square = dot(j, [&](index_t d) { return e.key(b, h, j, d); });
        return std::max(std::sqrt(square), least);
      };
      std::fill(anchor.begin(), anchor.end(), 0.0);
      for (index_t j = 0; j < slots; ++j) {
        const double factor = 1 / (norm(j) * static_cast<double>(slots));
        for (index_t d = 0; d < depth; ++d) {
          anchor[static_cast<std::size_t>(d)] += factor * e.key(b, h, j, d);
        }
      }
      double square = 0;
      for (const double x : anchor) square += x * x;
      const double length = std::max(std::sqrt(square), least);
      for (index_t j = 0; j < slots; ++j) {
        const double product =
            dot(j, [&](index_t d) { return anchor[static_cast<std::size_t>(d)]; });
        scores(b, h, j) = -product / (norm(j) * length);
      }
    });
  }
};

}  // namespace cache
HEED_NAMESPACE_END
