// expect: the Eigen argument is a column vector
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

auto column_vector(const Eigen::VectorXf& q) { return heed::view_of(q); }
