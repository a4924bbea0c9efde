// Tiles in vector registers: the tile contract (docs/kernel-contract.md) for every backend whose
// unit of work is a vector of lanes. `Lanes` says how wide a vector is, how many registers a tile
// may use, and how the few operations are done that a compiler does not find by itself.
//
//   score:       S[6 queries][64 keys] = Q Kᵀ; K lies transposed, so that lanes run along the keys
//   accumulate:  O[6 queries][Dv]     += P V; lanes run along the depth of the values
//   score_rows:  the same scores from K as the caller stores it, lanes along the depth: for few
//                queries, where transposing would cost more than it saves
#pragma once

#include <limits>
#include <type_traits>

#include "../../core/element.hpp"
#include "../../core/pack.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// One vector from elements of any type.
template <class Pack, class T>
HEED_INLINE Pack load_widened(const T* from) {
  using Real = typename Pack::value_type;
  constexpr int n = Pack::size;
  if constexpr (std::is_same_v<T, Real>) {
    return load_pack<Pack>(from);
  } else if constexpr (is_bfloat16<T> && sizeof(Real) == 4) {
    using raw_vector = typename heed::detail::vector_of<std::uint16_t, n>::type;
    using wide_vector = typename heed::detail::vector_of<std::uint32_t, n>::type;
    raw_vector raw;
    __builtin_memcpy(&raw, from, sizeof(raw));
    const wide_vector wide = __builtin_convertvector(raw, wide_vector) << 16;
    return Pack(std::bit_cast<typename Pack::vector>(wide));
  } else if constexpr (is_half<T> && sizeof(Real) == 4) {
    using raw_vector = typename heed::detail::vector_of<std::uint16_t, n>::type;
    using wide_vector = typename heed::detail::vector_of<std::int32_t, n>::type;
    using real_vector = typename Pack::vector;
    raw_vector raw;
    __builtin_memcpy(&raw, from, sizeof(raw));
    const wide_vector wide = __builtin_convertvector(raw, wide_vector);
    const wide_vector magnitude = wide & 0x7fff;
    const wide_vector sign = (wide & 0x8000) << 16;
    const wide_vector normal = (magnitude << 13) + 0x38000000;
    const wide_vector special = (magnitude << 13) | 0x7f800000;
    const wide_vector subnormal =
        std::bit_cast<wide_vector>(__builtin_convertvector(magnitude, real_vector) * 0x1p-24f);
    const wide_vector finite = magnitude < 0x400 ? subnormal : normal;
    return Pack(std::bit_cast<real_vector>((magnitude < 0x7c00 ? finite : special) | sign));
  } else {
    Pack result;
    for (int lane = 0; lane < n; ++lane) result.v[lane] = widen<Real>(from[lane]);
    return result;
  }
}

// The first `count` lanes from memory, the others 0.
template <class Pack, class T>
HEED_INLINE Pack load_partial(const T* from, int count) {
  typename Pack::value_type lanes[Pack::size] = {};
  for (int lane = 0; lane < count; ++lane) {
    lanes[lane] = widen<typename Pack::value_type>(from[lane]);
  }
  return load_pack<Pack>(lanes);
}

// Rows of a register tile become its columns: log2(N) rounds of exchanging blocks.
template <int Distance, class T, int N>
HEED_INLINE void transpose_round(pack<T, N> (&rows)[static_cast<std::size_t>(N)]) {
  for (int i = 0; i < N; ++i) {
    if ((i & Distance) != 0) continue;
    const auto a = rows[i].v;
    const auto b = rows[i + Distance].v;
    [&]<std::size_t... L>(std::index_sequence<L...>) HEED_LAMBDA_INLINE {
      constexpr auto d = static_cast<std::size_t>(Distance);
      constexpr auto n = static_cast<std::size_t>(N);
      rows[i].v = __builtin_shufflevector(
          a, b, ((L & d) != 0 ? static_cast<int>(n + L - d) : static_cast<int>(L))...);
      rows[i + Distance].v = __builtin_shufflevector(
          a, b, ((L & d) != 0 ? static_cast<int>(n + L) : static_cast<int>(L + d))...);
    }
    (std::make_index_sequence<static_cast<std::size_t>(N)>{});
  }
}
template <int Distance, class T, int N>
HEED_INLINE void transpose(pack<T, N> (&rows)[static_cast<std::size_t>(N)]) {
  if constexpr (Distance < N) {
    transpose_round<Distance>(rows);
    transpose<Distance * 2>(rows);
  }
}

template <class Lanes>
struct register_tiles {
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

  // strip[d][row] = sign·q[row][d]; rows that do not exist are 0.
  template <class T>
  static void pack_queries(const T* const* query_rows, int rows, index_t depth, real sign,
                           real* strip) {
    for (int row = 0; row < strip_rows; ++row) {
      real* column = strip + row;
      if (row < rows) {
        const T* query = query_rows[row];
        for (index_t d = 0; d < depth; ++d) column[d * strip_rows] = sign * widen<real>(query[d]);
      } else {
        for (index_t d = 0; d < depth; ++d) column[d * strip_rows] = real(0);
      }
    }
  }

  // strip[row][d] = sign·q[row][d], rows padded with 0 to whole vectors: for score_rows.
  template <class T>
  static void copy_queries(const T* const* query_rows, int rows, index_t depth, real sign,
                           real* strip) {
    const index_t stride = padded(depth);
    for (int row = 0; row < strip_rows; ++row) {
      for (index_t d = 0; d < stride; ++d) {
        strip[row * stride + d] =
            row < rows && d < depth ? sign * widen<real>(query_rows[row][d]) : real(0);
      }
    }
  }

  // step[panel][d][key]: 64 keys in panels of one register tile's width; missing keys are 0.
  template <class T>
  static void pack_keys(const T* keys, index_t stride, int count, index_t depth, real* step) {
    for (int first = 0; first < step_keys; first += lanes) {
      real* column = step + first / panel_keys * panel_keys * depth + first % panel_keys;
      for (index_t d = 0; d < depth; d += lanes) {
        const int width = static_cast<int>(depth - d < lanes ? depth - d : lanes);
        pack_type rows[lanes];
        for (int i = 0; i < lanes; ++i) {
          const T* row = keys + (first + i) * stride + d;
          if (first + i >= count) {
            rows[i] = pack_type(real(0));
          } else if (width == lanes) {
            rows[i] = Lanes::template load<T>(row);
          } else {
            rows[i] = load_partial<pack_type>(row, width);
          }
        }
        transpose<1>(rows);
        for (int i = 0; i < width; ++i) store_pack(column + (d + i) * panel_keys, rows[i]);
      }
    }
  }

  // step[key][dv], rows padded with 0 to whole vectors, missing keys 0. Returns whether all values
  // are finite: if not, masked keys have to be left out of sums rather than weighted with 0.
  template <class T>
  static bool pack_values(const T* values, index_t stride, int count, index_t depth, real* step) {
    const index_t width = padded(depth);
    pack_type largest(real(0));
    lane_mask<static_cast<int>(sizeof(real)), lanes> finite(true);
    for (int key = 0; key < step_keys; ++key) {
      for (index_t d = 0; d < width; d += lanes) {
        const pack_type v =
            key < count ? load_row_part<T>(values + key * stride, d, depth) : pack_type(real(0));
        finite = finite & is_finite(v);
        store_pack(step + key * width + d, v);
      }
    }
    return to_bits(finite) == (~std::uint64_t{0} >> (64 - lanes));
  }

  template <class T>
  static bool all_finite(const T* values, index_t stride, int count, index_t depth) {
    lane_mask<static_cast<int>(sizeof(real)), lanes> finite(true);
    for (int key = 0; key < count; ++key) {
      for (index_t d = 0; d < depth; d += lanes) {
        finite = finite & is_finite(load_row_part<T>(values + key * stride, d, depth));
      }
    }
    return to_bits(finite) == (~std::uint64_t{0} >> (64 - lanes));
  }

  // s[row][key] = Σ_d q[row][d]·k[key][d] for one strip and one packed step of 64 keys.
  static void score(const real* strip, const real* step, index_t depth, real* s, index_t s_stride) {
    for (int first = 0; first < step_keys; first += panel_keys) {
      score_panel(strip, step + first * depth, depth, s + first, s_stride);
    }
  }

  // The same from `count` keys in the caller's memory; columns behind them are left alone. `strip`
  // comes from copy_queries.
  template <class T>
  static void score_rows(const real* strip, int rows, const T* keys, index_t stride, int count,
                         index_t depth, real* s, index_t s_stride) {
    int row = 0;
    for (; rows - row >= 3; row += 4) {
      score_rows_of<4, T>(strip + row * padded(depth), keys, stride, count, depth,
                          s + row * s_stride, s_stride, rows - row < 4 ? rows - row : 4);
    }
    for (; row < rows; ++row) {
      score_rows_of<1, T>(strip + row * padded(depth), keys, stride, count, depth,
                          s + row * s_stride, s_stride, 1);
    }
  }

  // Scores to weights, with the running maximum m (in units of the exponent of two), running sum l
  // and the factor by which earlier sums shrink: m' = max(m, factor·max s), w = 2^(factor·s − m'),
  // l' = l·2^(m − m') + Σ w.
  static void softmax(real* s, index_t s_stride, int rows, int count, real factor, real* maximum,
                      real* sum, real* shrink) {
    for (int row = 0; row < rows; ++row) {
      real* scores = s + row * s_stride;
      pack_type largest(masked_score<real>);
      for (int c = 0; c < count; c += lanes)
        largest = max(load_pack<pack_type>(scores + c), largest);
      const real top = max_lanes(largest);
      if (!(top > masked_score<real>)) {
        // Nothing visible here, or nothing but NaN, which must not vanish.
        real poison = 0;
        for (int c = 0; c < count; ++c) {
          if (scores[c] != scores[c]) poison = scores[c];
          scores[c] = 0;
        }
        sum[row] += poison;
        shrink[row] = 1;
        continue;
      }
      const real former = maximum[row];
      const real latest = former > top * factor ? former : top * factor;
      // factor·s − m' in one rounding. Where m' is so large that its own rounding shifts exponents
      // by more than a fraction, the products are rounded like m' first, so that the largest gives
      // 0 exactly; through memory, or the compiler would fuse them again.
      pack_type scale(factor);
      if (latest > widest_fused || latest < -widest_fused) {
        for (int c = 0; c < count; c += lanes) {
          store_pack(scores + c, load_pack<pack_type>(scores + c) * scale);
        }
        __asm__ volatile("" ::: "memory");
        scale = pack_type(real(1));
      }
      const pack_type offset(-latest);
      pack_type total(real(0));
      for (int c = 0; c < count; c += lanes) {
        const pack_type weight =
            Lanes::exp2(Lanes::fma(load_pack<pack_type>(scores + c), scale, offset));
        store_pack(scores + c, weight);
        total += weight;
      }
      shrink[row] = Lanes::exp2(pack_type(former - latest))[0];
      maximum[row] = latest;
      sum[row] = sum[row] * shrink[row] + sum_lanes(total);
    }
  }

  // o[row][d] = o[row][d]·shrink[row] + Σ_key p[row][key]·v[key][d]; shrink may be null (1). Rows
  // of `o` have whole vectors; v has `depth` elements per row.
  template <class T>
  static void accumulate(const real* p, index_t p_stride, int rows, int count, const T* values,
                         index_t stride, index_t depth, real* o, index_t o_stride,
                         const real* shrink) {
    if (rows == 1) {
      accumulate_rows<1>(p, p_stride, count, values, stride, depth, o, o_stride, shrink);
    } else if (rows <= 4) {
      accumulate_rows<4>(p, p_stride, count, values, stride, depth, o, o_stride, shrink);
    } else {
      accumulate_rows<strip_rows>(p, p_stride, count, values, stride, depth, o, o_stride, shrink);
    }
  }

  // out[d] = o[d]·factor
  template <class T>
  static void store(const real* o, index_t depth, real factor, T* out) {
    index_t d = 0;
    for (; d + lanes <= depth; d += lanes) {
      Lanes::template store<T>(out + d, load_pack<pack_type>(o + d) * factor);
    }
    for (; d < depth; ++d) out[d] = narrow<T>(o[d] * factor);
  }

 private:
  using mask_type = typename pack_type::mask;
  static constexpr real widest_fused = 65536;

  // By the exponent's bits, so that it holds under -ffast-math too.
  HEED_INLINE static mask_type is_finite(pack_type v) {
    using integer = integer_of<real>;
    constexpr integer exponent = sizeof(real) == 4 ? static_cast<integer>(0x7f800000)
                                                   : static_cast<integer>(0x7ff0000000000000ll);
    const auto bits = bits_as<integer>(v);
    return typename pack_type::integer_pack(bits.v & exponent) !=
           typename pack_type::integer_pack(exponent);
  }

  template <class T>
  HEED_INLINE static pack_type load_row_part(const T* row, index_t d, index_t depth) {
    return d + lanes <= depth ? Lanes::template load<T>(row + d)
                              : load_partial<pack_type>(row + d, static_cast<int>(depth - d));
  }

  HEED_INLINE static void score_panel(const real* strip, const real* panel, index_t depth, real* s,
                                      index_t s_stride) {
    pack_type sums[strip_rows][columns];
#pragma GCC unroll 8
    for (int row = 0; row < strip_rows; ++row) {
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sums[row][c] = pack_type(real(0));
    }
    for (index_t d = 0; d < depth; ++d, strip += strip_rows, panel += panel_keys) {
      pack_type k[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) k[c] = load_pack<pack_type>(panel + c * lanes);
#pragma GCC unroll 8
      for (int row = 0; row < strip_rows; ++row) {
        const pack_type q(strip[row]);
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) sums[row][c] = Lanes::fma(q, k[c], sums[row][c]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < strip_rows; ++row) {
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) store_pack(s + row * s_stride + c * lanes, sums[row][c]);
    }
  }

  // Rows × 4 keys at a time: each vector of K is loaded once for all rows.
  template <int Rows, class T>
  static void score_rows_of(const real* strip, const T* keys, index_t stride, int count,
                            index_t depth, real* s, index_t s_stride, int rows) {
    constexpr int together = 4;
    const index_t q_stride = padded(depth);
    for (int first = 0; first < count; first += together) {
      const T* row[together];
#pragma GCC unroll 4
      for (int i = 0; i < together; ++i) {
        row[i] = keys + (first + i < count ? first + i : count - 1) * stride;
      }
      pack_type sums[Rows][together];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) sums[r][i] = pack_type(real(0));
      }
      const auto add = [&](index_t d, auto load) HEED_LAMBDA_INLINE {
        pack_type k[together];
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) k[i] = load(row[i] + d);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const pack_type q = load_pack<pack_type>(strip + r * q_stride + d);
#pragma GCC unroll 4
          for (int i = 0; i < together; ++i) sums[r][i] = Lanes::fma(q, k[i], sums[r][i]);
        }
      };
      index_t d = 0;
      for (; d + lanes <= depth; d += lanes) {
        add(d, [](const T* from) HEED_LAMBDA_INLINE { return Lanes::template load<T>(from); });
      }
      if (d < depth) {
        const int rest = static_cast<int>(depth - d);
        add(d, [rest](const T* from)
                   HEED_LAMBDA_INLINE { return load_partial<pack_type>(from, rest); });
      }
      const int existing = count - first < together ? count - first : together;
      for (int r = 0; r < rows; ++r) {
        real totals[together];
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) totals[i] = sum_lanes(sums[r][i]);
        for (int i = 0; i < existing; ++i) s[r * s_stride + first + i] = totals[i];
      }
    }
  }

  template <int Rows, class T>
  static void accumulate_rows(const real* p, index_t p_stride, int count, const T* values,
                              index_t stride, index_t depth, real* o, index_t o_stride,
                              const real* shrink) {
    const auto whole = [](const T* from)
                           HEED_LAMBDA_INLINE { return Lanes::template load<T>(from); };
    index_t d = 0;
    for (; d + columns * lanes <= depth; d += columns * lanes) {
      accumulate_block<Rows, columns>(p, p_stride, count, values + d, stride, o + d, o_stride,
                                      shrink, whole);
    }
    for (; d + lanes <= depth; d += lanes) {
      accumulate_block<Rows, 1>(p, p_stride, count, values + d, stride, o + d, o_stride, shrink,
                                whole);
    }
    if (d < depth) {
      const int rest = static_cast<int>(depth - d);
      accumulate_block<Rows, 1>(
          p, p_stride, count, values + d, stride, o + d, o_stride, shrink,
          [rest](const T* from) HEED_LAMBDA_INLINE { return load_partial<pack_type>(from, rest); });
    }
  }

  template <int Rows, int Columns, class T, class Load>
  HEED_INLINE static void accumulate_block(const real* p, index_t p_stride, int count,
                                           const T* values, index_t stride, real* o,
                                           index_t o_stride, const real* shrink, Load load) {
    pack_type sums[Rows][Columns];
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      const pack_type factor(shrink != nullptr ? shrink[row] : real(1));
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        sums[row][c] = load_pack<pack_type>(o + row * o_stride + c * lanes) * factor;
      }
    }
    for (int key = 0; key < count; ++key, values += stride) {
      pack_type v[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) v[c] = load(values + c * lanes);
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const pack_type weight(p[row * p_stride + key]);
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sums[row][c] = Lanes::fma(weight, v[c], sums[row][c]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        store_pack(o + row * o_stride + c * lanes, sums[row][c]);
      }
    }
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
