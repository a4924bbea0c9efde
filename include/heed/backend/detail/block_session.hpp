// A session (docs/kernel-contract.md) for backends that turn the scores of a whole block into
// weights at once: the scores of a strip lie side by side, rows a block apart.
#pragma once

#include "../../core/rows.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

template <class Tiles>
class block_session {
 public:
  using real = typename Tiles::real;
  using packed = typename Tiles::packed;
  using weight_type = typename Tiles::weight;
  // Rows of a strip, or as many as are kept (engine/row_loop.hpp).
  static constexpr index_t most_rows =
      Tiles::strip_rows > Tiles::most_rows_in_place ? Tiles::strip_rows : Tiles::most_rows_in_place;
  static constexpr index_t score_size(index_t block_keys, index_t rows = most_rows) {
    return rows * row_stride(block_keys);
  }

  // For `rows` query rows in place, or for whole strips of packed ones. Kernels take four rows in
  // place at once, or a whole strip: those that do not exist must hold numbers too.
  block_session(bool packed_operands, index_t rows, real* memory, index_t block_keys)
      : memory_(memory), stride_(row_stride(block_keys)), packed_(packed_operands) {
    if (packed_ || rows % 4 < 2) return;
    for (index_t i = rows * stride_; i < (rows + 3) / 4 * 4 * stride_; ++i) memory_[i] = 0;
  }

  template <class T>
  void pack_queries(const T* const* rows, int count, index_t depth, real sign, packed* strip) {
    prepared_.forget();
    if (packed_) {
      Tiles::pack_queries(rows, count, Tiles::strip_rows, depth, sign, strip);
    } else {
      Tiles::pack_queries_in_place(rows, count, depth, sign, strip);
    }
  }

  void begin(int rows, real factor, real* maximum, real* sum, real* shrink) {
    rows_ = rows;
    factor_ = factor;
    maximum_ = maximum;
    sum_ = sum;
    shrink_ = shrink;
    columns_ = 0;
  }
  // Where whole rows are kept (engine/row_loop.hpp): `rows` rows of scores or weights, the next
  // columns of which lie at `memory`.
  void resume(int rows, real* memory) {
    rows_ = rows;
    memory_ = memory;
    columns_ = 0;
  }
  HEED_INLINE real* scores() const { return memory_ + columns_; }
  HEED_INLINE index_t stride() const { return stride_; }

  void score(const packed* strip, const packed* step, index_t depth, int keys) {
    Tiles::score(strip, rows_, step, depth, keys, scores(), stride_);
  }
  template <class Rows>
  void score_rows(const packed* strip, const Rows& keys, int count, index_t depth) {
    Tiles::score_rows(strip, rows_, prepared_, keys, count, depth, scores(), stride_);
  }
  void ready(int keys) {
    used_ = columns_ + keys;
    columns_ += Tiles::step_keys;
  }
  void finish() {
    Tiles::softmax(memory_, stride_, rows_, static_cast<int>(used_), factor_, maximum_, sum_,
                   shrink_);
  }

  real weight(int row, index_t column) const {
    return Tiles::weight_at(memory_ + row * stride_, column);
  }
  // Column c stands for a key of step number steps[c / step_keys] of the packed values.
  void accumulate(index_t first, index_t last, const index_t* steps, const packed* values,
                  index_t depth, real* o, const real* shrink) {
    constexpr index_t together = Tiles::weights_together, in_step = Tiles::step_keys / together;
    const index_t width = Tiles::padded(depth);
    const index_t begin = first / together, end = (last + together - 1) / together;
    Tiles::accumulate(
        memory_ + begin, stride_, rows_, static_cast<int>(end - begin),
        listed_steps<packed, in_step>{values, steps + begin / in_step, width, begin % in_step},
        width, o, width, shrink);
  }
  template <class Rows>
  void accumulate_rows(index_t first, index_t last, const Rows& values, index_t depth, real* o,
                       const real* shrink) {
    accumulate_rows(first, last, values, depth, o, Tiles::padded(depth), shrink);
  }
  template <class Rows>
  void accumulate_rows(index_t first, index_t last, const Rows& values, index_t depth, real* o,
                       index_t o_stride, const real* shrink) {
    Tiles::accumulate_rows(reinterpret_cast<const weight_type*>(memory_) + first,
                           stride_ * Tiles::weights_together, rows_, static_cast<int>(last - first),
                           values, depth, o, o_stride, shrink);
  }

 private:
  // From one row of scores to the next: a line more than their keys take, or neighbouring rows, a
  // power of two apart, would get into each other's way in the first-level cache.
  static constexpr index_t row_stride(index_t keys) { return keys + index_t{64 / sizeof(real)}; }

  real* memory_;
  index_t stride_;
  bool packed_;
  index_t columns_ = 0;  // of the steps that are ready
  index_t used_ = 0;     // up to the last one that some row sees
  int rows_ = 0;
  real factor_ = 1;
  real *maximum_ = nullptr, *sum_ = nullptr, *shrink_ = nullptr;
  typename Tiles::prepared_queries prepared_;
};

}  // namespace backend::detail
HEED_NAMESPACE_END
