// expect: heed::attention_backward: a score has no derivative
#include <heed/dense/backward.hpp>
#include <heed/score/score.hpp>

void call(heed::tensor_view<const float, 4> x, heed::tensor_view<const float, 3> lse,
          heed::tensor_view<float, 4> d_x) {
  heed::attention_backward(x, x, x, x, lse, x, d_x, d_x, d_x,
                           heed::score{[](auto s, auto) { return s * s; }});
}
