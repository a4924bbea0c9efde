// Tiles in vector registers: the tile contract (docs/kernel-contract.md) for every backend whose
// unit of work is a vector of lanes. `Lanes` says how wide a vector is, how many registers a tile
// may use, and how the few operations are done that a compiler does not find by itself.
//
//   score:       S[6 queries][64 keys] = Q Kᵀ; K lies transposed, so that lanes run along the keys
//   accumulate:  O[6 queries][Dv]     += P V; lanes run along the depth of the values
//   score_rows:  the same scores from K as the caller stores it, lanes along the depth: for few
//                queries, where transposing would cost more than it saves
#pragma once

#include <type_traits>

#include "../../core/quantized.hpp"
#include "block_session.hpp"
#include "lane_operations.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

template <class Integer>
struct query_preparation {
  using type = typename Integer::query_limbs;
};
template <>
struct query_preparation<void> {
  struct type {
    bool filled = false;
  };
};

template <class Lanes>
struct register_tiles {
  using real = typename Lanes::real;
  using packed = real;
  using session = block_session<register_tiles>;
  // Products with integer codes, where there are instructions for them, else void; and what they
  // need of the queries, filled when it is needed.
  using integer = typename Lanes::integer;
  // Likewise scores of keys in bfloat16.
  using bfloat16_scores = typename Lanes::bfloat16_scores;
  using prepared_queries = typename query_preparation<integer>::type;
  using pack_type = typename Lanes::pack_type;
  static constexpr int lanes = pack_type::size;
  static constexpr int strip_rows = Lanes::rows;
  static constexpr int step_keys = 64;
  // Packing pays with more rows than these: 16 rows in place take 0.6 of the time.
  static constexpr index_t most_rows_in_place = 16;
  static constexpr index_t most_block_keys = 512;  // 12 KiB of scores in float
  static constexpr real weight_rounding = 0;
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

  // step[panel][d][key]: 64 keys in panels of one register tile's width, as many vectors of keys as
  // there are; missing keys are 0.
  template <class Rows>
  static void pack_keys(const Rows& keys, int count, index_t depth, real* step) {
    for (int first = 0; first < count; first += lanes) {
      real* column = step + first / panel_keys * panel_keys * depth + first % panel_keys;
      for (index_t d = 0; d < depth; d += lanes) {
        const int width = static_cast<int>(depth - d < lanes ? depth - d : lanes);
        pack_type rows[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          if (first + i >= count) {
            rows[i] = pack_type(real(0));
          } else if (width == lanes) {
            rows[i] = load<Lanes>(keys[first + i] + d);
          } else {
            rows[i] = load_partial<pack_type>(keys[first + i] + d, width);
          }
        }
        transpose<1>(rows);
        if (width == lanes) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) store_pack(column + (d + i) * panel_keys, rows[i]);
        } else {
          for (int i = 0; i < width; ++i) store_pack(column + (d + i) * panel_keys, rows[i]);
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

  // s[row][key] = Σ_d q[row][d]·k[key][d] for one strip and the first `keys` of a packed step, in
  // whole vectors.
  static void score(const real* strip, int, const real* step, index_t depth, int keys, real* s,
                    index_t s_stride) {
    for (int first = 0; first < keys; first += panel_keys) {
      const int vectors = (keys - first + lanes - 1) / lanes;
      const real* panel = step + first * depth;
      if (vectors >= columns) {
        score_panel<columns>(strip, panel, depth, s + first, s_stride);
      } else if (vectors > columns / 2) {
        score_panel<columns / 2 + 1>(strip, panel, depth, s + first, s_stride);
      } else if (vectors > 1) {
        score_panel<columns / 2>(strip, panel, depth, s + first, s_stride);
      } else {
        score_panel<1>(strip, panel, depth, s + first, s_stride);
      }
    }
  }

  // The same from `count` keys in the caller's memory; columns behind them are left alone.
  template <class Rows>
  static void score_rows(const real* strip, int rows, prepared_queries& prepared, const Rows& keys,
                         int count, index_t depth, real* s, index_t s_stride) {
    if constexpr (has_integer_products<Rows>) {
      if (integer::suits(keys, depth) &&
          integer::score(strip, padded(depth), rows, prepared, keys, count, depth, s, s_stride)) {
        return;
      }
    }
    if constexpr (is_bfloat16_rows<Rows> && !std::is_void_v<bfloat16_scores>) {
      if (bfloat16_scores::score(strip, padded(depth), rows, keys, count, depth, s, s_stride)) {
        return;
      }
    }
    for (int row = 0; row < rows; row += 4, s += 4 * s_stride, strip += 4 * padded(depth)) {
      const int left = rows - row;
      if (left == 1) {
        score_rows_of<1>(strip, keys, count, depth, s, s_stride, 1);
      } else {
        score_rows_of<4>(strip, keys, count, depth, s, s_stride, left < 4 ? left : 4);
      }
    }
  }

  // Scores to weights, with the running maximum m (in units of the exponent of two), running sum l
  // and the factor by which earlier sums shrink: m' = max(m, factor·max s), w = 2^(factor·s − m'),
  // l' = l·2^(m − m') + Σ w.
  static void softmax(real* s, index_t s_stride, int rows, int count, real factor, real* maximum,
                      real* sum, real* shrink) {
    for (int row = 0; row < rows; ++row) {
      real* scores = s + row * s_stride;
      // Four chains, or each comparison would wait for the one before.
      pack_type largest[4] = {pack_type(masked_score<real>), pack_type(masked_score<real>),
                              pack_type(masked_score<real>), pack_type(masked_score<real>)};
      int at = 0;
      for (; at + 4 * lanes <= count; at += 4 * lanes) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          largest[i] = max(load_pack<pack_type>(scores + at + i * lanes), largest[i]);
        }
      }
      for (; at < count; at += lanes) {
        largest[0] = max(load_pack<pack_type>(scores + at), largest[0]);
      }
      const real top = max_lanes(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
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
      // 0 exactly; through memory, or the compiler would fuse them again. Likewise where the factor
      // is so small that what is masked would come out visible.
      pack_type scale(factor);
      if (latest > widest_fused || latest < -widest_fused || factor < smallest_fused) {
        const pack_type masked(masked_score<real>);
        for (int c = 0; c < count; c += lanes) {
          const pack_type score = load_pack<pack_type>(scores + c);
          store_pack(scores + c, select(score <= masked, masked, score * scale));
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
  static void accumulate(const real* p, index_t p_stride, int, int count, const real* values,
                         index_t stride, index_t depth, real* o, index_t o_stride,
                         const real* shrink) {
    // Rows that do not exist are there, and 0.
    add_columns<strip_rows, false>(p, p_stride, count, strided_rows<real>{values, stride}, depth, o,
                                   o_stride, shrink, {});
  }

  // The same with values in the caller's memory, which may be far away: in runs of keys that the
  // first-level cache holds, since a few columns of all keys of a run are added at a time, and each
  // run asks for the next.
  template <class Rows>
  static void accumulate_rows(const real* p, index_t p_stride, int rows, int count,
                              const Rows& values, index_t depth, real* o, index_t o_stride,
                              const real* shrink) {
    int run = static_cast<int>(rows_ahead(values, depth));
    const read_ahead ahead = read_ahead_of(values, depth);
    for (int key = 0, here = 0; key < count; key += here) {
      here = run < count - key ? run : count - key;
      const Rows from = values.from(key);
      const real* factors = key == 0 ? shrink : nullptr;
      if constexpr (has_integer_products<Rows>) {
        here = integer::run(from, count - key, depth);
        if (integer::suits(values, depth) &&
            integer::accumulate(p + key, p_stride, rows, from, here, depth, o, o_stride, factors)) {
          continue;
        }
      }
      int row = 0;
      for (; rows - row > 1; row += 4) {
        add_columns<4, true>(p + row * p_stride + key, p_stride, here, from, depth,
                             o + row * o_stride, o_stride,
                             factors != nullptr ? factors + row : nullptr, ahead);
      }
      if (row < rows) {
        add_columns<1, true>(p + row * p_stride + key, p_stride, here, from, depth,
                             o + row * o_stride, o_stride,
                             factors != nullptr ? factors + row : nullptr, ahead);
      }
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

  template <class Rows>
  static constexpr bool has_integer_products = is_quantized_rows<Rows> && !std::is_void_v<integer>;
  template <class Rows>
  static constexpr bool is_bfloat16_rows = std::is_same_v<Rows, strided_rows<Eigen::bfloat16>>;
  // Vectors of a row between two of which memory is asked for once: a line.
  template <class Rows>
  static constexpr index_t vectors_per_line = Rows::row_bytes(lanes) < 64
                                                  ? 64 / Rows::row_bytes(lanes)
                                                  : 1;
  static constexpr real widest_fused = 65536;
  static constexpr real smallest_fused = sizeof(real) == 4 ? real(1e-30) : real(1e-290);

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

  // The first Columns vectors of a panel. A function of its own, since inside of another one it
  // would have to share the registers for its six rows of queries.
  template <int Columns>
  HEED_NOINLINE static void score_panel(const real* strip, const real* panel, index_t depth,
                                        real* s, index_t s_stride) {
    pack_type sums[strip_rows][Columns];
#pragma GCC unroll 8
    for (int row = 0; row < strip_rows; ++row) {
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) sums[row][c] = pack_type(real(0));
    }
    const index_t stride = padded(depth);
    for (index_t d = 0; d < depth; ++d, panel += panel_keys) {
      pack_type k[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) k[c] = load_pack<pack_type>(panel + c * lanes);
#pragma GCC unroll 8
      for (int row = 0; row < strip_rows; ++row) {
        const pack_type q(strip[row * stride + d]);
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sums[row][c] = Lanes::fma(q, k[c], sums[row][c]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < strip_rows; ++row) {
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) store_pack(s + row * s_stride + c * lanes, sums[row][c]);
    }
  }

  // A few rows × a few keys at a time, so that each vector of K is loaded once for all rows and the
  // sums fill whole vectors.
  template <int Rows, class KeyRows>
  static void score_rows_of(const real* strip, const KeyRows& keys, int count, index_t depth,
                            real* s, index_t s_stride, int rows) {
    constexpr int together = lanes / Rows < 4 ? 4 : lanes / Rows;
    static_assert(Rows * together % lanes == 0);
    const index_t q_stride = padded(depth);
    using cursor = typename KeyRows::cursor;
    const read_ahead ahead = read_ahead_of(keys, depth);
    for (int first = 0; first < count; first += together) {
      cursor row[together];
#pragma GCC unroll 16
      for (int i = 0; i < together; ++i) {
        row[i] = keys[first + i < count ? first + i : count - 1];
      }
      pack_type sums[Rows * together];
#pragma GCC unroll 16
      for (int i = 0; i < Rows * together; ++i) sums[i] = pack_type(real(0));
      const auto add = [&](index_t d, auto load) HEED_LAMBDA_INLINE {
        pack_type q[Rows];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) q[r] = load_pack<pack_type>(strip + r * q_stride + d);
#pragma GCC unroll 16
        for (int i = 0; i < together; ++i) {
          const pack_type k = load(row[i] + d);
          if (vectors_per_line<KeyRows> == 1 || d % (vectors_per_line<KeyRows> * lanes) == 0) {
            ahead.ask(row[i] + d);
          }
#pragma GCC unroll 4
          for (int r = 0; r < Rows; ++r) {
            sums[r * together + i] = Lanes::fma(q[r], k, sums[r * together + i]);
          }
        }
      };
      index_t d = 0;
      for (; d + lanes <= depth; d += lanes) {
        add(d, [](const cursor& from) HEED_LAMBDA_INLINE { return load<Lanes>(from); });
      }
      if (d < depth) {
        const int rest = static_cast<int>(depth - d);
        add(d, [rest](const cursor& from)
                   HEED_LAMBDA_INLINE { return load_partial<pack_type>(from, rest); });
      }
      real totals[Rows * together];
#pragma GCC unroll 16
      for (int i = 0; i < Rows * together; i += lanes) {
        store_pack(totals + i, sum_each<lanes / 2>(sums + i));
      }
      const int existing = count - first < together ? count - first : together;
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < existing; ++i) s[r * s_stride + first + i] = totals[r * together + i];
      }
    }
  }

  // Rows × a few vectors of columns at a time. Far: the values are the caller's, any number of
  // columns, and those `ahead` bytes behind are asked for meanwhile; else they are whole vectors.
  template <int Rows, bool Far, class ValueRows>
  HEED_NOINLINE static void add_columns(const real* p, index_t p_stride, int count,
                                        const ValueRows& values, index_t depth, real* o,
                                        index_t o_stride, const real* shrink,
                                        const read_ahead& ahead) {
    using cursor = typename ValueRows::cursor;
    const auto whole = [](const cursor& from) HEED_LAMBDA_INLINE { return load<Lanes>(from); };
    index_t d = 0;
    for (; d + columns * lanes <= depth; d += columns * lanes) {
      accumulate_block<Rows, columns, Far>(p, p_stride, count, values, d, o + d, o_stride, shrink,
                                           whole, ahead);
    }
    if constexpr (!Far && columns > 2) {
      // Two or three vectors together: one at a time leaves too few sums to hide their latency.
      const index_t left = (depth - d) / lanes;
      if (left == 3) {
        accumulate_block<Rows, 3, Far>(p, p_stride, count, values, d, o + d, o_stride, shrink,
                                       whole, ahead);
      } else if (left == 2) {
        accumulate_block<Rows, 2, Far>(p, p_stride, count, values, d, o + d, o_stride, shrink,
                                       whole, ahead);
      }
      if (left > 1) d += left * lanes;
    }
    for (; d + lanes <= depth; d += lanes) {
      accumulate_block<Rows, 1, Far>(p, p_stride, count, values, d, o + d, o_stride, shrink, whole,
                                     ahead);
    }
    if constexpr (Far) {
      if (d == depth) return;
      const int rest = static_cast<int>(depth - d);
      accumulate_block<Rows, 1, Far>(
          p, p_stride, count, values, d, o + d, o_stride, shrink,
          [rest](const cursor& from)
              HEED_LAMBDA_INLINE { return load_partial<pack_type>(from, rest); },
          ahead);
    }
  }

  template <int Rows, int Columns, bool Far, class ValueRows, class Load>
  HEED_INLINE static void accumulate_block(const real* p, index_t p_stride, int count,
                                           const ValueRows& values, index_t d, real* o,
                                           index_t o_stride, const real* shrink, Load load,
                                           const read_ahead& ahead) {
    // Values in bfloat16 come as even and odd columns, and so the sums lie.
    constexpr bool in_pairs = is_bfloat16_rows<ValueRows> && sizeof(real) == 4 && Columns % 2 == 0;
    pack_type sums[Rows][Columns];
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      const pack_type factor(shrink != nullptr ? shrink[row] : real(1));
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        sums[row][c] = load_pack<pack_type>(o + row * o_stride + c * lanes) * factor;
      }
      if constexpr (in_pairs) {
#pragma GCC unroll 8
        for (int c = 0; c < Columns; c += 2) to_even_and_odd(sums[row][c], sums[row][c + 1]);
      }
    }
    for (int key = 0; key < count; ++key) {
      const auto from = values[key] + d;
      pack_type v[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        if constexpr (!in_pairs) {
          v[c] = load(from + c * lanes);
        } else if (c % 2 == 0) {
          load_even_and_odd(from + c * lanes, v[c], v[c + 1]);
        }
        if constexpr (Far) {
          if (c % vectors_per_line<ValueRows> == 0) ahead.ask(from + c * lanes);
        }
      }
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const pack_type weight(p[row * p_stride + key]);
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sums[row][c] = Lanes::fma(weight, v[c], sums[row][c]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      if constexpr (in_pairs) {
#pragma GCC unroll 8
        for (int c = 0; c < Columns; c += 2) from_even_and_odd(sums[row][c], sums[row][c + 1]);
      }
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        store_pack(o + row * o_stride + c * lanes, sums[row][c]);
      }
    }
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
