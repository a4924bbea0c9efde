// The least that a program can ask for: one header, one call.
#include <heed/dense/attention.hpp>

void one_call(const heed::tensor_view<float, 4>& q, const heed::tensor_view<float, 4>& k,
              const heed::tensor_view<float, 4>& v, const heed::tensor_view<float, 4>& out) {
  heed::attention(q, k, v, out);
}
