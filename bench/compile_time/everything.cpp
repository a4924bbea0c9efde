// All of the library, and one call with a mask.
#include <heed/heed.hpp>

void masked_call(const heed::tensor_view<float, 4>& q, const heed::tensor_view<float, 4>& k,
                 const heed::tensor_view<float, 4>& v, const heed::tensor_view<float, 4>& out) {
  heed::attention(q, k, v, out, heed::causal{});
}
