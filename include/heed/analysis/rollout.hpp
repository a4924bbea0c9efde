// Attention rollout: how much of an input token reaches a token of the last layer, if a layer mixes
// what it is given by its mean attention and half of it passes by,
//
//   Ã_l = ½·mean_h A_l,h + ½·I,  rows divided by their sums
//   R_l = Ã_l·R_{l−1},  R_0 = I
//
// from what weights_to reports of every layer. Abnar and Zuidema, "Quantifying Attention Flow in
// Transformers", ACL 2020.
#pragma once

#include <vector>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace analysis {

class rollout {
 public:
  // For sequences of this length; `residual` is the share that passes by a layer.
  explicit rollout(index_t length, double residual = 0.5) : length_(length), residual_(residual) {
    if (length < 0) raise(message("rollout: length ") << length << " is negative");
    if (!(residual >= 0 && residual <= 1)) raise("rollout: residual must lie in [0, 1]");
    flow_.assign(static_cast<std::size_t>(length * length), 0.f);
    for (index_t i = 0; i < length; ++i) flow_[static_cast<std::size_t>(i * length + i)] = 1;
  }

  // The next layer's weights [H, L, L].
  template <class T>
  void add_layer(const tensor_view<T, 3>& weights) {
    if (weights.extent(0) < 1 || weights.extent(1) != length_ || weights.extent(2) != length_) {
      raise(message("rollout: weights are [")
            << weights.extent(0) << ", " << weights.extent(1) << ", " << weights.extent(2)
            << "], must be [H, " << length_ << ", " << length_ << "], H at least 1");
    }
    std::vector<float> next(flow_.size()), mixed(static_cast<std::size_t>(length_));
    const double share = (1 - residual_) / static_cast<double>(weights.extent(0));
    for (index_t i = 0; i < length_; ++i) {
      double sum = 0;
      for (index_t j = 0; j < length_; ++j) {
        double weight = i == j ? residual_ : 0;
        for (index_t h = 0; h < weights.extent(0); ++h) {
          weight += share * widen<double>(weights(h, i, j));
        }
        mixed[static_cast<std::size_t>(j)] = static_cast<float>(weight);
        sum += weight;
      }
      float* to = next.data() + i * length_;
      for (index_t j = 0; j < length_; ++j) {
        const float weight = mixed[static_cast<std::size_t>(j)];
        if (weight == 0) continue;  // half of them, under a causal mask
        const float factor = static_cast<float>(static_cast<double>(weight) / sum);
        const float* from = flow_.data() + j * length_;
        for (index_t d = 0; d < length_; ++d) to[d] += factor * from[d];
      }
    }
    flow_.swap(next);
  }

  // R of the layers so far, [L, L]: row i sums up to 1 over the input tokens.
  tensor_view<const float, 2> result() const { return {flow_.data(), {length_, length_}}; }

 private:
  index_t length_;
  double residual_;
  std::vector<float> flow_;
};

}  // namespace analysis
HEED_NAMESPACE_END
