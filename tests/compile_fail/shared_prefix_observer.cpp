// expect: heed::shared_prefix_attention: a modifier is
#include <heed/dense/shared_prefix.hpp>
#include <heed/normalizer/sigmoid.hpp>

void call(heed::tensor_view<const float, 3> q, heed::tensor_view<const float, 3> k,
          heed::tensor_view<const float, 3> v, heed::tensor_view<float, 3> out) {
  heed::shared_prefix_attention(q, k, v, k, v, out, heed::sigmoid_weights{});
}
