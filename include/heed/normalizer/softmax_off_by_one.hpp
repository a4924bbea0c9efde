// Softmax with one more logit 0 in the denominator: a head may attend to nothing.
//
//   p_ij = e^(s_ij) / (1 + Σ_j e^(s_ij));  the log-sum-exp includes the 1
//
// A sink with logit 0 for every head: softmax_off_by_one is sink{0.f} by its own name.
//
// Miller, "Attention is off by one", 2023.
#pragma once

#include "../score/sink.hpp"

HEED_NAMESPACE_BEGIN

struct softmax_off_by_one : sink<float> {
  softmax_off_by_one() : sink<float>(0.f) {}
};

HEED_NAMESPACE_END
