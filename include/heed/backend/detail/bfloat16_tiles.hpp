// Register tiles where q, k, v and out are all bfloat16 and there are AVX512-BF16's sums of pairs
// of products: what register_tiles.hpp multiplies as numbers are pairs here, so that both products
// take half as many steps,
//
//   score:       pairs of channels   S[row][key] += q[2i]·k[2i] + q[2i+1]·k[2i+1]
//   accumulate:  pairs of keys       O[row][d]   += p[2j]·v[2j][d] + p[2j+1]·v[2j+1][d]
//
// Weights are rounded to bfloat16 and summed after rounding, so that the output is an average under
// exactly the weights that it is divided by.
#pragma once

#include "bfloat16_rows.hpp"
#include "register_tiles.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512BF16__)

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// Lanes whose elements are pairs in the bits of a float.
template <class Lanes>
struct pair_lanes : Lanes {
  using pack_type = typename Lanes::pack_type;
  HEED_INLINE static pack_type fma(pack_type a, pack_type b, pack_type sums) {
    return add_pairs(std::bit_cast<__m512i>(a.v), std::bit_cast<__m512i>(b.v), sums);
  }
};

template <class Lanes>
struct bfloat16_tiles {
  using vectors = register_tiles<Lanes>;
  using pairs = register_tiles<pair_lanes<Lanes>>;
  using real = float;
  using packed = float;  // the bits of a pair
  using weight = std::uint16_t;
  using session = block_session<bfloat16_tiles>;
  struct prepared_queries {  // nothing: they are packed as they are multiplied
    void forget() {}
  };
  static constexpr int lanes = 16;
  static constexpr int strip_rows = vectors::strip_rows;
  static constexpr int step_keys = vectors::step_keys;
  static constexpr int weights_together = 2;
  static constexpr index_t most_rows_in_place = vectors::most_rows_in_place;
  static constexpr index_t most_block_keys = vectors::most_block_keys;
  static constexpr real weight_rounding = bfloat16_format::weight_rounding;

  static constexpr index_t padded(index_t depth) { return vectors::padded(depth); }
  static constexpr index_t query_strip_size(index_t depth) {
    return strip_rows * padded(pairs_of(depth));
  }
  static constexpr index_t key_step_size(index_t depth) { return step_keys * pairs_of(depth); }
  static constexpr index_t value_step_size(index_t depth) { return step_keys / 2 * padded(depth); }

  // strip[row][pair of channels]
  template <class T>
  static void pack_queries(const T* const* query_rows, int rows, int height, index_t depth,
                           real sign, packed* strip) {
    const index_t width = padded(pairs_of(depth));
    for (int row = 0; row < height; ++row) {
      pack_row(row < rows ? query_rows[row] : nullptr, depth, sign, strip + row * width, lanes);
    }
  }
  // strip[four rows, or a single last one][32 channels][row][32]
  template <class T>
  static void pack_queries_in_place(const T* const* query_rows, int rows, index_t depth, real sign,
                                    packed* strip) {
    const index_t width = padded(pairs_of(depth));
    for (int first = 0; first < rows; first += 4) {
      const int together = rows - first == 1 ? 1 : 4;
      for (int i = 0; i < together; ++i) {
        pack_row(first + i < rows ? query_rows[first + i] : nullptr, depth, sign,
                 strip + first * width + i * lanes, together * lanes);
      }
    }
  }

  // step[pair of channels][64 keys]
  template <class Rows>
  static void pack_keys(const Rows& keys, int count, index_t depth, packed* step) {
    static_assert(vectors::panel_keys == step_keys);
    const index_t height = pairs_of(depth);
    for (int first = 0; first < step_keys; first += lanes, step += lanes) {
      const Rows rows = keys.from(first);
      index_t pair = 0;
      if (count - first >= lanes) {
        for (; 2 * (pair + lanes) <= depth; pair += lanes) {
          pack<float, 16> block[lanes];
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) {
            block[i] = as_pack(_mm512_loadu_si512(address_at(rows[i] + 2 * pair)));
          }
          transpose(block);
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) store_pack(step + (pair + i) * step_keys, block[i]);
        }
      }
      for (; pair < height; pair += lanes) {
        pack_keys_part(rows, count - first, pair, depth, step + pair * step_keys);
      }
    }
  }

  // step[pair of keys][dv]; returns whether all values are finite.
  template <class Rows>
  static bool pack_values(const Rows& values, int count, index_t depth, packed* step) {
    const index_t width = padded(depth);
    __mmask32 infinite = 0;
    for (int key = 0; key < step_keys; key += 2, step += width) {
      for (index_t d = 0; d < depth; d += 2 * lanes) {
        const __m512i a = key < count ? load_words(values[key] + d, depth - d) : no_words();
        const __m512i b = key + 1 < count ? load_words(values[key + 1] + d, depth - d) : no_words();
        infinite |= not_finite(a, format::exponent) | not_finite(b, format::exponent);
        alignas(64) packed rest[lanes];
        store_interleaved(a, b, step + d, d + lanes < width ? step + d + lanes : rest);
      }
    }
    return infinite == 0;
  }

  template <class Rows>
  static bool all_finite(const Rows& values, int count, index_t depth) {
    __mmask32 infinite = 0;
    for (int key = 0; key < count; ++key) {
      for (index_t d = 0; d < depth; d += 2 * lanes) {
        infinite |= not_finite(load_words(values[key] + d, depth - d), format::exponent);
      }
    }
    return infinite == 0;
  }

  static void score(const packed* strip, int rows, const packed* step, index_t depth, int keys,
                    real* s, index_t s_stride) {
    pairs::score(strip, rows, step, pairs_of(depth), keys, s, s_stride);
  }
  template <class Rows>
  static void score_rows(const packed* strip, int rows, prepared_queries&, const Rows& keys,
                         int count, index_t depth, real* s, index_t s_stride) {
    score_rows_in_place<Lanes, bfloat16_scores>(reinterpret_cast<const std::uint16_t*>(strip),
                                                2 * padded(pairs_of(depth)), rows, keys, count,
                                                depth, s, s_stride);
  }

  // Weights take the place of the scores, two in one's.
  static void softmax(real* s, index_t s_stride, int rows, int count, real factor, real* maximum,
                      real* sum, real* shrink) {
    vectors::template softmax_to<rounded_weights>(s, s_stride, rows, count, factor, maximum, sum,
                                                  shrink);
  }
  static real weight_at(const real* weights, index_t column) {
    std::uint16_t word;
    __builtin_memcpy(&word, reinterpret_cast<const std::uint16_t*>(weights) + column, 2);
    return std::bit_cast<float>(std::uint32_t{word} << 16);
  }

  static void accumulate(const real* p, index_t p_stride, int rows, int count,
                         const listed_steps<packed, step_keys / 2>& values, index_t depth, real* o,
                         index_t o_stride, const real* shrink) {
    pairs::accumulate(p, p_stride, rows, count, values, depth, o, o_stride, shrink);
  }
  template <class Rows>
  static void accumulate_rows(const weight* p, index_t p_stride, int rows, int count,
                              const Rows& values, index_t depth, real* o, index_t o_stride,
                              const real* shrink) {
    bfloat16_values::accumulate(p, p_stride, rows, count, values, depth, o, o_stride, shrink);
  }

  template <class T>
  static void store(const real* o, index_t depth, real factor, T* out) {
    vectors::store(o, depth, factor, out);
  }

 private:
  using format = bfloat16_format;

  struct rounded_weights {
    using pack_type = pack<float, 16>;
    HEED_INLINE static pack_type store(real* scores, int at, pack_type weights, pack_type sums) {
      return store(scores, at, weights, pack_type(0.0f), sums);
    }
    HEED_INLINE static pack_type store(real* scores, int at, pack_type first, pack_type second,
                                       pack_type sums) {
      return as_pack(std::bit_cast<__m512i>(
          format::store(std::bit_cast<__m512>(first.v), std::bit_cast<__m512>(second.v),
                        scores + static_cast<unsigned>(at) / 2, std::bit_cast<__m512>(sums.v))));
    }
  };
  static constexpr index_t pairs_of(index_t depth) { return (depth + 1) / 2; }

  // Where keys or channels are missing: apart, since g++ would else keep all blocks in memory.
  template <class Rows>
  HEED_NOINLINE static void pack_keys_part(const Rows& rows, int count, index_t pair, index_t depth,
                                           packed* to) {
    pack<float, 16> block[lanes];
    for (int i = 0; i < lanes; ++i) {
      block[i] = as_pack(i < count ? load_words(rows[i] + 2 * pair, depth - 2 * pair) : no_words());
    }
    transpose(block);
    for (index_t i = 0; i < lanes && i < pairs_of(depth) - pair; ++i) {
      store_pack(to + i * step_keys, block[i]);
    }
  }

  // Vectors of a row, `stride` apart; zeros where there is no row.
  template <class T>
  static void pack_row(const T* row, index_t depth, real sign, packed* to, index_t stride) {
    for (index_t d = 0; d < depth; d += 2 * lanes, to += stride) {
      _mm512_storeu_si512(to, row != nullptr ? load_words(row + d, depth - d, sign) : no_words());
    }
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
#endif
