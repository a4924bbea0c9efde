// Attention as one would write it with Eigen: the baseline of the benchmarks.
//
// For each batch b and query head h, with kv head g = h / (query_heads / kv_heads):
//
//   S = scale · Q_bh K_bgᵀ          a matrix product, [query_length, key_length]
//   S_ij = lowest for j > i + key_length − query_length     if causal (lower right)
//   P_ij = exp(S_ij − max_j S_ij),  l_i = Σ_j P_ij
//   O_bh = (P V_bg)_i / l_i         a matrix product, [query_length, value_dim]
//
// All tensors are contiguous, [batch, heads, length, dim]. The score matrix of one head is stored
// in full, and the causal half is computed and thrown away; that is the point of the comparison.
#pragma once

// g++ 12 warns of uninitialised variables in its own AVX-512 intrinsics. What counts is the setting
// at the place of their definition.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <limits>
#include <type_traits>

namespace heed_bench {

struct plain_eigen_shape {
  Eigen::Index batch = 1;
  Eigen::Index query_heads = 1;
  Eigen::Index kv_heads = 1;  ///< divides query_heads
  Eigen::Index query_length = 0;
  Eigen::Index key_length = 0;
  Eigen::Index key_dim = 0;    ///< last axis of q and k
  Eigen::Index value_dim = 0;  ///< last axis of v and out
};

/// `T` is float, double, Eigen::half or Eigen::bfloat16. The 16-bit types are converted to float on
/// the way into the products, since Eigen's products in those types are many times slower still.
/// A row that sees no key gives zeros.
template <class T>
void plain_eigen_attention(const T* q, const T* k, const T* v, T* out,
                           const plain_eigen_shape& shape, double scale, bool causal) {
  using Compute = std::conditional_t<(sizeof(T) < sizeof(float)), float, T>;
  using Stored = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Matrix = Eigen::Matrix<Compute, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Column = Eigen::Matrix<Compute, Eigen::Dynamic, 1>;
  using Eigen::Index;

  const Index lq = shape.query_length, lk = shape.key_length;
  const Index group = shape.query_heads / shape.kv_heads;
  Matrix scores(lq, lk), output(lq, shape.value_dim);
  Column row_sum(lq);

  for (Index b = 0; b < shape.batch; ++b) {
    for (Index h = 0; h < shape.query_heads; ++h) {
      const Index query_head = b * shape.query_heads + h;
      const Index kv_head = b * shape.kv_heads + h / group;
      const Eigen::Map<const Stored> queries(q + query_head * lq * shape.key_dim, lq,
                                             shape.key_dim);
      const Eigen::Map<const Stored> keys(k + kv_head * lk * shape.key_dim, lk, shape.key_dim);
      const Eigen::Map<const Stored> values(v + kv_head * lk * shape.value_dim, lk,
                                            shape.value_dim);
      Eigen::Map<Stored> result(out + query_head * lq * shape.value_dim, lq, shape.value_dim);
      if (lk == 0) {  // the maximum of an empty row is undefined
        result.setZero();
        continue;
      }

      scores.noalias() = static_cast<Compute>(scale) * queries.template cast<Compute>() *
                         keys.template cast<Compute>().transpose();
      for (Index i = 0; i < lq; ++i) {
        auto row = scores.row(i).array();
        if (causal) {
          const Index visible = std::clamp<Index>(i + 1 + lk - lq, 0, lk);
          // The lowest finite number, not −∞: it survives -ffast-math.
          row.tail(lk - visible) = std::numeric_limits<Compute>::lowest();
        }
        row = (row - row.maxCoeff()).exp();
        row_sum[i] = row.sum();
      }
      output.noalias() = scores * values.template cast<Compute>();
      output.array().colwise() /= row_sum.array();
      result = output.template cast<T>();
      if (causal) result.topRows(std::clamp<Index>(lq - lk, 0, lq)).setZero();
    }
  }
}

}  // namespace heed_bench
