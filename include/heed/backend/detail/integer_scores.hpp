// Scores of integer codes, for few query rows: see integer_products.hpp.
//
//   s[r][j] = scale_j · Σ_d q[r][d] · (code[j][d] − zero_j)
#pragma once

#include "integer_codes.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512VNNI__)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct integer_scores : integer_codes {
  // Channels at a time: sums of products fit 32 bits up to 512.
  static constexpr int segment = 256;

  // Rows of queries as 256·high + low, in units of `step`.
  struct prepared_queries {
    alignas(64) std::int8_t high[most_rows][4 * segment];
    alignas(64) std::int8_t low[most_rows][4 * segment];
    float step[most_rows];
    std::int32_t sum[most_rows];  // of a row's integers
    float constant[most_rows];    // Σ_d q·scale·zero, where scales are multiplied in
    // What the limbs were made for: the same queries serve all keys that share scales.
    bool filled = false, four_bits = false;
    const float* scales = nullptr;

    template <class Code>
    bool holds(const quantized_cursor<Code>& from, bool token, index_t depth) const {
      return filled && depth <= segment && four_bits == std::is_same_v<Code, int4_pair> &&
             scales == (token ? nullptr : from.scales);
    }

    template <class Code>
    bool split(const float* queries, index_t q_stride, int height, int width,
               const quantized_cursor<Code>& from, bool token) {
      filled = false;
      const int padded = (width + 2 * chunk - 1) / (2 * chunk) * (2 * chunk);
      alignas(64) float scaled[segment];
      for (int row = 0; row < height; ++row, queries += q_stride) {
        __m512i top = _mm512_setzero_si512();
        __m512 zeros = _mm512_setzero_ps();
        for (int d = 0; d < padded; d += 16) {
          __m512 q = _mm512_setzero_ps();
          if (d < width) {
            q = _mm512_loadu_ps(queries + d);
            if (!token) {
              q = _mm512_mul_ps(q, groups_at(from.scales, from + d, width - d));
              if (from.zeros != nullptr) {
                zeros = _mm512_fmadd_ps(q, groups_at(from.zeros, from + d, width - d), zeros);
              }
            }
          }
          _mm512_store_ps(scaled + d, q);
          top = _mm512_maskz_max_epu32(
              every, top, _mm512_and_si512(_mm512_castps_si512(q), _mm512_set1_epi32(0x7fffffff)));
        }
        const std::uint32_t bits = largest(top);
        if (!divides(bits)) return false;
        const float most = std::bit_cast<float>(bits);
        step[row] = most / 32512;
        constant[row] = sum_lanes(pack<float, 16>(std::bit_cast<pack<float, 16>::vector>(zeros)));
        const __m512 factor = _mm512_set1_ps(most > 0 ? 32512 / most : 0);
        __m512i total = _mm512_setzero_si512();
        for (int d = 0; d < padded; d += 16) {
          const __m512i whole =
              _mm512_maskz_cvtps_epi32(every, _mm512_mul_ps(_mm512_load_ps(scaled + d), factor));
          total = _mm512_add_epi32(total, whole);
          const __m512i upper =
              _mm512_maskz_srai_epi32(every, _mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
          store_limb<Code>(high[row], d, upper);
          store_limb<Code>(low[row], d,
                           _mm512_sub_epi32(whole, _mm512_maskz_slli_epi32(every, upper, 8)));
        }
        alignas(64) std::int32_t lanes[16];
        _mm512_store_si512(lanes, total);
        sum[row] = 0;
        for (std::int32_t lane : lanes) sum[row] += lane;
      }
      filled = true;
      four_bits = std::is_same_v<Code, int4_pair>;
      scales = token ? nullptr : from.scales;
      return true;
    }

   private:
    // Sixteen limbs, from channel d on, as they are multiplied (see multiply_keys): each word of
    // four bytes four times, and of a four-bit code's channels the even ones apart from the odd.
    template <class Code>
    HEED_INLINE static void store_limb(std::int8_t* row, int d, __m512i limbs) {
      __m128i bytes = _mm512_maskz_cvtepi32_epi8(every, limbs);
      if constexpr (std::is_same_v<Code, int4_pair>) {
        bytes = _mm_shuffle_epi8(
            bytes, _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
      }
      constexpr int vectors = 4 * static_cast<int>(codes_per_element<Code>);
      constexpr int lane_words = vectors;  // that share a lane of 128 bits
      alignas(16) std::int32_t words[4];
      _mm_store_si128(reinterpret_cast<__m128i*>(words), bytes);
      for (int i = 0; i < 4; ++i) {
        const int word = d / 4 + i, in_chunk = word % (4 * lane_words);
        std::int8_t* to = row + word / (4 * lane_words) * vectors * chunk +
                          in_chunk % lane_words * chunk + in_chunk / lane_words * 16;
        _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_set1_epi32(words[i]));
      }
    }
  };

  // s[row][key] for at most 64 keys. Queries lie padded to whole vectors, q_stride apart, in whole
  // fours of rows where there is more than one. False where a query is not finite, or so small that
  // its reciprocal is not: then the scores are still to be computed.
  template <class Code>
  HEED_NOINLINE static bool score(const float* queries, index_t q_stride, int rows,
                                  prepared_queries& limbs, const quantized_rows<Code>& keys,
                                  int count, index_t depth, float* s, index_t s_stride) {
    const int height = rows == 1 ? 1 : (rows + 3) / 4 * 4;
    const bool token = by_token(keys, depth);
    for (index_t begin = 0; begin < depth; begin += segment) {
      const int width = static_cast<int>(depth - begin < segment ? depth - begin : segment);
      for (int first = 0, run = 0; first < count; first += run) {
        run = token ? count : run_of(keys, first, count);
        const quantized_rows<Code> some = keys.from(first);
        const quantized_cursor<Code> scales = some[0] + begin;
        if (!limbs.holds(scales, token, depth) &&
            !limbs.split(queries + begin, q_stride, height, width, scales, token)) {
          return false;
        }
        if (height == 1) {
          score_rows<1>(limbs, 0, 1, some, run, begin, width, depth, token, s + first, s_stride);
        }
        for (int row = 0; row < height - 1; row += 4) {
          score_rows<4>(limbs, row, rows - row < 4 ? rows - row : 4, some, run, begin, width, depth,
                        token, s + first + row * s_stride, s_stride);
        }
      }
    }
    return depth > 0;
  }

 private:
  // What a code has in excess where products see it as an unsigned byte.
  template <class Code>
  static constexpr int key_excess = std::is_same_v<Code, int4_pair> ? 8 : 128;

  // s[row][key] of Rows rows, `rows` of which exist, sixteen keys at a time.
  template <int Rows, class Code>
  HEED_NOINLINE static void score_rows(const prepared_queries& limbs, int row, int rows,
                                       const quantized_rows<Code>& keys, int count, index_t begin,
                                       int width, index_t depth, bool token, float* s,
                                       index_t s_stride) {
    const read_ahead ahead = read_ahead_of(keys, depth);
    const Code* from = keys.first + begin / codes_per_element<Code>;
    index_t at[16];
    for (int first = 0; first < count; first += 16, from += 16 * keys.stride) {
      if (first == 0 || count - first < 16) {
        // Keys that do not exist repeat the last one.
        for (int k = 0; k < 16; ++k) {
          at[k] = (first + k < count ? k : count - 1 - first) * keys.stride;
        }
      }
      __m512i parts[Rows][4];
      multiply_keys<Rows, 0>(limbs, row, from, at, width, ahead, parts);
      multiply_keys<Rows, 2>(limbs, row, from, at + 8, width, ahead, parts);
      __m512 scales = _mm512_set1_ps(1), zeros = _mm512_setzero_ps();
      if (token) scales_of(keys, first, count, scales, zeros);
      const __mmask16 some = first_lanes(count - first);
      for (int r = 0; r < rows; ++r) {
        const std::int32_t sum = limbs.sum[row + r];
        const __m512i whole = sum_of_lanes(sum_of_lanes(parts[r][0], parts[r][1]),
                                           sum_of_lanes(parts[r][2], parts[r][3]));
        __m512 score = _mm512_maskz_cvtepi32_ps(
            every, _mm512_sub_epi32(whole, _mm512_set1_epi32(key_excess<Code> * sum)));
        score = _mm512_fnmadd_ps(zeros, _mm512_set1_ps(static_cast<float>(sum)), score);
        score = _mm512_fmsub_ps(score, _mm512_mul_ps(scales, _mm512_set1_ps(limbs.step[row + r])),
                                _mm512_set1_ps(limbs.constant[row + r]));
        float* to = s + r * s_stride + first;
        if (begin != 0) score = _mm512_add_ps(score, _mm512_maskz_loadu_ps(some, to));
        _mm512_mask_storeu_ps(to, some, score);
      }
    }
  }

  // Eight keys, in two fours. The words of four keys are transposed within the four lanes of 128
  // bits: word i then has, in lane L, word 4·L + i of each key, and a sum has one part per lane.
  template <int Rows, int Four, class Code>
  HEED_INLINE static void multiply_keys(const prepared_queries& limbs, int row, const Code* from,
                                        const index_t* at, int width, const read_ahead& ahead,
                                        __m512i (&parts)[Rows][4]) {
    constexpr int in_byte = static_cast<int>(codes_per_element<Code>);
    __m512i high[Rows][2], low[Rows][2];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      high[r][0] = high[r][1] = low[r][0] = low[r][1] = _mm512_setzero_si512();
    }
    for (int d = 0; d < width; d += chunk * in_byte) {
      const int bytes = (width - d) / in_byte;
      const __mmask64 some = (__mmask64{1} << (bytes & 63)) - 1;
      __m512i words[2][4];
#pragma GCC unroll 2
      for (int four = 0; four < 2; ++four) {
        __m512i code[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          const Code* codes = from + at[4 * four + k] + d / in_byte;
          code[k] = bytes >= 64 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(some, codes);
          ahead.ask(codes);
        }
        const __m512i a = _mm512_maskz_unpacklo_epi32(every, code[0], code[1]);
        const __m512i b = _mm512_maskz_unpackhi_epi32(every, code[0], code[1]);
        const __m512i c = _mm512_maskz_unpacklo_epi32(every, code[2], code[3]);
        const __m512i e = _mm512_maskz_unpackhi_epi32(every, code[2], code[3]);
        words[four][0] = _mm512_maskz_unpacklo_epi64(0xff, a, c);
        words[four][1] = _mm512_maskz_unpackhi_epi64(0xff, a, c);
        words[four][2] = _mm512_maskz_unpacklo_epi64(0xff, b, e);
        words[four][3] = _mm512_maskz_unpackhi_epi64(0xff, b, e);
      }
      const auto add = [&](int vector, __m512i one, __m512i two) HEED_LAMBDA_INLINE {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const __m512i upper = _mm512_load_si512(limbs.high[row + r] + 4 * d + vector * chunk);
          const __m512i lower = _mm512_load_si512(limbs.low[row + r] + 4 * d + vector * chunk);
          high[r][0] = multiply_add(high[r][0], one, upper);
          high[r][1] = multiply_add(high[r][1], two, upper);
          low[r][0] = multiply_add(low[r][0], one, lower);
          low[r][1] = multiply_add(low[r][1], two, lower);
        }
      };
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512i one = words[0][i], two = words[1][i];
        if constexpr (in_byte == 2) {
          const __m512i nibble = _mm512_set1_epi8(15);
          add(2 * i, _mm512_and_si512(one, nibble), _mm512_and_si512(two, nibble));
          add(2 * i + 1, _mm512_and_si512(_mm512_maskz_srli_epi32(every, one, 4), nibble),
              _mm512_and_si512(_mm512_maskz_srli_epi32(every, two, 4), nibble));
        } else {
          const __m512i sign = _mm512_set1_epi8(-128);
          add(i, _mm512_xor_si512(one, sign), _mm512_xor_si512(two, sign));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int four = 0; four < 2; ++four) {
        parts[r][Four + four] =
            _mm512_add_epi32(_mm512_maskz_slli_epi32(every, high[r][four], 8), low[r][four]);
      }
    }
  }
  // Lanes of 128 bits: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
  HEED_INLINE static __m512i sum_of_lanes(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_maskz_shuffle_i32x4(every, a, b, 0x88),
                            _mm512_maskz_shuffle_i32x4(every, a, b, 0xdd));
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END

#endif
