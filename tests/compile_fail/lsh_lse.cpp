// expect: heed::sparse::lsh_attention takes scale, on, scratch and count_tiles
#include <heed/dense/options.hpp>
#include <heed/sparse/lsh.hpp>

void call(heed::tensor_view<const float, 4> x, heed::tensor_view<const float, 4> v,
          heed::tensor_view<float, 4> out, heed::tensor_view<const heed::index_t, 4> buckets,
          heed::tensor_view<float, 3> lse) {
  heed::sparse::lsh_attention(x, v, out, buckets, {}, heed::lse_to{lse});
}
