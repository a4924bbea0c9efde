// The backward tile loop: one tile is up to 64 queries of one head against one step of 64 keys.
//
//   S = scores(scale·Q Kᵀ), recomputed     P = exp(S − lse), 0 where masked
//   dP = dO Vᵀ                             dS = P·(dP − δ)·∂scores,   δ_i = Σ_d dO_id O_id − dlse_i
//   dV += Pᵀ dO                            dK += dSᵀ Q                dQ += dS K
//
// δ and lse are known per row, so that nothing quadratic is kept (Dao et al., "FlashAttention",
// 2022, algorithm 4). A worker holds a block of keys in its second-level cache: K, Kᵀ, Vᵀ and the
// sums of dK and dV. All five products are those of backend/products.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../backend/products.hpp"
#include "../core/softmax_state.hpp"
#include "../core/workspace.hpp"
#include "gradient_row.hpp"
#include "plan.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Of the rows of one sequence and head: log2(e)·lse, or dead_exponent of a row without keys; δ.
template <class Real>
struct row_statistics {
  const Real* exponents;
  const Real* deltas;
  row_statistics from(index_t row) const { return {exponents + row, deltas + row}; }
};

// Scratch of one worker, and what it does with a block of keys and a tile of queries. Problem is
// engine::backward_problem.
template <class Backend, class Problem>
class backward_tile {
 public:
  using Real = typename Problem::real;
  using products = backend::products<Backend, Real>;
  using lanes_type = typename products::lanes_type;
  static constexpr int lanes = products::lanes;
  static constexpr index_t step_keys = 64;
  static constexpr index_t tile_rows = 64;
  // Rows of a tile that is masked in part are trimmed to their keys in strips of so many.
  static constexpr index_t strip_rows = 16;

  static constexpr index_t padded(index_t depth) { return ceil_div(depth, lanes) * lanes; }

  // Steps of a block of keys: what is held of them fills a third of the cache.
  static index_t block_steps(const blocking& sizes, index_t depth, index_t value_depth) {
    const index_t bytes = step_keys * (3 * padded(depth) + 2 * padded(value_depth)) *
                          static_cast<index_t>(sizeof(Real));
    const index_t fitting = sizes.cache_bytes / 3 / (bytes > 0 ? bytes : 1);
    return fitting < 1 ? 1 : fitting > 8 ? 8 : fitting;
  }

  void take(heed::detail::bump& memory, index_t depth, index_t value_depth, index_t steps) {
    depth_ = depth, value_depth_ = value_depth;
    width_ = padded(depth), value_width_ = padded(value_depth);
    const index_t keys = steps * step_keys;
    k_ = memory.take<Real>(keys * width_);
    k_transposed_ = memory.take<Real>(keys * depth);
    v_transposed_ = memory.take<Real>(keys * value_depth);
    d_k_ = memory.take<Real>(keys * width_);
    d_v_ = memory.take<Real>(keys * value_width_);
    q_ = memory.take<Real>(tile_rows * width_);
    d_out_ = memory.take<Real>(tile_rows * value_width_);
    p_ = memory.take<Real>(tile_rows * step_keys);
    d_s_ = memory.take<Real>(tile_rows * step_keys);
    bits_ = memory.take<std::uint64_t>(tile_rows);
    finite_keys_ = memory.take<unsigned char>(steps);
  }

  // Keys [first, first + count) of a sequence and KV head, with sums of 0.
  void load_keys(const Problem& problem, index_t sequence, index_t head, index_t first,
                 index_t count) {
    problem_ = &problem, sequence_ = sequence, first_key_ = first, key_count_ = count;
    keys_ = problem.keys.at(sequence);
    for (index_t step = 0; step * step_keys < count; ++step) {
      const index_t begin = keys_.begin + first + step * step_keys;
      const index_t n = min(step_keys, count - step * step_keys);
      Real* k = k_ + step * step_keys * width_;
      Real* v = d_v_ + step * step_keys * value_width_;  // until the sums begin
      load(problem.k, keys_.batch, head, begin, n, depth_, k, width_);
      load(problem.v, keys_.batch, head, begin, n, value_depth_, v, value_width_);
      finite_keys_[step] = all_finite(k, n * width_);
      transposed(k, n, depth_, width_, k_transposed_ + step * step_keys * depth_);
      transposed(v, n, value_depth_, value_width_, v_transposed_ + step * step_keys * value_depth_);
    }
    std::fill(d_k_, d_k_ + count * width_, Real(0));
    std::fill(d_v_, d_v_ + count * value_width_, Real(0));
  }

  // Shows the tiles of queries [first, last)·tile_rows of one head that see something of the block:
  // begin_tile(first query) once, then use(step, …), as visit() does, for each of its steps.
  template <std::size_t From, class Begin, class Use>
  HEED_INLINE void for_each_tile(index_t head, index_t first_tile, index_t last_tile,
                                 const row_statistics<Real>& rows, const Begin& begin_tile,
                                 const Use& use) {
    const index_t queries = problem_->queries.at(sequence_).count;
    for (index_t t = first_tile; t < last_tile; ++t) {
      head_ = head, first_query_ = t * tile_rows, query_count_ = queries;
      rows_ = min(tile_rows, queries - first_query_);
      key_ranges steps;  // a block has no more runs of steps than fit
      const auto add_steps = [&](index_t begin, index_t end) {
        steps.add((max(begin, first_key_) - first_key_) / step_keys,
                  ceil_div(min(end - first_key_, key_count_), step_keys));
      };
      if constexpr (!Problem::masked) {
        add_steps(first_key_, first_key_ + key_count_);
      } else {
        const tile_extent block = extent(first_key_, first_key_ + key_count_);
        if constexpr (key_run_mask<decltype(problem_->mask)>) {
          problem_->mask.for_each_key_run(block, add_steps);
        } else {
          for (const key_ranges::range& range : visible_keys(problem_->mask, block)) {
            add_steps(range.begin, range.end);
          }
        }
      }
      if (steps.size() == 0) continue;
      load_queries(rows);
      begin_tile(first_query_);
      for (const key_ranges::range& range : steps) {
        for (index_t step = range.begin; step < range.end; ++step) visit<From>(step, use);
      }
    }
  }

  // dV, dK and dQ of what visit() shows; d_q is the tile's sum, rows of padded(depth).
  void accumulate(index_t step, index_t first, index_t last, int from, int to, bool partial,
                  Real* d_q) {
    const index_t key = step * step_keys + from, keys = to - from, rows = last - first;
    const Real* p = p_ + first * step_keys + from;
    const Real* d_s = d_s_ + first * step_keys + from;
    if (partial && !(finite_queries_ && finite_keys_[step] != 0)) {
      add_visible(key, first, last, from, to, d_q);
      return;
    }
    products::add(keys, value_width_, rows, p, 1, step_keys, d_out_ + first * value_width_,
                  value_width_, d_v_ + key * value_width_, value_width_);
    products::add(keys, width_, rows, d_s, 1, step_keys, q_ + first * width_, width_,
                  d_k_ + key * width_, width_);
    products::add(rows, width_, keys, d_s, step_keys, 1, k_ + key * width_, width_,
                  d_q + first * width_, width_);
  }

  // One row of P·(dP − δ)·∂scores, from the first key of the step.
  const Real* score_gradients(index_t row) const { return d_s_ + row * step_keys; }

  // Writes the block's dK and dV.
  void store_keys(index_t head) const {
    for (index_t key = 0; key < key_count_; ++key) {
      const index_t to = keys_.begin + first_key_ + key;
      store(d_k_ + key * width_, depth_, problem_->scale, problem_->d_k.row(keys_.batch, head, to));
      store(d_v_ + key * value_width_, value_depth_, Real(1),
            problem_->d_v.row(keys_.batch, head, to));
    }
  }

  tile_extent extent(index_t k_begin, index_t k_end) const {
    return {sequence_, head_, first_query_, first_query_ + rows_,
            k_begin,   k_end, query_count_, keys_.count};
  }

  // Rows of an operand, widened, with zeros up to the row's width.
  template <class T>
  static void load(const tensor_view<const T, 4>& x, index_t batch, index_t head, index_t first,
                   index_t count, index_t depth, Real* to, index_t width) {
    for (index_t r = 0; r < count; ++r, to += width) {
      const T* from = x.row(batch, head, first + r);
      index_t d = 0;
      if constexpr (lanes > 1) {
        for (; d + lanes <= depth; d += lanes) {
          store_pack(to + d, lanes_type::template load<T>(from + d));
        }
      }
      for (; d < depth; ++d) to[d] = widen<Real>(from[d]);
      for (; d < width; ++d) to[d] = 0;
    }
  }
  template <class T>
  static void store(const Real* from, index_t depth, Real factor, T* to) {
    index_t d = 0;
    if constexpr (lanes > 1) {
      using pack_type = typename products::pack_type;
      for (; d + lanes <= depth; d += lanes) {
        lanes_type::store(to + d, load_pack<pack_type>(from + d) * factor);
      }
    }
    for (; d < depth; ++d) to[d] = narrow<T>(from[d] * factor);
  }

  // Σ_d a[d]·b[d] of two rows of the caller's.
  template <class A, class B>
  static Real dot(const A* a, const B* b, index_t depth) {
    index_t d = 0;
    Real sum = 0;
    if constexpr (lanes > 1) {
      typename products::pack_type sums(Real(0));
      for (; d + lanes <= depth; d += lanes) {
        sums = lanes_type::fma(lanes_type::template load<A>(a + d),
                               lanes_type::template load<B>(b + d), sums);
      }
      sum = sum_lanes(sums);
    }
    for (; d < depth; ++d) sum += widen<Real>(a[d]) * widen<Real>(b[d]);
    return sum;
  }

  // A row without keys is told by this exponent, under which every weight is 0.
  static constexpr Real dead_exponent = -masked_score<Real>;
  static bool is_dead(Real exponent) { return exponent >= dead_exponent; }

  const tile_counts& counts() const { return counts_; }

 private:
  // The rows of the tile that was chosen.
  void load_queries(const row_statistics<Real>& statistics) {
    const rows_of_sequence rows = problem_->queries.at(sequence_);
    exponents_ = statistics.exponents + first_query_, deltas_ = statistics.deltas + first_query_;
    const index_t first = rows.begin + first_query_;
    load(problem_->q, rows.batch, head_, first, rows_, depth_, q_, width_);
    load(problem_->d_out, rows.batch, head_, first, rows_, value_depth_, d_out_, value_width_);
    finite_queries_ = all_finite(q_, rows_ * width_) && all_finite(d_out_, rows_ * value_width_);
    dead_rows_ = false;
    for (index_t r = 0; r < rows_; ++r) dead_rows_ = dead_rows_ || is_dead(exponents_[r]);
  }

  // P and dS of the loaded queries and one step of the block, tile by visible tile, each followed
  // by use(step, first row, one past the last, first key of the step, one past the last, partial).
  template <std::size_t From, class Use>
  HEED_INLINE void visit(index_t step, const Use& use) {
    const index_t begin = first_key_ + step * step_keys;
    const int count = static_cast<int>(min(step_keys, key_count_ - step * step_keys));
    visibility seen = visibility::all;
    if constexpr (Problem::masked) {
      seen = tile_visibility(problem_->mask, extent(begin, begin + count));
    }
    if (seen == visibility::none) {
      ++counts_.none;
      return;
    }
    if (seen == visibility::all && !dead_rows_) {
      ++counts_.all;
      compute<From>(step, 0, rows_, 0, count, false);
      use(step, index_t{0}, rows_, 0, count, false);
      return;
    }
    const std::uint64_t full = ~std::uint64_t{0} >> (64 - count);
    std::uint64_t any = 0, all = full;
    for (index_t r = 0; r < rows_; ++r) {
      bits_[r] = is_dead(exponents_[r]) ? 0 : full;
      if constexpr (Problem::masked) {
        if (bits_[r] != 0 && seen == visibility::some) {
          bits_[r] = visible_bits<Real, lanes>(problem_->mask, at(r, begin), count);
        }
      }
      any |= bits_[r], all &= bits_[r];
    }
    ++(any == 0 ? counts_.none : all == full ? counts_.all : counts_.some);
    const index_t rows_at_once = all == full ? rows_ : strip_rows;
    for (index_t r = 0; any != 0 && r < rows_; r += rows_at_once) {
      const index_t last = min(r + rows_at_once, rows_);
      std::uint64_t some = 0, every = full;
      for (index_t i = r; i < last; ++i) some |= bits_[i], every &= bits_[i];
      if (some == 0) continue;
      const int from = __builtin_ctzll(some) / lanes * lanes, to = 64 - __builtin_clzll(some);
      compute<From>(step, r, last, from, to, every != full);
      use(step, r, last, from, to, every != full);
    }
  }

  position at(index_t row, index_t key) const {
    return {sequence_, head_, first_query_ + row, key, query_count_, keys_.count};
  }

  template <std::size_t From>
  HEED_NOINLINE void compute(index_t step, index_t first, index_t last, int from, int to,
                             bool partial) {
    const index_t columns = padded(to) - from, rows = last - first;
    for (index_t r = first; r < last; ++r) {
      std::memset(p_ + r * step_keys + from, 0, static_cast<std::size_t>(columns) * sizeof(Real));
      std::memset(d_s_ + r * step_keys + from, 0, static_cast<std::size_t>(columns) * sizeof(Real));
    }
    products::add(rows, columns, depth_, q_ + first * width_, width_, 1,
                  k_transposed_ + step * step_keys * depth_ + from, step_keys,
                  p_ + first * step_keys + from, step_keys);
    products::add(rows, columns, value_depth_, d_out_ + first * value_width_, value_width_, 1,
                  v_transposed_ + step * step_keys * value_depth_ + from, step_keys,
                  d_s_ + first * step_keys + from, step_keys);
    const index_t begin = first_key_ + step * step_keys;
    for (index_t r = first; r < last; ++r) {
      const std::uint64_t bits = partial ? bits_[r] >> from : 0;
      gradient_row<From, lanes_type, Real, lanes>(
          problem_->scores, p_ + r * step_keys + from, d_s_ + r * step_keys + from,
          row_terms<Real>{problem_->scale, exponents_[r], deltas_[r]}, at(r, begin + from),
          to - from, first_key_ + key_count_, partial ? &bits : nullptr);
    }
  }

  // Key by key: 0·∞ would leak what is masked.
  HEED_NOINLINE void add_visible(index_t key, index_t first, index_t last, int from, int to,
                                 Real* d_q) {
    for (index_t r = first; r < last; ++r) {
      for (int c = from; c < to; ++c) {
        if ((bits_[r] >> c & 1) == 0) continue;
        const Real p = p_[r * step_keys + c], d_s = d_s_[r * step_keys + c];
        const index_t j = key + c - from;
        for (index_t d = 0; d < value_depth_; ++d) {
          d_v_[j * value_width_ + d] += p * d_out_[r * value_width_ + d];
        }
        for (index_t d = 0; d < depth_; ++d) {
          d_k_[j * width_ + d] += d_s * q_[r * width_ + d];
          d_q[r * width_ + d] += d_s * k_[j * width_ + d];
        }
      }
    }
  }

  static void transposed(const Real* rows, index_t count, index_t depth, index_t width, Real* to) {
    products::transpose(count, depth, rows, width, to, step_keys);
    for (index_t d = 0; d < depth && count < step_keys; ++d) {
      for (index_t key = count; key < step_keys; ++key) to[d * step_keys + key] = 0;
    }
  }

  // By their bits, so that it also holds under -ffast-math. `count` is a multiple of lanes.
  static bool all_finite(const Real* x, index_t count) {
    using integer = integer_of<Real>;
    using integers = pack<integer, lanes>;
    const integers exponent(sizeof(Real) == 4 ? static_cast<integer>(0x7f800000)
                                              : static_cast<integer>(0x7ff0000000000000ll));
    typename integers::mask bad(false);
    for (index_t i = 0; i < count; i += lanes) {
      const auto bits = bits_as<integer>(load_pack<pack<Real, lanes>>(x + i));
      bad = bad | (integers(bits.v & exponent.v) == exponent);
    }
    return to_bits(bad) == 0;
  }

  const Problem* problem_ = nullptr;
  index_t depth_ = 0, value_depth_ = 0, width_ = 0, value_width_ = 0;
  Real *k_ = nullptr, *k_transposed_ = nullptr, *v_transposed_ = nullptr;  // [steps] of 64 keys
  Real *d_k_ = nullptr, *d_v_ = nullptr;
  Real *q_ = nullptr, *d_out_ = nullptr;  // [tile_rows][padded depth]
  Real *p_ = nullptr, *d_s_ = nullptr;    // [tile_rows][64]
  std::uint64_t* bits_ = nullptr;         // [tile_rows]
  unsigned char* finite_keys_ = nullptr;  // [steps]
  const Real *exponents_ = nullptr, *deltas_ = nullptr;
  rows_of_sequence keys_;
  index_t sequence_ = 0, head_ = 0, first_key_ = 0, key_count_ = 0;
  index_t first_query_ = 0, rows_ = 0, query_count_ = 0;
  bool finite_queries_ = true, dead_rows_ = false;
  tile_counts counts_;
};

}  // namespace engine
HEED_NAMESPACE_END
