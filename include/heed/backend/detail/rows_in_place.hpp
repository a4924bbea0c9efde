// Scores of few query rows, with the keys where the caller has them:
//
//   s[r][j] = Σ_d q[r][d] · k[j][d]
//
// Lanes run along the depth, since transposing keys would cost more than it saves.
#pragma once

#include "lane_operations.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// Products of one vector of a query and one of a key: keys widened to the type of the sums.
template <class Lanes>
struct widened_products {
  using query = typename Lanes::real;
  using vector = typename Lanes::pack_type;
  static constexpr int size = vector::size;
  static constexpr bool interleaved = false;

  HEED_INLINE static vector load_query(const query* from) { return load_pack<vector>(from); }
  template <class Cursor>
  HEED_INLINE static vector load(const Cursor& from) {
    return detail::load<Lanes>(from);
  }
  template <class Cursor>
  HEED_INLINE static vector load_partial(const Cursor& from, int count) {
    return detail::load_partial<vector>(from, count);
  }
  HEED_INLINE static vector multiply_add(vector q, vector k, vector sums) {
    return Lanes::fma(q, k, sums);
  }
};

// Vectors of `size` elements between two of which memory is asked for once: a line.
template <class Rows>
constexpr index_t vectors_per_line(int size) {
  return Rows::row_bytes(size) < 64 ? 64 / Rows::row_bytes(size) : 1;
}

// Height rows, `rows` of which exist, × a few keys at a time, so that the sums fill whole vectors.
// One or two keys are read side by side, from their first elements to their last: processors read
// ahead of what is read in order, and four keys abreast lose a fifth of the rate from memory.
// Queries are padded with 0 to whole vectors; where the products want them interleaved, vectors of
// all rows lie side by side, so that one address reaches them. A function of its own, since inside
// of another one it would have to share the registers.
template <class Lanes, class Products, int Height, class KeyRows>
HEED_NOINLINE void score_rows_in_place(const typename Products::query* queries, index_t q_stride,
                                       int rows, const KeyRows& keys, int count, index_t depth,
                                       typename Lanes::real* s, index_t s_stride) {
  using real = typename Lanes::real;
  using pack_type = typename Lanes::pack_type;
  using cursor = typename KeyRows::cursor;
  constexpr int lanes = pack_type::size, size = Products::size;
  constexpr int together = lanes / Height < 4 ? 4 : lanes / Height;
  static_assert(Height * together % lanes == 0);
  constexpr index_t vectors = vectors_per_line<KeyRows>(size), line = vectors * size;
  // Two share the loads of the queries.
  constexpr int abreast = Height == 1 && vectors == 1 ? 1 : 2;
  const read_ahead usual = read_ahead_of(keys, depth);
  for (int first = 0; first < count; first += together) {
    pack_type sums[Height * together];
#pragma GCC unroll 16
    for (int i = 0; i < Height * together; ++i) sums[i] = pack_type(real(0));
#pragma GCC unroll 16
    for (int i = 0; i < together; i += abreast) {
      cursor from[abreast];
      read_ahead ahead[abreast];
#pragma GCC unroll 2
      for (int j = 0; j < abreast; ++j) {
        const int key = first + i + j < count ? first + i + j : count - 1;
        from[j] = keys[key];
        ahead[j] = read_ahead_from(keys, key, depth, usual);
      }
      const auto add = [&](index_t d, auto load) HEED_LAMBDA_INLINE {
        typename Products::vector k[abreast];
#pragma GCC unroll 2
        for (int j = 0; j < abreast; ++j) {
          k[j] = load(from[j] + d);
          hold(k[j]);
          if (vectors == 1 || d % line == 0) ahead[j].ask(from[j] + d);
        }
#pragma GCC unroll 4
        for (int r = 0; r < Height; ++r) {
          auto q = Products::load_query(Products::interleaved ? queries + d * Height + r * size
                                                              : queries + r * q_stride + d);
          hold(q);
#pragma GCC unroll 2
          for (int j = 0; j < abreast; ++j) {
            pack_type& sum = sums[r * together + i + j];
            sum = Products::multiply_add(q, k[j], sum);
          }
        }
      };
      index_t d = 0;
      for (; d + size <= depth; d += size) {
        add(d, [](const cursor& at) HEED_LAMBDA_INLINE { return Products::load(at); });
      }
      if (d < depth) {
        const int rest = static_cast<int>(depth - d);
        add(d, [rest](const cursor& at)
                   HEED_LAMBDA_INLINE { return Products::load_partial(at, rest); });
      }
    }
    alignas(64) real totals[Height * together];
#pragma GCC unroll 16
    for (int i = 0; i < Height * together; i += lanes) {
      store_pack(totals + i, sum_each(sums + i));
    }
    const int existing = count - first < together ? count - first : together;
    if (rows == Height && existing == together) {
#pragma GCC unroll 4
      for (int r = 0; r < Height; ++r) {
        store_pack(s + r * s_stride + first,
                   load_pack<pack<real, together>>(totals + r * together));
      }
    } else {
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < existing; ++i) s[r * s_stride + first + i] = totals[r * together + i];
      }
    }
  }
}

// The same for any number of rows, in fours; where more than one is left over, there is a whole
// four to read.
template <class Lanes, class Products, class KeyRows>
void score_rows_in_place(const typename Products::query* queries, index_t q_stride, int rows,
                         const KeyRows& keys, int count, index_t depth, typename Lanes::real* s,
                         index_t s_stride) {
  for (int row = 0; row < rows; row += 4, s += 4 * s_stride, queries += 4 * q_stride) {
    const int left = rows - row;
    if (left == 1) {
      score_rows_in_place<Lanes, Products, 1>(queries, q_stride, 1, keys, count, depth, s,
                                              s_stride);
    } else {
      score_rows_in_place<Lanes, Products, 4>(queries, q_stride, left < 4 ? left : 4, keys, count,
                                              depth, s, s_stride);
    }
  }
}

}  // namespace backend::detail
HEED_NAMESPACE_END
