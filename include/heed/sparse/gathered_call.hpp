// What a call over gathered operands (core/gathered.hpp) does with the modifiers that its user
// wrote for the operands themselves: masks and scores see the positions that rows come from, and
// the log-sum-exp goes to the row that a list names.
//
// For lists of keys (row_list.hpp) and for any other gathered order: sorted by hash, clusters,
// regions.
#pragma once

#include <span>
#include <type_traits>
#include <vector>

#include "../core/error.hpp"
#include "../core/gathered.hpp"
#include "../core/position.hpp"
#include "../core/score_term.hpp"
#include "../dense/attention.hpp"
#include "../dense/options.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// Where rows of gathered operands come from. Sequence s of the call has the lists of batch
// s / lists / folds and head group s / lists % folds; head h of it is the operands' head
// group·heads_per_fold + first_head + h.
struct original_positions {
  tensor_view<const index_t, 3> query_rows, key_rows;  // [S, 1, n]
  index_t lists = 1, folds = 1;
  index_t heads_per_fold = 0, first_head = 0;
  index_t queries = 0, keys = 0;  // lengths of the operands
  call_shape shape;               // of the operands, for masks and scores that check their arrays

  HEED_INLINE position of(const position& p) const {
    const index_t group = p.batch / lists;
    return {group / folds,
            group % folds * heads_per_fold + first_head + p.head,
            query_rows(p.batch, 0, p.q),
            key_rows.empty() ? 0 : key_rows(p.batch, 0, p.k),
            queries,
            keys};
  }
};

// A mask or a score on the positions that gathered rows come from, key by key.
template <mask_function Mask>
struct original_mask {
  Mask mask;
  original_positions where;
  bool operator()(const position& p) const {
    return mask(static_cast<const position&>(where.of(p)));
  }
  // What holds for the hull of the rows holds for the rows.
  visibility tile(const tile_extent& t) const {
    if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) return visibility::none;
    const position first = where.of(position{t.batch, t.head, t.q_begin, t.k_begin, 0, 0});
    tile_extent hull{first.batch, first.head, first.q,       first.q,
                     first.k,     first.k,    where.queries, where.keys};
    for (index_t q = t.q_begin; q < t.q_end; ++q) {
      hull.q_begin = min(hull.q_begin, where.query_rows(t.batch, 0, q));
      hull.q_end = max(hull.q_end, where.query_rows(t.batch, 0, q) + 1);
    }
    for (index_t k = t.k_begin; k < t.k_end; ++k) {
      hull.k_begin = min(hull.k_begin, where.key_rows(t.batch, 0, k));
      hull.k_end = max(hull.k_end, where.key_rows(t.batch, 0, k) + 1);
    }
    return tile_visibility(mask, hull);
  }
  void check(const call_shape&) const { check_modifier(mask, where.shape); }
};
template <score_function Score>
struct original_score {
  static_assert(
      !score_term<Score>,
      "heed: terms such as relative embeddings need queries and keys at their own places, "
      "not at those of listed rows");
  Score score;
  original_positions where;
  template <class S>
  requires std::is_arithmetic_v<S> S operator()(S s, const position& p) const {
    return static_cast<S>(score(s, static_cast<const position&>(where.of(p))));
  }
  // Where the score is a mask too (a bias of −∞).
  bool visible(const position& p) const
      requires(requires(const Score& own, const position& at) { own.visible(at); }) {
    return score.visible(static_cast<const position&>(where.of(p)));
  }
  template <class Real, int N>
  typename pack<Real, N>::mask visible(const pack_position<Real, N>& p) const
      requires(requires(const Score& own, const position& at) { own.visible(at); }) {
    typename pack<Real, N>::mask seen(false);
    position at{p.batch, p.head, p.q, p.first_key, p.queries, p.keys};
    for (int lane = 0; lane < p.valid; ++lane, ++at.k) {
      seen.bits[lane] = -static_cast<int>(visible(at));
    }
    return seen;
  }
  void check(const call_shape&) const { check_modifier(score, where.shape); }
};
template <class M>
auto at_original(const M& modifier, const original_positions& where) {
  if constexpr (mask_function<M>) {
    return original_mask<M>{modifier, where};
  } else if constexpr (score_function<M>) {
    return original_score<M>{modifier, where};
  } else {
    return modifier;
  }
}

// The log-sum-exp of the operands, which the gathered call does not see: it has q's batch, heads
// and length, rows of its own, and no memory of q or the others.
template <class M, class... Others>
void check_log_sum_exp([[maybe_unused]] const M& modifier,
                       [[maybe_unused]] const heed::detail::operand& q,
                       [[maybe_unused]] const Others&... others) {
  if constexpr (heed::detail::is_lse_to<M>) {
    const auto lse = heed::detail::erase("lse", modifier.view.template lifted<3>());
    heed::detail::check_output(q, lse);
    heed::detail::check_disjoint(lse, q);
    (heed::detail::check_disjoint(lse, others), ...);
  }
}

// A modifier as the gathered call takes it, and what is left to do after the call.
template <class M>
struct carried {
  M own;
  original_positions where;
  carried(const M& modifier, const original_positions& positions, std::span<const index_t>)
      : own(modifier), where(positions) {}
  auto modifier(index_t) const { return at_original(own, where); }
  void finish() const {}
};
template <class T, int Rank>
struct carried<lse_to<T, Rank>> {
  tensor_view<T, 3> target;
  original_positions where;
  std::span<const index_t> query_counts;
  typename tensor_view<T, 3>::shape extents;
  std::vector<T> listed;

  carried(const lse_to<T, Rank>& own, const original_positions& positions,
          std::span<const index_t> counts)
      : target(own.view.template lifted<3>()),
        where(positions),
        query_counts(counts),
        extents{positions.query_rows.extent(0), 0, positions.query_rows.extent(2)} {}
  // Of the log-sum-exp in the order of the lists, with that many heads per sequence.
  lse_to<T, 3> modifier(index_t heads) {
    extents[1] = heads;
    listed.resize(static_cast<std::size_t>(extents[0] * extents[1] * extents[2]));
    return lse_to<T, 3>{tensor_view<T, 3>(listed.data(), extents)};
  }
  void finish() const {
    const tensor_view<const T, 3> from(listed.data(), extents);
    for (index_t s = 0; s < extents[0]; ++s) {
      for (index_t h = 0; h < extents[1]; ++h) {
        for (index_t i = 0; i < query_counts[static_cast<std::size_t>(s)]; ++i) {
          const position p = where.of(position{s, h, i, 0, 0, 0});
          target(p.batch, p.head, p.q) = from(s, h, i);
        }
      }
    }
  }
};

}  // namespace sparse
HEED_NAMESPACE_END
