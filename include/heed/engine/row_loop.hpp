// The tile loop where whole rows of weights are wanted: a tile of query rows of one KV head against
// all of its keys, every score computed once.
//
//   for each source:  S = scores(scale·Q Kᵀ), masked scores leave       [rows][visible keys], kept
//   for each row:     P = normalize(S), transforms, observers           exact, over all keys
//   for each source:  O = O + P V
//
// The scores of a few rows and all keys fit the second-level cache, so that keeping them costs less
// than computing them again once the log-sum-exp is known, and a row's weights lie side by side for
// whatever needs all of them: a threshold (sparsemax), a redistribution, the k largest.
#pragma once

#include "row_hooks.hpp"
#include "tile_loop.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

template <class Tiles, class Problem>
class row_loop : public tile_loop<Tiles, Problem> {
  using base = tile_loop<Tiles, Problem>;

 public:
  using typename base::Packed;
  using typename base::Real;
  using typename base::Session;
  using row_type = weight_row<Real, Tiles::lanes>;
  using base::step_keys;

  // `row_keys`: keys of all sources in whole steps, distance between rows of the kept scores.
  row_loop(const Problem& problem, item_scratch<Tiles>& scratch, Session& session, bool packed,
           index_t sequence, index_t key_head, index_t row_begin, index_t row_count,
           index_t block_keys, index_t row_keys)
      : base(problem, scratch, session, packed, sequence, key_head, row_begin, row_count,
             block_keys),
        slots_(row_keys / step_keys),
        stride_(session.stride()) {
    for (index_t strip = 0; strip < this->strips(); ++strip) {
      scratch.scored[strip] = scratch.added[strip] = 0;
    }
  }

  // Scores of all rows and the keys of source number `number`, whose first key is at `column` on
  // the key axis of the call, and at `local` among the keys of the sequence.
  template <class Source>
  void score(const Source& source, const packed_source<Packed>& packed, int number, index_t column,
             index_t local) {
    const rows_of_sequence keys = source.keys.at(this->sequence_);
    auto terms = this->terms_for(source, keys);
    this->for_each_block(source, keys.count, 0, keys.count, [&](index_t strip, int wanted) {
      const index_t slot = strip * slots_ + scratch().scored[strip];
      this->session_.resume(this->rows_in(strip), scores(strip, scratch().scored[strip]));
      const int visited =
          this->score_block(source, packed, keys, strip, wanted, slot, terms, [] {});
      for (int i = 0; i < visited; ++i) {
        const index_t key = scratch().steps[slot + i] * step_keys;
        const index_t left = keys.count - key;
        scratch().runs[slot + i] = {key,
                                    column + keys.begin + key,
                                    local + key,
                                    keys.count,
                                    static_cast<int>(left < step_keys ? left : step_keys),
                                    number};
      }
      scratch().scored[strip] += visited;
    });
  }

  // Scores become weights, and are shown to the hooks. `sums` has, for every observer of sums over
  // queries, [query heads of the group][column_keys].
  void weigh(Real* sums, index_t column_keys) {
    for (index_t strip = 0; strip < this->strips(); ++strip) {
      if constexpr (wants_bits) find_visible(strip);
      for_each_weight_row(strip, [&](int, const row_type& row) {
        for_each_hook(this->problem_.hooks, [&](const auto& hook) {
          if constexpr (score_observer<std::remove_cvref_t<decltype(hook)>>) {
            hook.observe_scores(row);
          }
        });
      });
      normalize(strip);
      for_each_weight_row(strip, [&](int, row_type& row) {
        for_each_hook(this->problem_.hooks, [&](const auto& hook) {
          using hook_type = std::remove_cvref_t<decltype(hook)>;
          if constexpr (weight_transform<hook_type>) hook.transform(row);
        });
        Real* of_observer = sums;
        for_each_hook(this->problem_.hooks, [&](const auto& hook) {
          using hook_type = std::remove_cvref_t<decltype(hook)>;
          const row_type& seen = row;
          if constexpr (weight_observer<hook_type>) hook.observe(seen);
          if constexpr (column_observer<hook_type>) {
            hook.add_columns(seen, of_observer + row.head_in_group * column_keys);
            of_observer += this->problem_.group() * column_keys;
          }
        });
      });
    }
  }

  // Adds the values of source number `number`, sources in order.
  template <class Source>
  void add(const Source& source, const packed_source<Packed>& packed, int number) {
    const rows_of_sequence keys = source.keys.at(this->sequence_);
    this->for_each_block(source, keys.count, 0, keys.count, [&](index_t strip, int wanted) {
      const index_t first = scratch().added[strip], behind = scratch().wanted[wanted - 1];
      const index_t slot = strip * slots_ + first;
      int count = 0;
      while (first + count < scratch().scored[strip] &&
             scratch().runs[slot + count].source == number &&
             scratch().steps[slot + count] <= behind) {
        ++count;
      }
      if (count == 0) return;
      this->session_.resume(this->rows_in(strip), scores(strip, first));
      this->add_block(source, packed, keys, strip, slot, count);
      scratch().added[strip] += count;
    });
  }

  // Outputs and log-sum-exps of all rows.
  void finish() const {
    const index_t width = Tiles::padded(this->problem_.value_depth());
    for (index_t r = 0; r < this->row_count_; ++r) {
      const head_query from = this->at(r);
      Real* weighted = scratch().weighted + r * width;
      for_each_hook(this->problem_.hooks, [&](const auto& hook) {
        if constexpr (output_function<std::remove_cvref_t<decltype(hook)>>) {
          hook.finish(weighted, this->problem_.value_depth(), from.head);
        }
      });
      // The weights are normalised: the state's own sum has done its work.
      finish_row<Tiles>(this->problem_, this->rows_.queries, from,
                        softmax_state<Real>{0, 1, weighted, width});
      if (this->problem_.lse.data() != nullptr) {
        this->problem_.lse(this->rows_.queries.batch, from.head,
                           this->rows_.queries.begin + from.query) = this->state(r).log_sum_exp();
      }
    }
  }

 private:
  using Normalizer = std::remove_cvref_t<decltype(std::declval<Problem>().normalizer)>;
  using Hooks = std::remove_cvref_t<decltype(std::declval<Problem>().hooks)>;
  static constexpr bool plain_softmax = std::is_same_v<Normalizer, softmax_normalizer>;
  static constexpr bool wants_bits = any_wants_visibility<Hooks> || wants_visibility<Normalizer>;

  item_scratch<Tiles>& scratch() const { return this->scratch_; }
  // Scores of a strip from its slot `slot` on.
  Real* scores(index_t strip, index_t slot) const {
    return scratch().scores + strip * this->strip_rows_ * stride_ + slot * step_keys;
  }

  template <class Visit>
  HEED_INLINE void for_each_weight_row(index_t strip, Visit visit) const {
    const rows_of_sequence& queries = this->rows_.queries;
    for (int r = 0; r < this->rows_in(strip); ++r) {
      const head_query from = this->at(strip * this->strip_rows_ + r);
      row_type row;
      row.sequence = this->sequence_;
      row.batch = queries.batch;
      row.row = queries.begin + from.query;
      row.head = from.head;
      row.query = from.query;
      row.queries = queries.count;
      row.head_in_group = from.head - this->rows_.first_head;
      row.weights = scores(strip, 0) + r * stride_;
      row.runs = scratch().runs + strip * slots_;
      row.run_count = scratch().scored[strip];
      row.bits = scratch().bits + strip * slots_ * this->strip_rows_ + r;
      row.bits_stride = this->strip_rows_;
      visit(r, row);
    }
  }

  void normalize(index_t strip) {
    const index_t used = scratch().scored[strip] * step_keys;
    if constexpr (plain_softmax) {
      Real* sum = scratch().sum + strip * this->strip_rows_;
      if (used > 0) {
        Tiles::softmax(scores(strip, 0), stride_, this->rows_in(strip), static_cast<int>(used),
                       softmax_state<Real>::log2_e, scratch().maximum + strip * this->strip_rows_,
                       sum, scratch().shrink);
        for (int r = 0; r < this->strip_rows_; ++r) scratch().shrink[r] = 1;
      }
      for_each_weight_row(strip, [&](int r, row_type& row) {
        using pack_type = typename row_type::pack_type;
        const Real factor = sum[r] == 0 ? Real(0) : 1 / sum[r];
        if (sum[r] != sum[r]) {
          poison(strip, row, factor);
        } else {
          row.map([&](pack_type w) HEED_LAMBDA_INLINE { return w * factor; });
        }
      });
    } else {
      for_each_weight_row(strip,
                          [&](int, row_type& row) { this->problem_.normalizer.normalize(row); });
    }
  }

  // A row with a NaN that it sees: all its weights are NaN, but those that it does not see stay 0.
  HEED_NOINLINE void poison(index_t strip, row_type& row, Real nan) const {
    for (index_t i = 0; i < row.run_count; ++i) {
      const bool decided = scratch().partial[strip * slots_ + i] != 0;
      const std::uint64_t seen = decided ? row.visible(i) : ~std::uint64_t{0};
      for (int c = 0; c < step_keys; ++c) {
        const bool visible = c < row.runs[i].count && (seen >> c & 1) != 0;
        row.weights[i * step_keys + c] = visible ? nan : Real(0);
      }
    }
  }

  // Bits of what every row sees, from its scores: a score of −∞ is not seen either.
  void find_visible(index_t strip) {
    std::uint64_t* bits = scratch().bits + strip * slots_ * this->strip_rows_;
    for_each_weight_row(strip, [&](int r, const row_type& row) {
      using pack_type = typename row_type::pack_type;
      const pack_type masked(masked_score<Real>);
      for (index_t i = 0; i < row.run_count; ++i) {
        std::uint64_t seen = 0;
        for (int c = 0; c < step_keys; c += row_type::lanes) {
          const pack_type s = load_pack<pack_type>(row.weights + i * step_keys + c);
          seen |= to_bits(!(s <= masked)) << c;
        }
        bits[i * this->strip_rows_ + r] = seen;
      }
    });
  }

  index_t slots_;
  index_t stride_;
};

}  // namespace engine
HEED_NAMESPACE_END
