// Rows of words, as bfloat16 and half are, loaded and brought together in pairs: what instructions
// that add two products per lane want.
#pragma once

#include "lane_operations.hpp"

#if defined(HEED_HAS_AVX512)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// Up to 32 words of a row, the others 0.
HEED_INLINE __m512i load_words(const void* from, index_t count) {
  const __mmask32 some =
      count >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((std::uint32_t{1} << count) - 1);
  return _mm512_maskz_loadu_epi16(some, from);
}
HEED_INLINE __m512i no_words() { return _mm512_setzero_si512(); }
// The same times a sign, or 0, exactly.
HEED_INLINE __m512i load_words(const void* from, index_t count, float sign) {
  const __m512i flip = _mm512_set1_epi16(static_cast<short>(sign < 0 ? 0x8000 : 0));
  return sign == 0 ? no_words() : _mm512_xor_si512(load_words(from, count), flip);
}
// Which words are an infinity or a NaN: those that have all bits of the exponent.
HEED_INLINE __mmask32 not_finite(__m512i words, short exponent) {
  const __m512i all = _mm512_set1_epi16(exponent);
  return _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, all), all);
}

HEED_INLINE pack<float, 16> as_pack(__m512i words) {
  return pack<float, 16>(std::bit_cast<pack<float, 16>::vector>(words));
}

// Two rows of 32 words become two rows of 16 pairs: (a[0], b[0]), (a[1], b[1]), …
HEED_INLINE void store_interleaved(__m512i a, __m512i b, void* low, void* high) {
  alignas(64) static constexpr std::uint16_t order[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i first = _mm512_load_si512(order), second = _mm512_load_si512(order + 32);
  _mm512_store_si512(low, _mm512_permutex2var_epi16(a, first, b));
  _mm512_store_si512(high, _mm512_permutex2var_epi16(a, second, b));
}

#if defined(__AVX512BF16__)
// Words of bfloat16.
struct bfloat16_format {
  // Bits of the exponent, all of which are 1 in an infinity or a NaN.
  static constexpr short exponent = 0x7f80;
  static constexpr float weight_rounding = 0x1p-8f;

  // Stores the weights of 32 keys, rounded, and adds them to sixteen sums as they were rounded.
  HEED_INLINE static __m512 store(__m512 first, __m512 second, void* to, __m512 sums) {
    const __m512bh ones = std::bit_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
    const __m512bh weights = _mm512_cvtne2ps_pbh(second, first);
    sums = _mm512_dpbf16_ps(sums, weights, ones);
    _mm512_storeu_si512(to, std::bit_cast<__m512i>(weights));
    return sums;
  }
  HEED_INLINE static __m512i round(__m512 first, __m512 second) {
    return std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  }
  HEED_INLINE static __m512 widen(__m256i words) {
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, words), 16));
  }
};
#endif

}  // namespace backend::detail
HEED_NAMESPACE_END
#endif
