// expect: the Eigen argument is column-major
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

auto column_major(const Eigen::MatrixXf& q) { return heed::view_of(q); }
