// expect: heed::attention over sources: masks, scores, key_lengths and left_padding belong
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out) {
  heed::attention(q, heed::sources{heed::source{k, v}}, out, heed::causal{});
}
