// expect: heed::attention: two sinks in one call
#include <heed/dense/attention.hpp>
#include <heed/normalizer/sigmoid.hpp>
#include <heed/normalizer/signed_softmax.hpp>
#include <heed/normalizer/softmax_off_by_one.hpp>
#include <heed/normalizer/sparsemax.hpp>

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out) {
  heed::attention(q, k, v, out, heed::sink{1.f}, heed::softmax_off_by_one{});
}
