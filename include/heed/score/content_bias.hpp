// A bias on the queries' content: score = scale · (q_i + u_h) · k_j.
//
//   u  [H|1, D], or [D] for all heads
//
// u·k depends on the key alone: it is computed once for all query rows of a head that meet a block
// of keys, and no biased copy of the queries exists. Half of Transformer-XL's score (Dai et al.,
// "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", ACL 2019); the other
// half is relative_embedding.
#pragma once

#include "detail/term_strip.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {
template <class Term, class Tiles>
class content_worker;
}  // namespace detail

template <element T>
class content_bias : public detail::term_base {
 public:
  template <class Tiles>
  using worker = detail::content_worker<content_bias, Tiles>;

  template <class U, int Rank>
  explicit content_bias(tensor_view<U, Rank> bias) : bias_("content_bias", "bias", bias) {}

  void check(const call_shape& shape) const { bias_.check("content_bias", shape); }
  const detail::head_rows<T>& bias() const { return bias_; }

 private:
  detail::head_rows<T> bias_;
};

template <class U, int Rank>
content_bias(tensor_view<U, Rank>) -> content_bias<std::remove_const_t<U>>;

namespace detail {

template <class Term, class Tiles>
class content_worker {
 public:
  using real = typename Tiles::real;

  content_worker(const Term& term, const term_sizes& sizes, bump& memory)
      : term_(term),
        strip_(sizes, memory),
        products_(memory.take<real>(strip_.height() * step)),
        of_block_(memory.take<real>(sizes.block_keys)) {}

  template <class Tile>
  void add(const Tile& tile) {
    strip_.fill_with(tile, tile.sign, [&](const auto& row) { return term_.bias()[row.head]; });
    if (tile.in_place) {
      // Rows of many heads: their products at once, as those of the queries.
      multiply(tile, 0, tile.rows, products_);
      for (int r = 0; r < tile.rows; ++r) add_row(products_ + r * step, tile, r);
      return;
    }
    for (int r = 0; r < tile.rows; ++r) {
      const index_t head = tile.row_at(tile.first_row + r).head;
      if (head != head_ || tile.block != block_) {
        head_ = head, block_ = tile.block, known_ = 0;
      }
      real* of_step = of_block_ + tile.step * step;
      if ((known_ >> tile.step & 1) == 0) multiply(tile, r, 1, of_step);
      known_ |= std::uint64_t{1} << tile.step;
      add_row(of_step, tile, r);
    }
  }

 private:
  using vector = pack<real, Tiles::lanes>;
  static constexpr index_t step = Tiles::step_keys;

  template <class Tile>
  void multiply(const Tile& tile, int first, int rows, real* to) {
    strip_.prepared.forget();
    Tiles::score_rows(strip_.row(first), rows, strip_.prepared, tile.key_rows.from(tile.first_key),
                      tile.keys_of_step(), tile.depth, to, step);
  }
  template <class Tile>
  HEED_INLINE static void add_row(const real* from, const Tile& tile, int row) {
    real* s = tile.scores + row * tile.stride;
    for (int c = 0; c < step; c += vector::size) {
      store_pack(s + c, load_pack<vector>(s + c) + load_pack<vector>(from + c));
    }
  }

  const Term& term_;
  term_strip<Tiles> strip_;
  real* products_;  // [rows][64]
  real* of_block_;  // [block_keys] of one head
  index_t head_ = -1, block_ = -1;
  std::uint64_t known_ = 0;  // bit s: step s of the block was multiplied
};

}  // namespace detail

HEED_NAMESPACE_END
