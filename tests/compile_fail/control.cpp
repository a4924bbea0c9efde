// expect: ok
// The same calls as in the other files of this folder, without their mistakes.
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>

void control(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
             heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out) {
  heed::attention(q, k, v, out);
  heed::attention(q, k, v, out, heed::causal{});
}
