// expect: the output is a temporary that owns its memory
#include <Eigen/Core>
#include <heed/core/view_of.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
auto temporary() { return heed::output_view_of(matrix(3, 4)); }
