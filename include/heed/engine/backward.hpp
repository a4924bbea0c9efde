// Runs a checked backward problem.
//
//   1. per row: δ_i = Σ_d dO_id O_id − dlse_i, and the sinks' gradients −Σ_i exp(sink − lse_i)·δ_i
//   2. per (sequence, KV head) and range of keys: dK and dV, and this range's part of dQ
//   3. dQ, the sum of its parts in order of their keys
//   4. per wanted gradient of a bias: a sweep of its own, by elements of the bias
//
// Work is cut by shape alone and every sum has one fixed order, so that results are bit-identical
// on any executor. Memory: δ and lse of all rows; parts of dQ for as many KV heads at once as fit
// 16 MiB per worker, one at least.
#pragma once

#include "../core/executor.hpp"
#include "backward_loop.hpp"
#include "bias_gradient.hpp"
#include "problem.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Operands, which Views holds: q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], out and
// d_out [B, Hq, Lq, Dv], lse and d_lse [B, Hq, Lq] (d_lse without data: 0); d_q, d_k and d_v like
// their operands; sink_gradient [Hq|1] (without data where it is not wanted).
template <class Real, class Views, class Mask, class Scores, class Sink>
struct backward_problem : Views {
  using real = Real;
  using sink_function = Sink;
  using sink_type = typename Views::sink_type;
  static constexpr bool masked = !std::is_same_v<Mask, everything>;

  batch_layout queries, keys;
  Real scale;
  Mask mask;
  Scores scores;
  Sink sink;  // logit of the head's sink, or no_sink
  tile_counts* counts = nullptr;

  index_t heads() const { return this->q.extent(1); }
  index_t key_heads() const { return this->k.extent(1); }
  index_t group() const { return key_heads() > 0 ? heads() / key_heads() : 0; }
  index_t depth() const { return this->q.extent(3); }
  index_t value_depth() const { return this->v.extent(3); }
  // The first of a sequence's rows of one head, counted in [B, Hq, Lq].
  index_t row_number(index_t sequence, index_t head) const {
    const rows_of_sequence rows = queries.at(sequence);
    return (rows.batch * heads() + head) * this->q.extent(2) + rows.begin;
  }
};

// Biases is a tuple of bias_gradient.
template <class Backend, class Problem, class Biases>
class backward {
 public:
  using Real = typename Problem::real;
  using tile = backward_tile<Backend, Problem>;
  static constexpr index_t step_keys = tile::step_keys, tile_rows = tile::tile_rows;

  backward(const Problem& problem, const Biases& biases, workspace& memory)
      : problem_(problem), biases_(biases), memory_(memory) {}

  template <class Executor>
  void run(Executor& executor) {
    clear_outside(problem_.d_q, problem_.queries);
    clear_outside(problem_.d_k, problem_.keys);
    clear_outside(problem_.d_v, problem_.keys);
    plan(executor.workers());
    const index_t heads = problem_.heads();
    executor.run(problem_.queries.sequences * heads,
                 [this, heads](index_t item, int) { statistics(item / heads, item % heads); });
    for (index_t first = 0, last = 0; first < pairs_; first = last) {
      while (last < pairs_ && plans_[last].wave == plans_[first].wave) ++last;
      const index_t begin = plans_[first].item, end = plans_[last].item;
      executor.run(end - begin, [&](index_t item, int worker) {
        run_item(begin + item, pair_of(begin + item, first, last), tiles_[worker]);
      });
      executor.run((last - first) * shares,
                   [&](index_t item, int) { sum_queries(first + item / shares, item % shares); });
    }
    for (int worker = 0; worker < workers_ && problem_.counts != nullptr; ++worker) {
      problem_.counts->all += tiles_[worker].counts().all;
      problem_.counts->some += tiles_[worker].counts().some;
      problem_.counts->none += tiles_[worker].counts().none;
    }
    store_sinks();
    std::apply([&](const auto&... wanted) { (run_bias(executor, wanted), ...); }, biases_);
  }

 private:
  using Sink = typename Problem::sink_function;
  using sink_type = typename Problem::sink_type;
  static constexpr index_t most_splits = 16;  // parts of dQ: what keeps memory linear in the length
  static constexpr index_t shares = 8;        // items that a KV head's dQ is summed in
  static constexpr index_t part_bytes = index_t{16} << 20;  // of dQ's parts in one wave, per worker

  struct pair_plan {
    index_t item = 0;  // items of all pairs before
    index_t wave = 0;
    index_t row = 0;   // rows of parts of dQ of the wave's pairs before
    index_t tile = 0;  // touched flags likewise
  };

  template <class T>
  static void clear_row(T* row, index_t depth) {
    for (index_t d = 0; d < depth; ++d) row[d] = narrow<T>(Real(0));
  }

  // Rows of a gradient that belong to no sequence.
  template <class T>
  static void clear_outside(const tensor_view<T, 4>& x, const batch_layout& layout) {
    if (layout.cumulative != nullptr) return;
    for (index_t b = 0; b < x.extent(0); ++b) {
      const rows_of_sequence rows = layout.at(b);
      for (index_t h = 0; h < x.extent(1); ++h) {
        for (index_t l = 0; l < x.extent(2); ++l) {
          if (l == rows.begin && rows.count > 0) l += rows.count;
          if (l >= x.extent(2)) break;
          clear_row(x.row(b, h, l), x.extent(3));
        }
      }
    }
  }

  index_t steps_of(index_t sequence) const {
    return ceil_div(problem_.keys.at(sequence).count, step_keys);
  }
  index_t tiles_of(index_t sequence) const {
    return ceil_div(problem_.queries.at(sequence).count, tile_rows);
  }
  double work_of(index_t sequence) const {
    return static_cast<double>(problem_.queries.at(sequence).count) *
           static_cast<double>(problem_.keys.at(sequence).count) *
           static_cast<double>(problem_.group());
  }
  // Ranges that a sequence's keys are cut into: as many as its share of the work wants.
  index_t splits_of(index_t sequence) const {
    if (!(all_work_ > 0)) return 1;
    const auto wanted = static_cast<index_t>(
        static_cast<double>(sizes_.wanted_items) * work_of(sequence) / all_work_ + 0.5);
    const index_t possible = problem_.keys.at(sequence).count / sizes_.split_keys;
    return max(min(min(wanted, possible), most_splits), index_t{1});
  }

  // Where every (sequence, KV head) pair's items and parts of dQ are; a wave of pairs keeps its
  // parts at the same time. visit(pair, plan); returns the most rows and tiles of a wave.
  template <class Visit>
  pair_plan for_each_plan(const Visit& visit) const {
    const index_t row_bytes =
        max(tile::padded(problem_.depth()) * static_cast<index_t>(sizeof(Real)), index_t{1});
    pair_plan at, most;
    for (index_t pair = 0; pair < pairs_; ++pair) {
      const index_t sequence = pair / problem_.key_heads(), splits = splits_of(sequence);
      const index_t rows = problem_.queries.at(sequence).count * problem_.group() * splits;
      if (at.row > 0 && (at.row + rows) * row_bytes > part_bytes * workers_) {
        ++at.wave, at.row = at.tile = 0;
      }
      visit(pair, at);
      at.item += splits;
      at.row += rows;
      at.tile += tiles_of(sequence) * problem_.group() * splits;
      most.row = max(most.row, at.row), most.tile = max(most.tile, at.tile);
    }
    visit(pairs_, at);
    return most;
  }

  void plan(int workers) {
    workers_ = workers;
    pairs_ = problem_.queries.sequences * problem_.key_heads();
    all_work_ = 0;
    for (index_t s = 0; s < problem_.queries.sequences; ++s) {
      all_work_ += work_of(s) * static_cast<double>(problem_.key_heads());
    }
    const index_t depth = problem_.depth(), value_depth = problem_.value_depth();
    block_steps_ = tile::block_steps(sizes_, depth, value_depth);
    region_ = 0;
    std::apply(
        [this](const auto&... wanted) {
          ((region_ = max(region_, bias_region(wanted, block_steps_, tile_rows))), ...);
        },
        biases_);
    const pair_plan most = for_each_plan([](index_t, const pair_plan&) {});
    const auto lay_out = [&](heed::detail::bump& memory) {
      plans_ = memory.take<pair_plan>(pairs_ + 1);
      exponents_ = memory.take<Real>(problem_.lse.size());
      deltas_ = memory.take<Real>(problem_.lse.size());
      sinks_ = memory.take<Real>(problem_.sink_gradient.data() != nullptr
                                     ? problem_.queries.sequences * problem_.heads()
                                     : 0);
      parts_ = memory.take<Real>(most.row * tile::padded(depth));
      touched_ = memory.take<unsigned char>(most.tile);
      regions_ = memory.take<Real>(region_ * workers);
      tiles_ = memory.take<tile>(workers);
      for (int worker = 0; worker < workers; ++worker) {
        tile of_worker;
        of_worker.take(memory, depth, value_depth, block_steps_);
        if (tiles_ != nullptr) tiles_[worker] = of_worker;
      }
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump memory(memory_.reserve(counted.bytes()));
    lay_out(memory);
    for_each_plan([this](index_t pair, const pair_plan& at) { plans_[pair] = at; });
  }

  // log2(e)·lse and δ of all rows of one sequence and head, and their share of the sink's gradient.
  void statistics(index_t sequence, index_t head) {
    const rows_of_sequence rows = problem_.queries.at(sequence);
    const index_t from = problem_.row_number(sequence, head);
    Real sink_sum = 0;
    for (index_t i = 0; i < rows.count; ++i) {
      const index_t row = rows.begin + i;
      const Real lse = widen<Real>(problem_.lse(rows.batch, head, row));
      const auto* out = problem_.out.row(rows.batch, head, row);
      const auto* d_out = problem_.d_out.row(rows.batch, head, row);
      Real delta = tile::dot(out, d_out, problem_.value_depth());
      if (problem_.d_lse.data() != nullptr) {
        delta -= widen<Real>(problem_.d_lse(rows.batch, head, row));
      }
      const bool dead = is_minus_infinity(lse);
      exponents_[from + i] = dead ? tile::dead_exponent : lse * softmax_state<Real>::log2_e;
      deltas_[from + i] = dead ? Real(0) : delta;
      if constexpr (!std::is_same_v<Sink, no_sink>) {
        if (sinks_ != nullptr && !dead) {
          sink_sum -= exp(problem_.sink.template logit<Real>(head) - lse) * delta;
        }
      }
    }
    if (sinks_ != nullptr) sinks_[sequence * problem_.heads() + head] = sink_sum;
  }

  // The pair whose item this is, by bisection.
  index_t pair_of(index_t item, index_t first, index_t last) const {
    while (last - first > 1) {
      const index_t middle = first + (last - first) / 2;
      (plans_[middle].item <= item ? first : last) = middle;
    }
    return first;
  }

  // dK and dV of a range of keys of one KV head, and its part of dQ.
  void run_item(index_t item, index_t pair, tile& worker) {
    const pair_plan& plan = plans_[pair];
    const index_t sequence = pair / problem_.key_heads(), key_head = pair % problem_.key_heads();
    const index_t split = item - plan.item, splits = splits_of(sequence);
    const index_t steps = steps_of(sequence), keys = problem_.keys.at(sequence).count;
    const index_t queries = problem_.queries.at(sequence).count, tiles = tiles_of(sequence);
    const index_t width = tile::padded(problem_.depth());
    unsigned char* touched = touched_ + plan.tile + split * tiles * problem_.group();
    std::fill(touched, touched + tiles * problem_.group(), static_cast<unsigned char>(0));
    const index_t last_step = steps * (split + 1) / splits;
    for (index_t step = steps * split / splits; step < last_step; step += block_steps_) {
      const index_t first_key = step * step_keys;
      const index_t last_key = min(min(step + block_steps_, last_step) * step_keys, keys);
      worker.load_keys(problem_, sequence, key_head, first_key, last_key - first_key);
      for (index_t member = 0; member < problem_.group(); ++member) {
        Real* part = nullptr;
        const index_t head = key_head * problem_.group() + member;
        worker.template for_each_tile<0>(
            head, 0, tiles, all_rows().from(problem_.row_number(sequence, head)),
            [&](index_t first) {
              const index_t count = min(tile_rows, queries - first);
              part = parts_ +
                     (plan.row + (split * problem_.group() + member) * queries + first) * width;
              unsigned char& begun = touched[member * tiles + first / tile_rows];
              if (begun == 0) std::fill(part, part + count * width, Real(0));
              begun = 1;
            },
            [&](index_t at, index_t row, index_t last_row, int key, int end, bool partial) {
              worker.accumulate(at, row, last_row, key, end, partial, part);
            });
      }
      worker.store_keys(key_head);
    }
  }

  row_statistics<Real> all_rows() const { return {exponents_, deltas_}; }

  // A share of a KV head's dQ: the sum of its parts.
  void sum_queries(index_t pair, index_t share) {
    const pair_plan& plan = plans_[pair];
    const index_t sequence = pair / problem_.key_heads(), key_head = pair % problem_.key_heads();
    const rows_of_sequence rows = problem_.queries.at(sequence);
    const index_t splits = splits_of(sequence), tiles = tiles_of(sequence);
    const index_t all_tiles = tiles * problem_.group(), width = tile::padded(problem_.depth());
    for (index_t t = all_tiles * share / shares; t < all_tiles * (share + 1) / shares; ++t) {
      const index_t member = t / tiles, first = t % tiles * tile_rows;
      const index_t count = min(tile_rows, rows.count - first);
      Real* sum = nullptr;
      for (index_t split = 0; split < splits; ++split) {
        if (touched_[plan.tile + split * all_tiles + t] == 0) continue;
        Real* part =
            parts_ + (plan.row + (split * problem_.group() + member) * rows.count + first) * width;
        if (sum == nullptr) {
          sum = part;
        } else {
          for (index_t i = 0; i < count * width; ++i) sum[i] += part[i];
        }
      }
      for (index_t r = 0; r < count; ++r) {
        auto* to = problem_.d_q.row(rows.batch, key_head * problem_.group() + member,
                                    rows.begin + first + r);
        if (sum != nullptr) {
          tile::store(sum + r * width, problem_.depth(), problem_.scale, to);
        } else {
          clear_row(to, problem_.depth());
        }
      }
    }
  }

  // The sinks' gradients: sums over the sequences, and over the heads where they share one.
  void store_sinks() {
    const tensor_view<sink_type, 1>& to = problem_.sink_gradient;
    if (to.data() == nullptr) return;
    for (index_t h = 0; h < to.extent(0); ++h) {
      Real sum = 0;
      for (index_t s = 0; s < problem_.queries.sequences; ++s) {
        const Real* of_heads = sinks_ + s * problem_.heads();
        for (index_t i = 0; i < problem_.heads(); ++i) {
          if (to.extent(0) == 1 || i == h) sum += of_heads[i];
        }
      }
      to(h) = narrow<sink_type>(sum);
    }
  }

  template <class Executor, std::size_t From, class T>
  void run_bias(Executor& executor, const bias_gradient<From, T>& wanted) {
    const bias_sweep<tile, Problem, From, T> sweep(problem_, wanted, block_steps_, all_rows());
    executor.run(sweep.items(), [&](index_t item, int worker) {
      sweep.run_item(item, tiles_[worker], regions_ + worker * region_);
    });
  }

  const Problem& problem_;
  const Biases& biases_;
  workspace& memory_;
  const blocking sizes_ = blocking::current();
  int workers_ = 1;
  index_t pairs_ = 0, block_steps_ = 1, region_ = 0;
  double all_work_ = 0;
  pair_plan* plans_ = nullptr;        // [pairs + 1]
  Real* exponents_ = nullptr;         // [B, Hq, Lq]
  Real* deltas_ = nullptr;            // [B, Hq, Lq]
  Real* sinks_ = nullptr;             // [sequences, Hq]
  Real* parts_ = nullptr;             // of a wave: per pair [splits, group, Lq, padded D]
  unsigned char* touched_ = nullptr;  // of a wave: per pair [splits, group, tiles of rows]
  Real* regions_ = nullptr;           // [workers, region]
  tile* tiles_ = nullptr;             // [workers]
};

}  // namespace engine
HEED_NAMESPACE_END
