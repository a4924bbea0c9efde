// expect: heed::attention: a sink is a logit of the softmax, this call has another
#include <heed/dense/attention.hpp>
#include <heed/normalizer/sigmoid.hpp>
#include <heed/normalizer/signed_softmax.hpp>
#include <heed/normalizer/softmax_off_by_one.hpp>
#include <heed/normalizer/sparsemax.hpp>

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out) {
  heed::attention(q, k, v, out, heed::sink{0.f}, heed::sigmoid_weights{});
}
