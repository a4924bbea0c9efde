// expect: ok
// The calls of the other backward_ files of this folder, without their mistakes.
#include <heed/dense/backward.hpp>
#include <heed/score/score.hpp>
#include <heed/score/sink.hpp>

void control(heed::tensor_view<const float, 4> x, heed::tensor_view<const float, 3> lse,
             heed::tensor_view<float, 4> d_x, heed::tensor_view<float, 1> d_sink) {
  heed::attention_backward(
      x, x, x, x, lse, x, d_x, d_x, d_x,
      heed::score{[](auto s, auto) { return s * s; }, [](auto s, auto) { return s + s; }},
      heed::sink{0.f}, heed::sink_gradient_to{d_sink});
}
