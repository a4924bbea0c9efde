// Backend for AMX: where q, k, v and out are all bfloat16, both products run on the matrix unit,
// with sums in float. Everything else runs as on avx512, so an output in float keeps its accuracy.
//
// Few query rows per KV head (decode) are read in place by the vector units, which keep up with
// memory; nothing is packed for a single pass, and weights stay float.
//
// Weights are rounded to bfloat16 and summed after rounding, so that the output is an average
// under exactly the weights that it is divided by. 2^x is a polynomial of degree 3, relative error
// 7.5e-5, a fiftieth of the rounding that follows.
// The matrix unit takes subnormal bfloat16 numbers for zero.
#pragma once

#include <cmath>
#include <string_view>

#include "../core/error.hpp"
#include "avx512.hpp"

// g++ and clang spell these differently.
#if defined(HEED_HAS_AVX512) && defined(__AVX512BF16__) && \
    ((defined(__AMX_TILE__) && defined(__AMX_BF16__)) ||   \
     (defined(__AMXTILE__) && defined(__AMXBF16__))) &&    \
    defined(__linux__)
#define HEED_HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

HEED_NAMESPACE_BEGIN
namespace backend {

#if defined(HEED_HAS_AMX)

namespace detail {

// The tile registers' shapes: what `ldtilecfg` reads.
struct alignas(64) tile_shapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Linux gives a process the tile registers when it asks, once; every thread then has them.
HEED_NOINLINE inline void ask_for_tiles() {
  static const bool granted = [] {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  if (!granted) {
    raise(
        "backend::amx: the operating system refuses the tile registers (arch_prctl "
        "ARCH_REQ_XCOMP_PERM for feature 18); choose backend::avx512");
  }
}

// Tile instructions by number. Memory is a clobber since compilers move stores across loads that
// they do not know as such.
template <int Tile>
HEED_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
HEED_INLINE void tile_load(const void* from, index_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(Tile)
                   : "memory");
}
template <int Tile>
HEED_INLINE void tile_store(void* to, index_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(Tile)
                   : "memory");
}
// C[m][n] += Σ_k A[m][k]·B[k][n], in pairs of k
template <int C, int A, int B>
HEED_INLINE void tile_multiply() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// A tile is 16 rows of 64 bytes: 16 × 32 bfloat16 of A, 32 × 16 of B with rows in pairs, 16 × 16
// float of C.
inline constexpr index_t tile_words = 512;  // 16-bit words
inline constexpr index_t tile_side = 16;
inline constexpr index_t tile_depth = 32;

// Up to 32 words of a row, the others 0.
HEED_INLINE __m512i load_words(const void* from, index_t count) {
  const __mmask32 some =
      count >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((std::uint32_t{1} << count) - 1);
  return _mm512_maskz_loadu_epi16(some, from);
}

// Sixteen rows of 32 words become sixteen rows of pairs: pairs[j][i] = rows[i][2j, 2j+1].
HEED_INLINE void store_transposed(pack<float, 16> (&rows)[16], std::uint16_t* pairs) {
  transpose<1>(rows);
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) store_pack(reinterpret_cast<float*>(pairs) + j * 16, rows[j]);
}
HEED_INLINE pack<float, 16> as_pack(__m512i words) {
  return pack<float, 16>(std::bit_cast<pack<float, 16>::vector>(words));
}

// Two rows of 32 words become two rows of 16 pairs: (a[0], b[0]), (a[1], b[1]), …
HEED_INLINE void store_interleaved(__m512i a, __m512i b, std::uint16_t* low, std::uint16_t* high) {
  alignas(64) static constexpr std::uint16_t order[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i first = _mm512_load_si512(order), second = _mm512_load_si512(order + 32);
  _mm512_store_si512(low, _mm512_permutex2var_epi16(a, first, b));
  _mm512_store_si512(high, _mm512_permutex2var_epi16(a, second, b));
}

HEED_INLINE __m512i no_words() { return _mm512_setzero_si512(); }

// Which words are an infinity or a NaN.
HEED_INLINE __mmask32 not_finite(__m512i words) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  return _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, exponent), exponent);
}

class bfloat16_matrix_session;

struct bfloat16_matrix_tiles {
  using real = float;
  using packed = std::uint16_t;
  using session = bfloat16_matrix_session;
  using vectors = register_tiles<avx512::lanes<float>>;
  static constexpr int lanes = 16;
  static constexpr int strip_rows = 32;
  static constexpr int step_keys = 64;
  static constexpr index_t most_rows_in_place = vectors::most_rows_in_place;
  // Weights go through the second-level cache anyway; outputs enter and leave the tile registers
  // once per block.
  static constexpr index_t most_block_keys = 1024;
  static constexpr real weight_rounding = 0x1p-8f;

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
            strip, row < rows ? query_words(query_rows[row] + d, depth - d, sign) : no_words());
      }
    }
  }

  // step[32 keys][depth chunk][16 keys][16 pairs][16 keys]: tiles of B
  template <class T>
  static void pack_keys(const T* keys, index_t stride, int count, index_t depth, packed* step) {
    for (int half = 0; half < step_keys; half += 32) {
      for (index_t d = 0; d < depth; d += tile_depth) {
        for (int first = half; first < half + 32; first += 16, step += tile_words) {
          pack<float, 16> chunk[16];
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) {
            chunk[i] =
                as_pack(first + i < count ? load_words(keys + (first + i) * stride + d, depth - d)
                                          : no_words());
          }
          store_transposed(chunk, step);
        }
      }
    }
  }

  // step[32 columns][32 keys][16 columns][16 key pairs][16 columns]: tiles of B
  template <class T>
  static bool pack_values(const T* values, index_t stride, int count, index_t depth, packed* step) {
    __mmask32 infinite = 0;
    for (index_t d = 0; d < depth; d += 32) {
      for (int first = 0; first < step_keys; first += 32, step += 2 * tile_words) {
        for (int pair = 0; pair < 16; ++pair) {
          const int key = first + 2 * pair;
          const T* row = values + key * stride + d;
          const __m512i a = key < count ? load_words(row, depth - d) : no_words();
          const __m512i b = key + 1 < count ? load_words(row + stride, depth - d) : no_words();
          infinite |= not_finite(a) | not_finite(b);
          store_interleaved(a, b, step + pair * 32, step + tile_words + pair * 32);
        }
      }
    }
    return infinite == 0;
  }

  template <class T>
  static bool all_finite(const T* values, index_t stride, int count, index_t depth) {
    __mmask32 infinite = 0;
    for (int key = 0; key < count; ++key) {
      for (index_t d = 0; d < depth; d += 32) {
        infinite |= not_finite(load_words(values + key * stride + d, depth - d));
      }
    }
    return infinite == 0;
  }

  template <class T>
  static void store(const real* o, index_t depth, real factor, T* out) {
    vectors::store(o, depth, factor, out);
  }

 private:
  // A query's words times the sign of the scale, exactly.
  HEED_INLINE static __m512i query_words(const void* from, index_t count, real sign) {
    const __m512i flip = _mm512_set1_epi16(static_cast<short>(sign < 0 ? 0x8000 : 0));
    return sign == 0 ? no_words() : _mm512_xor_si512(load_words(from, count), flip);
  }
};

// The two products and the softmax between them, on strips of a block of keys. The matrix unit and
// the vector units work at the same time: while the scores of a step are computed, and a part of
// the values' product of the strip before, which was put off for this, the scores of earlier steps
// become weights, a few rows after each four products of tiles.
//
// Scores live in a ring of four steps; weights of a block lie as the tiles of A that the product
// with the values reads, [32 keys][upper, lower 16 rows][16][32], those of two strips in turn.
//
// A row's reference point m (weights are 2^(factor·s − m)) is an integer, and is raised only when a
// score exceeds it by more than `headroom`: then the weights that the block has so far are divided
// by a power of two, which bfloat16 does exactly.
class bfloat16_matrix_session {
 public:
  using Tiles = bfloat16_matrix_tiles;
  using real = float;
  using packed = std::uint16_t;

  static constexpr index_t score_size(index_t block_keys) {
    const index_t packed_size = index_t{ring_steps * score_words} + Tiles::strip_rows * block_keys;
    const index_t in_place = block_session<Tiles::vectors>::score_size(block_keys);
    return packed_size > in_place ? packed_size : in_place;
  }

  bfloat16_matrix_session(bool packed_operands, index_t rows, real* memory, index_t block_keys)
      : in_place_(packed_operands, rows, memory, block_keys),
        packed_(packed_operands),
        scores_(memory),
        weights_(reinterpret_cast<packed*>(memory + ring_steps * score_words)),
        other_weights_(weights_ + Tiles::strip_rows * block_keys) {
    if (!packed_) return;
    // This thread's tile registers, all alike. A score functor may call attention itself: then they
    // are configured already, and hold nothing that anybody waits for.
    ask_for_tiles();
    if (sessions()++ > 0) return;
    tile_shapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = 64;
      shapes.rows[tile] = 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~bfloat16_matrix_session() {
    if (packed_ && --sessions() == 0) __asm__ volatile("tilerelease" ::: "memory");
  }
  bfloat16_matrix_session(const bfloat16_matrix_session&) = delete;
  bfloat16_matrix_session& operator=(const bfloat16_matrix_session&) = delete;

  // In place the vectors' form, in float: it takes no more memory than a strip of packed rows.
  template <class T>
  void pack_queries(const T* const* rows, int count, index_t depth, real sign,
                    packed* strip) const {
    if (packed_) {
      Tiles::pack_queries(rows, count, depth, sign, strip);
    } else {
      in_place_.pack_queries(rows, count, depth, sign, reinterpret_cast<real*>(strip));
    }
  }

  void begin(int rows, real factor, real* maximum, real* sum, real* shrink) {
    if (!packed_) return in_place_.begin(rows, factor, maximum, sum, shrink);
    rows_ = rows;
    factor_ = factor;
    // A factor so small that what is masked would come out visible is applied to each score apart.
    own_scale_ = factor < smallest_fused ? real(1) : factor;
    maximum_ = maximum;
    sum_ = sum;
    shrink_ = shrink;
    column_ = 0;
    next_row_ = last_row_ = 0;
    std::swap(weights_, other_weights_);  // what was put off reads the others
    for (int row = 0; row < rows; ++row) {
      shrink[row] = 1;
      scale_[row] = own_scale_;
      if (maximum[row] > masked_score<real>) {
        // That of a sink need not be an integer.
        const real whole = std::ceil(maximum[row]);
        if (maximum[row] != whole) shrink[row] = std::exp2(maximum[row] - whole);
        set_reference(row, whole);
      } else {
        offset_[row] = 0;  // 2^(factor·masked) is 0
        limit_[row] = masked_score<real>;
      }
      _mm512_store_ps(sums_[row], _mm512_setzero_ps());
    }
  }

  HEED_INLINE real* scores() const {
    return packed_ ? scores_of(column_ / Tiles::step_keys) : in_place_.scores();
  }
  HEED_INLINE index_t stride() const { return packed_ ? score_stride : in_place_.stride(); }

  void score(const packed* strip, const packed* step, index_t depth, int keys) {
    const index_t chunks = Tiles::padded(depth) / tile_depth;
    constexpr index_t stride_bytes = score_stride * 4;
    real* s = scores();
    const int due = rows_due(2 * chunks);
    for (int half = 0; half < keys; half += 32, s += 32) {
      const packed* q = strip;
      tile_zero<0>(), tile_zero<1>();
      if (rows_ <= tile_side) {
        for (index_t chunk = 0; chunk < chunks; ++chunk) {
          tile_load<4>(q, 64), tile_load<6>(step, 64), tile_load<7>(step + tile_words, 64);
          tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>();
          q += 2 * tile_words, step += 2 * tile_words;
          weigh_some(due);
        }
      } else {
        tile_zero<2>(), tile_zero<3>();
        for (index_t chunk = 0; chunk < chunks; ++chunk) {
          tile_load<4>(q, 64), tile_load<6>(step, 64), tile_load<7>(step + tile_words, 64);
          tile_load<5>(q + tile_words, 64);
          tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>();
          tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
          q += 2 * tile_words, step += 2 * tile_words;
          weigh_some(due);
        }
        tile_store<2>(s + 16 * score_stride, stride_bytes);
        tile_store<3>(s + 16 * score_stride + 16, stride_bytes);
      }
      tile_store<0>(s, stride_bytes);
      tile_store<1>(s + 16, stride_bytes);
    }
    // A share of what was put off, in proportion to the block's steps.
    put_off_.credit += put_off_.groups;
    while (put_off_.group < put_off_.groups && put_off_.credit >= put_off_.steps) {
      put_off_.credit -= put_off_.steps;
      add_group(due);
    }
    // The ring must have room for one more step.
    while (last_row_ - next_row_ > (ring_steps - 2) * Tiles::strip_rows) weigh_next();
  }

  template <class T>
  void score_rows(const packed* strip, const T* keys, index_t stride, int count, index_t depth) {
    in_place_.score_rows(reinterpret_cast<const real*>(strip), keys, stride, count, depth);
  }

  // The scores of the step are final.
  void ready(int keys) {
    if (!packed_) return in_place_.ready(keys);
    const real* s = scores();
    std::uint32_t over = 0;
    for (int row = 0; row < rows_; ++row, s += score_stride) {
      // A NaN may hide what else is in its lane: it reaches the result whatever the reference is.
      const __m512 low = _mm512_maskz_max_ps(0xffff, _mm512_load_ps(s), _mm512_load_ps(s + 16));
      const __m512 high =
          _mm512_maskz_max_ps(0xffff, _mm512_load_ps(s + 32), _mm512_load_ps(s + 48));
      const __mmask16 above = _mm512_cmp_ps_mask(_mm512_maskz_max_ps(0xffff, low, high),
                                                 _mm512_set1_ps(limit_[row]), _CMP_GT_OQ);
      over |= static_cast<std::uint32_t>(above != 0) << row;
    }
    if (over != 0) flush();  // by the reference points that they were measured against
    for (; over != 0; over &= over - 1) raise_reference(__builtin_ctz(over));
    column_ += Tiles::step_keys;
    last_row_ += Tiles::strip_rows;
  }

  void finish() {
    if (!packed_) return in_place_.finish();
    flush();
    for (int row = 0; row < rows_; ++row) {
      sum_[row] = sum_[row] * shrink_[row] + sum_lanes(load_pack<pack<float, 16>>(sums_[row]));
    }
  }

  real weight(int row, index_t column) const {
    if (!packed_) return in_place_.weight(row, column);
    return std::bit_cast<real>(static_cast<std::uint32_t>(weights_of(row, column)[column % 32])
                               << 16);
  }

  // Put off until scores of another strip are computed, or until settle().
  void accumulate(index_t first, index_t last, const packed* steps, index_t depth, real* o,
                  const real* shrink) {
    settle();
    put_off_.width = Tiles::padded(depth);
    rescale(o, put_off_.width, shrink);
    put_off_.rows = rows_;
    put_off_.o = o;
    // Weights of keys that nobody sees are 0: whole chunks of 32 keys.
    put_off_.begin = first / 32 * 32;
    put_off_.end = (last + 31) / 32 * 32;
    put_off_.weights = weights_of(0, put_off_.begin);
    put_off_.values = steps;
    put_off_.group = 0;
    put_off_.groups = put_off_.width / 32;
    put_off_.steps = (put_off_.end - put_off_.begin + Tiles::step_keys - 1) / Tiles::step_keys;
    put_off_.credit = 0;
  }
  void settle() {
    while (put_off_.group < put_off_.groups) add_group(0);
  }

  template <class T>
  void accumulate_rows(index_t first, index_t last, const T* values, index_t stride, index_t depth,
                       real* o, const real* shrink) {
    in_place_.accumulate_rows(first, last, values, stride, depth, o, Tiles::padded(depth), shrink);
  }

 private:
  // Rows an odd number of cache lines apart: the rows of a tile then lie in different sets.
  static constexpr unsigned score_stride = Tiles::step_keys + 16;
  static constexpr unsigned score_words = Tiles::strip_rows * score_stride;
  static constexpr unsigned ring_steps = 4;
  static constexpr real headroom = 8;
  // Above this, rounding m shifts exponents by more than a fraction: see raise_reference.
  static constexpr real widest_fused = 65536;
  static constexpr real smallest_fused = 1e-30f;

  // Of this thread, one inside the other.
  static int& sessions() {
    static thread_local int count = 0;
    return count;
  }

  HEED_INLINE packed* weights_of(int row, index_t column) const {
    return weights_ + (column / 32 * 2 + row / 16) * tile_words + row % 16 * 32;
  }
  HEED_INLINE real* scores_of(index_t step) const {
    return scores_ + step % ring_steps * score_words;
  }

  // O[32 rows][32 columns] += P V, the next columns of what was put off.
  void add_group(int due) {
    const put_off& p = put_off_;
    const index_t o_bytes = p.width * 4;
    real *upper = p.o + put_off_.group * 32, *lower = upper + 16 * p.width;
    const packed* weights = p.weights;
    const index_t origin = p.begin / Tiles::step_keys * Tiles::step_keys;
    const packed* values = p.values + put_off_.group * 4 * tile_words;
    ++put_off_.group;
    const auto tiles_of_key = [&](index_t key) HEED_LAMBDA_INLINE {
      const index_t from = key - origin;
      return values + from / Tiles::step_keys * (Tiles::step_keys * p.width) +
             from % Tiles::step_keys / 32 * (2 * tile_words);
    };
    tile_load<0>(upper, o_bytes), tile_load<1>(upper + 16, o_bytes);
    if (p.rows <= tile_side) {
      for (index_t key = p.begin; key < p.end; key += 32, weights += 2 * tile_words) {
        const packed* v = tiles_of_key(key);
        tile_load<4>(weights, 64), tile_load<6>(v, 64), tile_load<7>(v + tile_words, 64);
        tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>();
        weigh_some(due);
      }
    } else {
      tile_load<2>(lower, o_bytes), tile_load<3>(lower + 16, o_bytes);
      for (index_t key = p.begin; key < p.end; key += 32, weights += 2 * tile_words) {
        const packed* v = tiles_of_key(key);
        tile_load<4>(weights, 64), tile_load<6>(v, 64), tile_load<7>(v + tile_words, 64);
        tile_load<5>(weights + tile_words, 64);
        tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>();
        tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
        weigh_some(due);
      }
      tile_store<2>(lower, o_bytes), tile_store<3>(lower + 16, o_bytes);
    }
    tile_store<0>(upper, o_bytes), tile_store<1>(upper + 16, o_bytes);
  }

  // 2^x for weights: x = whole + rest with rest in [0, 1).
  HEED_INLINE static __m512 exp2(__m512 x) {
    const __m512 rest =
        _mm512_maskz_reduce_ps(0xffff, x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 power = _mm512_set1_ps(0.07802452266443254f);
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.22606715539312935f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.6958335405064481f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.99992521856401f));
    return _mm512_maskz_scalef_ps(0xffff, power, x);
  }

  // The next row of the steps that are ready: 64 weights, rounded, and added up after rounding.
  HEED_INLINE void weigh_next() {
    constexpr unsigned rows = Tiles::strip_rows;
    const unsigned row = next_row_ % rows, step = next_row_ / rows;
    ++next_row_;
    if (row >= static_cast<unsigned>(rows_)) return;
    const real* s = scores_ + step % ring_steps * score_words + row * score_stride;
    packed* to = weights_ + (step * 4 + row / 16) * tile_words + row % 16 * 32;
    const __m512 scale = _mm512_set1_ps(scale_[row]), offset = _mm512_set1_ps(offset_[row]);
    const __m512bh ones = std::bit_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
    __m512 sum = _mm512_load_ps(sums_[row]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, s += 32, to += 2 * tile_words) {
      const __m512 low = exp2(_mm512_fmadd_ps(_mm512_load_ps(s), scale, offset));
      const __m512 high = exp2(_mm512_fmadd_ps(_mm512_load_ps(s + 16), scale, offset));
      const __m512bh weights = _mm512_cvtne2ps_pbh(high, low);
      sum = _mm512_dpbf16_ps(sum, weights, ones);
      _mm512_store_si512(to, std::bit_cast<__m512i>(weights));
    }
    _mm512_store_ps(sums_[row], sum);
  }
  HEED_INLINE void weigh_some(int due) {
    for (int i = 0; i < due && next_row_ < last_row_; ++i) weigh_next();
  }
  void flush() {
    while (next_row_ < last_row_) weigh_next();
  }
  // Rows per four products of a step, so that all of a step's rows fit the products that there are.
  int rows_due(index_t products) const {
    if (put_off_.group < put_off_.groups) {
      products += put_off_.groups * (put_off_.end - put_off_.begin) / 32 / put_off_.steps;
    }
    return products == 0 ? Tiles::strip_rows
                         : static_cast<int>((Tiles::strip_rows + products - 1) / products);
  }

  // Sixteen maxima of the 64 scores of a row; what is not a number counts as masked.
  HEED_INLINE static pack<float, 16> top_of(const real* s) {
    using vector = pack<float, 16>;
    const vector least(masked_score<real>);
    return max(max(load_pack<vector>(s), max(load_pack<vector>(s + 16), least)),
               max(load_pack<vector>(s + 32), max(load_pack<vector>(s + 48), least)));
  }

  void set_reference(int row, real reference) {
    maximum_[row] = reference;
    offset_[row] = -reference;
    const bool wide =
        reference > widest_fused || reference < -widest_fused || own_scale_ != factor_;
    limit_[row] = wide ? masked_score<real> : (reference + headroom) / factor_;
  }

  // The step's scores of this row exceed the limit, or might.
  HEED_NOINLINE void raise_reference(int row) {
    real* s = scores() + static_cast<unsigned>(row) * score_stride;
    const real top = max_lanes(top_of(s));
    scale_[row] = own_scale_;
    if (!(top > masked_score<real>)) return;
    const real former = maximum_[row], product = top * factor_;
    const bool first = !(former > masked_score<real>);
    if (first || product > former) {
      set_reference(row, std::ceil(product));
      const real shrink = first ? real(1) : power_of_two(former - maximum_[row]);
      shrink_[row] *= shrink;
      const __m512 factor = _mm512_set1_ps(shrink);
      _mm512_store_ps(sums_[row], _mm512_mul_ps(_mm512_load_ps(sums_[row]), factor));
      for (index_t column = 0; column < column_ && shrink != 1; column += 32) {
        packed* weights = weights_of(row, column);
        const __m512i words = _mm512_load_si512(weights);
        const __m512 even = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
        const __m512 odd = _mm512_castsi512_ps(
            _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
        const __m512i low = _mm512_castps_si512(_mm512_mul_ps(even, factor));
        const __m512i high = _mm512_castps_si512(_mm512_mul_ps(odd, factor));
        _mm512_store_si512(
            weights, _mm512_or_si512(
                         _mm512_maskz_srli_epi32(0xffff, low, 16),
                         _mm512_and_si512(high, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))));
      }
    }
    if (limit_[row] > masked_score<real>) return;
    // Products rounded as their maximum was, so that their differences are right; through memory,
    // or the compiler would fuse them with the subtraction.
    for (int c = 0; c < Tiles::step_keys; ++c) {
      if (s[c] > masked_score<real>) s[c] *= factor_;
    }
    scale_[row] = 1;
  }
  // For a whole exponent of at most 0.
  static real power_of_two(real exponent) {
    return exponent < -126 ? real(0)
                           : std::bit_cast<real>((static_cast<std::int32_t>(exponent) + 127) << 23);
  }

  void rescale(real* o, index_t width, const real* shrink) const {
    if (shrink == nullptr) return;
    for (int row = 0; row < rows_; ++row, o += width) {
      if (shrink[row] == 1) continue;
      const __m512 factor = _mm512_set1_ps(shrink[row]);
      for (index_t d = 0; d < width; d += 16) {
        _mm512_store_ps(o + d, _mm512_mul_ps(_mm512_load_ps(o + d), factor));
      }
    }
  }

  // A product with values that is to be added to O, groups of 32 columns from `group` on.
  struct put_off {
    int rows = 0;
    index_t width = 0, begin = 0, end = 0, group = 0, groups = 0;
    index_t steps = 1, credit = 0;  // a group is due when the credit reaches the steps
    real* o = nullptr;
    const packed* weights = nullptr;
    const packed* values = nullptr;
  };

  block_session<Tiles::vectors> in_place_;
  bool packed_;
  real* scores_;
  packed* weights_;
  packed* other_weights_;
  put_off put_off_;
  // Rows of the block's steps in order, 32 each: weights up to the next, scores up to the last.
  unsigned next_row_ = 0, last_row_ = 0;
  index_t column_ = 0;
  int rows_ = 0;
  real factor_ = 1, own_scale_ = 1;
  real *maximum_ = nullptr, *sum_ = nullptr, *shrink_ = nullptr;
  alignas(64) real sums_[Tiles::strip_rows][16];
  real scale_[Tiles::strip_rows], offset_[Tiles::strip_rows], limit_[Tiles::strip_rows];
};

}  // namespace detail

struct amx {
  static constexpr std::string_view name = "amx";

  template <class Real, class... Operands>
  using tiles = std::conditional_t<std::is_same_v<Real, float> && sizeof...(Operands) != 0 &&
                                       (... && is_bfloat16<Operands>),
                                   detail::bfloat16_matrix_tiles, avx512::tiles<Real, Operands...>>;
};

#else

struct amx;

#endif

}  // namespace backend
HEED_NAMESPACE_END
