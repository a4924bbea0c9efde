// expect: heed::routed::biformer takes on, scratch and count_tiles
#include <heed/mask/causal.hpp>
#include <heed/routed/biformer.hpp>

void call(heed::tensor_view<const float, 4> q, heed::tensor_view<const float, 4> k,
          heed::tensor_view<const float, 4> v, heed::tensor_view<float, 4> out) {
  heed::routed::biformer(q, k, v, {8, 8, 2, 2}, out, heed::causal{});
}
