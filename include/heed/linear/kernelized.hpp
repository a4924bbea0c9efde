// Linear attention with a positive feature map, normalised by the sum of its weights:
//
//   out_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + ε),   φ = elu + 1,  j ≤ i or all j
//
// Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs: Fast Autoregressive Transformers
// with Linear Attention", 2020.
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// Shapes, element types and errors are those of linear::attention. Modifiers: bidirectional,
// another feature map, initial_state and final_state with the sum of keys, key_lengths, …
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void kernelized(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, modifiers..., elu_plus_one, normalized{sum_of_weights{1e-6}});
}

}  // namespace linear
HEED_NAMESPACE_END
