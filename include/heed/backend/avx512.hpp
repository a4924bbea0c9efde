// Backend for AVX-512 (F, BW, DQ, VL): exponent arithmetic in one instruction, and conversions of
// the 16-bit types in hardware. Where the CPU has AVX512-BF16 and q, k, v and out are all bfloat16,
// both products take pairs (detail/bfloat16_tiles.hpp); an output in float keeps its accuracy.
#pragma once

#include <string_view>

#include "detail/bfloat16_tiles.hpp"
#include "detail/integer_products.hpp"
#include "detail/register_tiles.hpp"

#if defined(HEED_HAS_AVX512)
#include <immintrin.h>
#endif

HEED_NAMESPACE_BEGIN
namespace backend {

#if defined(HEED_HAS_AVX512)

struct avx512 {
  static constexpr std::string_view name = "avx512";

  template <class Real>
  struct lanes;

  // On CPUs with AMX sums of pairs take four times as long as multiply-adds.
#if defined(__AVX512BF16__) && !defined(HEED_TARGET_AMX)
  template <class Real, class... Operands>
  static constexpr bool in_pairs = std::is_same_v<Real, float> && sizeof...(Operands) != 0 &&
                                   (... && is_bfloat16<Operands>);
  template <class Real, class... Operands>
  using tiles =
      std::conditional_t<in_pairs<Real, Operands...>, detail::bfloat16_tiles<lanes<float>>,
                         detail::register_tiles<lanes<Real>>>;
#else
  template <class Real, class... Operands>
  using tiles = detail::register_tiles<lanes<Real>>;
#endif
};

template <>
struct avx512::lanes<float> {
  using real = float;
  using pack_type = pack<float, 16>;
  static constexpr int rows = 6;
  static constexpr int columns = 4;
#if defined(__AVX512VNNI__)
  using integer = detail::integer_products;
#else
  using integer = void;
#endif

  // Masked forms with every lane on, since g++ 12 warns about the plain ones' undefined operand.
  static constexpr __mmask16 every = 0xffff;

  HEED_INLINE static __m512 raw(pack_type a) { return std::bit_cast<__m512>(a.v); }
  HEED_INLINE static pack_type packed(__m512 a) {
    return pack_type(std::bit_cast<pack_type::vector>(a));
  }

  HEED_INLINE static pack_type fma(pack_type a, pack_type b, pack_type c) {
    return packed(_mm512_fmadd_ps(raw(a), raw(b), raw(c)));
  }
  // 2^x = 2^round(x) · 2^rest; relative error at most 3e-7. Underflow, overflow and NaN come out
  // right by themselves.
  HEED_INLINE static pack_type exp2(pack_type x) {
    const __m512 rest =
        _mm512_maskz_reduce_ps(every, raw(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 whole = _mm512_sub_ps(raw(x), rest);
    using heed::detail::exp2_float;
    __m512 sum = _mm512_set1_ps(exp2_float[4]);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(exp2_float[3]));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(exp2_float[2]));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(exp2_float[1]));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(exp2_float[0]));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return packed(_mm512_maskz_scalef_ps(every, sum, whole));
  }
  template <class T>
  HEED_INLINE static pack_type load(const T* from) {
    if constexpr (is_half<T>) {
      return packed(
          _mm512_maskz_cvtph_ps(every, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
    } else if constexpr (is_bfloat16<T>) {
      // Said outright, since g++ 12 widens sixteen words in two halves.
      const __m512i words = _mm512_maskz_cvtepu16_epi32(
          every, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      return packed(_mm512_castsi512_ps(_mm512_maskz_slli_epi32(every, words, 16)));
    } else if constexpr (std::is_same_v<T, std::int8_t>) {
      return packed(_mm512_maskz_cvtepi32_ps(
          every, _mm512_maskz_cvtepi8_epi32(
                     every, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
    } else {
      return detail::load_widened<pack_type>(from);
    }
  }
  template <class T>
  HEED_INLINE static void store(T* to, pack_type a) {
    if constexpr (is_half<T>) {
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(to),
          _mm512_maskz_cvtps_ph(every, raw(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else if constexpr (is_bfloat16<T>) {
      // Round to nearest even on the bits; a NaN keeps its top bits and stays a NaN.
      const __m512i bits = _mm512_castps_si512(raw(a));
      const __m512i odd =
          _mm512_and_si512(_mm512_maskz_srli_epi32(every, bits, 16), _mm512_set1_epi32(1));
      const __m512i rounded =
          _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      const __mmask16 nan =
          _mm512_cmp_epu32_mask(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)),
                                _mm512_set1_epi32(0x7f800000), _MM_CMPINT_NLE);
      const __m512i result = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(to),
          _mm512_maskz_cvtepi32_epi16(every, _mm512_maskz_srli_epi32(every, result, 16)));
    } else if constexpr (std::is_same_v<T, float>) {
      _mm512_storeu_ps(to, raw(a));
    } else {
      for (int lane = 0; lane < 16; ++lane) to[lane] = narrow<T>(a[lane]);
    }
  }
};

template <>
struct avx512::lanes<double> {
  using real = double;
  using pack_type = pack<double, 8>;
  static constexpr int rows = 6;
  static constexpr int columns = 4;
  using integer = void;

  HEED_INLINE static pack_type fma(pack_type a, pack_type b, pack_type c) {
    return pack_type(std::bit_cast<pack_type::vector>(_mm512_fmadd_pd(
        std::bit_cast<__m512d>(a.v), std::bit_cast<__m512d>(b.v), std::bit_cast<__m512d>(c.v))));
  }
  HEED_INLINE static pack_type exp2(pack_type x) { return heed::exp2(x); }
  template <class T>
  HEED_INLINE static pack_type load(const T* from) {
    return detail::load_widened<pack_type>(from);
  }
  template <class T>
  HEED_INLINE static void store(T* to, pack_type a) {
    for (int lane = 0; lane < 8; ++lane) to[lane] = narrow<T>(a[lane]);
  }
};

#else

// Declared so that asking for it gives a readable error (see select.hpp) instead of an unknown
// name.
struct avx512;

#endif

}  // namespace backend
HEED_NAMESPACE_END
