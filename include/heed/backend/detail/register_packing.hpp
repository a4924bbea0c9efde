// How register tiles lay operands out in scratch memory, in the type of the sums:
//
//   strip[row][d]         queries, times a sign
//   step[panel][d][key]   64 keys, transposed
//   step[key][dv]         64 values
//
// Rows are padded with 0 to whole vectors of lanes.
#pragma once

#include <limits>

#include "lane_operations.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

template <class Lanes>
struct register_packing {
  using real = typename Lanes::real;
  using pack_type = typename Lanes::pack_type;
  static constexpr int lanes = pack_type::size;
  static constexpr int strip_rows = Lanes::rows;
  static constexpr int step_keys = 64;
  static constexpr int columns = Lanes::columns;
  static constexpr int panel_keys = columns * lanes;
  static_assert(step_keys % panel_keys == 0);

  // Depth of a value or output row in scratch memory: whole vectors.
  static constexpr index_t padded(index_t depth) { return (depth + lanes - 1) / lanes * lanes; }
  static constexpr index_t query_strip_size(index_t depth) { return strip_rows * padded(depth); }
  static constexpr index_t key_step_size(index_t depth) { return step_keys * depth; }
  static constexpr index_t value_step_size(index_t depth) { return step_keys * padded(depth); }

  // strip[row][d] = sign·q[row][d], rows padded with 0 to whole vectors; rows from `rows` up to
  // `height` are 0.
  template <class T>
  static void pack_queries(const T* const* query_rows, int rows, int height, index_t depth,
                           real sign, real* strip) {
    const pack_type signs(sign);
    for (int row = 0; row < rows; ++row) {
      for_each_row_part(query_rows[row], depth, [&](pack_type v) HEED_LAMBDA_INLINE {
        store_pack(strip, v * signs);
        strip += lanes;
      });
    }
    for (real* end = strip + (height - rows) * padded(depth); strip != end; strip += lanes) {
      store_pack(strip, pack_type(real(0)));
    }
  }
  // The same for rows that read keys in place: whole fours.
  template <class T>
  static void pack_queries_in_place(const T* const* query_rows, int rows, index_t depth, real sign,
                                    real* strip) {
    pack_queries(query_rows, rows, (rows + 3) / 4 * 4, depth, sign, strip);
  }

  // step[panel][d][key]: 64 keys in panels of one register tile's width, as many vectors of keys as
  // there are; missing keys are 0.
  template <class Rows>
  static void pack_keys(const Rows& keys, int count, index_t depth, real* step) {
    for (int first = 0; first < count; first += panel_keys) {
      transpose_rows(keys.from(first), count - first < panel_keys ? count - first : panel_keys,
                     depth, step + first * depth, panel_keys);
    }
  }

  // to[d·stride + row], in as many whole vectors of rows as there are; missing rows are 0.
  template <class Rows>
  static void transpose_rows(const Rows& from, int count, index_t depth, real* to, index_t stride) {
    for (int first = 0; first < count; first += lanes, to += lanes) {
      const Rows rows = from.from(first);
      for (int i = 0; i < lanes && first + i < count; ++i) ask_for_row(rows, i, lanes, depth);
      index_t d = 0;
      if (count - first >= lanes) {
        for (; d + lanes <= depth; d += lanes) {
          pack_type block[lanes];
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) block[i] = load<Lanes>(rows[i] + d);
          transpose(block);
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) store_pack(to + (d + i) * stride, block[i]);
        }
      }
      for (; d < depth; d += lanes) {
        transpose_part(rows, count - first, d, depth, to + d * stride, stride);
      }
    }
  }

  // step[key][dv], rows padded with 0 to whole vectors. Returns whether all values
  // are finite: if not, masked keys have to be left out of sums rather than weighted with 0.
  template <class Rows>
  static bool pack_values(const Rows& values, int count, index_t depth, real* step) {
    word_pack largest(0);
    for (int key = 0; key < count; ++key) {
      ask_for_row(values, key, lanes, depth);
      for_each_row_part(values[key], depth, [&](pack_type v) HEED_LAMBDA_INLINE {
        largest = max(magnitude(v), largest);
        store_pack(step, v);
        step += lanes;
      });
    }
    return is_finite(largest);
  }

  template <class Rows>
  static bool all_finite(const Rows& values, int count, index_t depth) {
    word_pack largest(0);
    for (int key = 0; key < count; ++key) {
      for_each_row_part(values[key], depth, [&](pack_type v) HEED_LAMBDA_INLINE {
        largest = max(magnitude(v), largest);
      });
    }
    return is_finite(largest);
  }

 private:
  using word_pack = typename pack_type::integer_pack;
  using word = typename word_pack::value_type;

  // Whether a value is finite is told by its bits, so that it holds under -ffast-math too: what is
  // not has the largest exponent, and so the largest magnitude.
  HEED_INLINE static word_pack magnitude(pack_type v) {
    return word_pack(bits_as<word>(v).v & std::numeric_limits<word>::max());
  }
  HEED_INLINE static bool is_finite(word_pack largest) {
    constexpr word infinity =
        sizeof(real) == 4 ? static_cast<word>(0x7f800000) : static_cast<word>(0x7ff0000000000000ll);
    return max_lanes(largest) < infinity;
  }

  // Calls use(vector) for the vectors of a row, the last one filled up with 0.
  template <class Cursor, class Use>
  HEED_INLINE static void for_each_row_part(const Cursor& row, index_t depth, const Use& use) {
    index_t d = 0;
    for (; d + lanes <= depth; d += lanes) use(load<Lanes>(row + d));
    if (d < depth) use(load_partial<pack_type>(row + d, static_cast<int>(depth - d)));
  }

  // Where rows or channels are missing: apart, since g++ would else keep all blocks in memory.
  template <class Rows>
  HEED_NOINLINE static void transpose_part(const Rows& rows, int count, index_t d, index_t depth,
                                           real* to, index_t stride) {
    pack_type block[lanes];
    for (int i = 0; i < lanes; ++i) {
      block[i] = i < count ? load_row_part(rows[i], d, depth) : pack_type(real(0));
    }
    transpose(block);
    for (index_t i = 0; i < lanes && i < depth - d; ++i) store_pack(to + i * stride, block[i]);
  }

  template <class Cursor>
  HEED_INLINE static pack_type load_row_part(const Cursor& row, index_t d, index_t depth) {
    return d + lanes <= depth ? load<Lanes>(row + d)
                              : load_partial<pack_type>(row + d, static_cast<int>(depth - d));
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
