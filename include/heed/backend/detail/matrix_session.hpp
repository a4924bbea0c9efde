// One strip of queries against blocks of packed keys and values on the matrix unit.
#pragma once

#include <cmath>

#include "block_session.hpp"
#include "matrix_tiles.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// The two products and the softmax between them. While the matrix unit computes the scores of a
// step, the vector units turn some rows of the step before into weights, one to three after each
// four products of tiles: more would not run at the same time. The others follow.
//
// Keys, values and O are larger than the first-level cache and stream through it: they are loaded
// with a hint not to keep them there, in place of queries, scores and weights.
//
// Scores live in two steps' places in turn; weights of a block lie as the tiles of A that the
// product with the values reads, [32 keys][upper, lower 16 rows][16][32]. That product runs over a
// run of keys at a time, whose weights then stay in the first-level cache for all columns of O.
//
// A row's reference point m (weights are 2^(factor·s − m)) is an integer, and is raised only when a
// weight would exceed 2^headroom: then the weights that the block has so far are divided by a power
// of two, which is exact down to the smallest weights.
template <class Words>
class matrix_session {
 public:
  using Tiles = matrix_tiles<Words>;
  using real = float;
  using packed = std::uint16_t;

  using vector_session = block_session<typename Tiles::vectors>;
  static constexpr index_t score_size(index_t block_keys,
                                      index_t rows = vector_session::most_rows) {
    const index_t packed_size = index_t{2 * score_words} + Tiles::strip_rows * block_keys / 2;
    const index_t in_place = vector_session::score_size(block_keys, rows);
    return packed_size > in_place ? packed_size : in_place;
  }

  matrix_session(bool packed_operands, index_t rows, real* memory, index_t block_keys)
      : in_place_(packed_operands, rows, memory, block_keys),
        packed_(packed_operands),
        scores_(memory),
        weights_(reinterpret_cast<packed*>(memory + 2 * score_words)) {
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
  ~matrix_session() {
    if (packed_ && --sessions() == 0) __asm__ volatile("tilerelease" ::: "memory");
  }
  matrix_session(const matrix_session&) = delete;
  matrix_session& operator=(const matrix_session&) = delete;

  // In place the vectors' form, in float: it takes no more memory than a strip of packed rows.
  template <class T>
  void pack_queries(const T* const* rows, int count, index_t depth, real sign, packed* strip) {
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
    next_row_ = rows;
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
    return packed_ ? scores_ + column_ / Tiles::step_keys % 2 * score_words : in_place_.scores();
  }
  HEED_INLINE index_t stride() const { return packed_ ? score_stride : in_place_.stride(); }

  void score(const packed* strip, const packed* step, index_t depth, int keys) {
    const index_t chunks = Tiles::padded(depth) / tile_depth;
    if (rows_ <= tile_side) {
      score_tiles<1, 1>(strip, step, chunks, keys);
    } else if (chunks <= 2) {
      score_tiles<2, 1>(strip, step, chunks, keys);
    } else {
      score_tiles<2, 3>(strip, step, chunks, keys);
    }
  }

  template <class Rows>
  void score_rows(const packed* strip, const Rows& keys, int count, index_t depth) {
    in_place_.score_rows(reinterpret_cast<const real*>(strip), keys, count, depth);
  }

  // The scores of the step are final.
  void ready(int keys) {
    if (!packed_) return in_place_.ready(keys);
    next_row_ = 0;
    ready_scores_ = scores();
    ready_weights_ = weights_of(0, column_);
    column_ += Tiles::step_keys;
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
    const packed word = weights_of(row, column)[column % 32];
    return _mm512_cvtss_f32(Words::widen(_mm256_set1_epi16(static_cast<short>(word))));
  }

  void accumulate(index_t first, index_t last, const index_t* steps, const packed* values,
                  index_t depth, real* o, const real* shrink) {
    const index_t width = Tiles::padded(depth);
    rescale(o, width, shrink);
    // Weights of keys that nobody sees are 0: whole chunks of 32 keys.
    const index_t end = (last + 31) / 32 * 32;
    const index_t run = width <= 64 ? narrow_run : wide_run;
    for (index_t key = first / 32 * 32; key < end; key += run) {
      const index_t stop = key + run < end ? key + run : end;
      for (index_t column = 0; column < width; column += 32) {
        if (rows_ <= tile_side) {
          add_columns<1>(key, stop, steps, values, width, column, o);
        } else {
          add_columns<2>(key, stop, steps, values, width, column, o);
        }
      }
    }
  }

  template <class Rows>
  void accumulate_rows(index_t first, index_t last, const Rows& values, index_t depth, real* o,
                       const real* shrink) {
    in_place_.accumulate_rows(first, last, values, depth, o, Tiles::padded(depth), shrink);
  }

 private:
  // Rows an odd number of cache lines apart: the rows of a tile then lie in different sets.
  static constexpr int score_stride = Tiles::step_keys + 16;
  static constexpr int score_words = Tiles::strip_rows * score_stride;
  // Keys of a product with values, by the columns of O: 512 keys' weights are 32 KiB, as much as
  // stays in the first-level cache; with few columns they are not read often enough to pay.
  static constexpr index_t narrow_run = 256, wide_run = 512;
  // Above this, rounding m shifts exponents by more than a fraction: see raise_reference.
  static constexpr real widest_fused = 65536;
  static constexpr real smallest_fused = 1e-30f;

  // Of this thread, one inside the other.
  static int& sessions() {
    static thread_local int count = 0;
    return count;
  }

  HEED_INLINE packed* weights_of(int row, index_t column) const {
    return weights_ + column / 32 * (2 * tile_words) + row * 32;
  }

  // S[RowTiles·16 rows][keys] of a step, and Due rows of the step before after each product.
  template <int RowTiles, int Due>
  HEED_NOINLINE void score_tiles(const packed* strip, const packed* step, index_t chunks,
                                 int keys) {
    constexpr index_t stride_bytes = score_stride * 4;
    real* s = scores();
    // In registers: tile instructions clobber memory.
    real* ready = ready_scores_;
    packed* to = ready_weights_;
    const int rows = rows_;
    int row = next_row_;
    for (int half = 0; half < keys; half += 32, s += 32) {
      const packed* q = strip;
      tile_zero<0>(), tile_zero<1>();
      if constexpr (RowTiles == 2) tile_zero<2>(), tile_zero<3>();
      for (index_t chunk = 0; chunk < chunks; ++chunk) {
        multiply_tiles<RowTiles>(q, step);
        q += 2 * tile_words, step += 2 * tile_words;
        if (row + Due > rows) continue;
#pragma GCC unroll 3
        for (int i = 0; i < Due; ++i, ++row) weigh(row, ready, to);
      }
      store_sums<RowTiles>(s, stride_bytes, 16 * score_stride);
    }
    next_row_ = row;
    flush();
  }

  // O[RowTiles·16 rows][32 columns] += P V over keys [begin, end) of the block.
  template <int RowTiles>
  HEED_NOINLINE void add_columns(index_t begin, index_t end, const index_t* steps,
                                 const packed* values, index_t width, index_t column,
                                 real* o) const {
    const index_t o_bytes = width * 4;
    real *upper = o + column, *lower = upper + 16 * width;
    tile_stream<0>(upper, o_bytes), tile_stream<1>(upper + 16, o_bytes);
    if constexpr (RowTiles == 2) {
      tile_stream<2>(lower, o_bytes), tile_stream<3>(lower + 16, o_bytes);
    }
    values += column / 32 * (4 * tile_words);
    for (index_t key = begin; key < end; key += 32) {
      multiply_tiles<RowTiles>(weights_of(0, key),
                               values + steps[key / Tiles::step_keys] * (Tiles::step_keys * width) +
                                   key % Tiles::step_keys / 32 * (2 * tile_words));
    }
    store_sums<RowTiles>(upper, o_bytes, 16 * width);
  }

  template <int RowTiles>
  HEED_INLINE static void multiply_tiles(const packed* left, const packed* right) {
    tile_load<4>(left, 64), tile_stream<6>(right, 64), tile_stream<7>(right + tile_words, 64);
    if constexpr (RowTiles == 2) tile_load<5>(left + tile_words, 64);
    Words::template multiply<0, 4, 6>(), Words::template multiply<1, 4, 7>();
    if constexpr (RowTiles == 2) {
      Words::template multiply<2, 5, 6>(), Words::template multiply<3, 5, 7>();
    }
  }
  template <int RowTiles>
  HEED_INLINE static void store_sums(real* to, index_t stride_bytes, index_t lower) {
    if constexpr (RowTiles == 2) {
      tile_store<2>(to + lower, stride_bytes), tile_store<3>(to + lower + 16, stride_bytes);
    }
    tile_store<0>(to, stride_bytes), tile_store<1>(to + 16, stride_bytes);
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

  // A row of the step that is ready: 64 weights, rounded, and added up after rounding.
  HEED_INLINE void weigh(int row, real* ready, packed* step_weights) {
    real* s = ready + row * score_stride;
    packed* to = step_weights + row * 32;
    const __mmask16 above = _mm512_cmp_ps_mask(top_of(s), _mm512_set1_ps(limit_[row]), _CMP_GT_OQ);
    if (__builtin_expect(above != 0, 0)) raise_reference(row, s);
    const __m512 scale = _mm512_set1_ps(scale_[row]), offset = _mm512_set1_ps(offset_[row]);
    __m512 sum = _mm512_load_ps(sums_[row]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, s += 32, to += 2 * tile_words) {
      const __m512 first = exp2(_mm512_fmadd_ps(_mm512_load_ps(s), scale, offset));
      const __m512 second = exp2(_mm512_fmadd_ps(_mm512_load_ps(s + 16), scale, offset));
      sum = Words::store(first, second, to, sum);
    }
    _mm512_store_ps(sums_[row], sum);
  }
  void flush() {
    for (; next_row_ < rows_; ++next_row_) weigh(next_row_, ready_scores_, ready_weights_);
  }

  // Sixteen maxima of the 64 scores of a row. A NaN may hide what else is in its lane: it reaches
  // the result whatever the reference point is.
  HEED_INLINE static __m512 top_of(const real* s) {
    return larger(larger(_mm512_load_ps(s), _mm512_load_ps(s + 16)),
                  larger(_mm512_load_ps(s + 32), _mm512_load_ps(s + 48)));
  }
  // The second one where either is a NaN.
  HEED_INLINE static __m512 larger(__m512 a, __m512 b) { return _mm512_maskz_max_ps(0xffff, a, b); }

  void set_reference(int row, real reference) {
    maximum_[row] = reference;
    offset_[row] = -reference;
    const bool wide =
        reference > widest_fused || reference < -widest_fused || own_scale_ != factor_;
    limit_[row] = wide ? masked_score<real> : (reference + Words::headroom) / factor_;
  }

  // The step's scores of this row exceed the limit, or might.
  HEED_NOINLINE void raise_reference(int row, real* s) {
    // What is not a number counts as masked.
    __m512 tops = _mm512_set1_ps(masked_score<real>);
    for (int c = 0; c < Tiles::step_keys; c += 16) tops = larger(_mm512_load_ps(s + c), tops);
    const real top = max_lanes(pack<float, 16>(std::bit_cast<pack<float, 16>::vector>(tops)));
    scale_[row] = own_scale_;
    if (!(top > masked_score<real>)) return;
    const real former = maximum_[row], product = top * factor_;
    const bool first = !(former > masked_score<real>);
    if (first || product > former + Words::lift) {
      set_reference(row, std::ceil(product) - Words::lift);
      const real shrink = first ? real(1) : power_of_two(former - maximum_[row]);
      shrink_[row] *= shrink;
      const __m512 factor = _mm512_set1_ps(shrink);
      _mm512_store_ps(sums_[row], _mm512_mul_ps(_mm512_load_ps(sums_[row]), factor));
      for (index_t column = 0; column < column_ - Tiles::step_keys && shrink != 1; column += 32) {
        packed* weights = weights_of(row, column);
        const auto scaled = [&](int half) HEED_LAMBDA_INLINE {
          const auto* words = reinterpret_cast<const __m256i*>(weights + half * 16);
          return _mm512_mul_ps(Words::widen(_mm256_load_si256(words)), factor);
        };
        Words::store(scaled(0), scaled(1), weights, _mm512_setzero_ps());
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

  vector_session in_place_;
  bool packed_;
  real* scores_;
  packed* weights_;
  // The step that was ready last; its rows before the next one are weights.
  real* ready_scores_ = nullptr;
  packed* ready_weights_ = nullptr;
  int next_row_ = 0;
  index_t column_ = 0;  // of the steps that are ready
  int rows_ = 0;
  real factor_ = 1, own_scale_ = 1;
  real *maximum_ = nullptr, *sum_ = nullptr, *shrink_ = nullptr;
  alignas(64) real sums_[Tiles::strip_rows][16];
  real scale_[Tiles::strip_rows], offset_[Tiles::strip_rows], limit_[Tiles::strip_rows];
};

}  // namespace backend::detail
HEED_NAMESPACE_END
