// expect: the output is const
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
auto constant(const matrix& out) { return heed::output_view_of(out); }
