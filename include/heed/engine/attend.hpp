// Runs a checked problem: cuts it into items, packs keys and values once per KV head, runs the tile
// loop on every item, merges the states of items that share their rows.
#pragma once

#include "../core/workspace.hpp"
#include "plan.hpp"
#include "row_loop.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

template <class Tiles, class Problem>
class attend {
 public:
  using Real = typename Tiles::real;
  using Packed = typename Tiles::packed;
  static constexpr index_t step_keys = Tiles::step_keys;
  static constexpr index_t strip_rows = Tiles::strip_rows;
  // Rows of weights are kept whole, for normalisers, transforms and observers.
  static constexpr bool hooked = is_hooked<Problem>;

  attend(const Problem& problem, workspace& memory) : problem_(problem), memory_(memory) {}

  template <class Executor>
  void run(Executor& executor) {
    if constexpr (hooked) clear_observed();
    if (problem_.q.extent(0) * problem_.q.extent(1) * problem_.q.extent(2) == 0) return;
    plan(executor.workers());
    if (problem_.queries.lengths != nullptr) {
      for (index_t s = 0; s < problem_.queries.sequences; ++s) {
        clear_rows(s, problem_.queries.lengths[s]);
      }
    }
    const index_t pairs = problem_.queries.sequences * problem_.key_heads();
    // Waves of (sequence, KV head) pairs whose packed keys and values fit the budget together.
    for (index_t first = 0; first < pairs;) {
      index_t last = first;
      index_t bytes = 0;
      do {
        bytes += packed_bytes(last / problem_.key_heads());
        ++last;
      } while (last < pairs && bytes + packed_bytes(last / problem_.key_heads()) <= budget_);
      run_wave(executor, first, last);
      first = last;
    }
  }

 private:
  // Where one pair's packed steps lie in the wave's buffers.
  struct pair_plan {
    index_t first_item = 0;   // items of earlier pairs
    index_t first_step = 0;   // packed steps of earlier pairs of the wave
    index_t first_state = 0;  // partial states (rows × splits) of earlier pairs of the wave
    index_t first_sum = 0;    // column sums of the items of earlier pairs of the wave
  };

  index_t rows_of(index_t sequence) const {
    return problem_.queries.at(sequence).count * problem_.group();
  }
  // Steps of one source and of all sources for one sequence.
  template <class Source>
  static index_t steps_of(const Source& source, index_t sequence) {
    return ceil_div(source.keys.at(sequence).count, step_keys);
  }
  index_t all_steps(index_t sequence) const {
    return std::apply([&](const auto&... source) { return (steps_of(source, sequence) + ...); },
                      problem_.sources);
  }
  bool in_place(index_t sequence) const {
    return rows_of(sequence) <= sizes_.rows_in_place &&
           rows_of(sequence) <= Tiles::most_rows_in_place;
  }
  index_t step_bytes() const {
    return (Tiles::key_step_size(problem_.depth()) +
            Tiles::value_step_size(problem_.value_depth())) *
           static_cast<index_t>(sizeof(Packed));
  }
  index_t packed_bytes(index_t sequence) const {
    return in_place(sequence) ? 0 : all_steps(sequence) * step_bytes();
  }
  // Tiles of rows, or runs of them where rows are kept whole.
  index_t tiles_of(index_t sequence) const {
    return ceil_div(rows_of(sequence), tile_rows_ * item_tiles_);
  }
  index_t splits_of(index_t sequence) const {
    if constexpr (hooked) return 1;
    return key_splits(sizes_, item_keys_, all_steps(sequence) * step_keys);
  }
  index_t items_of(index_t sequence) const { return tiles_of(sequence) * splits_of(sequence); }
  index_t state_size() const { return 2 + Tiles::padded(problem_.value_depth()); }

  // Output of query rows from `first` on of one batch entry: they attend to nothing. Behind the end
  // of a list there is no row to write.
  void clear_rows(index_t batch, index_t first) const {
    using out_view = std::remove_cvref_t<decltype(problem_.out)>;
    using out_type = typename out_view::value_type;
    for (index_t head = 0; head < problem_.out.extent(1); ++head) {
      for (index_t q = first; q < problem_.out.extent(2); ++q) {
        if constexpr (is_tensor_view<out_view>) {
          out_type* row = problem_.out.row(batch, head, q);
          for (index_t d = 0; d < problem_.value_depth(); ++d) row[d] = narrow<out_type>(Real(0));
        }
        if (problem_.lse.data() != nullptr) problem_.lse(batch, head, q) = minus_infinity<Real>();
      }
    }
  }

  void plan(int workers) {
    workers_ = workers;
    index_t all_rows = 0;
    for (index_t s = 0; s < problem_.queries.sequences; ++s) {
      all_rows += rows_of(s) * problem_.key_heads();
    }
    tile_rows_ = tile_rows(sizes_, all_rows, strip_rows);
    std::apply(
        [&](const auto&... source) {
          ((tile_rows_ = aligned_rows(tile_rows_, source.mask.query_block, strip_rows)), ...);
        },
        problem_.sources);
    index_t all_keys = 0, largest = 1;  // no rows at all still have a tile
    for (index_t s = 0; s < problem_.queries.sequences; ++s) {
      all_keys += tiles_of(s) * problem_.key_heads() * all_steps(s) * step_keys;
      largest = rows_of(s) > largest ? rows_of(s) : largest;
    }
    item_keys_ = item_keys(sizes_, all_keys);
    if constexpr (hooked) plan_rows(largest);
    if (largest < tile_rows_) tile_rows_ = ceil_div(largest, strip_rows) * strip_rows;
    block_keys_ =
        block_keys(sizes_, problem_.depth(), problem_.value_depth(),
                   static_cast<index_t>(sizeof(Packed)), step_keys, Tiles::most_block_keys);
    budget_ = sizes_.packed_bytes * workers;
  }

  // Tiles whose rows of scores stay in the cache, and as many of them per item as leave a number of
  // items that does not grow with the rows: each has its own sums over queries.
  void plan_rows(index_t largest) {
    for (index_t s = 0; s < problem_.queries.sequences; ++s) {
      const index_t keys = all_steps(s) * step_keys;
      row_keys_ = keys > row_keys_ ? keys : row_keys_;
    }
    row_keys_ = row_keys_ > 0 ? row_keys_ : step_keys;
    const index_t wanted = tile_rows_;
    tile_rows_ =
        row_tile(sizes_, wanted, row_keys_ * static_cast<index_t>(sizeof(Real)), strip_rows);
    index_t item_rows = ceil_div(largest, sizes_.row_items);
    item_rows = item_rows > wanted ? item_rows : wanted;
    item_tiles_ = ceil_div(item_rows, tile_rows_);
  }

  // Item → pair by bisection, then tile and split within the pair.
  index_t pair_of(index_t item, index_t first, index_t last) const {
    while (last - first > 1) {
      const index_t middle = first + (last - first) / 2;
      (pairs_[middle - wave_].first_item <= item ? first : last) = middle;
    }
    return first;
  }

  template <class Executor>
  void run_wave(Executor& executor, index_t first, index_t last) {
    wave_ = first;
    index_t items = 0, steps = 0, states = 0, sums = 0;
    const index_t bytes_of_terms = term_bytes<Tiles>(
        problem_, sizes_of_terms<Tiles>(tile_rows_, problem_.depth(), block_keys_));
    const auto lay_out = [&](heed::detail::bump& memory) {
      pairs_ = memory.take<pair_plan>(last - first);
      step_pair_ = nullptr;
      items = steps = states = sums = 0;
      for (index_t pair = first; pair < last; ++pair) {
        const index_t sequence = pair / problem_.key_heads();
        if (pairs_ != nullptr) pairs_[pair - first] = {items, steps, states, sums};
        items += items_of(sequence);
        sums += items_of(sequence) * sums_size(sequence);
        if (!in_place(sequence)) steps += all_steps(sequence);
        const index_t splits = splits_of(sequence);
        if (splits > 1) states += rows_of(sequence) * splits;
      }
      step_pair_ = memory.take<index_t>(steps);
      packed_keys_ = memory.take<Packed>(steps * Tiles::key_step_size(problem_.depth()));
      packed_values_ = memory.take<Packed>(steps * Tiles::value_step_size(problem_.value_depth()));
      finite_ = memory.take<unsigned char>(steps);
      states_ = memory.take<Real>(states * state_size());
      sums_ = memory.take<Real>(sums);
      scratch_ = memory.take<item_scratch<Tiles>>(workers_);
      for (int worker = 0; worker < workers_; ++worker) {
        item_scratch<Tiles> scratch;
        scratch.take(memory, tile_rows_, problem_.depth(), problem_.value_depth(), block_keys_,
                     row_keys_, bytes_of_terms);
        if (scratch_ != nullptr) scratch_[worker] = scratch;
      }
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump memory(memory_.reserve(counted.bytes()));
    lay_out(memory);

    for (index_t pair = first; pair < last; ++pair) {
      const index_t sequence = pair / problem_.key_heads();
      if (in_place(sequence)) continue;
      const index_t begin = pairs_[pair - first].first_step;
      for (index_t s = 0; s < all_steps(sequence); ++s) step_pair_[begin + s] = pair;
    }
    // Where no pair has more than one item, that item packs for itself: nobody has to wait for the
    // others, and what was packed is still in this core's cache.
    items_pack_ = true;
    for (index_t pair = first; pair < last; ++pair) {
      items_pack_ = items_pack_ && items_of(pair / problem_.key_heads()) <= 1;
    }
    if (steps > 0 && !items_pack_) {
      executor.run(steps, [this](index_t step, int) { pack_step(step); });
    }
    executor.run(items, [this, first, last](index_t item, int worker) {
      run_item(item, pair_of(item, first, last), scratch_[worker]);
    });
    if (sums > 0) {
      executor.run(last - first, [this, first](index_t pair, int) { add_up_pair(first + pair); });
    }
    if (states > 0) {
      executor.run(last - first, [this, first](index_t pair, int) { merge_pair(first + pair); });
    }
  }

  // Packs one step of 64 keys of whichever source it belongs to.
  void pack_step(index_t wave_step) {
    const index_t pair = step_pair_[wave_step];
    const index_t sequence = pair / problem_.key_heads(), head = pair % problem_.key_heads();
    index_t step = wave_step - pairs_[pair - wave_].first_step;
    const auto pack = [&](const auto& source) {
      const index_t steps = steps_of(source, sequence);
      if (step >= 0 && step < steps) {
        const rows_of_sequence keys = source.keys.at(sequence);
        const index_t begin = step * step_keys;
        const index_t left = keys.count - begin;
        const int count = static_cast<int>(left < step_keys ? left : step_keys);
        Tiles::pack_keys(rows_at(source.k, keys.batch, head, keys.begin + begin), count,
                         problem_.depth(),
                         packed_keys_ + wave_step * Tiles::key_step_size(problem_.depth()));
        finite_[wave_step] = Tiles::pack_values(
            rows_at(source.v, keys.batch, head, keys.begin + begin), count, problem_.value_depth(),
            packed_values_ + wave_step * Tiles::value_step_size(problem_.value_depth()));
      }
      step -= steps;
    };
    std::apply([&](const auto&... source) { (pack(source), ...); }, problem_.sources);
  }

  void run_item(index_t item, index_t pair, item_scratch<Tiles>& scratch) {
    const index_t sequence = pair / problem_.key_heads(), head = pair % problem_.key_heads();
    const pair_plan& plan = pairs_[pair - wave_];
    const index_t splits = splits_of(sequence);
    const index_t within = item - plan.first_item;
    // Last rows first: under a causal mask they are the longest.
    const index_t tile = tiles_of(sequence) - 1 - within / splits;
    const index_t split = within % splits;
    const index_t rows = tile_rows_ * item_tiles_;
    const index_t row_begin = tile * rows;
    const index_t left = rows_of(sequence) - row_begin;
    const index_t row_count = left < rows ? left : rows;
    const bool packed = !in_place(sequence);
    if (packed && items_pack_) {
      for (index_t s = 0; s < all_steps(sequence); ++s) pack_step(plan.first_step + s);
    }
    if constexpr (hooked) {
      run_rows(sequence, head, plan, tile, row_begin, row_count, packed, scratch);
      return;
    }
    typename Tiles::session session(packed, row_count, scratch.scores, block_keys_);
    tile_loop<Tiles, Problem> loop(problem_, scratch, session, packed, sequence, head, row_begin,
                                   row_count, block_keys_);
    loop.start(split == 0);
    for_each_source(plan, sequence, packed, [&](const auto& source, const auto& where, int) {
      const index_t steps = steps_of(source, sequence);
      const index_t keys = source.keys.at(sequence).count;
      // Each item takes an equal share of every source, in whole steps.
      const index_t begin = steps * split / splits * step_keys;
      index_t end = steps * (split + 1) / splits * step_keys;
      if (end > keys) end = keys;
      loop.visit(source, where, begin, end);
    });
    if (splits == 1) {
      loop.finish();
    } else {
      for (index_t r = 0; r < row_count; ++r) {
        const softmax_state<Real> state = loop.state(r);
        Real* to = state_of(plan, splits, row_begin + r, split);
        to[0] = state.maximum;
        to[1] = state.sum;
        for (index_t d = 0; d < state.depth; ++d) to[2 + d] = state.weighted[d];
      }
    }
    count(loop.counts());
  }

  // Calls use(source, its packed steps, its number) for all sources.
  template <class Use>
  void for_each_source(const pair_plan& plan, index_t sequence, bool packed, Use use) const {
    index_t step = plan.first_step;
    int number = 0;
    const auto visit = [&](const auto& source) {
      packed_source<Packed> where;
      if (packed) {
        where.keys = packed_keys_ + step * Tiles::key_step_size(problem_.depth());
        where.values = packed_values_ + step * Tiles::value_step_size(problem_.value_depth());
        where.finite = finite_ + step;
        step += steps_of(source, sequence);
      }
      use(source, where, number++);
    };
    std::apply([&](const auto&... source) { (visit(source), ...); }, problem_.sources);
  }

  void count(const tile_counts& counts) const {
    if (problem_.counts == nullptr) return;
    __atomic_fetch_add(&problem_.counts->all, counts.all, __ATOMIC_RELAXED);
    __atomic_fetch_add(&problem_.counts->some, counts.some, __ATOMIC_RELAXED);
    __atomic_fetch_add(&problem_.counts->none, counts.none, __ATOMIC_RELAXED);
  }

  // An item's tiles of rows one after the other, each against all keys.
  void run_rows(index_t sequence, index_t head, const pair_plan& plan, index_t item,
                index_t row_begin, index_t row_count, bool packed, item_scratch<Tiles>& scratch) {
    Real* sums = sums_ + plan.first_sum + item * sums_size(sequence);
    for (index_t i = 0; i < sums_size(sequence); ++i) sums[i] = 0;
    for (index_t row = 0; row < row_count; row += tile_rows_) {
      const index_t here = row_count - row < tile_rows_ ? row_count - row : tile_rows_;
      typename Tiles::session session(packed, here, scratch.scores, row_keys_);
      row_loop<Tiles, Problem> loop(problem_, scratch, session, packed, sequence, head,
                                    row_begin + row, here, block_keys_, row_keys_);
      loop.start(true);
      index_t column = 0, local = 0;
      for_each_source(plan, sequence, packed,
                      [&](const auto& source, const auto& where, int number) {
                        loop.score(source, where, number, column, local);
                        column += source.k.extent(2);
                        local += source.keys.at(sequence).count;
                      });
      loop.weigh(sums, local);
      for_each_source(plan, sequence, packed,
                      [&](const auto& source, const auto& where, int number) {
                        loop.add(source, where, number);
                      });
      loop.finish();
      count(loop.counts());
    }
  }

  // Numbers that an item keeps for observers of sums over queries.
  index_t sums_size(index_t sequence) const {
    if constexpr (!hooked) {
      return 0;
    } else {
      return column_observers<std::remove_cvref_t<decltype(problem_.hooks)>> * problem_.group() *
             keys_of(sequence);
    }
  }
  index_t keys_of(index_t sequence) const {
    return std::apply([&](const auto&... source) { return (source.keys.at(sequence).count + ...); },
                      problem_.sources);
  }

  // Sums over the queries of a pair's items, added in their order, to the observers.
  void add_up_pair(index_t pair) const {
    if constexpr (hooked) {
      const index_t sequence = pair / problem_.key_heads(), head = pair % problem_.key_heads();
      const index_t size = sums_size(sequence), items = items_of(sequence);
      Real* sums = sums_ + pairs_[pair - wave_].first_sum;
      for (index_t item = 1; item < items; ++item) {
        for (index_t i = 0; i < size; ++i) sums[i] += sums[item * size + i];
      }
      if (items == 0) return;
      for_each_hook(problem_.hooks, [&](const auto& hook) {
        if constexpr (column_observer<std::remove_cvref_t<decltype(hook)>>) {
          for (index_t h = head * problem_.group(); h < (head + 1) * problem_.group(); ++h) {
            index_t column = 0;
            for_each_source({}, sequence, false, [&](const auto& source, const auto&, int) {
              const rows_of_sequence keys = source.keys.at(sequence);
              hook.store_columns(keys.batch, h, column + keys.begin, sums, keys.count);
              column += source.k.extent(2);
              sums += keys.count;
            });
          }
        }
      });
    }
  }

  // What observers write holds nothing before the rows come: not all rows and keys exist.
  void clear_observed() const {
    if constexpr (hooked) {
      for_each_hook(problem_.hooks, [&](const auto& hook) {
        if constexpr (requires { hook.clear(); }) hook.clear();
      });
    }
  }

  Real* state_of(const pair_plan& plan, index_t splits, index_t row, index_t split) const {
    return states_ + (plan.first_state + row * splits + split) * state_size();
  }
  softmax_state<Real> stored(Real* at) const {
    return {at[0], at[1], at + 2, Tiles::padded(problem_.value_depth())};
  }

  // States of a row's splits, merged in order of their keys.
  void merge_pair(index_t pair) {
    const index_t sequence = pair / problem_.key_heads(), head = pair % problem_.key_heads();
    const index_t splits = splits_of(sequence);
    if (splits == 1) return;
    const pair_plan& plan = pairs_[pair - wave_];
    const index_t rows = rows_of(sequence);
    const query_rows rows_of_pair(problem_, sequence, head);
    for (index_t r = 0; r < rows; ++r) {
      softmax_state<Real> state = stored(state_of(plan, splits, r, 0));
      for (index_t split = 1; split < splits; ++split) {
        state.merge(stored(state_of(plan, splits, r, split)));
      }
      finish_row<Tiles>(problem_, rows_of_pair.queries, rows_of_pair.at(r), state);
    }
  }

  const Problem& problem_;
  workspace& memory_;
  const blocking sizes_ = blocking::current();
  int workers_ = 1;
  bool items_pack_ = false;
  index_t tile_rows_ = 0, item_tiles_ = 1, row_keys_ = 0, item_keys_ = 0, block_keys_ = 0,
          budget_ = 0, wave_ = 0;
  pair_plan* pairs_ = nullptr;
  index_t* step_pair_ = nullptr;
  Packed* packed_keys_ = nullptr;
  Packed* packed_values_ = nullptr;
  unsigned char* finite_ = nullptr;
  Real* states_ = nullptr;
  Real* sums_ = nullptr;
  item_scratch<Tiles>* scratch_ = nullptr;
};

}  // namespace engine
HEED_NAMESPACE_END
