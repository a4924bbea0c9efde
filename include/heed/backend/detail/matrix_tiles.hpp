// Operands of the matrix unit: queries, keys and values of 16 bits, packed into tiles.
#pragma once

#include "../avx512.hpp"
#include "tile_registers.hpp"
#include "words.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// Sixteen rows of 32 words become sixteen rows of pairs: pairs[j][i] = rows[i][2j, 2j+1].
HEED_INLINE void store_transposed(pack<float, 16> (&rows)[16], std::uint16_t* pairs) {
  transpose(rows);
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) store_pack(reinterpret_cast<float*>(pairs) + j * 16, rows[j]);
}

// What the matrix unit must know of an element type.
struct bfloat16_words : bfloat16_format {
  // The largest weight of a row is 2^lift when its reference point is set, and the reference point
  // stays while none exceeds 2^headroom.
  static constexpr int lift = 0, headroom = 8;

  template <int C, int A, int B>
  HEED_INLINE static void multiply() {
    tile_multiply_bfloat16<C, A, B>();
  }
};

struct half_words {
  // Whether this build may use the instruction.
#if defined(HEED_HAS_AMX_FP16)
  static constexpr bool multiplied = true;
#else
  static constexpr bool multiplied = false;
#endif
  static constexpr short exponent = 0x7c00;
  static constexpr float weight_rounding = 0x1p-11f;
  // The largest half is 65504, the smallest 2^-24.
  static constexpr int lift = 6, headroom = 15;

  template <int C, int A, int B>
  HEED_INLINE static void multiply() {
    tile_multiply_half<C, A, B>();
  }
  HEED_INLINE static __m512 store(__m512 first, __m512 second, std::uint16_t* to, __m512 sums) {
    return _mm512_add_ps(sums, _mm512_add_ps(stored(first, to), stored(second, to + 16)));
  }
  HEED_INLINE static __m512i round(__m512 first, __m512 second) {
    const __m512i low = _mm512_maskz_inserti64x4(0xff, no_words(), narrow(first), 0);
    return _mm512_maskz_inserti64x4(0xff, low, narrow(second), 1);
  }
  HEED_INLINE static __m512 widen(__m256i words) { return _mm512_maskz_cvtph_ps(0xffff, words); }

 private:
  HEED_INLINE static __m256i narrow(__m512 values) {
    return _mm512_maskz_cvtps_ph(0xffff, values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  HEED_INLINE static __m512 stored(__m512 weights, std::uint16_t* to) {
    const __m256i words = narrow(weights);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), words);
    return widen(words);
  }
};

template <class Words>
class matrix_session;

template <class Words>
struct matrix_tiles {
  using real = float;
  using packed = std::uint16_t;
  using words = Words;
  using session = matrix_session<Words>;
  using vectors = register_tiles<avx512::lanes<float>>;
  static constexpr int lanes = 16;
  static constexpr int strip_rows = 32;
  static constexpr int step_keys = 64;
  // With more rows the matrix unit makes up for packing.
  static constexpr index_t most_rows_in_place = 8;
  // Entering and leaving a block costs as much as half a step.
  static constexpr index_t most_block_keys = 1024;
  static constexpr real weight_rounding = Words::weight_rounding;

  static constexpr index_t padded(index_t depth) {
    return (depth + tile_depth - 1) / tile_depth * tile_depth;
  }
  static constexpr index_t query_strip_size(index_t depth) { return strip_rows * padded(depth); }
  static constexpr index_t key_step_size(index_t depth) { return step_keys * padded(depth); }
  static constexpr index_t value_step_size(index_t depth) { return step_keys * padded(depth); }

  // strip[depth chunk][upper, lower 16 rows][16][32]
  template <class T>
  static void pack_queries(const T* const* query_rows, int rows, index_t depth, real sign,
                           packed* strip) {
    for (index_t d = 0; d < depth; d += tile_depth) {
      for (int row = 0; row < strip_rows; ++row, strip += tile_depth) {
        _mm512_store_si512(
            strip, row < rows ? load_words(query_rows[row] + d, depth - d, sign) : no_words());
      }
    }
  }

  // step[32 keys][depth chunk][16 keys][16 pairs][16 keys]: tiles of B
  template <class Rows>
  static void pack_keys(const Rows& keys, int count, index_t depth, packed* step) {
    for (int half = 0; half < step_keys; half += 32) {
      for (index_t d = 0; d < depth; d += tile_depth) {
        for (int first = half; first < half + 32; first += 16, step += tile_words) {
          const Rows rows = keys.from(first);
          if (count - first < 16 || depth - d < tile_depth) {
            pack_keys_part(rows, count - first, d, depth, step);
            continue;
          }
          pack<float, 16> chunk[16];
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) chunk[i] = as_pack(words_at(rows[i] + d, tile_depth));
          store_transposed(chunk, step);
        }
      }
    }
  }

  // step[32 columns][32 keys][16 columns][16 key pairs][16 columns]: tiles of B
  template <class Rows>
  static bool pack_values(const Rows& values, int count, index_t depth, packed* step) {
    __mmask32 infinite = 0;
    for (index_t d = 0; d < depth; d += 32) {
      for (int first = 0; first < step_keys; first += 32, step += 2 * tile_words) {
        for (int pair = 0; pair < 16; ++pair) {
          const int key = first + 2 * pair;
          const __m512i a = key < count ? words_at(values[key] + d, depth - d) : no_words();
          const __m512i b = key + 1 < count ? words_at(values[key + 1] + d, depth - d) : no_words();
          infinite |= not_finite(a, Words::exponent) | not_finite(b, Words::exponent);
          store_interleaved(a, b, step + pair * 32, step + tile_words + pair * 32);
        }
      }
    }
    return infinite == 0;
  }

  template <class Rows>
  static bool all_finite(const Rows& values, int count, index_t depth) {
    __mmask32 infinite = 0;
    for (int key = 0; key < count; ++key) {
      for (index_t d = 0; d < depth; d += 32) {
        infinite |= not_finite(words_at(values[key] + d, depth - d), Words::exponent);
      }
    }
    return infinite == 0;
  }

  template <class T>
  static void store(const real* o, index_t depth, real factor, T* out) {
    vectors::store(o, depth, factor, out);
  }

 private:
  // Where keys or channels are missing: apart, since g++ would else keep all chunks in memory.
  template <class Rows>
  HEED_NOINLINE static void pack_keys_part(const Rows& rows, int count, index_t d, index_t depth,
                                           packed* step) {
    pack<float, 16> chunk[16];
    for (int i = 0; i < 16; ++i) {
      chunk[i] = as_pack(i < count ? words_at(rows[i] + d, depth - d) : no_words());
    }
    store_transposed(chunk, step);
  }

  // Up to 32 channels from a cursor on, the others 0; codes are rounded to words.
  template <class T>
  HEED_INLINE static __m512i words_at(const T* from, index_t count) {
    return load_words(from, count);
  }
  template <class Code>
  HEED_INLINE static __m512i words_at(const quantized_cursor<Code>& from, index_t count) {
    return Words::round(part_at(from, count), part_at(from + 16, count - 16));
  }
  template <class Code>
  HEED_INLINE static __m512 part_at(const quantized_cursor<Code>& from, index_t count) {
    using lanes_of_float = avx512::lanes<float>;
    if (count >= 16) return lanes_of_float::raw(load<lanes_of_float>(from));
    return lanes_of_float::raw(load_partial<pack<float, 16>>(from, static_cast<int>(count)));
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
