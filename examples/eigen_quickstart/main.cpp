// Attention on Eigen matrices: one call, and the same in plain Eigen to compare with.
#include <Eigen/Core>
#include <cmath>
#include <heed/heed.hpp>
#include <iostream>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// softmax(q kᵀ / √depth) v, where no query sees a later key. Stores all scores.
matrix plain_attention(const matrix& q, const matrix& k, const matrix& v) {
  matrix weights = q * k.transpose() / std::sqrt(static_cast<float>(q.cols()));
  for (Eigen::Index i = 0; i < weights.rows(); ++i) {
    const Eigen::Index seen = i + 1;
    weights.row(i).head(seen).array() -= weights.row(i).head(seen).maxCoeff();
    weights.row(i).head(seen) = weights.row(i).head(seen).array().exp();
    weights.row(i).head(seen) /= weights.row(i).head(seen).sum();
    weights.row(i).tail(weights.cols() - seen).setZero();
  }
  return weights * v;
}

int main() {
  const Eigen::Index length = 300, depth = 64;
  const matrix q = matrix::Random(length, depth);
  const matrix k = matrix::Random(length, depth);
  const matrix v = matrix::Random(length, depth);
  matrix out(length, depth);

  heed::attention(q, k, v, out, heed::causal{});

  const float difference = (out - plain_attention(q, k, v)).cwiseAbs().maxCoeff();
  std::cout << "the last row begins with " << out.row(length - 1).head(4) << '\n'
            << "largest difference from plain Eigen: " << difference << '\n';
  return difference < 1e-5f ? 0 : 1;
}
