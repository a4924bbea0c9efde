// OpenBLAS, in the protocol of peer.hpp: two matrix products and a softmax, as one would write it
// with care. Strips of queries keep their scores in the cache, causal strips end at their last
// visible key, and the query heads of a KV head are one product when decoding. The softmax is
// Eigen's, threads take strips.
//
// bf16 is left out: distributions build OpenBLAS without cblas_sbgemm.
#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "peer.hpp"

namespace {

using namespace heed_peers;

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using matrix_map = Eigen::Map<matrix>;

constexpr index_t strip_rows = 128;  // with 1024 keys, 512 KiB of scores

// Consecutive rows of q, and the keys that they see.
struct strip {
  index_t first_row, rows;  // of q as a matrix
  index_t first_key, keys;  // of k as a matrix; those that the last row sees
  index_t diagonal;         // row r sees up to diagonal + r of them
};

std::vector<strip> strips_of(const attention_case& c) {
  std::vector<strip> strips;
  if (c.queries == 1) {
    for (index_t g = 0; g < c.batch * c.kv_heads; ++g) {
      strips.push_back({g * c.group(), c.group(), g * c.keys, c.keys, c.keys});
    }
    return strips;
  }
  for (index_t h = 0; h < c.batch * c.query_heads; ++h) {
    for (index_t first = 0; first < c.queries; first += strip_rows) {
      const index_t rows = std::min(strip_rows, c.queries - first);
      const index_t diagonal = c.causal ? c.keys - c.queries + first : c.keys;
      strips.push_back({h * c.queries + first, rows, h / c.group() * c.keys,
                        std::min(c.keys, diagonal + rows), diagonal});
    }
  }
  return strips;
}

void multiply(CBLAS_TRANSPOSE transposed, index_t m, index_t n, index_t k, float alpha,
              const float* a, const float* b, index_t b_stride, float* result) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed, static_cast<blasint>(m),
              static_cast<blasint>(n), static_cast<blasint>(k), alpha, a, static_cast<blasint>(k),
              b, static_cast<blasint>(b_stride), 0, result, static_cast<blasint>(n));
}

void attend(const operands<float>& tensors, const strip& s) {
  const attention_case& c = tensors.shape;
  static thread_local std::vector<float> memory;
  memory.resize(static_cast<std::size_t>(s.rows * s.keys));
  matrix_map scores(memory.data(), s.rows, s.keys);
  matrix_map out(tensors.out.get() + s.first_row * c.depth, s.rows, c.depth);

  multiply(CblasTrans, s.rows, s.keys, c.depth, c.scale(), tensors.q.get() + s.first_row * c.depth,
           tensors.k.get() + s.first_key * c.depth, c.depth, scores.data());
  Eigen::VectorXf sums(s.rows);
  for (index_t r = 0; r < s.rows; ++r) {
    const index_t visible = std::min(s.keys, s.diagonal + r + 1);
    auto row = scores.row(r).head(visible).array();
    row = (row - row.maxCoeff()).exp();
    sums[r] = row.sum();
    scores.row(r).tail(s.keys - visible).setZero();
  }
  multiply(CblasNoTrans, s.rows, c.depth, s.keys, 1, scores.data(),
           tensors.v.get() + s.first_key * c.depth, c.depth, out.data());
  out.array().colwise() /= sums.array();
}

}  // namespace

int main(int argc, char** argv) {
  openblas_set_num_threads(1);                        // the strips are what threads share
  const std::string library = openblas_get_config();  // "OpenBLAS 0.3.21 NO_LAPACKE …"
  const std::string name = library.substr(0, library.find(' ', library.find(' ') + 1));
  return run_peer(argc, argv, name, [](const auto& tensors, int threads) -> std::function<void()> {
    if constexpr (std::is_same_v<decltype(tensors), const operands<float>&>) {
      omp_set_num_threads(threads);
      return [&tensors, strips = strips_of(tensors.shape)] {
#pragma omp parallel for schedule(dynamic)
        for (const strip& s : strips) attend(tensors, s);
      };
    } else {
      throw std::runtime_error("no bf16 product: cblas_sbgemm is left out of distributions");
    }
  });
}
