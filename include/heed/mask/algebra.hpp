// Masks combine like the predicates they are: a & b, a | b, !a.
//
//   heed::causal{} & heed::window{256}
//   (heed::window{64} | heed::global_tokens{4}) & heed::causal{}
//   (!heed::causal{}) & heed::window{64}               in parentheses, since gcc warns about !a & b
//
// The combination classifies tiles and limits keys from what its operands know: keys of a & b are
// the intersection, of a | b the union. A tile that it calls `some` may be emptier than that (two
// operands may each let through a different half), which costs time, never correctness.
#pragma once

#include <concepts>
#include <type_traits>

#include "../core/position.hpp"
#include "detail/answer.hpp"

HEED_NAMESPACE_BEGIN

// Visible where both operands are.
template <mask_function Left, mask_function Right>
struct all_of {
  [[no_unique_address]] Left left;
  [[no_unique_address]] Right right;

  // For a pack of keys only where both operands answer for a pack.
  template <class P>
  requires(std::invocable<const Left&, const P&>&& std::invocable<const Right&, const P&>)
      HEED_INLINE mask_detail::answer<P>
  operator()(const P& p) const {
    using answer = mask_detail::answer<P>;
    return mask_detail::both(answer(left(p)), answer(right(p)));
  }
  key_interval interval(const position& p) const
      requires(interval_mask<Left>&& interval_mask<Right>) {
    const key_interval a = left.interval(p), b = right.interval(p);
    return {max(a.begin, b.begin), min(a.end, b.end)};
  }
  std::uint64_t bits(const position& first, int count) const
      requires(bit_mask<Left>&& bit_mask<Right>) {
    return left.bits(first, count) & right.bits(first, count);
  }

  // The right operand is asked only for what the left one leaves open.
  visibility tile(const tile_extent& t) const {
    const visibility seen = tile_visibility(left, t);
    return seen == visibility::none ? seen : seen & tile_visibility(right, t);
  }
  key_ranges visible_keys(const tile_extent& t) const {
    const key_ranges seen = heed::visible_keys(left, t);
    if (seen.size() == 0) return seen;
    tile_extent rest = t;
    rest.k_begin = seen.begin()->begin;
    rest.k_end = (seen.end() - 1)->end;
    return seen & heed::visible_keys(right, rest);
  }
  // The runs of the operand that has them, the left one first, within the other one's ranges.
  template <class Visit>
  requires(key_run_mask<Left> || key_run_mask<Right>) void for_each_key_run(const tile_extent& t,
                                                                            Visit visit) const {
    if constexpr (key_run_mask<Left>) {
      visit_runs(left, heed::visible_keys(right, t), t, visit);
    } else {
      visit_runs(right, heed::visible_keys(left, t), t, visit);
    }
  }
  // The blocks of the operand that has them: it is the one that skips keys by blocks.
  index_t query_block() const requires(query_block_mask<Left> || query_block_mask<Right>) {
    if constexpr (query_block_mask<Left>) {
      return left.query_block();
    } else {
      return right.query_block();
    }
  }
  void check(const call_shape& shape) const {
    check_modifier(left, shape);
    check_modifier(right, shape);
  }

 private:
  template <class Runs, class Visit>
  static void visit_runs(const Runs& runs, const key_ranges& within, const tile_extent& t,
                         Visit visit) {
    runs.for_each_key_run(t, [&](index_t begin, index_t end) {
      for (const key_ranges::range& range : within) {
        const index_t first = max(begin, range.begin), last = min(end, range.end);
        if (first < last) visit(first, last);
      }
    });
  }
};

// Visible where at least one operand is.
template <mask_function Left, mask_function Right>
struct any_of {
  [[no_unique_address]] Left left;
  [[no_unique_address]] Right right;

  template <class P>
  requires(std::invocable<const Left&, const P&>&& std::invocable<const Right&, const P&>)
      HEED_INLINE mask_detail::answer<P>
  operator()(const P& p) const {
    using answer = mask_detail::answer<P>;
    return mask_detail::either(answer(left(p)), answer(right(p)));
  }

  visibility tile(const tile_extent& t) const {
    const visibility seen = tile_visibility(left, t);
    return seen == visibility::all ? seen : seen | tile_visibility(right, t);
  }
  key_ranges visible_keys(const tile_extent& t) const {
    return heed::visible_keys(left, t) | heed::visible_keys(right, t);
  }
  void check(const call_shape& shape) const {
    check_modifier(left, shape);
    check_modifier(right, shape);
  }
};

// Visible where the operand is not.
template <mask_function Operand>
struct negation {
  [[no_unique_address]] Operand operand;

  template <class P>
  requires std::invocable<const Operand&, const P&> HEED_INLINE mask_detail::answer<P>
  operator()(const P& p) const { return !mask_detail::answer<P>(operand(p)); }

  visibility tile(const tile_extent& t) const { return !tile_visibility(operand, t); }
  // The operand's keys say nothing here: a key that one query sees may be hidden from the next.
  key_ranges visible_keys(const tile_extent& t) const {
    if (tile(t) == visibility::none) return {};
    return {t.k_begin, t.k_end};
  }
  void check(const call_shape& shape) const { check_modifier(operand, shape); }
};

namespace mask_detail {

// The operators apply to nothing but masks: only classes, so that enumerations, numbers and
// functions keep their own.
template <class M>
concept mask_operand = std::is_class_v<M> && mask_function<M>;

}  // namespace mask_detail

template <class Left, class Right>
requires(mask_detail::mask_operand<Left>&&
             mask_detail::mask_operand<Right>) constexpr all_of<Left, Right>
operator&(const Left& left, const Right& right) {
  return {left, right};
}

template <class Left, class Right>
requires(mask_detail::mask_operand<Left>&&
             mask_detail::mask_operand<Right>) constexpr any_of<Left, Right>
operator|(const Left& left, const Right& right) {
  return {left, right};
}

// What can be tested for being empty (std::function, a lambda without captures) keeps that meaning
// of !; mask{f} makes a mask of it.
template <class Operand>
requires(mask_detail::mask_operand<Operand> &&
         !std::is_constructible_v<bool, const Operand&>) constexpr negation<Operand>
operator!(const Operand& operand) {
  return {operand};
}

// Not not a is a, with all that a knows about its tiles and keys.
template <class Operand>
constexpr Operand operator!(const negation<Operand>& twice) {
  return twice.operand;
}

HEED_NAMESPACE_END
