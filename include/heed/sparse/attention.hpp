// Attention over listed keys only:
//
//   out_i = Σ_{j ∈ list of i} softmax_j(scale·q_i·k_j) v_j
//
//   sparse::attention(q, k, v, out, blocks, heed::causal{}, heed::lse_to{lse}, …)
//   sparse::attention(q, k, v, out, rows, …)
//
// Operands and modifiers as in heed::attention, whose tile loop does the work: a block list is a
// mask that skips tiles (block_list.hpp), a row list makes every block of queries a sequence whose
// keys are gathered in place (core/gathered.hpp). Use block lists where listed keys are neighbours
// (64 of them best), row lists where they are scattered. In a ragged batch the batches of a block
// list are its sequences, and blocks count from the beginning of each.
//
// Errors: as heed::attention's and the lists' own, before anything is written.
#pragma once

#include <tuple>

#include "../dense/attention.hpp"
#include "block_list.hpp"
#include "gathered_call.hpp"
#include "row_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

namespace lists {

// The sizes that masks see. Selections read q and k before a call of attention could check them.
template <class Q, class K>
call_shape shape_of(const Q& q, const K& k) {
  const auto queries = read_view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  heed::detail::check_operand(heed::detail::erase("q", queries));
  heed::detail::check_operand(heed::detail::erase("k", keys));
  return {queries.extent(0), queries.extent(1), queries.extent(2), keys.extent(2)};
}

// A list that names blocks the call does not have was made for other operands.
inline void check_exactly(const char* name, const block_shape& shape, const call_shape& call) {
  const block_shape needed = blocks_of(call, shape.block_q, shape.block_k);
  const auto same = [&](const char* axis, index_t mine, index_t wanted) {
    if (mine != wanted) {
      raise(message(name) << ": " << mine << " " << axis << ", the call has " << wanted);
    }
  };
  if (shape.batches != 1) same("batches", shape.batches, call.batches);
  same("query blocks", shape.query_blocks, needed.query_blocks);
  same("key blocks", shape.key_blocks, needed.key_blocks);
}

}  // namespace lists

template <class Backend = backend::native, viewable Q, readable K, readable V, viewable Out,
          class... Modifiers>
void attention(const Q& q, const K& k, const V& v, Out&& out, const block_list_view& list,
               const Modifiers&... modifiers) {
  const call_shape call = lists::shape_of(q, k);
  // Of a ragged batch the mask itself knows how many sequences there are, and the longest of them.
  if constexpr (!(... || std::is_same_v<Modifiers, ragged>)) {
    lists::check_exactly("block list", list.shape(), call);
  }
  std::vector<std::uint64_t> bits;
  heed::attention<Backend>(q, k, v, out, list.for_heads(call.heads).with_bits(bits), modifiers...);
}
template <class Backend = backend::native, viewable Q, readable K, readable V, viewable Out,
          class... Modifiers>
void attention(const Q& q, const K& k, const V& v, Out&& out, const block_list& list,
               const Modifiers&... modifiers) {
  sparse::attention<Backend>(q, k, v, out, list.view(), modifiers...);
}

namespace lists {

// Every `step`-th head from `first` on.
template <class T>
tensor_view<T, 4> heads_of(const tensor_view<T, 4>& x, index_t first, index_t count, index_t step) {
  T* data = x.data() == nullptr ? nullptr : x.data() + first * x.stride(1);
  return {data,
          {x.extent(0), count, x.extent(2), x.extent(3)},
          {x.stride(0), step * x.stride(1), x.stride(2), x.stride(3)}};
}

// What gathering would hide from heed::attention: it sees lists, not the operands.
template <class X, class Like>
void check_axes(const char* name, const X& x, const char* other, const Like& like,
                bool same_heads) {
  const auto same = [&](const char* axis, index_t mine, index_t wanted) {
    if (mine != wanted) {
      raise(message(name) << ": " << axis << " " << mine << " differs from " << other << "'s "
                          << wanted);
    }
  };
  same("batch", x.extent(0), like.extent(0));
  if (same_heads) {
    same("head count", x.extent(1), like.extent(1));
    same("length", x.extent(2), like.extent(2));
  } else if (x.extent(1) == 0 ? like.extent(1) != 0 : like.extent(1) % x.extent(1) != 0) {
    raise(message(name) << ": head count " << x.extent(1) << " does not divide query head count "
                        << like.extent(1));
  }
}

// One call for query heads first_head, first_head + 1, … of every fold of heads.
template <class Backend, class Q, class K, class V, class Out, class... Modifiers>
void attend_rows(const Q& q, const K& k, const V& v, const Out& out, const row_numbers& rows,
                 const original_positions& where, const Modifiers&... modifiers) {
  const gathered_view queries(q, rows.query_view(), where.folds);
  const gathered_view keys(k, rows.key_view(), where.folds);
  const gathered_view values(v, rows.key_view(), where.folds);
  const gathered_view result(out, rows.query_view(), where.folds);
  auto call = std::make_tuple(carried<Modifiers>(modifiers, where, rows.query_counts)...);
  std::apply(
      [&](auto&... own) {
        heed::attention<Backend>(queries, keys, values, result, key_lengths{rows.key_counts},
                                 query_lengths{rows.query_counts},
                                 own.modifier(queries.extent(1))...);
        (own.finish(), ...);
      },
      call);
}

}  // namespace lists

// Lists of keys for every block of list.shape.block_q queries, per batch entry (or one for all) and
// per head: one for all, one per KV head, or one per query head. q, k and v are tensors. Options:
// masks and scores (they see the operands' own positions), scale, lse_to, on, scratch, count_tiles.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void attention(const Q& q, const K& k, const V& v, Out&& out, const row_list& list,
               const Modifiers&... modifiers) {
  static_assert(
      (... && (mask_function<Modifiers> || score_function<Modifiers> ||
               (heed::detail::call_option<Modifiers> && !heed::detail::sink_function<Modifiers> &&
                !heed::detail::is_any_of<Modifiers, query_lengths, ragged>))),
      "heed::sparse::attention over a row list takes masks, scores, scale, lse_to, on, "
      "scratch and count_tiles");
  const call_shape call = lists::shape_of(q, k);
  lists::check_exactly("row list", list.shape, call);
  const auto queries = read_view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  const auto values = read_view_of(v).template lifted<4>();
  const auto result = output_view_of(out).template lifted<4>();
  lists::check_axes("k", keys, "q", queries, false);
  lists::check_axes("v", values, "k", keys, true);
  const auto query = heed::detail::erase("q", queries), output = heed::detail::erase("out", result);
  const auto key = heed::detail::erase("k", keys), value = heed::detail::erase("v", values);
  heed::detail::check_output(query, output);
  for (const auto& in : {query, key, value}) heed::detail::check_disjoint(output, in);
  (check_log_sum_exp(modifiers, query, output, key, value), ...);
  const index_t heads = queries.extent(1), key_heads = keys.extent(1);
  const index_t listed_heads = list.shape.heads;
  if (listed_heads != 1 && listed_heads != key_heads && listed_heads != heads) {
    raise(message("row list: head count ")
          << listed_heads << " is neither 1, k's " << key_heads << " nor q's " << heads);
  }
  if (heads == 0) return;
  // Lists per query head: the members of a group go one after the other.
  const index_t folds = listed_heads == 1 ? 1 : key_heads, group = heads / folds;
  const index_t members = listed_heads == 1 || listed_heads == key_heads ? 1 : group;
  for (index_t member = 0; member < members; ++member) {
    const row_numbers rows(list, call, folds, member, members);
    const original_positions where{rows.query_view(),
                                   rows.key_view(),
                                   list.shape.query_blocks,
                                   folds,
                                   group,
                                   member,
                                   call.queries,
                                   call.keys,
                                   call};
    if (members == 1) {
      lists::attend_rows<Backend>(queries, keys, values, result, rows, where, modifiers...);
    } else {
      lists::attend_rows<Backend>(lists::heads_of(queries, member, key_heads, group), keys, values,
                                  lists::heads_of(result, member, key_heads, group), rows, where,
                                  modifiers...);
    }
  }
}

}  // namespace sparse
HEED_NAMESPACE_END
