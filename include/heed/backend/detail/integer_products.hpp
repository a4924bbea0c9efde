// Products with integer codes by AVX512-VNNI, for few query rows. One instruction adds 64 products
// of bytes; turning codes into floats first would keep decode from reading as fast as memory
// delivers.
//
//   scores:  s[r][j]  = scale_j · Σ_d q[r][d] · (code[j][d] − zero_j)
//   values:  o[r][d] += Σ_j p[r][j] · scale_j · (code[j][d] − zero_j)
//
// Where tokens share scales per channel, the scales go into q and into o instead. Queries, and
// weights with their scales, become integers of 16 bits relative to the largest of a row, in two
// limbs of 8 bits; sums of their products are exact. The rounding is 2^-16 of the largest: a
// hundredth of what rounding to codes has cost.
#pragma once

#include "lane_operations.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512VNNI__)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct integer_products {
  // Rows that come together: in place, in whole fours.
  static constexpr int most_rows = 16;
  // Bytes of one vector.
  static constexpr int chunk = 64;
  // Channels at a time: sums of products fit 32 bits up to 512.
  static constexpr int segment = 256;
  // Keys whose values are added at once: 64 columns of theirs stay in the first-level cache.
  static constexpr int most_keys = 256;

  // Whether each token has one scale; or else so many share theirs that it pays to multiply the
  // queries with them.
  template <class Code>
  static bool by_token(const quantized_rows<Code>& rows, index_t depth) {
    return rows.groups.channels >= depth;
  }
  template <class Code>
  static bool suits(const quantized_rows<Code>& rows, index_t depth) {
    return by_token(rows, depth) || rows.groups.tokens >= 16;
  }

  // Rows of queries as 256·high + low, in units of `step`.
  struct query_limbs {
    alignas(64) std::int8_t high[most_rows][4 * segment];
    alignas(64) std::int8_t low[most_rows][4 * segment];
    float step[most_rows];
    std::int32_t sum[most_rows];  // of a row's integers
    float constant[most_rows];    // Σ_d q·scale·zero, where scales are multiplied in
    // What the limbs were made for: the same queries serve all keys of a block.
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
                                  query_limbs& limbs, const quantized_rows<Code>& keys, int count,
                                  index_t depth, float* s, index_t s_stride) {
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

  // Keys from the first on, at most `count`, that share their scales.
  template <class Code>
  static int run_of(const quantized_rows<Code>& rows, int first, int count) {
    const index_t left = rows.groups.tokens - (rows.token + first) % rows.groups.tokens;
    return left < count - first ? static_cast<int>(left) : count - first;
  }

 private:
  static constexpr __mmask16 every = 0xffff;
  static constexpr float smallest = 1e-30f;

  // What is added to a code where products need an unsigned byte: to keys by `load_unsigned`, to
  // values where they are stored so.
  template <class Code>
  static constexpr int key_excess = std::is_same_v<Code, int4_pair> ? 8 : 128;
  template <class Code>
  static constexpr int value_excess = std::is_same_v<Code, int4_pair> ? 8 : 0;

  HEED_INLINE static __m512 lanes_of(pack<float, 16> a) { return std::bit_cast<__m512>(a.v); }
  HEED_INLINE static __mmask16 first_lanes(index_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
  }
  // Scales or zeros of up to 16 channels, the others 0.
  template <class Code>
  HEED_INLINE static __m512 groups_at(const float* of_groups, const quantized_cursor<Code>& from,
                                      index_t count) {
    if (from.channels == 1) {
      return _mm512_maskz_loadu_ps(first_lanes(count), of_groups + from.channel);
    }
    float lanes[16] = {};
    for (index_t i = 0; i < count && i < 16; ++i) lanes[i] = of_groups[from.group(i)];
    return _mm512_loadu_ps(lanes);
  }
  // sum + products of unsigned and signed bytes. As an instruction, since g++ 12 copies the sums of
  // the intrinsic from register to register, and spills them.
  HEED_INLINE static __m512i multiply_add(__m512i sum, __m512i bytes, __m512i signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(signed_bytes));
    return sum;
  }
  // The largest of the bits without their sign, or with it: a NaN has the most.
  HEED_INLINE static std::uint32_t largest(__m512i bits) {
    const __m256i half = _mm256_max_epu32(_mm512_maskz_extracti64x4_epi64(0xff, bits, 0),
                                          _mm512_maskz_extracti64x4_epi64(0xff, bits, 1));
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(most));
  }
  // Whether `bits` is a number that has a reciprocal, or 0.
  static bool divides(std::uint32_t bits) {
    return bits == 0 || (bits < 0x7f800000u && std::bit_cast<float>(bits) >= smallest);
  }

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
  // s[row][key] of Rows rows, `rows` of which exist, sixteen keys at a time.
  template <int Rows, class Code>
  HEED_NOINLINE static void score_rows(const query_limbs& limbs, int row, int rows,
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
  HEED_INLINE static void multiply_keys(const query_limbs& limbs, int row, const Code* from,
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
  // Of sixteen tokens from `first` on; those behind the last are 0.
  template <class Code>
  static void scales_of(const quantized_rows<Code>& rows, int first, int count, __m512& scales,
                        __m512& zeros) {
    const bool side_by_side = rows.groups.tokens == 1 && rows.scale_stride == 1;
    if (side_by_side && (rows.zeros == nullptr || rows.zero_stride == 1)) {
      const __mmask16 some = first_lanes(count - first);
      const index_t token = rows.token + first;
      scales = _mm512_maskz_loadu_ps(some, rows.scales + token);
      zeros = rows.zeros != nullptr ? _mm512_maskz_loadu_ps(some, rows.zeros + token)
                                    : _mm512_setzero_ps();
      return;
    }
    alignas(64) float scale[16] = {}, zero[16] = {};
    for (int i = 0; i < 16 && first + i < count; ++i) {
      const quantized_cursor<Code> row = rows[first + i];
      scale[i] = *row.scales;
      if (row.zeros != nullptr) zero[i] = *row.zeros;
    }
    scales = _mm512_load_ps(scale);
    zeros = _mm512_load_ps(zero);
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
        prefetch<2>(from + d / codes_per_element<Code>, far_ahead);
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
