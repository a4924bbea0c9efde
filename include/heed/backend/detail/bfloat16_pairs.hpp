// Scores of keys in bfloat16 by AVX512-BF16, for few query rows (rows_in_place.hpp): one
// instruction adds 32 products and takes the keys as they are,
//
//   sums[i] += q[2i]·k[2i] + q[2i+1]·k[2i+1]
//
// for queries that bfloat16 holds exactly, as it does where the caller's queries are of that type.
// Products of two such numbers are exact, only their sums round; subnormal numbers count as 0.
#pragma once

#include "lane_operations.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512BF16__)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct bfloat16_pairs {
  using query = std::uint16_t;
  using vector = __m512i;
  static constexpr int size = 32;  // elements of one vector

  HEED_INLINE static vector load_query(const query* from) { return _mm512_loadu_si512(from); }
  template <class T>
  HEED_INLINE static vector load(const T* from) {
    return _mm512_loadu_si512(from);
  }
  template <class T>
  HEED_INLINE static vector load_partial(const T* from, int count) {
    const auto existing = static_cast<__mmask32>((std::uint32_t{1} << count) - 1);
    return _mm512_maskz_loadu_epi16(existing, from);
  }
  // As an instruction, since g++ 12 passes the intrinsic's operands through memory.
  HEED_INLINE static pack<float, 16> multiply_add(vector q, vector k, pack<float, 16> sums) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums.v) : "v"(q), "v"(k));
    return sums;
  }

  // The queries of a strip in bfloat16.
  struct prepared_queries {
    static constexpr int most_rows = 16;
    // Multi-head latent attention has 576; what is deeper is left to multiply-add.
    static constexpr index_t most_depth = 640;

    bool filled = false;
    bool exact = false;  // bfloat16 holds them all
    index_t stride = 0;  // elements from one row to the next, which are padded with 0
    alignas(64) query rows[most_rows * most_depth];

    // Rows of `depth` floats, padded with 0 to whole vectors of 16, q_stride apart. Whether they
    // are usable, now or from an earlier call.
    bool fill(const float* strip, index_t q_stride, int height, index_t depth) {
      if (filled) return exact;
      filled = true;
      exact = height <= most_rows && depth <= most_depth;
      if (!exact) return false;
      constexpr __mmask16 every = 0xffff;
      stride = (depth + size - 1) / size * size;
      __m512i lost = _mm512_setzero_si512();
      for (int row = 0; row < height; ++row) {
        for (index_t d = 0; d < stride; d += 16) {
          const __m512i bits =
              d < depth ? _mm512_loadu_si512(strip + row * q_stride + d) : _mm512_setzero_si512();
          lost = _mm512_or_si512(lost, bits);
          _mm256_storeu_si256(
              reinterpret_cast<__m256i*>(rows + row * stride + d),
              _mm512_maskz_cvtepi32_epi16(every, _mm512_maskz_srli_epi32(every, bits, 16)));
        }
      }
      exact = _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
      return exact;
    }
  };
};

}  // namespace backend::detail
HEED_NAMESPACE_END
#endif
