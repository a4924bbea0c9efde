// Scores of a layer on the pair of query and key:
//
//   score = scale · Σ_d w_h[d] · f(q_i[d] + k_j[d])       in place of q·k
//
//   weights  w [H|1, D], or [D] for all heads
//   f        a function of packs (heed::tanh, select, max, … work on them) such as tanh_of; or one
//            of logistic form, which is faster: see logistic
//
// With q and k already projected this is additive attention (include/heed/additive), and any score
// w·f(W [q; k] + b), since W splits into the two projections. The engine skips its own product.
// Whatever it is used with in one call adds to it: relative_embedding, content_bias and so on.
#pragma once

#include "../core/rows.hpp"
#include "detail/term_strip.hpp"

HEED_NAMESPACE_BEGIN

// f(x) = 1 + slope / (1 + e^(rate·x)). Of a sum, e^(rate·(q+k)) = e^(rate·q) · e^(rate·k): one
// exponential per element of q and k instead of one per pair and channel.
struct tanh_of {
  static constexpr double rate = 2, slope = -2;
  template <class S>
  HEED_INLINE S operator()(S x) const {
    return tanh(x);
  }
};
struct sigmoid_of {
  static constexpr double rate = 1, slope = -1;
  template <class S>
  HEED_INLINE S operator()(S x) const {
    return sigmoid(x);
  }
};
template <class F>
concept logistic = requires {
  F::rate;
  F::slope;
};

namespace detail {
template <class Term, class Tiles>
class pairwise_worker;
}  // namespace detail

template <class F, element T>
class pairwise : public detail::term_base {
 public:
  static constexpr bool replaces_product = true;
  template <class Tiles>
  using worker = detail::pairwise_worker<pairwise, Tiles>;
  using function_type = F;

  template <class U, int Rank>
  pairwise(F function, tensor_view<U, Rank> weights)
      : function_(function), weights_("pairwise", "weights", weights) {}

  void check(const call_shape& shape) const { weights_.check("pairwise", shape); }
  const F& function() const { return function_; }
  const detail::head_rows<T>& weights() const { return weights_; }

 private:
  F function_;
  detail::head_rows<T> weights_;
};

template <class F, class U, int Rank>
pairwise(F, tensor_view<U, Rank>) -> pairwise<F, std::remove_const_t<U>>;

namespace detail {

// Keys are transposed once per block, so that lanes run along them; a strip's queries and weights
// are scalars that meet them.
template <class Term, class Tiles>
class pairwise_worker {
 public:
  using real = typename Tiles::real;

  pairwise_worker(const Term& term, const term_sizes& sizes, bump& memory)
      : term_(term), strip_(sizes, memory) {
    depth_ = (sizes.depth + 3) / 4 * 4;
    keys_ = memory.take<real>(depth_ * sizes.block_keys);
    factors_ = memory.take<real>(is_logistic ? depth_ * sizes.block_keys : 0);
    reach_ = memory.take<real>(sizes.block_keys / step);
    queries_ = memory.take<real>(is_logistic ? strip_.height() * depth_ : 0);
    query_reach_ = memory.take<real>(strip_.height());
    weights_ = memory.take<real>(depth_);
  }

  template <class Tile>
  void add(const Tile& tile) {
    const bool fresh = strip_.fill(tile, none_, real(1));
    if constexpr (is_logistic) {
      if (fresh) factor_queries(tile);
    }
    const index_t at = tile.step;
    open_step(tile, at);
    const real* keys = keys_ + at * step * depth_;
    const real* factors = is_logistic ? factors_ + at * step * depth_ : nullptr;
    for (int r = 0; r < tile.rows; ++r) {
      open_weights(tile, tile.row_at(tile.first_row + r).head);
      real* s = tile.scores + r * tile.stride;
      if constexpr (is_logistic) {
        if (query_reach_[r] <= widest && reach_[at] <= widest) {
          add_factored(queries_ + r * depth_, factors, tile.count, tile.sign, s);
          continue;
        }
      }
      add_plain(strip_.row(r), keys, tile.depth, tile.count, tile.sign, s);
    }
  }

 private:
  static constexpr bool is_logistic = logistic<typename Term::function_type>;
  static constexpr index_t step = Tiles::step_keys;
  static constexpr int lanes = Tiles::lanes;
  using vector = pack<real, Tiles::lanes>;
  // Elements up to here have factors whose products are far from overflow.
  static constexpr real widest = 20;
  // 1 + e^(rate·x) up to here: the product of four is finite, and f has reached its end.
  static constexpr real largest = sizeof(real) == 4 ? real(0x1p30) : real(0x1p200);

  // [D][64] of one step, with rows of 0 up to a multiple of four, and their factors.
  template <class Tile>
  void open_step(const Tile& tile, index_t at) {
    if (tile.block != block_) block_ = tile.block, known_ = 0;
    if ((known_ >> at & 1) != 0) return;
    known_ |= std::uint64_t{1} << at;
    real* keys = keys_ + at * step * depth_;
    for (index_t i = 0; i < depth_ * step; ++i) keys[i] = 0;
    Tiles::transpose_rows(tile.key_rows.from(tile.first_key), tile.keys_of_step(), tile.depth, keys,
                          step);
    if constexpr (is_logistic) {
      reach_[at] = factor(keys, depth_ * step, factors_ + at * step * depth_);
    }
  }

  // e^(rate·x); returns the largest magnitude. What is not a number stays so in its factor.
  real factor(const real* from, index_t count, real* to) const {
    constexpr real exponent = static_cast<real>(1.4426950408889634 * Term::function_type::rate);
    vector reach(real(0));
    for (index_t i = 0; i < count; i += lanes) {
      const vector x = load_pack<vector>(from + i);
      store_pack(to + i, exp2(x * exponent));
      reach = max(reach, abs(x));
    }
    return max_lanes(reach);
  }
  template <class Tile>
  void factor_queries(const Tile& tile) {
    constexpr real exponent = static_cast<real>(1.4426950408889634 * Term::function_type::rate);
    for (int r = 0; r < tile.rows; ++r) {
      real reach = 0;
      for (index_t d = 0; d < depth_; ++d) {
        const real x = d < tile.depth ? strip_.row(r)[d] : real(0);
        const real magnitude = x < 0 ? -x : x;
        if (magnitude > reach) reach = magnitude;
        queries_[r * depth_ + d] = exp2(pack<real, 1>(x * exponent))[0];
      }
      query_reach_[r] = reach;
    }
  }

  template <class Tile>
  void open_weights(const Tile& tile, index_t head) {
    if (head == head_) return;
    head_ = head, weight_sum_ = 0;
    const auto* from = term_.weights()[head];
    for (index_t d = 0; d < depth_; ++d) {
      weights_[d] = d < tile.depth ? widen<real>(from[d]) : real(0);
      weight_sum_ += weights_[d];
    }
  }

  // Σ_d w·f = Σ_d w + slope·Σ_d w / (1 + e). Four channels share a division:
  // w_0/a + w_1/b = (w_0·b + w_1·a) / (a·b).
  HEED_NOINLINE void add_factored(const real* q, const real* factors, int count, real sign,
                                  real* s) const {
    constexpr real slope = static_cast<real>(Term::function_type::slope);
    const vector one(real(1)), limit(largest);
    for (int c = 0; c < count; c += lanes) {
      vector sum(real(0));
      for (index_t d = 0; d < depth_; d += 4) {
        const real* w = weights_ + d;
        const real* k = factors + d * step + c;
        const auto denominator = [&](index_t i) HEED_LAMBDA_INLINE {
          return min(limit, load_pack<vector>(k + i * step) * q[d + i] + one);
        };
        const vector a0 = denominator(0), a1 = denominator(1), a2 = denominator(2),
                     a3 = denominator(3);
        const vector a01 = a0 * a1, a23 = a2 * a3;
        const vector n01 = a1 * w[0] + a0 * w[1], n23 = a3 * w[2] + a2 * w[3];
        sum += (n01 * a23 + n23 * a01) / (a01 * a23);
      }
      store_pack(s + c, load_pack<vector>(s + c) + (sum * slope + vector(weight_sum_)) * sign);
    }
  }

  HEED_NOINLINE void add_plain(const real* q, const real* keys, index_t depth, int count, real sign,
                               real* s) const {
    for (int c = 0; c < count; c += lanes) {
      vector sum(real(0));
      for (index_t d = 0; d < depth; ++d) {
        const vector x = load_pack<vector>(keys + d * step + c) + q[d];
        sum += vector(term_.function()(x)) * weights_[d];
      }
      store_pack(s + c, load_pack<vector>(s + c) + sum * sign);
    }
  }

  const Term& term_;
  term_strip<Tiles> strip_;
  head_rows<real> none_;
  index_t depth_;                   // a multiple of four
  real *keys_, *factors_, *reach_;  // of the block's steps: [D][64] each, and largest magnitudes
  real *queries_, *query_reach_;    // factors of the strip
  real* weights_;                   // of one head
  real weight_sum_ = 0;
  index_t head_ = -1, block_ = -1;
  std::uint64_t known_ = 0;  // bit s: step s of the block was transposed
};

}  // namespace detail

HEED_NAMESPACE_END
