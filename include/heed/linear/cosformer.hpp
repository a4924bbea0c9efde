// cosFormer: rectified weights that fade with distance by a cosine.
//
//   w_ij = relu(q_i)·relu(k_j)·cos(π(i − j)/2M),  out_i = Σ_j w_ij v_j / max(Σ_j w_ij, ε)
//
// cos(a − b) = cos a cos b + sin a sin b makes it 2·D features, [relu(x) sin, relu(x) cos] of
// π(i + 1)/2M. M is the length of the sequence, max(Lq, Lk) where they differ, or a fixed one,
// which states that go on with later calls need.
//
// Qin et al., "cosFormer: Rethinking Softmax in Attention", 2022.
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

struct cosformer_features {
  index_t length = 0;  // M; 0: that of the sequence
  index_t offset = 0;  // tokens before the first one of this call

  index_t features(index_t depth) const { return 2 * depth; }
  template <class Backend, class Real>
  void map(const token_rows<Real>& x, Real* to, index_t to_row) const {
    const double quarter = 1.57079632679489661923;
    const auto longest = static_cast<double>(length != 0 ? length : x.length);
    for (index_t t = 0; t < x.count; ++t) {
      const double angle = quarter * static_cast<double>(offset + x.position + t + 1) / longest;
      const Real sine = static_cast<Real>(std::sin(angle));
      const Real cosine = static_cast<Real>(std::cos(angle));
      const Real* row = x.row(t);
      Real* phi = to + t * to_row;
      for (index_t d = 0; d < x.depth; ++d) {
        const Real positive = max(row[d], Real(0));
        phi[d] = positive * sine;
        phi[x.depth + d] = positive * cosine;
      }
    }
  }
};

// Shapes, element types, further modifiers (bidirectional, another cosformer_features, …) and
// errors are those of linear::attention.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void cosformer(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, modifiers..., cosformer_features{},
                     normalized{clamped_sum_of_weights{1e-6}});
}

}  // namespace linear
HEED_NAMESPACE_END
