// Masks and scores of a whole sequence on the tokens that a process holds: a local query and a
// local key are seen at their positions in the sequence, with the whole lengths.
//
//   placed_mask{causal{}, query_places, key_places, all_queries, all_keys}
//
// A mask that knows intervals, tiles and keys goes on knowing them: places ascend, so that an
// interval of positions is an interval of tokens. Packs of keys are handed on where neighbours in
// memory are neighbours in the sequence; elsewhere functors without intervals are asked key by key.
#pragma once

#include "../dense/attention.hpp"
#include "layout.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed {
namespace detail {

struct placement {
  token_places q, k;
  index_t queries = 0, keys = 0;  // of the whole sequence

  position operator()(position p) const {
    p.q = q[p.q];
    p.k = k[p.k];
    p.queries = queries;
    p.keys = keys;
    return p;
  }
  // A pack of consecutive keys: one run of stride 1.
  template <class Real, int N>
  pack_position<Real, N> operator()(pack_position<Real, N> p) const {
    p.q = q[p.q];
    p.k = p.k + k.first;
    p.first_key += k.first;
    p.queries = queries;
    p.keys = keys;
    return p;
  }
  // From the first to the last position of a tile of tokens; others may lie in between.
  tile_extent operator()(tile_extent t) const {
    t.q_end = q[t.q_end - 1] + 1;
    t.q_begin = q[t.q_begin];
    t.k_end = k[t.k_end - 1] + 1;
    t.k_begin = k[t.k_begin];
    t.queries = queries;
    t.keys = keys;
    return t;
  }
  call_shape operator()(call_shape shape) const {
    shape.queries = queries;
    shape.keys = keys;
    return shape;
  }
};

}  // namespace detail

template <mask_function Mask, bool Consecutive>
struct placed_mask {
  [[no_unique_address]] Mask mask;
  detail::placement at;

  bool operator()(const position& p) const { return mask(at(p)); }
  template <class Real, int N>
  requires(Consecutive&& std::invocable<const Mask&, const pack_position<Real, N>&>) HEED_INLINE
      auto
      operator()(const pack_position<Real, N>& p) const {
    return mask(at(p));
  }

  key_interval interval(const position& p) const requires interval_mask<Mask> {
    const key_interval seen = mask.interval(at(p));
    return {at.k.count_below(seen.begin), at.k.count_below(seen.end)};
  }
  visibility tile(const tile_extent& t) const { return tile_visibility(mask, at(t)); }
  key_ranges visible_keys(const tile_extent& t) const {
    if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) return {};
    key_ranges result;
    for (const key_ranges::range& r : heed::visible_keys(mask, at(t))) {
      result.add(at.k.count_below(r.begin), at.k.count_below(r.end));
    }
    return result;
  }
  void check(const call_shape& shape) const { check_modifier(mask, at(shape)); }
};

template <score_function Score, bool Consecutive>
struct placed_score {
  static_assert(
      !score_term<Score>,
      "heed: terms such as relative embeddings need queries and keys at their own places, "
      "not at those of one process");
  [[no_unique_address]] Score score;
  detail::placement at;

  template <class S>
  requires(!is_pack<S>) S operator()(S s, const position& p) const {
    return static_cast<S>(score(s, at(p)));
  }
  template <class S, class Real, int N>
  requires(Consecutive&& is_pack<S>&&
               std::invocable<const Score&, S, const pack_position<Real, N>&>) HEED_INLINE auto
  operator()(S s, const pack_position<Real, N>& p) const {
    return score(s, at(p));
  }

  bool visible(const position& p) const requires heed::detail::hiding_score<Score> {
    return score.visible(at(p));
  }
  template <class Real, int N>
  requires(Consecutive&& heed::detail::hiding_score<Score>) HEED_INLINE
      auto visible(const pack_position<Real, N>& p) const {
    return score.visible(at(p));
  }
  void check(const call_shape& shape) const { check_modifier(score, at(shape)); }
};

namespace detail {

// The masks and scores among modifiers at their places, and the options that Keep picks.
template <bool Consecutive, template <class> class Keep, class M>
auto placed(const M& modifier, [[maybe_unused]] const placement& at) {
  if constexpr (mask_function<M>) {
    return std::tuple<placed_mask<M, Consecutive>>({modifier, at});
  } else if constexpr (score_function<M>) {
    return std::tuple<placed_score<M, Consecutive>>({modifier, at});
  } else if constexpr (Keep<M>::value) {
    return std::tuple<const M&>(modifier);
  } else {
    return std::tuple<>();
  }
}

}  // namespace detail
}  // namespace distributed
HEED_NAMESPACE_END
