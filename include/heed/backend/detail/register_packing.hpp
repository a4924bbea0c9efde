// How register tiles lay operands out in scratch memory, in the type of the sums:
//
//   strip[row][d]         queries, times a sign
//   step[panel][d][key]   64 keys, transposed
//   step[key][dv]         64 values
//
// Rows are padded with 0 to whole vectors of lanes.
#pragma once

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
    for (int row = 0; row < height; ++row, strip += padded(depth)) {
      for (index_t d = 0; d < depth; d += lanes) {
        store_pack(strip + d, row < rows ? load_row_part(query_rows[row], d, depth) * sign
                                         : pack_type(real(0)));
      }
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
    for (int first = 0; first < count; first += lanes) {
      real* column = to + first;
      for (index_t d = 0; d < depth; d += lanes) {
        const int width = static_cast<int>(depth - d < lanes ? depth - d : lanes);
        pack_type rows[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          if (first + i >= count) {
            rows[i] = pack_type(real(0));
          } else if (width == lanes) {
            rows[i] = load<Lanes>(from[first + i] + d);
          } else {
            rows[i] = load_partial<pack_type>(from[first + i] + d, width);
          }
        }
        transpose<1>(rows);
        if (width == lanes) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) store_pack(column + (d + i) * stride, rows[i]);
        } else {
          for (int i = 0; i < width; ++i) store_pack(column + (d + i) * stride, rows[i]);
        }
      }
    }
  }

  // step[key][dv], rows padded with 0 to whole vectors. Returns whether all values
  // are finite: if not, masked keys have to be left out of sums rather than weighted with 0.
  template <class Rows>
  static bool pack_values(const Rows& values, int count, index_t depth, real* step) {
    const index_t width = padded(depth);
    lane_mask<static_cast<int>(sizeof(real)), lanes> finite(true);
    for (int key = 0; key < count; ++key) {
      for (index_t d = 0; d < width; d += lanes) {
        const pack_type v = load_row_part(values[key], d, depth);
        finite = finite & is_finite(v);
        store_pack(step + key * width + d, v);
      }
    }
    return to_bits(finite) == (~std::uint64_t{0} >> (64 - lanes));
  }

  template <class Rows>
  static bool all_finite(const Rows& values, int count, index_t depth) {
    lane_mask<static_cast<int>(sizeof(real)), lanes> finite(true);
    for (int key = 0; key < count; ++key) {
      for (index_t d = 0; d < depth; d += lanes) {
        finite = finite & is_finite(load_row_part(values[key], d, depth));
      }
    }
    return to_bits(finite) == (~std::uint64_t{0} >> (64 - lanes));
  }

 private:
  using mask_type = typename pack_type::mask;

  // By the exponent's bits, so that it holds under -ffast-math too.
  HEED_INLINE static mask_type is_finite(pack_type v) {
    using word = integer_of<real>;
    constexpr word exponent =
        sizeof(real) == 4 ? static_cast<word>(0x7f800000) : static_cast<word>(0x7ff0000000000000ll);
    const auto bits = bits_as<word>(v);
    return typename pack_type::integer_pack(bits.v & exponent) !=
           typename pack_type::integer_pack(exponent);
  }

  template <class Cursor>
  HEED_INLINE static pack_type load_row_part(const Cursor& row, index_t d, index_t depth) {
    return d + lanes <= depth ? load<Lanes>(row + d)
                              : load_partial<pack_type>(row + d, static_cast<int>(depth - d));
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
