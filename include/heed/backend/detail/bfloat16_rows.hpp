// Products with rows of bfloat16 where the caller has them, for few query rows, by AVX512-BF16: one
// instruction adds 32 products and takes keys and values as they are,
//
//   sums[i] += a[2i]·b[2i] + a[2i+1]·b[2i+1]
//
// Products of two such numbers are exact, only their sums round; subnormal numbers count as 0.
#pragma once

#include "rows_in_place.hpp"
#include "words.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512BF16__)

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// Sums of pairs of products, as an instruction, since g++ 12 passes the intrinsic's operands
// through memory.
HEED_INLINE pack<float, 16> add_pairs(__m512i a, __m512i b, pack<float, 16> sums) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums.v) : "v"(a), "v"(b));
  return sums;
}

// Scores (rows_in_place.hpp): pairs lie along the depth. Queries are bfloat16 too.
struct bfloat16_scores {
  using query = std::uint16_t;
  using vector = __m512i;
  static constexpr int size = 32;  // elements of one vector
  static constexpr bool interleaved = true;

  HEED_INLINE static vector load_query(const query* from) { return _mm512_loadu_si512(from); }
  template <class T>
  HEED_INLINE static vector load(const T* from) {
    return _mm512_loadu_si512(from);
  }
  template <class T>
  HEED_INLINE static vector load_partial(const T* from, int count) {
    return load_words(from, count);
  }
  HEED_INLINE static pack<float, 16> multiply_add(vector q, vector k, pack<float, 16> sums) {
    return add_pairs(q, k, sums);
  }
};

// Values: pairs are two neighbouring keys', brought together by unpacking, and so are their
// weights.
//
//   o[row][d] = o[row][d]·shrink[row] + Σ_key p[row][key]·v[key][d]
struct bfloat16_values {
  using pack_type = pack<float, 16>;
  // Weights are bfloat16, p_stride apart, in whole fours of rows where there is more than one; rows
  // of `o` have whole vectors. Keys come in runs that the first-level cache holds, since a few
  // columns of all keys of a run are added at a time, and each run asks for the next.
  template <class Rows>
  static void accumulate(const std::uint16_t* p, index_t p_stride, int rows, int count,
                         const Rows& values, index_t depth, float* o, index_t o_stride,
                         const float* shrink) {
    const int run = static_cast<int>(rows_ahead(values, depth) + 1) / 2 * 2;
    const read_ahead ahead = read_ahead_of(values, depth);
    for (int key = 0; key < count; key += run) {
      const int here = run < count - key ? run : count - key;
      const Rows from = values.from(key);
      const float* factors = key == 0 ? shrink : nullptr;
      for (int row = 0; row < rows; row += 4) {
        const float* of_rows = factors != nullptr ? factors + row : nullptr;
        if (rows - row == 1) {
          add_rows<1>(p + row * p_stride + key, p_stride, here, from, depth, o + row * o_stride,
                      o_stride, of_rows, ahead);
        } else {
          add_rows<4>(p + row * p_stride + key, p_stride, here, from, depth, o + row * o_stride,
                      o_stride, of_rows, ahead);
        }
      }
    }
  }

 private:
  static constexpr int chunk = 32;  // elements of one vector

  template <int Rows, class ValueRows>
  HEED_NOINLINE static void add_rows(const std::uint16_t* p, index_t p_stride, int count,
                                     const ValueRows& values, index_t depth, float* o,
                                     index_t o_stride, const float* shrink,
                                     const read_ahead& ahead) {
    constexpr int chunks = Rows == 1 ? 4 : 2;
    index_t d = 0;
    for (; d + chunks * chunk <= depth; d += chunks * chunk) {
      add_chunks<Rows, chunks>(p, p_stride, count, values, depth, d, o, o_stride, shrink, ahead);
    }
    for (; d < depth; d += chunk) {
      add_chunks<Rows, 1>(p, p_stride, count, values, depth, d, o, o_stride, shrink, ahead);
    }
  }

  // Columns [d, d + 32·Chunks), of which a single chunk may have fewer.
  template <int Rows, int Chunks, class ValueRows>
  HEED_INLINE static void add_chunks(const std::uint16_t* p, index_t p_stride, int count,
                                     const ValueRows& values, index_t depth, index_t d, float* o,
                                     index_t o_stride, const float* shrink,
                                     const read_ahead& usual) {
    const auto load = [&](const typename ValueRows::cursor& from, int c) HEED_LAMBDA_INLINE {
      return Chunks > 1 ? _mm512_loadu_si512(from + c * chunk) : load_words(from, depth - d);
    };
    pack_type low[Rows][Chunks], high[Rows][Chunks];
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
      for (int c = 0; c < Chunks; ++c) low[row][c] = high[row][c] = pack_type(0.0f);
    }
    // Two keys, the second of which may not exist.
    const auto add = [&](int key, auto both) HEED_LAMBDA_INLINE {
      constexpr int last = both ? 1 : 0;
      const auto first = values[key] + d, second = values[key + last] + d;
      const read_ahead ahead = read_ahead_from(values, key, depth, usual);
      const read_ahead next = read_ahead_from(values, key + last, depth, usual);
      __m512i front[Chunks], back[Chunks];
#pragma GCC unroll 4
      for (int c = 0; c < Chunks; ++c) {
        const __m512i a = load(first, c), b = both ? load(second, c) : no_words();
        ahead.ask(first + c * chunk);
        if (both) next.ask(second + c * chunk);
        front[c] = _mm512_maskz_unpacklo_epi16(every, a, b);
        back[c] = _mm512_maskz_unpackhi_epi16(every, a, b);
        hold(front[c]);
        hold(back[c]);
      }
#pragma GCC unroll 4
      for (int row = 0; row < Rows; ++row) {
        std::uint32_t weights = p[row * p_stride + key];
        if (both) __builtin_memcpy(&weights, p + row * p_stride + key, sizeof(weights));
        const __m512i w = _mm512_set1_epi32(static_cast<int>(weights));
#pragma GCC unroll 4
        for (int c = 0; c < Chunks; ++c) {
          low[row][c] = add_pairs(w, front[c], low[row][c]);
          high[row][c] = add_pairs(w, back[c], high[row][c]);
        }
      }
    };
    int key = 0;
    for (; key + 1 < count; key += 2) add(key, std::true_type());
    if (key < count) add(key, std::false_type());
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
      const pack_type factor(shrink != nullptr ? shrink[row] : 1.0f);
#pragma GCC unroll 4
      for (int c = 0; c < Chunks; ++c) {
        float* to = o + row * o_stride + d + c * chunk;
        from_unpacked(low[row][c], high[row][c]);
        store_pack(to, load_pack<pack_type>(to) * factor + low[row][c]);
        if (Chunks > 1 || depth - d > 16) {
          store_pack(to + 16, load_pack<pack_type>(to + 16) * factor + high[row][c]);
        }
      }
    }
  }

  // Columns in their order: unpacking leaves those of each eight's first half in one vector.
  HEED_INLINE static void from_unpacked(pack_type& low, pack_type& high) {
    const auto a = low.v, b = high.v;
    low.v = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    high.v =
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  }

  static constexpr __mmask32 every = ~__mmask32{0};
};

}  // namespace backend::detail
HEED_NAMESPACE_END
#endif
