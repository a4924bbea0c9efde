// expect: heed::attention: a modifier is neither a mask .*, a score .*, nor an option
#include <heed/dense/attention.hpp>

struct not_a_modifier {};

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out) {
  heed::attention(q, k, v, out, not_a_modifier{});
}
