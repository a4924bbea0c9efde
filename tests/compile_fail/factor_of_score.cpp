// expect: heed: factor.f. needs f.position. that returns a number
#include <heed/dense/attention.hpp>
#include <heed/normalizer/factor.hpp>

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out) {
  heed::attention(q, k, v, out, heed::factor{[](float weight, float other) { return weight; }});
}
