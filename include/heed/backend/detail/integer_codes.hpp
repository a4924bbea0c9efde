// What products with integer codes by AVX512-VNNI share, be it scores or values: see
// integer_products.hpp.
#pragma once

#include "lane_operations.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512VNNI__)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct integer_codes {
  // Rows that come together: in place, in whole fours.
  static constexpr int most_rows = 16;
  // Bytes of one vector.
  static constexpr int chunk = 64;

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

  // Keys from the first on, at most `count`, that share their scales.
  template <class Code>
  static int run_of(const quantized_rows<Code>& rows, int first, int count) {
    const index_t left = rows.groups.tokens - (rows.token + first) % rows.groups.tokens;
    return left < count - first ? static_cast<int>(left) : count - first;
  }

 protected:
  static constexpr __mmask16 every = 0xffff;
  static constexpr float smallest = 1e-30f;

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
};

}  // namespace backend::detail
HEED_NAMESPACE_END

#endif
