// expect: heed::attention_backward: sink_gradient_to without a sink
#include <heed/dense/backward.hpp>

void call(heed::tensor_view<const float, 4> x, heed::tensor_view<const float, 3> lse,
          heed::tensor_view<float, 4> d_x, heed::tensor_view<float, 1> d_sink) {
  heed::attention_backward(x, x, x, x, lse, x, d_x, d_x, d_x, heed::sink_gradient_to{d_sink});
}
