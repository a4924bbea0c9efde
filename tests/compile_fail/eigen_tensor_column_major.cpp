// expect: the Eigen tensor argument is column-major
#include <heed/core/view_of.hpp>
#include <unsupported/Eigen/CXX11/Tensor>

auto column_major(const Eigen::Tensor<float, 4>& q) { return heed::view_of(q); }
