// Attention over a cache: attention(q, store, out, masks and scores…).
//
// Masks and scores see the original positions of the tokens that the store keeps, and the last
// query is aligned with the last token that the store has seen: causal{}, a window or ALiBi mean
// over a compacted cache what they mean over the whole sequence, less the tokens that are gone.
//
// A store is whatever has keys() and values(), and kept(), which says what its rows are. It may
// have a mask() of its own, as the ring has.
#pragma once

#include "../dense/attention.hpp"
#include "detail/at_positions.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

template <class S>
concept store = readable<decltype(std::declval<const S&>().keys())> &&
    readable<decltype(std::declval<const S&>().values())> && requires(const S& s, index_t i) {
  s.kept().at(i, i);
  s.kept().seen;
};

namespace detail {

// The mask of a store, if it has one, as a tuple of one or none.
template <class Store>
constexpr auto masks_of(const Store& store) {
  if constexpr (requires { store.mask(); }) {
    return std::make_tuple(store.mask());
  } else {
    return std::tuple<>();
  }
}

constexpr everything joined_masks() { return {}; }
template <class M>
constexpr M joined_masks(const M& mask) {
  return mask;
}
template <class A, class B, class... Rest>
constexpr auto joined_masks(const A& a, const B& b, const Rest&... rest) {
  return joined_masks(a & b, rest...);
}

// Options pass through.
template <class M>
constexpr auto options_in(const M& modifier) {
  if constexpr (heed::detail::call_option<M>) {
    return std::tuple<M>(modifier);
  } else {
    return std::tuple<>();
  }
}

template <bool Ordered, class... Modifiers>
constexpr auto mask_over(const kept_view<Ordered>& kept, index_t group,
                         const std::tuple<Modifiers...>& masks) {
  const auto mask = std::apply([](const auto&... m) { return joined_masks(m...); }, masks);
  return mask_at_positions<std::remove_const_t<decltype(mask)>, Ordered>{kept, group, mask};
}

}  // namespace detail
}  // namespace cache

// q [B, Hq, Lq, D] over the tokens of a store, out [B, Hq, Lq, Dv]. Modifiers as for tensors, but
// for key_lengths, left_padding and ragged, which a store knows itself, and but for normalisers and
// observers, which see rows of keys: give them keys() and values() of a store that evicts nothing.
// Raises invalid_argument before anything is written when operands or modifiers do not fit.
template <class Backend = backend::native, viewable Q, cache::store Store, viewable Out,
          class... Modifiers>
void attention(const Q& q, const Store& store, Out&& out, const Modifiers&... modifiers) {
  static_assert(
      (... &&
       (mask_function<Modifiers> || score_function<Modifiers> || detail::call_option<Modifiers>)) &&
          (... && !std::is_same_v<Modifiers, ragged>),
      "heed::attention over a cache: a modifier is neither a mask (bool of a position), a "
      "score (of a score and a position), nor an option such as heed::scale; lengths "
      "and padding belong to the store");
  const auto keys = read_view_of(store.keys());
  const auto values = read_view_of(store.values());
  const auto kept = store.kept();
  const index_t heads = view_of(q).template lifted<4>().extent(1);
  const index_t key_heads = keys.extent(1);
  const index_t group = key_heads > 0 && heads > key_heads ? heads / key_heads : 1;
  const auto mask = cache::detail::mask_over(
      kept, group, std::tuple_cat(cache::detail::masks_of(store), detail::masks_in(modifiers)...));
  std::apply(
      [&](const auto&... rest) {
        attention<Backend>(q, keys, values, output_view_of(out), key_lengths{kept.lengths}, mask,
                           rest...);
      },
      std::tuple_cat(
          std::apply(
              [&](const auto&... score) {
                return std::make_tuple(
                    cache::detail::score_at_positions<std::remove_cvref_t<decltype(score)>,
                                                      decltype(kept)::ordered>{kept, group,
                                                                               score}...);
              },
              std::tuple_cat(detail::scores_in(modifiers)...)),
          std::tuple_cat(cache::detail::options_in(modifiers)...)));
}

HEED_NAMESPACE_END
