// The tile loop: one work item is a tile of query rows of one KV head against a range of its keys.
//
//   for each source, for each block of keys that fits the cache, for each strip of query rows:
//     S = Q Kᵀ for the visible steps of 64 keys      (backend)
//     S = scores(S), masked scores leave             (hooks; nothing where there are none)
//     P = softmax numerators, running maximum and sum (backend)
//     O = O·shrink + P V                             (backend)
//
// The rows of a KV head are all its query heads' queries, r = head_in_group·Lq + q, so that prefill
// and grouped decode are the same loop. Keys come packed (many rows: each step is used often) or as
// the caller stores them (few rows).
#pragma once

#include "../core/executor.hpp"
#include "../core/softmax_state.hpp"
#include "erased_hooks.hpp"
#include "item_scratch.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Output and log-sum-exp of one row.
template <class Tiles, class Problem, class Real>
void finish_row(const Problem& problem, const rows_of_sequence& queries, const head_query& row,
                const softmax_state<Real>& state) {
  const index_t at = queries.begin + row.query;
  Tiles::store(state.weighted, problem.value_depth(), state.normalizer(),
               problem.out.row(queries.batch, row.head, at));
  if (problem.lse.data() != nullptr) problem.lse(queries.batch, row.head, at) = state.log_sum_exp();
}

template <class Tiles, class Problem>
class tile_loop {
 public:
  using Real = typename Tiles::real;
  using Packed = typename Tiles::packed;
  using Session = typename Tiles::session;
  static constexpr int step_keys = Tiles::step_keys;

  // Keys come packed, or `row_count`, at most Tiles::most_rows_in_place, rows read them in place.
  tile_loop(const Problem& problem, item_scratch<Tiles>& scratch, Session& session, bool packed,
            index_t sequence, index_t key_head, index_t row_begin, index_t row_count,
            index_t block_keys)
      : problem_(problem),
        scratch_(scratch),
        session_(session),
        packed_(packed),
        strip_rows_(packed ? Tiles::strip_rows : static_cast<int>(Tiles::most_rows_in_place)),
        sequence_(sequence),
        key_head_(key_head),
        row_begin_(row_begin),
        row_count_(row_count),
        block_keys_(block_keys),
        rows_(query_rows(problem, sequence, key_head)) {}

  // Empty states, or the sink's in the item that owns the first keys.
  void start(bool with_sink) {
    const index_t width = Tiles::padded(problem_.value_depth());
    // Kernels may work on whole strips, or on four rows in place: rows that do not exist must hold
    // numbers too.
    const index_t height = packed_ ? strips() * strip_rows_ : (row_count_ + 3) / 4 * 4;
    for (int row = 0; row < strip_rows_; ++row) scratch_.shrink[row] = 1;
    for (index_t r = 0; r < height; ++r) {
      scratch_.maximum[r] = masked_score<Real>;
      scratch_.sum[r] = 0;
    }
    for (index_t i = 0; i < height * width; ++i) scratch_.weighted[i] = 0;
    head_query from = at(0);
    if (with_sink && problem_.sink.exists()) {
      for (index_t r = 0; r < row_count_; ++r, from = rows_.after(from)) {
        scratch_.maximum[r] = problem_.sink.logit(from.head) * softmax_state<Real>::log2_e;
        scratch_.sum[r] = 1;
      }
      from = at(0);
    }
    const Real sign = problem_.scale < 0 ? Real(-1) : problem_.scale > 0 ? Real(1) : Real(0);
    for (index_t strip = 0; strip < strips(); ++strip) {
      using query_type = typename std::remove_cvref_t<decltype(problem_.q)>::value_type;
      const query_type* rows[item_scratch<Tiles>::rows];
      const int count = rows_in(strip);
      for (int row = 0; row < count; ++row, from = rows_.after(from)) {
        rows[row] =
            problem_.q.row(rows_.queries.batch, from.head, rows_.queries.begin + from.query);
      }
      session_.pack_queries(rows, count, problem_.depth(), sign,
                            scratch_.queries + strip * Tiles::query_strip_size(problem_.depth()));
    }
  }

  // All rows against keys [key_begin, key_end) of one source.
  template <class Source>
  void visit(const Source& source, const packed_source<Packed>& packed, index_t key_begin,
             index_t key_end) {
    const rows_of_sequence keys = source.keys.at(sequence_);
    terms_of<Source> terms = terms_for(source, keys);
    for_each_block(source, keys.count, key_begin, key_end, [&](index_t strip, int wanted) {
      visit_block(source, packed, keys, strip, wanted, terms);
    });
  }

  // Outputs and log-sum-exps of all rows.
  void finish() const {
    head_query from = at(0);
    for (index_t r = 0; r < row_count_; ++r, from = rows_.after(from)) {
      finish_row<Tiles>(problem_, rows_.queries, from, state(r));
    }
  }

  softmax_state<Real> state(index_t r) const {
    const index_t width = Tiles::padded(problem_.value_depth());
    return {scratch_.maximum[r], scratch_.sum[r], scratch_.weighted + r * width, width};
  }

  const tile_counts& counts() const { return counts_; }

 protected:
  index_t strips() const { return (row_count_ + strip_rows_ - 1) / strip_rows_; }
  int rows_in(index_t strip) const {
    const index_t left = row_count_ - strip * strip_rows_;
    return static_cast<int>(left < strip_rows_ ? left : strip_rows_);
  }
  head_query at(index_t r) const { return rows_.at(row_begin_ + r); }

  // Rows [first, first + count) of the item, with keys from first_key on.
  HEED_INLINE tile_rows_at rows_from(index_t first, index_t count, index_t first_key,
                                     index_t keys) const {
    const head_query from = at(first);
    return {{sequence_, from.head, from.query, first_key, rows_.queries.count, keys},
            static_cast<int>(count)};
  }

  // Calls visit(step) for the steps of keys [begin, end) that some row of the tile may see, in
  // ascending order; begin is the first key of a step.
  template <class Source, class Visit>
  void for_each_step(const Source& source, index_t keys, index_t begin, index_t end,
                     Visit visit) const {
    index_t next = begin / step_keys;
    const auto visit_range = [&](index_t first, index_t last) {
      if (first / step_keys > next) next = first / step_keys;
      if (last > end) last = end;
      for (; next * step_keys < last; ++next) visit(next);
    };
    if (!source.mask.hides_some()) {
      visit_range(begin, end);
    } else {
      const tile_rows_at all = rows_from(0, row_count_, begin, keys);
      const bool one_head = at(row_count_ - 1).head == all.first.head;
      key_ranges joined;
      all.for_each_extent(end, [&](const tile_extent& t) {
        // Rows of one query head: its list of runs, however long. Else the ranges of all heads.
        if (one_head && source.mask.runs_of != nullptr) {
          source.mask.for_each_key_run(t, run_visitor(visit_range));
        } else {
          joined = joined | source.mask.visible_keys(t);
        }
      });
      for (const key_ranges::range& range : joined) visit_range(range.begin, range.end);
    }
  }

  // Calls visit(strip, n) for all strips and blocks of keys, whose n steps are scratch_.wanted.
  template <class Source, class Visit>
  HEED_INLINE void for_each_block(const Source& source, index_t keys, index_t begin, index_t end,
                                  Visit visit) const {
    const auto most = static_cast<int>(block_keys_ / step_keys);
    int wanted = 0;
    const auto visit_wanted = [&] {
      for (index_t strip = 0; strip < strips(); ++strip) visit(strip, wanted);
      wanted = 0;
    };
    for_each_step(source, keys, begin, end, [&](index_t step) {
      scratch_.wanted[wanted++] = step;
      if (wanted == most) visit_wanted();
    });
    if (wanted > 0) visit_wanted();
  }

  template <class Source>
  using terms_of = source_terms<Tiles, Problem, Source>;
  template <class Source>
  terms_of<Source> terms_for(const Source& source, const rows_of_sequence& keys) const {
    return {problem_, source,      {rows_, row_begin_, row_count_, keys, key_head_},
            !packed_, block_keys_, scratch_.terms};
  }

  // One strip against the first `wanted` of the wanted steps.
  template <class Source>
  void visit_block(const Source& source, const packed_source<Packed>& packed,
                   const rows_of_sequence& keys, index_t strip, int wanted,
                   terms_of<Source>& terms) {
    constexpr Real log2_e = softmax_state<Real>::log2_e;
    const int rows = rows_in(strip);
    const int visited = score_block(source, packed, keys, strip, wanted, 0, terms, [&] {
      session_.begin(rows, change_scores(source.scores) ? log2_e : magnitude() * log2_e,
                     scratch_.maximum + strip * strip_rows_, scratch_.sum + strip * strip_rows_,
                     scratch_.shrink);
    });
    if (visited == 0) return;
    session_.finish();
    add_block(source, packed, keys, strip, 0, visited);
  }

  Real magnitude() const {
    return problem_.scale < 0 ? -problem_.scale : problem_.scale > 0 ? problem_.scale : Real(1);
  }

  // Scores of one strip against those of the first `wanted` steps in scratch_.wanted that it sees,
  // side by side in the session, described in scratch from `slot` on; begin() before the first.
  // Returns how many. Where the source has scores, they are applied, and the scale before them;
  // else it is still to come.
  template <class Source, class Begin>
  HEED_INLINE int score_block(const Source& source, const packed_source<Packed>& packed,
                              const rows_of_sequence& keys, index_t strip, int wanted, index_t slot,
                              terms_of<Source>& terms, Begin begin_block) {
    const int rows = rows_in(strip);
    const index_t depth = problem_.depth();
    const Packed* queries = scratch_.queries + strip * Tiles::query_strip_size(depth);
    const index_t s_stride = session_.stride();
    const Real scale = magnitude();
    tile_rows_at tile = rows_from(strip * strip_rows_, rows, 0, keys.count);
    terms.begin(strip * strip_rows_, rows);
    int visited = 0;
    for (int next = 0; next < wanted; ++next) {
      const index_t step = scratch_.wanted[next];
      const index_t begin = step * step_keys;
      const index_t end = begin + step_keys < keys.count ? begin + step_keys : keys.count;
      const int count = static_cast<int>(end - begin);
      const std::uint64_t full = ~std::uint64_t{0} >> (64 - count);
      std::uint64_t* bits = scratch_.bits + (slot + visited) * strip_rows_;
      std::uint64_t any = full;
      visibility seen = visibility::all;
      tile.first.k = begin;
      if (source.mask.hides_some()) {
        seen = source.mask.classify(tile, end);
        if (seen == visibility::some) {
          // Decided score by score; the product is not computed for a tile that turns out empty.
          const seen_bits decided = source.mask.visible(tile, count, bits);
          any = decided.by_any;
          seen = any == 0                 ? visibility::none
                 : decided.by_all == full ? visibility::all
                                          : visibility::some;
        }
        if (seen == visibility::none) {
          ++counts_.none;
          continue;
        }
      }
      ++(seen == visibility::all ? counts_.all : counts_.some);
      if (visited == 0) begin_block();
      Real* s = session_.scores();
      const int last = 64 - __builtin_clzll(any);  // one past the last key that some row sees
      if constexpr (terms_of<Source>::replace_product) {
        // The terms add what stands in its place.
      } else if (packed.keys != nullptr) {
        session_.score(queries, packed.keys + step * Tiles::key_step_size(depth), depth, last);
      } else {
        session_.score_rows(queries, rows_at(source.k, keys.batch, key_head_, keys.begin + begin),
                            count, depth);
      }
      terms.add(next, begin, last, s, s_stride);
      if (change_scores(source.scores)) {
        apply_to_tile<Real, Tiles::lanes>(source.scores, tile, last, scale, s, s_stride);
      }
      scratch_.partial[slot + visited] = seen == visibility::some;
      if (seen == visibility::some || count < step_keys) {
        for (int row = 0; row < rows; ++row) {
          if (seen == visibility::all) bits[row] = full;
          mask_scores<Real, Tiles::lanes>(s + row * s_stride, bits[row]);
        }
      }
      scratch_.steps[slot + visited] = step;
      scratch_.first[slot + visited] = static_cast<unsigned char>(__builtin_ctzll(any));
      scratch_.last[slot + visited] = static_cast<unsigned char>(last);
      session_.ready(last);
      ++visited;
    }
    return visited;
  }

  // O += P V for the steps [slot, slot + visited) in scratch, whose weights the session holds.
  template <class Source>
  HEED_INLINE void add_block(const Source& source, const packed_source<Packed>& packed,
                             const rows_of_sequence& keys, index_t strip, index_t slot,
                             int visited) {
    const int rows = rows_in(strip);
    const auto values = rows_at(source.v, keys.batch, key_head_, keys.begin);
    const index_t value_depth = problem_.value_depth();
    if (packed.values != nullptr) {
      // Steps lie apart as well as side by side.
      accumulate(
          strip, rows, slot, visited, values,
          [&](index_t step) { return packed.finite[step] != 0; },
          [&](index_t here) {
            return scratch_.last[here] == step_keys && scratch_.first[here + 1] == 0;
          },
          [&](index_t first, index_t last, Real* weighted, const Real* shrink) {
            session_.accumulate(first, last, scratch_.steps + slot, packed.values, value_depth,
                                weighted, shrink);
          });
    } else {
      accumulate(
          strip, rows, slot, visited, values,
          [&](index_t step) {
            const index_t begin = step * step_keys;
            const index_t left = keys.count - begin;
            return Tiles::all_finite(values.from(begin),
                                     static_cast<int>(left < step_keys ? left : step_keys),
                                     value_depth);
          },
          [](index_t) { return false; },
          [&](index_t first, index_t last, Real* weighted, const Real* shrink) {
            const index_t step = scratch_.steps[slot + first / step_keys];
            session_.accumulate_rows(first, last, values.from(step * step_keys + first % step_keys),
                                     value_depth, weighted, shrink);
          });
    }
  }

  // O += P V over the visited steps, in runs of neighbours and of what else joins(slot) the slot
  // behind it, each trimmed to the keys that some row sees: add(first column, one past the last, O,
  // shrink). A step that is masked in part and has a value that is not finite is added key by key
  // from the caller's `values`, since 0·∞ would leak what is masked.
  template <class Values, class Finite, class Joins, class Add>
  void accumulate(index_t strip, int rows, index_t slot, int visited, const Values& values,
                  Finite finite, Joins joins, Add add) {
    const index_t width = Tiles::padded(problem_.value_depth());
    Real* weighted = scratch_.weighted + strip * strip_rows_ * width;
    const Real* shrink = scratch_.shrink;
    int at = 0;
    while (at < visited) {
      const index_t here = slot + at;
      const index_t step = scratch_.steps[here];
      const bool by_key = scratch_.partial[here] != 0 && !finite(step);
      int run = 1;
      while (!by_key && at + run < visited &&
             (scratch_.steps[here + run] == scratch_.steps[here + run - 1] + 1 ||
              joins(here + run - 1)) &&
             (scratch_.partial[here + run] == 0 || finite(scratch_.steps[here + run]))) {
        ++run;
      }
      if (by_key) {
        add_visible(rows, slot, at, values.from(step * step_keys), weighted, shrink);
      } else {
        add(at * step_keys + scratch_.first[here],
            (at + run - 1) * step_keys + scratch_.last[here + run - 1], weighted, shrink);
      }
      shrink = nullptr;
      at += run;
    }
  }

  template <class Values>
  HEED_NOINLINE void add_visible(int rows, index_t slot, int at, const Values& values,
                                 Real* weighted, const Real* shrink) const {
    const index_t depth = problem_.value_depth(), width = Tiles::padded(depth);
    const std::uint64_t* bits = scratch_.bits + (slot + at) * strip_rows_;
    for (int row = 0; row < rows; ++row) {
      Real* to = weighted + row * width;
      if (shrink != nullptr) {
        for (index_t d = 0; d < depth; ++d) to[d] *= shrink[row];
      }
      for (int key = 0; key < scratch_.last[slot + at]; ++key) {
        if ((bits[row] >> key & 1) == 0) continue;
        const Real weight = session_.weight(row, at * step_keys + key);
        for (index_t d = 0; d < depth; ++d) to[d] += weight * read_at<Real>(values[key] + d);
      }
    }
  }

  const Problem& problem_;
  item_scratch<Tiles>& scratch_;
  Session& session_;
  bool packed_;
  int strip_rows_;
  index_t sequence_, key_head_, row_begin_, row_count_, block_keys_;
  query_rows rows_;
  tile_counts counts_;
};

}  // namespace engine
HEED_NAMESPACE_END
