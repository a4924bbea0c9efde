// Masks and scores over the rows of a store: they see the original positions of the tokens that are
// kept, as if nothing had been evicted. A head's rows behind its last one are hidden.
//
//   k     the token's place in its sequence
//   keys  the tokens that the sequence has seen, so that the last query is aligned with the last of
//         them
#pragma once

#include <algorithm>
#include <limits>

#include "../../core/position.hpp"
#include "../../core/score_term.hpp"
#include "../../engine/hooks.hpp"
#include "../kept.hpp"

HEED_NAMESPACE_BEGIN
namespace cache::detail {

// No mask: every token that is kept is visible.
struct everything {
  bool operator()(const position&) const { return true; }
  key_interval interval(const position&) const {
    return {0, std::numeric_limits<index_t>::max() / 2};
  }
  visibility tile(const tile_extent&) const { return visibility::all; }
};

// Masks and scores compare their arrays with whole sequences.
template <class Modifier, bool Ordered>
void check_at_positions(const Modifier& modifier, const kept_view<Ordered>& kept,
                        call_shape shape) {
  for (const index_t seen : kept.seen) shape.keys = std::max(shape.keys, seen);
  check_modifier(modifier, shape);
}

// group: query heads per KV head.
template <class Mask, bool Ordered>
struct mask_at_positions {
  kept_view<Ordered> kept;
  index_t group;
  Mask mask;

  std::span<const token_position> tokens(index_t batch, index_t head) const {
    return kept.at(batch, head / group);
  }
  index_t seen(index_t batch) const { return kept.seen[static_cast<std::size_t>(batch)]; }

  bool operator()(const position& p) const {
    const auto list = tokens(p.batch, p.head);
    if (p.k >= static_cast<index_t>(list.size())) return false;
    position original = p;
    original.k = list[static_cast<std::size_t>(p.k)];
    original.keys = seen(p.batch);
    return mask(static_cast<const position&>(original));
  }

  // Slots whose tokens lie in the interval that the mask lets through.
  key_interval interval(const position& p) const requires(Ordered&& interval_mask<Mask>) {
    position original = p;
    original.keys = seen(p.batch);
    const key_interval seen_by = mask.interval(original);
    const auto list = tokens(p.batch, p.head);
    return {slot_of(list, seen_by.begin), slot_of(list, seen_by.end)};
  }

  // What holds for all positions between the tile's first and last holds for its tokens.
  visibility tile(const tile_extent& t) const {
    const auto list = tokens(t.batch, t.head);
    const index_t end = std::min(t.k_end, static_cast<index_t>(list.size()));
    if (t.k_begin >= end) return visibility::none;
    const visibility among = tile_visibility(mask, original(t, list, end));
    return among == visibility::all && end < t.k_end ? visibility::some : among;
  }

  key_ranges visible_keys(const tile_extent& t) const {
    const auto list = tokens(t.batch, t.head);
    const index_t end = std::min(t.k_end, static_cast<index_t>(list.size()));
    if (t.k_begin >= end) return {};
    if constexpr (Ordered) {
      key_ranges slots;
      for (const key_ranges::range& range : heed::visible_keys(mask, original(t, list, end))) {
        slots.add(std::max(t.k_begin, slot_of(list, range.begin)),
                  std::min(end, slot_of(list, range.end)));
      }
      return slots;
    } else {
      return {t.k_begin, end};
    }
  }

  void check(const call_shape& shape) const { check_at_positions(mask, kept, shape); }

 private:
  // The first slot whose token is at `position` or behind it.
  static index_t slot_of(std::span<const token_position> list, index_t position) {
    return std::lower_bound(list.begin(), list.end(), position) - list.begin();
  }
  tile_extent original(const tile_extent& t, std::span<const token_position> list,
                       index_t end) const {
    const auto first = list.begin() + t.k_begin, last = list.begin() + end - 1;
    tile_extent result = t;
    result.k_begin = *first;
    result.k_end = *last + 1;
    if constexpr (!Ordered) {
      const auto [least, most] = std::minmax_element(first, last + 1);
      result.k_begin = *least;
      result.k_end = *most + 1;
    }
    result.keys = seen(t.batch);
    return result;
  }
};

template <class Score, bool Ordered>
struct score_at_positions {
  static_assert(
      !score_term<Score>,
      "heed: terms such as relative embeddings need queries and keys at their own places, "
      "not at those of a cache");
  kept_view<Ordered> kept;
  index_t group;
  Score score;

  template <class S>
  HEED_INLINE S operator()(S s, const position& p) const {
    position original = p;
    const auto list = kept.at(p.batch, p.head / group);
    original.k = token(list, p.k);
    original.keys = seen(p.batch);
    return engine::apply_score(score, s, static_cast<const position&>(original));
  }
  // A run of neighbours stays a pack; other tokens, and tokens far into a stream, are scored one by
  // one.
  template <class Real, int N>
  HEED_INLINE pack<Real, N> operator()(pack<Real, N> s, const pack_position<Real, N>& p) const {
    const auto list = kept.at(p.batch, p.head / group);
    const index_t first = token(list, p.first_key);
    bool run = seen(p.batch) <= most_in_lanes;
    for (int lane = 1; lane < p.valid; ++lane) {
      run = run && token(list, p.first_key + lane) == first + lane;
    }
    if (run) {
      pack_position<Real, N> original = p;
      original.k = p.k + (first - p.first_key);
      original.first_key = first;
      original.keys = seen(p.batch);
      return engine::apply_score(score, s, original);
    }
    for (int lane = 0; lane < p.valid; ++lane) {
      const position original{p.batch,   p.head,       p.q, token(list, p.first_key + lane),
                              p.queries, seen(p.batch)};
      s.v[lane] = engine::apply_score(score, static_cast<Real>(s.v[lane]), original);
    }
    return s;
  }

  void check(const call_shape& shape) const { check_at_positions(score, kept, shape); }

 private:
  // Lanes of floats count positions in 32 bits.
  static constexpr index_t most_in_lanes = 0x7fffff00;

  index_t seen(index_t batch) const { return kept.seen[static_cast<std::size_t>(batch)]; }
  // Of a slot that has no token, and is hidden, the last one's position.
  static index_t token(std::span<const token_position> list, index_t slot) {
    const auto last = static_cast<index_t>(list.size()) - 1;
    return list[static_cast<std::size_t>(slot < last ? slot : last)];
  }
};

}  // namespace cache::detail
HEED_NAMESPACE_END
