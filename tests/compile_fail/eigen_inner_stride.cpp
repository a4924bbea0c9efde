// expect: the Eigen argument has an inner stride other than 1
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using every_second = Eigen::Map<const matrix, 0, Eigen::InnerStride<2>>;
auto inner_stride(const every_second& q) { return heed::view_of(q); }
