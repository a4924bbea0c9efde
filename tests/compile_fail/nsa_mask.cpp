// expect: heed::routed::nsa takes on and scratch
#include <heed/mask/causal.hpp>
#include <heed/routed/nsa.hpp>

void call(heed::tensor_view<const float, 4> q, heed::tensor_view<const float, 4> k,
          heed::tensor_view<const float, 4> v, heed::routed::nsa_gates<float> gates,
          heed::tensor_view<float, 4> out) {
  heed::routed::nsa(q, k, v, k, v, gates, {}, out, heed::causal{});
}
