// Scores of keys in bfloat16 for few query rows by AVX512-BF16, which adds 32 products at a time
// and takes the keys as they are:
//
//   s[r][j] = Σ_d q[r][d] · k[j][d]
//
// for queries that bfloat16 holds exactly, as it does where the caller's queries are of that type.
// Products of two such numbers are exact, only their sums round; subnormal numbers count as 0.
#pragma once

#include "lane_operations.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512BF16__)
#include <immintrin.h>

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct bfloat16_scores {
  // Of queries that are narrowed here; deeper ones are left to multiply-add.
  static constexpr index_t most_depth = 1024;
  static constexpr int chunk = 32;  // elements of one vector

  // s[row][key] for `count` keys. Queries lie padded with 0 to whole vectors of 16, q_stride apart,
  // in whole fours of rows where there is more than one. False where a query is not a bfloat16 or
  // too deep: then the scores are still to be computed.
  // T is Eigen::bfloat16; a parameter, since its definition may be absent where this is compiled.
  template <class T>
  HEED_NOINLINE static bool score(const float* queries, index_t q_stride, int rows,
                                  const strided_rows<T>& keys, int count, index_t depth, float* s,
                                  index_t s_stride) {
    if (depth > most_depth) return false;
    alignas(64) std::uint16_t narrowed[4 * most_depth];
    for (int row = 0; row < rows; row += 4) {
      const int left = rows - row < 4 ? rows - row : 4;
      if (!narrow_rows(queries + row * q_stride, q_stride, left == 1 ? 1 : 4, depth, narrowed)) {
        return false;
      }
      if (left == 1) {
        score_of<1>(narrowed, keys, count, depth, s + row * s_stride, s_stride, 1);
      } else {
        score_of<4>(narrowed, keys, count, depth, s + row * s_stride, s_stride, left);
      }
    }
    return true;
  }

 private:
  static constexpr __mmask16 every = 0xffff;

  static constexpr index_t padded(index_t depth) { return (depth + chunk - 1) / chunk * chunk; }

  // The upper halves of `height` rows; whether the lower halves are 0.
  static bool narrow_rows(const float* queries, index_t q_stride, int height, index_t depth,
                          std::uint16_t* narrowed) {
    __m512i lost = _mm512_setzero_si512();
    for (int row = 0; row < height; ++row, queries += q_stride, narrowed += padded(depth)) {
      for (index_t d = 0; d < padded(depth); d += 16) {
        const __m512i bits = d < depth ? _mm512_loadu_si512(queries + d) : _mm512_setzero_si512();
        lost = _mm512_or_si512(lost, bits);
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(narrowed + d),
            _mm512_maskz_cvtepi32_epi16(every, _mm512_maskz_srli_epi32(every, bits, 16)));
      }
    }
    return _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
  }

  // A few rows × a few keys at a time: each vector of K is loaded once for all rows, and the sums
  // fill whole vectors.
  template <int Rows, class T>
  static void score_of(const std::uint16_t* queries, const strided_rows<T>& keys, int count,
                       index_t depth, float* s, index_t s_stride, int rows) {
    constexpr int together = 16 / Rows;
    const index_t q_stride = padded(depth);
    const read_ahead ahead = read_ahead_of(keys, depth);
    for (int first = 0; first < count; first += together) {
      const T* row[together];
#pragma GCC unroll 16
      for (int i = 0; i < together; ++i) {
        row[i] = keys[first + i < count ? first + i : count - 1];
      }
      __m512 sums[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_ps();
      const auto add = [&](index_t d, auto load) HEED_LAMBDA_INLINE {
        __m512bh q[Rows];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          q[r] = std::bit_cast<__m512bh>(_mm512_loadu_si512(queries + r * q_stride + d));
        }
#pragma GCC unroll 16
        for (int i = 0; i < together; ++i) {
          const auto k = std::bit_cast<__m512bh>(load(row[i] + d));
          ahead.ask(row[i] + d);
#pragma GCC unroll 4
          for (int r = 0; r < Rows; ++r) {
            sums[r * together + i] = _mm512_dpbf16_ps(sums[r * together + i], q[r], k);
          }
        }
      };
      index_t d = 0;
      for (; d + chunk <= depth; d += chunk) {
        add(d, [](const T* from) HEED_LAMBDA_INLINE { return _mm512_loadu_si512(from); });
      }
      if (d < depth) {
        const auto existing = static_cast<__mmask32>((std::uint32_t{1} << (depth - d)) - 1);
        add(d, [existing](const T* from)
                   HEED_LAMBDA_INLINE { return _mm512_maskz_loadu_epi16(existing, from); });
      }
      pack<float, 16> lanes[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        lanes[i] = pack<float, 16>(std::bit_cast<pack<float, 16>::vector>(sums[i]));
      }
      float totals[16];
      store_pack(totals, sum_each<8>(lanes));
      const int existing = count - first < together ? count - first : together;
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < existing; ++i) s[r * s_stride + first + i] = totals[r * together + i];
      }
    }
  }
};

}  // namespace backend::detail
HEED_NAMESPACE_END
#endif
