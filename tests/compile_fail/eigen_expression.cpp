// expect: the Eigen argument is an expression
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
auto expression(const matrix& a, const matrix& b) { return heed::view_of(a + b); }
