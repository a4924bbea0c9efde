// Global tokens: a global query attends to every key, and every query attends to a global key,
//
//   global(q) or global(k)
//
//   global_tokens{n}                        the first n tokens; query q is token q + keys - queries
//   global_tokens{flags}                    one array for queries and keys, aligned in the same way
//   global_tokens{query_flags, key_flags}   one array for each
//
// Each array is [tokens] or [batch, tokens], bool or any integer type, not 0 = global; an axis of
// extent 1 serves all.
//
// The symmetric global attention of Longformer (Beltagy et al., 2020), ETC (Ainslie et al., 2020)
// and BigBird (Zaheer et al., 2020): global_tokens{…} | window{…}. With n first tokens,
// (global_tokens{n} | window{w}) & causal{} is the attention-sink pattern of StreamingLLM (Xiao et
// al., 2023).
//
// Tiles are exact; keys too, up to the number of ranges that key_ranges holds.
#pragma once

#include <string>
#include <type_traits>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"
#include "detail/arrays.hpp"

HEED_NAMESPACE_BEGIN

// Where the global tokens are: flags in an array, or void for the first n tokens.
template <class Flag>
class global_tokens {
  static_assert(std::is_integral_v<Flag>, "heed: flags of global tokens are bool or integers");

 public:
  template <class T, int Rank>
  explicit global_tokens(const tensor_view<T, Rank>& flags) : flags_(flags) {}
  template <class T, int QueryRank, class U, int KeyRank>
  global_tokens(const tensor_view<T, QueryRank>& query_flags,
                const tensor_view<U, KeyRank>& key_flags)
      : flags_(query_flags, key_flags) {}

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    const Flag* own = flags_.query(p);
    if (own != nullptr && *own != Flag(0)) return mask_detail::answer<P>(true);
    return !mask_detail::key_equals(flags_.key_row(p), flags_.key_step(), Flag(0), p);
  }

  visibility tile(const tile_extent& t) const {
    const mask_detail::tally queries = global_queries(t), keys = set_in(flags_.keys_of(t));
    return mask_detail::tally{queries.any || keys.any, queries.every || keys.every}.as_visibility();
  }
  key_ranges visible_keys(const tile_extent& t) const {
    if (global_queries(t).any) return {t.k_begin, t.k_end};
    const auto keys = flags_.keys_of(t);
    const auto set = [&](index_t k) { return keys.row[k * keys.step] != Flag(0); };
    const auto clear = [&](index_t k) { return keys.row[k * keys.step] == Flag(0); };
    key_ranges result;
    for (index_t k = mask_detail::first_where(t.k_begin, t.k_end, set); k < t.k_end;) {
      const index_t end = mask_detail::first_where(k, t.k_end, clear);
      result.add(k, end);
      k = mask_detail::first_where(end, t.k_end, set);
    }
    return result;
  }

  void check(const call_shape& shape) const {
    flags_.check("global_tokens", "flags", "query flags", "key flags", shape);
  }

 private:
  static mask_detail::tally set_in(const typename mask_detail::token_values<Flag>::range& tokens) {
    mask_detail::tally seen;
    mask_detail::count_set(tokens.row, tokens.step, tokens.begin, tokens.end, seen);
    return seen;
  }
  mask_detail::tally global_queries(const tile_extent& t) const {
    const auto queries = flags_.queries_of(t);
    mask_detail::tally seen = set_in(queries);
    // Queries before the first token are not global.
    if (queries.end - queries.begin < t.q_end - t.q_begin) seen.every = false;
    return seen;
  }

  mask_detail::token_values<Flag> flags_;
};

template <>
class global_tokens<void> {
 public:
  explicit global_tokens(index_t count) : count_(count) {
    if (count < 0) raise("global_tokens: count " + std::to_string(count) + " is negative");
  }

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    const index_t own = p.aligned_q();
    if (own >= 0 && own < count_) return mask_detail::answer<P>(true);
    return mask_detail::key_at_most(p, count_ - 1);
  }

  visibility tile(const tile_extent& t) const {
    const index_t first = t.q_begin + t.alignment(), last = t.q_end - 1 + t.alignment();
    if (t.k_end <= count_ || (first >= 0 && last < count_)) return visibility::all;
    return t.k_begin < count_ || any_global(first, last) ? visibility::some : visibility::none;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    if (any_global(t.q_begin + t.alignment(), t.q_end - 1 + t.alignment())) {
      return {t.k_begin, t.k_end};
    }
    return {t.k_begin, min(t.k_end, count_)};
  }

 private:
  // Whether one of the tokens first … last is global.
  bool any_global(index_t first, index_t last) const {
    return max(first, 0) <= min(last, count_ - 1);
  }

  index_t count_;
};

global_tokens(index_t)->global_tokens<void>;
template <class T, int Rank>
global_tokens(const tensor_view<T, Rank>&) -> global_tokens<std::remove_const_t<T>>;
template <class T, int QueryRank, class U, int KeyRank>
global_tokens(const tensor_view<T, QueryRank>&, const tensor_view<U, KeyRank>&)
    -> global_tokens<std::remove_const_t<T>>;

HEED_NAMESPACE_END
