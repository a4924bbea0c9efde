// expect: heed::shared_prefix_attention: a modifier is neither a mask
#include <heed/dense/shared_prefix.hpp>

void call(heed::tensor_view<const float, 4> x, heed::tensor_view<float, 4> out) {
  heed::shared_prefix_attention(x, x, x, x, x, out, 0.5);
}
