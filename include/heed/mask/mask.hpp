// mask{f}: any predicate on positions as a mask.
//
//   heed::mask{[](const auto& p) { return (p.q / 16 == p.k / 16) | (p.k < 4); }}
//   heed::mask{[&](const heed::position& p) { return graph.has_edge(p.q, p.k); }}
//
// f gets a position (batch, head, q, k, queries, keys) and returns true where the query may attend
// to the key. Written for any position (auto), it is also asked for packs of keys: then p.k is an
// integer pack, comparisons give one boolean per lane, and the operators are &, | and ! instead of
// && and ||. Written for heed::position, it is asked key by key. f tells nothing about whole tiles,
// so every tile is decided score by score: & it with a mask that knows its tiles where there is
// one.
#pragma once

#include <concepts>

#include "algebra.hpp"
#include "detail/answer.hpp"

HEED_NAMESPACE_BEGIN

template <class Predicate>
struct mask {
  static_assert(mask_function<Predicate>,
                "heed: mask{f} needs an f that takes a heed::position and returns a bool");

  Predicate predicate;

  template <class P>
  requires std::invocable<const Predicate&, const P&> HEED_INLINE mask_detail::answer<P>
  operator()(const P& p) const { return mask_detail::answer<P>(predicate(p)); }
};
template <class Predicate>
mask(Predicate) -> mask<Predicate>;

HEED_NAMESPACE_END
