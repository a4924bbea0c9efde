// Weighted sums of integer codes, for few query rows: see integer_products.hpp.
//
//   o[r][d] += Σ_j p[r][j] · scale_j · (code[j][d] − zero_j)
#pragma once

#include "integer_codes.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512VNNI__)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct integer_values : integer_codes {
  // Keys whose values are added at once: 64 columns of theirs stay in the first-level cache.
  static constexpr int most_keys = 256;

  // o[row][d] = o[row][d]·shrink[row] + Σ over at most most_keys keys; shrink may be null (1).
  // False where a weight times its scale is negative, not finite, or so small that its reciprocal
  // is not: then nothing has been added.
  template <class Code>
  HEED_NOINLINE static bool accumulate(const float* p, index_t p_stride, int rows,
                                       const quantized_rows<Code>& values, int count, index_t depth,
                                       float* o, index_t o_stride, const float* shrink) {
    const bool token = by_token(values, depth);
    weight_limbs limbs[(most_rows + 3) / 4];
    for (int row = 0; row < rows; row += 4) {
      const int some = rows - row < 4 ? rows - row : 4;
      if (!limbs[row / 4].split(p + row * p_stride, p_stride, some, values, count, token)) {
        return false;
      }
    }
    for (int row = 0; row < rows; row += 4) {
      const int some = rows - row < 4 ? rows - row : 4;
      const float* factors = shrink != nullptr ? shrink + row : nullptr;
      for (index_t d = 0; d < depth; d += chunk) {
        float* to = o + row * o_stride + d;
        if (some == 1) {
          add_chunk<1>(limbs[row / 4], some, values, count, d, depth, token, to, o_stride, factors);
        } else {
          add_chunk<4>(limbs[row / 4], some, values, count, d, depth, token, to, o_stride, factors);
        }
      }
    }
    return true;
  }

  // Values that are added at a time: as many as share their scales where these are per channel.
  template <class Code>
  static int run(const quantized_rows<Code>& values, int count, index_t depth) {
    if (count > most_keys) count = most_keys;
    return by_token(values, depth) ? count : run_of(values, 0, count);
  }

 private:
  // What a code has in excess as it is multiplied.
  template <class Code>
  static constexpr int value_excess = std::is_same_v<Code, int4_pair> ? 8 : 0;

  // Up to 64 codes of a row, the others 0; four-bit ones with their excess, even channels first.
  HEED_INLINE static __m512i load_chunk(const std::int8_t* row, index_t d, index_t depth) {
    const index_t left = depth - d;
    return left >= 64 ? _mm512_loadu_si512(row + d)
                      : _mm512_maskz_loadu_epi8((__mmask64{1} << left) - 1, row + d);
  }
  HEED_INLINE static __m512i load_chunk(const int4_pair* row, index_t d, index_t depth) {
    const index_t left = (depth - d) / 2;
    const __mmask32 some = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    const __m256i pairs = _mm256_maskz_loadu_epi8(some, row + d / 2);
    const __m512i both = _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(pairs),
                                                  _mm256_srli_epi16(pairs, 4), 1);
    return _mm512_and_si512(both, _mm512_set1_epi8(15));
  }
  // Up to four rows of weights, times their tokens' scales, as 256·high + low in units of `step`;
  // four keys in a word.
  struct weight_limbs {
    alignas(64) std::uint32_t high[4][most_keys / 4], low[4][most_keys / 4];
    float step[4];
    float sum[4];     // of a row's weights
    float offset[4];  // Σ_j weight·(zero_j + excess), where each token has its scale

    template <class Code>
    bool split(const float* p, index_t p_stride, int rows, const quantized_rows<Code>& values,
               int count, bool token) {
      const int padded = (count + 15) / 16 * 16;
      __m512 scales[most_keys / 16], zeros[most_keys / 16];
      alignas(64) float scaled[most_keys];
      for (int key = 0; token && key < padded; key += 16) {
        scales_of(values, key, count, scales[key / 16], zeros[key / 16]);
        zeros[key / 16] = _mm512_add_ps(zeros[key / 16], _mm512_set1_ps(value_excess<Code>));
      }
      for (int row = 0; row < (rows == 1 ? 1 : 4); ++row) {
        __m512i top = _mm512_setzero_si512();
        for (int key = 0; key < padded; key += 16) {
          const __mmask16 some = row < rows ? first_lanes(count - key) : __mmask16{0};
          __m512 w = _mm512_maskz_loadu_ps(some, p + row * p_stride + key);
          if (token) w = _mm512_maskz_mul_ps(some, w, scales[key / 16]);
          _mm512_store_ps(scaled + key, w);
          top = _mm512_maskz_max_epu32(every, top, _mm512_castps_si512(w));
        }
        const std::uint32_t bits = largest(top);
        if (!divides(bits)) return false;
        const float most = std::bit_cast<float>(bits);
        step[row] = most / 65535;
        const __m512 factor = _mm512_set1_ps(most > 0 ? 65535 / most : 0);
        __m512 total = _mm512_setzero_ps(), total_zero = _mm512_setzero_ps();
        for (int key = 0; key < padded; key += 16) {
          const __m512i whole =
              _mm512_maskz_cvtps_epi32(every, _mm512_mul_ps(_mm512_load_ps(scaled + key), factor));
          const __m512 rounded = _mm512_maskz_cvtepi32_ps(every, whole);
          total = _mm512_add_ps(total, rounded);
          if (token) {
            total_zero = _mm512_fmadd_ps(rounded, zeros[key / 16], total_zero);
          }
          _mm_store_si128(
              reinterpret_cast<__m128i*>(high[row] + key / 4),
              _mm512_maskz_cvtepi32_epi8(every, _mm512_maskz_srli_epi32(every, whole, 8)));
          _mm_store_si128(reinterpret_cast<__m128i*>(low[row] + key / 4),
                          _mm512_maskz_cvtepi32_epi8(every, whole));
        }
        sum[row] = step[row] * total_of(total);
        offset[row] = step[row] * total_of(total_zero);
      }
      return true;
    }

   private:
    static float total_of(__m512 v) {
      return sum_lanes(pack<float, 16>(std::bit_cast<pack<float, 16>::vector>(v)));
    }
  };

  // Half of the 64 columns from d on of Rows rows: columns[row][16·i + …]. Bytes of four keys are
  // brought together by unpacking, which leaves a lane of 128 bits with columns 4·i to 4·i + 3 in
  // vector i; the first half are vectors 0 and 1.
  template <int Rows, bool Second, class Code>
  HEED_NOINLINE static void multiply_half(const weight_limbs& limbs,
                                          const quantized_rows<Code>& values, int count, index_t d,
                                          index_t depth, float (*columns)[chunk]) {
    const index_t stride = values.stride;
    // The next columns of these keys, or the first ones of the next keys, and from farther away
    // these columns of the next keys; half of them by each half.
    const index_t next = d + chunk < depth ? chunk / codes_per_element<Code>
                                           : count * stride - d / codes_per_element<Code>;
    const auto ahead = static_cast<std::uintptr_t>(next);
    const auto far_ahead = static_cast<std::uintptr_t>(count) * static_cast<std::uintptr_t>(stride);
    __m512i high[Rows][2], low[Rows][2];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) high[r][i] = low[r][i] = _mm512_setzero_si512();
    }
    const Code* row = values.first;
    for (int key = 0; key < count; key += 4, row += 4 * stride) {
      // Keys that do not exist have the weight 0.
      const Code* second = key + 1 < count ? row + stride : row;
      const Code* third = key + 2 < count ? second + stride : row;
      const Code* fourth = key + 3 < count ? third + stride : row;
      const __m512i a = load_chunk(row, d, depth), b = load_chunk(second, d, depth);
      const __m512i e = load_chunk(third, d, depth), f = load_chunk(fourth, d, depth);
      const Code* asking[2] = {Second ? row : second, Second ? third : fourth};
#pragma GCC unroll 2
      for (const Code* from : asking) {
        if constexpr (asks_second_level) prefetch<2>(from + d / codes_per_element<Code>, far_ahead);
        prefetch<1>(from + d / codes_per_element<Code>, ahead);
      }
      constexpr __mmask64 bytes = ~__mmask64{0};
      constexpr __mmask32 pairs = ~__mmask32{0};
      const __m512i front = Second ? _mm512_maskz_unpackhi_epi8(bytes, a, b)
                                   : _mm512_maskz_unpacklo_epi8(bytes, a, b);
      const __m512i back = Second ? _mm512_maskz_unpackhi_epi8(bytes, e, f)
                                  : _mm512_maskz_unpacklo_epi8(bytes, e, f);
      const __m512i quads[2] = {_mm512_maskz_unpacklo_epi16(pairs, front, back),
                                _mm512_maskz_unpackhi_epi16(pairs, front, back)};
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const __m512i upper = _mm512_set1_epi32(static_cast<int>(limbs.high[r][key / 4]));
        const __m512i lower = _mm512_set1_epi32(static_cast<int>(limbs.low[r][key / 4]));
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          high[r][i] = multiply_add(high[r][i], upper, quads[i]);
          low[r][i] = multiply_add(low[r][i], lower, quads[i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512 upper = _mm512_maskz_cvtepi32_ps(every, high[r][i]);
        const __m512 sum =
            _mm512_fmadd_ps(upper, _mm512_set1_ps(256), _mm512_maskz_cvtepi32_ps(every, low[r][i]));
        _mm512_store_ps(columns[r] + (Second ? 2 + i : i) * 16,
                        _mm512_mul_ps(sum, _mm512_set1_ps(limbs.step[r])));
      }
    }
  }

  // 64 columns, from d on, of Rows rows; `rows` of them exist.
  template <int Rows, class Code>
  HEED_NOINLINE static void add_chunk(const weight_limbs& limbs, int rows,
                                      const quantized_rows<Code>& values, int count, index_t d,
                                      index_t depth, bool token, float* o, index_t o_stride,
                                      const float* shrink) {
    alignas(64) float columns[Rows][chunk];
    multiply_half<Rows, false>(limbs, values, count, d, depth, columns);
    multiply_half<Rows, true>(limbs, values, count, d, depth, columns);
    const quantized_cursor<Code> cursor = values[0] + d;
    for (int part = 0; part < chunk && d + part < depth; part += 16) {
      __m512 scale = _mm512_set1_ps(1), zero = _mm512_setzero_ps();
      if (!token) {
        scale = groups_at(cursor.scales, cursor + part, depth - d - part);
        zero = _mm512_set1_ps(static_cast<float>(value_excess<Code>));
        if (cursor.zeros != nullptr) {
          zero = _mm512_add_ps(zero, groups_at(cursor.zeros, cursor + part, depth - d - part));
        }
      }
      for (int r = 0; r < rows; ++r) {
        float* to = o + r * o_stride + part;
        __m512 sum = in_order<Code>(columns[r], part / 16);
        sum = token ? _mm512_sub_ps(sum, _mm512_set1_ps(limbs.offset[r]))
                    : _mm512_fnmadd_ps(zero, _mm512_set1_ps(limbs.sum[r]), sum);
        const __m512 former = _mm512_loadu_ps(to);
        const __m512 kept =
            shrink != nullptr ? _mm512_mul_ps(former, _mm512_set1_ps(shrink[r])) : former;
        _mm512_storeu_ps(to, _mm512_fmadd_ps(scale, sum, kept));
      }
    }
  }

  // Sixteen columns of a chunk in their order; see multiply_half.
  template <class Code>
  HEED_INLINE static __m512 in_order(const float* columns, int part) {
    if constexpr (std::is_same_v<Code, int4_pair>) {
      // Even channels are columns 8·part to 8·part + 7, odd ones 32 further.
      const float* even = columns + part % 2 * 32 + part / 2 * 4;
      const __m128 a = _mm_load_ps(even), b = _mm_load_ps(even + 8);
      const __m128 c = _mm_load_ps(even + 16), e = _mm_load_ps(even + 24);
      return joined(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b), _mm_unpacklo_ps(c, e),
                    _mm_unpackhi_ps(c, e));
    } else {
      const float* at = columns + 4 * part;
      return joined(_mm_load_ps(at), _mm_load_ps(at + 16), _mm_load_ps(at + 32),
                    _mm_load_ps(at + 48));
    }
  }
  HEED_INLINE static __m512 joined(__m128 a, __m128 b, __m128 c, __m128 e) {
    const __m512 low = _mm512_maskz_insertf32x4(every, _mm512_castps128_ps512(a), b, 1);
    const __m512 most = _mm512_maskz_insertf32x4(every, low, c, 2);
    return _mm512_maskz_insertf32x4(every, most, e, 3);
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END

#endif
