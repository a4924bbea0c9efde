// Documents packed into one sequence: a query attends to the keys of its own document,
//
//   id(q) = id(k)
//
//   documents{ids}                  one array for queries and keys, which are then the same tokens:
//                                   query q is token q + keys - queries
//   documents{query_ids, key_ids}   one array for each, as in cross-attention
//
// Each array is [tokens] or [batch, tokens], of any integer type; an axis of extent 1 serves all.
//
// Packing without cross-contamination: Krell et al., 2021; "segment ids" of T5 and of JAX's
// kernels, the document mask of flex_attention, the chunks of a parallel context encoder (Yen et
// al., 2024). With & causal{} it is the mask of packed language-model training.
//
// Tiles and keys are exact for one array whose ids never decrease, as packing gives them. Otherwise
// a tile may be called `some` though it is empty, and the keys are those whose id lies between the
// lowest and the highest id of the queries.
#pragma once

#include <type_traits>

#include "../core/tensor_view.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"
#include "detail/arrays.hpp"

HEED_NAMESPACE_BEGIN

template <class Id>
class documents {
  static_assert(std::is_integral_v<Id>, "heed: ids of documents are integers");

 public:
  template <class T, int Rank>
  explicit documents(const tensor_view<T, Rank>& ids) : ids_(ids) {}
  template <class T, int QueryRank, class U, int KeyRank>
  documents(const tensor_view<T, QueryRank>& query_ids, const tensor_view<U, KeyRank>& key_ids)
      : ids_(query_ids, key_ids) {}

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    const Id* own = ids_.query(p);
    if (own == nullptr) return mask_detail::answer<P>(false);
    return mask_detail::key_equals(ids_.key_row(p), ids_.key_step(), *own, p);
  }

  visibility tile(const tile_extent& t) const {
    const auto queries = ids_.queries_of(t);
    if (queries.begin >= queries.end) return visibility::none;
    const span own = span_of(queries), other = span_of(ids_.keys_of(t));
    if (own.high < other.low || other.high < own.low) return visibility::none;
    const bool one_document = own.low == own.high && other.low == other.high;
    // Queries before the first token see nothing.
    const bool no_query_left_out = queries.end - queries.begin == t.q_end - t.q_begin;
    return one_document && no_query_left_out ? visibility::all : visibility::some;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    const auto queries = ids_.queries_of(t);
    if (queries.begin >= queries.end) return {};
    const span own = span_of(queries);
    const auto keys = ids_.keys_of(t);
    const auto candidate = [&](index_t k) -> bool {
      const Id id = keys.row[k * keys.step];
      return (id >= own.low) & (id <= own.high);
    };
    const index_t first = mask_detail::first_where(t.k_begin, t.k_end, candidate);
    return {first, mask_detail::behind_last_where(first, t.k_end, candidate)};
  }

  void check(const call_shape& shape) const {
    ids_.check("documents", "ids", "query ids", "key ids", shape);
  }

 private:
  // Lowest and highest id of a range of tokens that is not empty.
  struct span {
    Id low, high;
  };
  static span span_of(const typename mask_detail::token_values<Id>::range& tokens) {
    span ids{tokens.row[tokens.begin * tokens.step], tokens.row[tokens.begin * tokens.step]};
    for (index_t i = tokens.begin + 1; i < tokens.end; ++i) {
      const Id id = tokens.row[i * tokens.step];
      ids.low = id < ids.low ? id : ids.low;
      ids.high = id > ids.high ? id : ids.high;
    }
    return ids;
  }

  mask_detail::token_values<Id> ids_;
};
template <class T, int Rank>
documents(const tensor_view<T, Rank>&) -> documents<std::remove_const_t<T>>;
template <class T, int QueryRank, class U, int KeyRank>
documents(const tensor_view<T, QueryRank>&, const tensor_view<U, KeyRank>&)
    -> documents<std::remove_const_t<T>>;

HEED_NAMESPACE_END
