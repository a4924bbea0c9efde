// expect: the Eigen argument is a column vector
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
auto column(matrix& q) { return heed::view_of(q.col(1)); }
