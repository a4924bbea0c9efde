// Products of small matrices in scratch memory, on the vectors of a backend:
//
//   add        c[i][j] += Σ_p a[i][p]·b[p][j]
//   subtract   c[i][j] −= Σ_p a[i][p]·b[p][j]
//   transpose  to[j][i] = from[i][j]
//
// i < m, j < n, p < k, all of any size. Rows of b and c are contiguous; a has two strides, so that
// it may be a matrix (a_step = 1) or a transposed one (a_row = 1). For A·Bᵀ, transpose B first. c
// must not overlap a or b. Every element of c sums its products in the order of p, in runs of 128,
// whatever the other extents are.
//
// Matrices here are a chunk of tokens by a head's depth: they fit the caches, so that blocking for
// registers is all there is. Large products are not what this is for.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "detail/lane_operations.hpp"
#include "vectors.hpp"

HEED_NAMESPACE_BEGIN
namespace backend {

template <class Backend, class Real>
struct products {
  using lanes_type = typename vectors<Backend, Real>::lanes_type;
  using pack_type = typename lanes_type::pack_type;
  static constexpr int lanes = pack_type::size;

  static void add(index_t m, index_t n, index_t k, const Real* a, index_t a_row, index_t a_step,
                  const Real* b, index_t b_row, Real* c, index_t c_row) {
    multiply(m, n, k, {a, a_row, a_step}, b, b_row, c, c_row, Real(1));
  }
  static void subtract(index_t m, index_t n, index_t k, const Real* a, index_t a_row,
                       index_t a_step, const Real* b, index_t b_row, Real* c, index_t c_row) {
    multiply(m, n, k, {a, a_row, a_step}, b, b_row, c, c_row, Real(-1));
  }

  // from is [rows][columns], to is [columns][rows]; they must not overlap.
  static void transpose(index_t rows, index_t columns, const Real* from, index_t from_row, Real* to,
                        index_t to_row) {
    index_t i = 0;
    if constexpr (lanes > 1) {
      for (; i + lanes <= rows; i += lanes) {
        index_t j = 0;
        for (; j + lanes <= columns; j += lanes) {
          transpose_tile(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
        }
        transpose_plain(lanes, columns - j, from + i * from_row + j, from_row, to + j * to_row + i,
                        to_row);
      }
    }
    transpose_plain(rows - i, columns, from + i * from_row, from_row, to + i, to_row);
  }

 private:
  static constexpr int block_rows = lanes_type::rows;
  static constexpr int block_columns = lanes_type::columns;
  static constexpr index_t run = 128;  // products that are summed in registers before c is touched

  struct strided_matrix {
    const Real* first;
    index_t row, step;
    HEED_INLINE strided_matrix at(index_t i, index_t p) const {
      return {first + i * row + p * step, row, step};
    }
  };

  static void multiply(index_t m, index_t n, index_t k, const strided_matrix& a, const Real* b,
                       index_t b_row, Real* c, index_t c_row, Real sign) {
    for (index_t p = 0; p < k; p += run) {
      const index_t count = std::min(run, k - p);
      const Real* rows = b + p * b_row;
      index_t j = 0;
      for (; j + block_columns * lanes <= n; j += block_columns * lanes) {
        all_rows<block_columns>(m, count, a.at(0, p), rows + j, b_row, c + j, c_row, sign);
      }
      if constexpr (block_columns > 2) {
        // Two vectors together: one at a time leaves too few sums to hide their latency.
        for (; j + 2 * lanes <= n; j += 2 * lanes) {
          all_rows<2>(m, count, a.at(0, p), rows + j, b_row, c + j, c_row, sign);
        }
      }
      for (; j + lanes <= n; j += lanes) {
        all_rows<1>(m, count, a.at(0, p), rows + j, b_row, c + j, c_row, sign);
      }
      if (j < n) last_columns(m, n - j, count, a.at(0, p), rows + j, b_row, c + j, c_row, sign);
    }
  }

  // Fewer columns than a vector has lanes: through copies with whole vectors in their rows.
  HEED_NOINLINE static void last_columns(index_t m, index_t n, index_t k, const strided_matrix& a,
                                         const Real* b, index_t b_row, Real* c, index_t c_row,
                                         Real sign) {
    alignas(64) Real whole[run * lanes];
    for (index_t p = 0; p < k; ++p) {
      for (index_t j = 0; j < lanes; ++j) whole[p * lanes + j] = j < n ? b[p * b_row + j] : Real(0);
    }
    for (index_t i = 0; i < m; i += block_rows) {
      const index_t rows = std::min<index_t>(block_rows, m - i);
      alignas(64) Real sums[block_rows * lanes];
      for (index_t row = 0; row < rows; ++row) {
        for (index_t j = 0; j < lanes; ++j) {
          sums[row * lanes + j] = j < n ? c[(i + row) * c_row + j] : Real(0);
        }
      }
      some_rows<1, block_rows>(rows, k, a.at(i, 0), whole, lanes, sums, lanes, sign);
      for (index_t row = 0; row < rows; ++row) {
        for (index_t j = 0; j < n; ++j) c[(i + row) * c_row + j] = sums[row * lanes + j];
      }
    }
  }

  template <int Columns>
  static void all_rows(index_t m, index_t k, const strided_matrix& a, const Real* b, index_t b_row,
                       Real* c, index_t c_row, Real sign) {
    // Blocks of nearly the same height: a last one of a single row would wait for its own sums.
    const index_t blocks = (m + block_rows - 1) / block_rows;
    index_t i = 0;
    for (index_t left = blocks; left > 0; --left) {
      const index_t rows = (m - i + left - 1) / left;
      some_rows<Columns, block_rows>(rows, k, a.at(i, 0), b, b_row, c + i * c_row, c_row, sign);
      i += rows;
    }
  }

  // The block of as many rows as there are.
  template <int Columns, int Most>
  HEED_INLINE static void some_rows(index_t rows, index_t k, const strided_matrix& a, const Real* b,
                                    index_t b_row, Real* c, index_t c_row, Real sign) {
    if constexpr (Most == 1) {
      block<1, Columns>(k, a, b, b_row, c, c_row, sign);
    } else if (rows == Most) {
      block<Most, Columns>(k, a, b, b_row, c, c_row, sign);
    } else {
      some_rows<Columns, Most - 1>(rows, k, a, b, b_row, c, c_row, sign);
    }
  }

  // A function of its own, so that its sums have all registers.
  template <int Rows, int Columns>
  HEED_NOINLINE static void block(index_t k, const strided_matrix& a, const Real* b, index_t b_row,
                                  Real* c, index_t c_row, Real sign) {
    pack_type sums[Rows][Columns];
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
      for (int column = 0; column < Columns; ++column) sums[row][column] = pack_type(Real(0));
    }
    const Real* left = a.first;
    const index_t a_row = a.row, a_step = a.step;
    for (index_t p = 0; p < k; ++p, left += a_step, b += b_row) {
      pack_type right[Columns];
#pragma GCC unroll 8
      for (int column = 0; column < Columns; ++column) {
        right[column] = load_pack<pack_type>(b + column * lanes);
      }
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const pack_type factor(left[row * a_row]);
#pragma GCC unroll 8
        for (int column = 0; column < Columns; ++column) {
          sums[row][column] = lanes_type::fma(factor, right[column], sums[row][column]);
        }
      }
    }
    const pack_type signs(sign);
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
      for (int column = 0; column < Columns; ++column) {
        Real* to = c + row * c_row + column * lanes;
        store_pack(to, lanes_type::fma(signs, sums[row][column], load_pack<pack_type>(to)));
      }
    }
  }

  HEED_NOINLINE static void transpose_tile(const Real* from, index_t from_row, Real* to,
                                           index_t to_row) {
    pack_type tile[static_cast<std::size_t>(lanes)];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) tile[i] = load_pack<pack_type>(from + i * from_row);
    detail::transpose(tile);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) store_pack(to + i * to_row, tile[i]);
  }
  static void transpose_plain(index_t rows, index_t columns, const Real* from, index_t from_row,
                              Real* to, index_t to_row) {
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < columns; ++j) to[j * to_row + i] = from[i * from_row + j];
    }
  }
};

}  // namespace backend
HEED_NAMESPACE_END
