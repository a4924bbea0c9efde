// Keys of small norm stay: they are the ones that attention goes to.
//
//   score_j = −‖k_j‖₂
//
// Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", 2024. No
// query is needed.
#pragma once

#include "../policy.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

struct l2_norm {
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    e.for_each_head([&](index_t b, index_t h) {
      for (index_t j = 0; j < e.slots(b, h); ++j) {
        double sum = 0;
        for (index_t d = 0; d < e.k.extent(3); ++d) {
          const double x = e.key(b, h, j, d);
          sum += x * x;
        }
        scores(b, h, j) = -std::sqrt(sum);
      }
    });
  }
};

}  // namespace cache
HEED_NAMESPACE_END
