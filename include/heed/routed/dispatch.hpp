// Dispatch: attention over a block list that goes from blocks to queries instead of from queries to
// blocks. Queries that chose a block come together (from all over the sequence, and from all query
// heads of a KV head where they choose together), attend to its keys as one dense product, and a
// query's results for its blocks are merged by their softmax states,
//
//   (o_n, lse_n) = attention of q_i over block n,  n ∈ list(i)
//   lse_i = log Σ_n exp(lse_n),  out_i = Σ_n exp(lse_n − lse_i) o_n
//
// the same result as sparse::attention(q, k, v, out, list, …). It is the faster way where
// neighbouring queries choose differently: a tile of the other one computes every block that one
// of its queries wants. Memory: out times the longest list.
//
// This is how mixtures of experts, and MoBA (Lu et al., 2025), route tokens.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "../core/workspace.hpp"
#include "../dense/merge.hpp"
#include "../sparse/attention.hpp"

HEED_NAMESPACE_BEGIN
namespace routed {

// The queries of every block as rows of a gathered call: long lists are cut into pieces, and every
// batch entry and fold of heads has as many sequences, empty ones last.
struct dispatch_rows {
  static constexpr index_t piece = 512;
  index_t lists = 0;  // sequences per batch and fold
  index_t key_rows_per_list = 0;
  std::vector<index_t> query_rows, written_rows, key_rows, query_counts, key_counts;

  dispatch_rows(const sparse::block_list& list, const call_shape& call, index_t folds,
                index_t first_head, index_t head_step)
      : key_rows_per_list(min(list.shape.block_k, call.keys)) {
    const sparse::block_list_view view = list.view();
    struct entry {
      index_t query, slot;
    };
    const auto blocks = static_cast<std::size_t>(list.shape.key_blocks);
    std::vector<std::vector<std::vector<entry>>> of_pair;
    for (index_t b = 0; b < call.batches; ++b) {
      for (index_t f = 0; f < folds; ++f) {
        std::vector<std::vector<entry>>& wanted = of_pair.emplace_back(blocks);
        for (index_t i = 0; i < list.shape.query_blocks; ++i) {
          const auto row = view.row(list.shape.batches == 1 ? 0 : b,
                                    list.shape.heads == 1 ? 0 : first_head + f * head_step, i);
          const index_t end = min(call.queries, (i + 1) * list.shape.block_q);
          for (std::size_t slot = 0; slot < row.size(); ++slot) {
            std::vector<entry>& queries = wanted[static_cast<std::size_t>(row[slot])];
            for (index_t q = i * list.shape.block_q; q < end; ++q) {
              queries.push_back({q, static_cast<index_t>(slot)});
            }
          }
        }
        index_t pieces = 0;
        for (const auto& queries : wanted) {
          pieces += (static_cast<index_t>(queries.size()) + piece - 1) / piece;
        }
        lists = max(lists, pieces);
      }
    }
    for (const auto& wanted : of_pair) {
      index_t used = 0;
      for (std::size_t block = 0; block < blocks; ++block) {
        const index_t first = static_cast<index_t>(block) * list.shape.block_k;
        const auto count = static_cast<index_t>(wanted[block].size());
        for (index_t begin = 0; begin < count; begin += piece, ++used) {
          const index_t in_piece = min(piece, count - begin);
          for (index_t i = 0; i < piece; ++i) {
            const entry& from =
                wanted[block][static_cast<std::size_t>(begin + min(i, in_piece - 1))];
            query_rows.push_back(from.query);
            written_rows.push_back(from.slot * call.queries + from.query);
          }
          for (index_t i = 0; i < key_rows_per_list; ++i) key_rows.push_back(first + i);
          query_counts.push_back(in_piece);
          key_counts.push_back(min(key_rows_per_list, call.keys - first));
        }
      }
      for (; used < lists; ++used) {
        query_rows.insert(query_rows.end(), static_cast<std::size_t>(piece), 0);
        written_rows.insert(written_rows.end(), static_cast<std::size_t>(piece), 0);
        key_rows.insert(key_rows.end(), static_cast<std::size_t>(key_rows_per_list), 0);
        query_counts.push_back(0);
        key_counts.push_back(0);
      }
    }
  }

  using rows = tensor_view<const index_t, 3>;
  index_t sequences() const { return static_cast<index_t>(query_counts.size()); }
  rows queries() const { return {query_rows.data(), {sequences(), 1, piece}}; }
  rows written() const { return {written_rows.data(), {sequences(), 1, piece}}; }
  rows keys() const { return {key_rows.data(), {sequences(), 1, key_rows_per_list}}; }
};

namespace dispatching {

// One call for the query heads of every fold; results of query i for its n-th block go to row
// n·Lq + i of partial, and of lse.
template <class Backend, class Real, class Q, class K, class V, class... Modifiers>
void attend_blocks(const Q& q, const K& k, const V& v, const dispatch_rows& rows,
                   const sparse::original_positions& where, const tensor_view<Real, 4>& partial,
                   const tensor_view<Real, 3>& lse, const Modifiers&... modifiers) {
  const gathered_view queries(q, rows.queries(), where.folds);
  const index_t heads = queries.extent(1);
  std::vector<Real> listed(
      static_cast<std::size_t>(rows.sequences() * heads * dispatch_rows::piece));
  const tensor_view<Real, 3> listed_lse(listed.data(),
                                        {rows.sequences(), heads, dispatch_rows::piece});
  heed::attention<Backend>(queries, gathered_view(k, rows.keys(), where.folds),
                           gathered_view(v, rows.keys(), where.folds),
                           gathered_view(partial, rows.written(), where.folds),
                           key_lengths{rows.key_counts}, query_lengths{rows.query_counts},
                           lse_to{listed_lse}, sparse::at_original(modifiers, where)...);
  for (index_t s = 0; s < rows.sequences(); ++s) {
    const index_t group = s / rows.lists;
    for (index_t h = 0; h < heads; ++h) {
      for (index_t i = 0; i < rows.query_counts[static_cast<std::size_t>(s)]; ++i) {
        lse(group / where.folds, group % where.folds * heads + h, rows.written()(s, 0, i)) =
            listed_lse(s, h, i);
      }
    }
  }
}

}  // namespace dispatching

// As sparse::attention over the list. Options: masks and scores (they see the operands' own
// positions), scale, lse_to, on, scratch, count_tiles.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void attention(const Q& q, const K& k, const V& v, Out&& out, const sparse::block_list& list,
               const Modifiers&... modifiers) {
  static_assert(
      (... && (mask_function<Modifiers> || score_function<Modifiers> ||
               (heed::detail::call_option<Modifiers> && !heed::detail::sink_function<Modifiers> &&
                !heed::detail::is_any_of<Modifiers, query_lengths, ragged>))),
      "heed::routed::attention takes masks, scores, scale, lse_to, on, scratch and "
      "count_tiles");
  const call_shape call = sparse::lists::shape_of(q, k);
  list.view();
  sparse::lists::check_exactly("block list", list.shape, call);
  const auto queries = read_view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  const auto values = read_view_of(v).template lifted<4>();
  const auto result = output_view_of(out).template lifted<4>();
  using Real = accumulator<view_element<Q>, view_element<K>, view_element<V>,
                           typename std::remove_cvref_t<decltype(result)>::value_type>;
  sparse::lists::check_axes("k", keys, "q", queries, false);
  sparse::lists::check_axes("v", values, "k", keys, true);
  sparse::lists::check_axes("out", result, "q", queries, true);
  if (result.extent(3) != values.extent(3)) {
    raise(message("out: depth ") << result.extent(3) << " differs from v's " << values.extent(3));
  }
  const index_t batches = call.batches, heads = call.heads, key_heads = keys.extent(1);
  const index_t listed = list.shape.heads;
  if (listed != 1 && listed != key_heads && listed != heads) {
    raise(message("block list: head count ")
          << listed << " is neither 1, k's " << key_heads << " nor q's " << heads);
  }
  if (heads == 0) return;
  const index_t folds = listed == 1 ? 1 : key_heads, group = heads / folds;
  const index_t members = listed == 1 || listed == key_heads ? 1 : group;
  index_t slots = 1;
  for (index_t r = 0; r < list.shape.rows(); ++r) {
    const auto at = static_cast<std::size_t>(r);
    slots = max(slots, list.offsets[at + 1] - list.offsets[at]);
  }
  const index_t rows_per_head = call.queries * slots, depth = values.extent(3);
  // Not cleared, and kept by the thread: what no query wrote has log-sum-exp −∞ and is not read.
  thread_workspace kept;
  heed::detail::bump counted;
  counted.take<Real>(batches * heads * rows_per_head * depth);
  heed::detail::bump memory(kept.get().reserve(counted.bytes()));
  Real* const outs = memory.take<Real>(batches * heads * rows_per_head * depth);
  std::vector<Real> sums(static_cast<std::size_t>(batches * heads * rows_per_head),
                         minus_infinity<Real>());
  const tensor_view<Real, 4> partial(outs, {batches, heads, rows_per_head, depth});
  const tensor_view<Real, 3> lse(sums.data(), {batches, heads, rows_per_head});
  [[maybe_unused]] const auto not_lse = [](const auto& modifier) {
    if constexpr (heed::detail::is_lse_to<std::remove_cvref_t<decltype(modifier)>>) {
      return std::tuple<>();
    } else {
      return std::tuple(modifier);
    }
  };
  for (index_t member = 0; member < members; ++member) {
    const dispatch_rows rows(list, call, folds, member, members);
    const sparse::original_positions where{rows.queries(), rows.keys(),  rows.lists, folds, group,
                                           member,         call.queries, call.keys,  call};
    const auto heads_of = [&](const auto& x) {
      return members == 1 ? x : sparse::lists::heads_of(x, member, key_heads, group);
    };
    tensor_view<Real, 3> own_lse = lse;
    if (members != 1) {
      own_lse = {lse.data() + member * lse.stride(1),
                 {batches, key_heads, rows_per_head},
                 {lse.stride(0), group * lse.stride(1), 1}};
    }
    std::apply(
        [&](const auto&... own) {
          dispatching::attend_blocks<Backend>(heads_of(queries), keys, values, rows, where,
                                              heads_of(partial), own_lse, own...);
        },
        std::tuple_cat(not_lse(modifiers)...));
  }
  std::vector<part<Real>> parts;
  for (index_t slot = 0; slot < slots; ++slot) {
    const tensor_view<Real, 3> of_slot(sums.data() + slot * call.queries,
                                       {batches, heads, call.queries},
                                       {heads * rows_per_head, rows_per_head, 1});
    parts.emplace_back(partial.slice(2, slot * call.queries, call.queries), of_slot);
  }
  std::apply([&](const auto&... wanted) { merge(parts, result, wanted...); },
             std::tuple_cat([&](const auto& modifier) {
               using M = std::remove_cvref_t<decltype(modifier)>;
               if constexpr (heed::detail::is_lse_to<M>) {
                 return std::tuple(lse_to{modifier.view.template lifted<3>()});
               } else if constexpr (heed::detail::is_on<M>) {
                 return std::tuple<M>(modifier);
               } else {
                 return std::tuple<>();
               }
             }(modifiers)...));
}

}  // namespace routed
HEED_NAMESPACE_END
