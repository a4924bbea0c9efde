// What score terms share: vectors per head, and a strip of query rows in the type of the sums.
#pragma once

#include "../../core/element.hpp"
#include "../../core/error.hpp"
#include "../../core/score_term.hpp"
#include "../../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace detail {

// A term is a score that leaves the score alone.
struct term_base {
  static constexpr bool is_score_term = true;
  template <class S, class P>
  HEED_INLINE S operator()(S s, const P&) const {
    return s;
  }
};

// One vector [D] per query head, or one for all: [H|1, D]; or none.
template <element T>
class head_rows {
 public:
  head_rows() = default;
  template <class U, int Rank>
  head_rows(const char* owner, const char* name, tensor_view<U, Rank> rows) : name_(name) {
    static_assert(Rank == 1 || Rank == 2, "heed: vectors per head have 1 or 2 axes");
    static_assert(std::is_same_v<std::remove_const_t<U>, T>);
    rows_ = rows.template lifted<2>();
    if (rows_.data() == nullptr && !rows_.empty()) {
      raise(message(owner) << ": data of the " << name << " is null");
    }
    exists_ = true;
  }

  void check(const char* owner, const call_shape& shape) const {
    if (!exists_) return;
    if (rows_.extent(0) != 1 && rows_.extent(0) != shape.heads) {
      raise(message(owner) << ": " << name_ << " of " << rows_.extent(0) << " heads, call has "
                           << shape.heads);
    }
    if (rows_.extent(1) != shape.depth) {
      raise(message(owner) << ": " << name_ << " of depth " << rows_.extent(1) << ", queries have "
                           << shape.depth);
    }
  }

  bool exists() const { return exists_; }
  bool shared_by_heads() const { return rows_.extent(0) == 1; }
  const T* operator[](index_t head) const { return rows_.row(shared_by_heads() ? 0 : head); }

 private:
  tensor_view<const T, 2> rows_;
  const char* name_ = "";
  bool exists_ = false;
};

// The rows of one strip as the backend lays queries out: kept while the strip meets the steps of a
// block.
template <class Tiles>
class term_strip {
 public:
  using real = typename Tiles::real;

  term_strip(const term_sizes& sizes, bump& memory)
      : stride_(Tiles::padded(sizes.depth)),
        // Kernels take whole strips, or four rows, from whichever row they begin.
        height_(sizes.strip_rows + (Tiles::strip_rows > 4 ? Tiles::strip_rows : 4)),
        rows_(memory.take<real>(height_ * stride_)) {}

  // sign·(q + bias), q alone without a bias. True where the tile is of another strip or block than
  // the one before.
  template <class Tile, class Bias>
  bool fill(const Tile& tile, const Bias& bias, real sign) {
    if (!fill_with(tile, sign, [](const auto& row) { return row.query; })) return false;
    for (int r = 0; bias.exists() && r < tile.rows; ++r) {
      const auto* add = bias[tile.row_at(tile.first_row + r).head];
      for (index_t d = 0; d < tile.depth; ++d) rows_[r * stride_ + d] += sign * widen<real>(add[d]);
    }
    return true;
  }
  // Whatever vector of(row) points to, times the sign.
  template <class Tile, class Of>
  bool fill_with(const Tile& tile, real sign, Of of) {
    if (tile.block == block_ && tile.first_row == first_row_) return false;
    block_ = tile.block, first_row_ = tile.first_row;
    using pointer = decltype(of(tile.row_at(0)));
    constexpr int together = 8;
    for (int r = 0; r < height_; r += together) {
      pointer from[together] = {};
      const int height = height_ - r < together ? static_cast<int>(height_) - r : together;
      int count = 0;
      for (; count < height && r + count < tile.rows; ++count) {
        from[count] = of(tile.row_at(tile.first_row + r + count));
      }
      Tiles::pack_queries(from, count, height, tile.depth, sign, rows_ + r * stride_);
    }
    return true;
  }

  const real* row(int at) const { return rows_ + at * stride_; }
  index_t stride() const { return stride_; }
  index_t height() const { return height_; }

  typename Tiles::prepared_queries prepared;  // of the rows that were multiplied last

 private:
  index_t stride_, height_;
  real* rows_;
  index_t block_ = -1, first_row_ = -1;
};

}  // namespace detail
HEED_NAMESPACE_END
