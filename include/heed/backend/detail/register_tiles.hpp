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
#include "register_packing.hpp"
#include "rows_in_place.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// What some products need of a strip's queries, made when it is first needed; nothing where there
// are no such products.
template <class Products>
struct queries_for {
  using type = typename Products::prepared_queries;
};
template <>
struct queries_for<void> {
  struct type {
    bool filled = false;
  };
};

template <class Lanes>
struct register_tiles : register_packing<Lanes> {
  using packing = register_packing<Lanes>;
  using packing::columns;
  using packing::lanes;
  using packing::padded;
  using packing::panel_keys;
  using packing::strip_rows;
  using typename packing::pack_type;
  using typename packing::real;
  using packed = real;
  using weight = real;
  using session = block_session<register_tiles>;
  // Products with integer codes, where there are instructions for them, else void.
  using integer = typename Lanes::integer;
  static constexpr int weights_together = 1;
  // Packing pays with more rows than these: 16 rows in place take 0.6 of the time.
  static constexpr index_t most_rows_in_place = 16;
  static constexpr index_t most_block_keys = 512;  // 12 KiB of scores in float
  static constexpr real weight_rounding = 0;

  // A strip's queries, in the form that the products with its keys want.
  struct prepared_queries {
    typename queries_for<integer>::type for_integer;

    void forget() { for_integer.filled = false; }
  };

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
    const index_t q_stride = padded(depth);
    if constexpr (has_integer_products<Rows>) {
      if (integer::suits(keys, depth) && integer::score(strip, q_stride, rows, prepared.for_integer,
                                                        keys, count, depth, s, s_stride)) {
        return;
      }
    }
    score_rows_in_place<Lanes, widened_products<Lanes>>(strip, q_stride, rows, keys, count, depth,
                                                        s, s_stride);
  }

  // Scores to weights, with the running maximum m (in units of the exponent of two), running sum l
  // and the factor by which earlier sums shrink: m' = max(m, factor·max s), w = 2^(factor·s − m'),
  // l' = l·2^(m − m') + Σ w.
  static void softmax(real* s, index_t s_stride, int rows, int count, real factor, real* maximum,
                      real* sum, real* shrink) {
    softmax_to<plain_weights>(s, s_stride, rows, count, factor, maximum, sum, shrink);
  }
  // The same where Weights says how weights take the scores' place, and adds them as they are
  // stored. As many rows together as a lane group has, one per lane: what a row needs once is
  // computed for all of them, and no row waits for another.
  template <class Weights>
  static void softmax_to(real* s, index_t s_stride, int rows, int count, real factor, real* maximum,
                         real* sum, real* shrink) {
    const auto larger = [](pack_type a, pack_type b) HEED_LAMBDA_INLINE { return max(a, b); };
    const auto add = [](pack_type a, pack_type b) HEED_LAMBDA_INLINE { return a + b; };
    for (int row = 0; row < rows; row += together) {
      const int here = rows - row < together ? rows - row : together;
      // Rows that do not exist are the last one again, and are not written.
      real* scores[together];
      pack_type largest[together], totals[together], former(maximum[row]);
      for (int i = 0; i < together; ++i) {
        const int at = row + (i < here ? i : here - 1);
        scores[i] = s + at * s_stride;
        former.v[i] = maximum[at];
        largest[i] = pack_type(masked_score<real>);
        totals[i] = pack_type(real(0));
      }
      for (int c = 0; c < count; c += lanes) {
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) {
          largest[i] = max(load_pack<pack_type>(scores[i] + c), largest[i]);
        }
      }
      const pack_type top = join_group_each(largest, larger);
      const auto visible = top > pack_type(masked_score<real>);
      const pack_type latest = select(visible, max(former, top * factor), former);
      const pack_type shrinks = Lanes::exp2(former - latest);
      const bool usual =
          to_bits(visible & (abs(latest) <= pack_type(widest_fused))) == every_lane &&
          factor >= smallest_fused;
#pragma GCC unroll 4
      for (int i = 0; i < together; ++i) {
        if (i == here) break;
        pack_type scale(factor);
        if (!usual) {
          if (!(top.v[i] > masked_score<real>)) {
            totals[i].v[0] = hide(scores[i], count);
            continue;
          }
          if (!(abs(latest.v[i]) <= widest_fused) || factor < smallest_fused) {
            scale_scores(scores[i], count, factor);
            scale = pack_type(real(1));
          }
        }
        const pack_type offset(-latest.v[i]);
        const auto weights_at = [&](int c) HEED_LAMBDA_INLINE {
          return Lanes::exp2(Lanes::fma(load_pack<pack_type>(scores[i] + c), scale, offset));
        };
        int c = 0;
        for (; c + 2 * lanes <= count; c += 2 * lanes) {
          const pack_type weights = weights_at(c);
          totals[i] = Weights::store(scores[i], c, weights, weights_at(c + lanes), totals[i]);
        }
        for (; c < count; c += lanes) {
          totals[i] = Weights::store(scores[i], c, weights_at(c), totals[i]);
        }
      }
      const pack_type total = join_group_each(totals, add);
      for (int i = 0; i < here; ++i) {
        shrink[row + i] = shrinks.v[i];
        maximum[row + i] = latest.v[i];
        sum[row + i] = sum[row + i] * shrinks.v[i] + total.v[i];
      }
    }
  }

  static real weight_at(const real* weights, index_t column) { return weights[column]; }

  // o[row][d] = o[row][d]·shrink[row] + Σ_key p[row][key]·v[key][d]; shrink may be null (1). Rows
  // of `o` have whole vectors; v has `depth` elements per row.
  template <index_t StepRows>
  static void accumulate(const real* p, index_t p_stride, int, int count,
                         const listed_steps<real, StepRows>& values, index_t depth, real* o,
                         index_t o_stride, const real* shrink) {
    // Rows that do not exist are there, and 0.
    add_columns<strip_rows, false>(p, p_stride, count, values, depth, o, o_stride, shrink, {});
  }

  // The same with values in the caller's memory, which may be far away: in runs of keys that the
  // first-level cache holds, since a few columns of all keys of a run are added at a time, and each
  // run asks for the next.
  template <class Rows>
  static void accumulate_rows(const real* p, index_t p_stride, int rows, int count,
                              const Rows& values, index_t depth, real* o, index_t o_stride,
                              const real* shrink) {
    // Two rows of O and twice the columns read a row of values in fewer pieces; four rows convert
    // values of another type half as often.
    constexpr int height = std::is_same_v<typename Rows::cursor, const real*> ? 2 : 4;
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
      for (; rows - row > 1; row += height) {
        add_columns<height, true>(p + row * p_stride + key, p_stride, here, from, depth,
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
    if (d < depth) store_rest(o + d, depth - d, factor, out + d);
  }

 private:
  template <class Rows>
  static constexpr bool has_integer_products = is_quantized_rows<Rows> && !std::is_void_v<integer>;
  template <class Rows>
  static constexpr bool is_bfloat16_rows =
      std::is_same_v<typename Rows::cursor, const Eigen::bfloat16*>;
  struct plain_weights {
    HEED_INLINE static pack_type store(real* scores, int at, pack_type weights, pack_type sums) {
      store_pack(scores + at, weights);
      return sums + weights;
    }
    HEED_INLINE static pack_type store(real* scores, int at, pack_type first, pack_type second,
                                       pack_type sums) {
      return store(scores, at + lanes, second, store(scores, at, first, sums));
    }
  };
  // Less than a vector: apart, since g++ unrolls this loop into more code than all the rest.
  template <class T>
  HEED_NOINLINE static void store_rest(const real* o, index_t count, real factor, T* out) {
    for (index_t d = 0; d < count; ++d) out[d] = narrow<T>(o[d] * factor);
  }

  static constexpr int together = lanes_of_group<real, lanes>;
  static constexpr std::uint64_t every_lane = ~std::uint64_t{0} >> (64 - lanes);

  // A row that sees nothing, or nothing but NaN, which must not vanish: it is returned, to be added
  // to the sum.
  HEED_NOINLINE static real hide(real* scores, int count) {
    real poison = 0;
    for (int c = 0; c < count; ++c) {
      if (scores[c] != scores[c]) poison = scores[c];
      scores[c] = 0;
    }
    return poison;
  }
  // factor·s − m is computed in one rounding. Where m is so large that its own rounding shifts
  // exponents by more than a fraction, the products are rounded like m first, so that the largest
  // gives 0 exactly; through memory, or the compiler would fuse them again. Likewise where the
  // factor is so small that what is masked would come out visible.
  HEED_NOINLINE static void scale_scores(real* scores, int count, real factor) {
    const pack_type masked(masked_score<real>);
    for (int c = 0; c < count; c += lanes) {
      const pack_type score = load_pack<pack_type>(scores + c);
      store_pack(scores + c, select(score <= masked, masked, score * factor));
    }
  }
  static constexpr real widest_fused = 65536;
  static constexpr real smallest_fused = sizeof(real) == 4 ? real(1e-30) : real(1e-290);

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
    if constexpr (Far && Rows <= 2) {
      for (; d + 2 * columns * lanes <= depth; d += 2 * columns * lanes) {
        accumulate_block<Rows, 2 * columns, Far>(p, p_stride, count, values, depth, d, o + d,
                                                 o_stride, shrink, whole, ahead);
      }
    }
    for (; d + columns * lanes <= depth; d += columns * lanes) {
      accumulate_block<Rows, columns, Far>(p, p_stride, count, values, depth, d, o + d, o_stride,
                                           shrink, whole, ahead);
    }
    if constexpr (!Far && columns > 2) {
      // Two or three vectors together: one at a time leaves too few sums to hide their latency.
      const index_t left = (depth - d) / lanes;
      if (left == 3) {
        accumulate_block<Rows, 3, Far>(p, p_stride, count, values, depth, d, o + d, o_stride,
                                       shrink, whole, ahead);
      } else if (left == 2) {
        accumulate_block<Rows, 2, Far>(p, p_stride, count, values, depth, d, o + d, o_stride,
                                       shrink, whole, ahead);
      }
      if (left > 1) d += left * lanes;
    }
    for (; d + lanes <= depth; d += lanes) {
      accumulate_block<Rows, 1, Far>(p, p_stride, count, values, depth, d, o + d, o_stride, shrink,
                                     whole, ahead);
    }
    if constexpr (Far) {
      if (d == depth) return;
      const int rest = static_cast<int>(depth - d);
      accumulate_block<Rows, 1, Far>(
          p, p_stride, count, values, depth, d, o + d, o_stride, shrink,
          [rest](const cursor& from)
              HEED_LAMBDA_INLINE { return load_partial<pack_type>(from, rest); },
          ahead);
    }
  }

  template <int Rows, int Columns, bool Far, class ValueRows, class Load>
  HEED_INLINE static void accumulate_block(const real* p, index_t p_stride, int count,
                                           const ValueRows& values, index_t depth, index_t d,
                                           real* o, index_t o_stride, const real* shrink, Load load,
                                           const read_ahead& usual) {
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
    const auto add_key = [&](int key, const typename ValueRows::cursor& from) HEED_LAMBDA_INLINE {
      const read_ahead ahead = Far ? read_ahead_from(values, key, depth, usual) : usual;
      pack_type v[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        if constexpr (!in_pairs) {
          v[c] = load(from + c * lanes);
        } else if (c % 2 == 0) {
          load_even_and_odd(from + c * lanes, v[c], v[c + 1]);
        }
        if constexpr (Far) {
          if (c % vectors_per_line<ValueRows>(lanes) == 0) ahead.ask(from + c * lanes);
        }
      }
      if constexpr (Far) {
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) hold(v[c]);
      }
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const pack_type weight(p[row * p_stride + key]);
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sums[row][c] = Lanes::fma(weight, v[c], sums[row][c]);
      }
    };
    if constexpr (Far) {
      for (int key = 0; key < count; ++key) add_key(key, values[key] + d);
    } else {
      for (int key = 0; key < count;) {
        const real* from = values[key] + d;
        const int left = values.left_in_step(key);
        const int end = left < count - key ? key + left : count;
        for (; key < end; ++key, from += values.stride) add_key(key, from);
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
