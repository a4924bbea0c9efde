// expect: heed::part: partial results are kept in float or double
#include <heed/dense/merge.hpp>

void call(heed::tensor_view<const Eigen::half, 4> part, heed::tensor_view<const Eigen::half, 3> lse,
          heed::tensor_view<float, 4> out) {
  heed::merge({heed::part{part, lse}}, out);
}
