// expect: heed::routed::routing_transformer takes scale, on and scratch
#include <heed/routed/routing_transformer.hpp>

void call(heed::tensor_view<const float, 4> q, heed::tensor_view<const float, 4> k,
          heed::tensor_view<const float, 4> v, heed::tensor_view<const float, 3> means,
          heed::tensor_view<float, 3> lse, heed::tensor_view<float, 4> out) {
  heed::routed::routing_transformer(q, k, v, means, k, v, {4, 4}, out, heed::lse_to{lse});
}
