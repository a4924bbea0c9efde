// expect: heed::attention_backward: a modifier is neither a mask .*, a score .*, nor an option
#include <heed/dense/backward.hpp>

void call(heed::tensor_view<const float, 4> x, heed::tensor_view<float, 3> lse,
          heed::tensor_view<float, 4> d_x) {
  heed::attention_backward(x, x, x, x, lse, x, d_x, d_x, d_x, heed::lse_to{lse});
}
