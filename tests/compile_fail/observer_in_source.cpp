// expect: heed::source: a modifier is neither a mask
#include <heed/dense/attention.hpp>
#include <heed/observer/column_sums.hpp>

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<const float, 2> v, heed::tensor_view<float, 2> out,
          heed::tensor_view<float, 1> sums) {
  heed::attention(q, heed::sources{heed::source{k, v, heed::column_sums_to{sums}}}, out);
}
