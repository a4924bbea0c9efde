// expect: the Eigen tensor argument is an expression
#include <heed/core/view_of.hpp>
#include <unsupported/Eigen/CXX11/Tensor>

using tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;
auto expression(const tensor& a, const tensor& b) { return heed::view_of(a * b); }
