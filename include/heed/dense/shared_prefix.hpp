// Attention of a batch whose sequences begin with the same keys: a system prompt, a document that
// several questions are about, a prompt that is continued in several ways (sampling, beams).
//
//   out[b, h, i, :] = attention of q[b, h, i, :] over the keys of [prefix_k; k[b]] and their values
//
//   q        [B, Hq, Lq, D]     any element types, keys and values also as codes; sums as in
//                               attention()
//   prefix_k [G, Hkv, P, D]     prefix g is that of the sequences g·B/G … (g + 1)·B/G − 1; G
//   prefix_v [G, Hkv, P, Dv]    divides B, and is 1 where all share one prefix
//   k        [B, Hkv, Lk, D]    own keys of each sequence
//   v        [B, Hkv, Lk, Dv]
//   out      [B, Hq, Lq, Dv]
//
//   heed::shared_prefix_attention(q, prefix_k, prefix_v, k, v, out, heed::causal{});
//
// The same as attention() over sources{source{prefix_k of every sequence, …}, source{k, v, …}} up
// to rounding, but a prefix is read once and not once per sequence: the queries of all sequences
// that share it are rows of one head, which turns the matrix-vector products of decoding into
// matrix products. Their partial result and that over the own keys are merged (dense/merge.hpp).
// Partial results are kept in scratch memory in the type of the sums, and so is a copy of q unless
// Lq = 1 or its memory is [B, L, H, D].
//
// What masks and scores apply to:
//
//   masks   own keys alone, with the positions that attention(q, k, v) would give them: causal{} is
//           aligned at the last own key, window{n} counts own keys. Every query sees the whole
//           prefix.
//   scores  every key, on the joint axis: key j of the prefix is at j, own key j at P + j, and
//           `keys` counts both. So softcap, ALiBi, T5 buckets and the like are what they are for
//           the joined sequence, and a bias array is [B, Hq, Lq, P + Lk]; its −∞ hides keys of the
//           prefix too.
//
// A sink counts once. key_lengths and left_padding are about own keys. A ragged batch (q, k and v
// with batch 1) shares one prefix.
//
// More levels, a tree of prefixes: a call per inner node, and merge. Two groups of sequences with a
// prefix each (G = 2) below a root that all share:
//
//   shared_prefix_attention(q, group_k, group_v, k, v, below, causal{}, lse_to{below_lse});
//   shared_prefix_attention(q, root_k, root_v, no_k, no_v, above, lse_to{above_lse});     // Lk = 0
//   merge({part{above, above_lse}, part{below, below_lse}}, out);
//
// Juravsky et al., "Hydragen: High-Throughput LLM Inference with Shared Prefixes", 2024; Zhu et
// al., "RelayAttention for Efficient Large Language Model Serving with Long System Prompts", ACL
// 2024; Athiwaratkun et al., "Bifurcated Attention", 2024; Ye et al., "Cascade Inference", 2024.
#pragma once

#include "attention.hpp"
#include "merge.hpp"

HEED_NAMESPACE_BEGIN
namespace detail {

// Where a row of the folded queries lies in its own sequence; `keys` of prefix and sequence.
struct folded_row {
  index_t batch, q, queries, keys;
};

// A score over the keys of a prefix, whose queries are folded.
template <class Score>
struct score_of_prefix {
  Score score;
  const folded_row* rows;  // [prefixes][rows]
  index_t rows_per_prefix;

  template <class P>
  HEED_INLINE P joint(P p) const {
    const folded_row& row = rows[p.batch * rows_per_prefix + p.q];
    p.batch = row.batch;
    p.q = row.q;
    p.queries = row.queries;
    p.keys = row.keys;
    return p;
  }
  template <class S, class P>
  requires std::invocable<const Score&, S, const P&> HEED_INLINE auto operator()(S s,
                                                                                 const P& p) const {
    const P at = joint(p);
    return score(s, at);
  }
  template <class P>
  requires hiding_score<Score> HEED_INLINE auto visible(const P& p) const {
    return score.visible(joint(p));
  }
};

// A score over own keys, which lie behind the prefix.
template <class Score>
struct score_of_own {
  Score score;
  index_t prefix;

  template <class P>
  HEED_INLINE P joint(P p) const {
    p.k = p.k + prefix;
    p.keys += prefix;
    if constexpr (requires { p.first_key; }) p.first_key += prefix;
    return p;
  }
  template <class S, class P>
  requires std::invocable<const Score&, S, const P&> HEED_INLINE auto operator()(S s,
                                                                                 const P& p) const {
    const P at = joint(p);
    return score(s, at);
  }
  template <class P>
  requires hiding_score<Score> HEED_INLINE auto visible(const P& p) const {
    return score.visible(joint(p));
  }
};

// A modifier as one of one, or none.
template <bool Keep, class M>
constexpr auto keep(const M& modifier) {
  if constexpr (Keep) {
    return std::tuple<const M&>(modifier);
  } else {
    return std::tuple<>();
  }
}
template <class M>
inline constexpr bool is_option_of_prefix = is_on<M> || is_any_of<M, scale, count_tiles>;
template <class M>
inline constexpr bool is_option_of_merge = is_on<M> || is_lse_to<M>;

// What of a modifier applies to own keys, and to the prefix.
template <class M>
constexpr auto for_own_keys(const M& modifier, index_t prefix) {
  if constexpr (is_score<M>) {
    return std::tuple<score_of_own<M>>({modifier, prefix});
  } else {
    return keep<mask_function<M>>(modifier);
  }
}
template <class M>
constexpr auto for_prefix(const M& modifier, const folded_row* rows, index_t rows_per_prefix) {
  if constexpr (is_score<M>) {
    return std::tuple<score_of_prefix<M>>({modifier, rows, rows_per_prefix});
  } else {
    return std::tuple<>();
  }
}

// [B, H, L, D] as [G, H, B/G·L, D]: the rows of all sequences of a prefix, one behind the other.
template <class T>
tensor_view<T, 4> folded(const tensor_view<T, 4>& x, index_t prefixes) {
  const index_t sequences = x.extent(0) / prefixes;
  return {x.data(),
          {prefixes, x.extent(1), sequences * x.extent(2), x.extent(3)},
          {sequences * x.stride(0), x.stride(1), x.extent(2) == 1 ? x.stride(0) : x.stride(2), 1}};
}
template <class T>
bool can_be_folded(const tensor_view<T, 4>& x, index_t prefixes) {
  return x.extent(0) == prefixes || x.extent(2) == 1 || x.stride(0) == x.extent(2) * x.stride(2);
}
// Memory of [B, L, H, D] elements, which can be folded.
template <class T>
tensor_view<T, 4> by_token(T* data, index_t batches, index_t heads, index_t length, index_t depth) {
  return {data, {batches, heads, length, depth}, {length * heads * depth, depth, heads * depth, 1}};
}

HEED_NOINLINE inline void check_prefix(const operand& q, const operand& out,
                                       const operand& prefix_k, const operand& prefix_v,
                                       const operand& k, const operand& v) {
  check_operand(q);
  check_output(q, out);
  check_keys_and_values(prefix_k, prefix_v);
  check_keys_and_values(k, v);
  const index_t prefixes = prefix_k.extents[0];
  if (prefixes == 0 || q.extents[0] % prefixes != 0) {
    raise(message("prefix_k: batch ") << prefixes << " does not divide q's batch " << q.extents[0]);
  }
  check_depths_and_heads(q, out, prefix_k, prefix_v);
  check_source(q, out, k, v);
  require_equal("k", "head count", k.extents[1], "prefix_k", prefix_k.extents[1]);
  if (prefix_k.extents[2] + k.extents[2] > index_t{0x7fffff00}) {
    raise(message("prefix_k: length ") << prefix_k.extents[2] << " and k's " << k.extents[2]
                                       << " are together over the limit of 2147483392");
  }
}

// The row of every query in the batch.
inline void list_rows(const engine::batch_layout& queries, const engine::batch_layout& own,
                      index_t prefix, index_t batches, index_t length, folded_row* rows) {
  // Rows that no sequence has are computed and dropped: any position that exists will do.
  for (index_t r = 0; r < batches * length; ++r) rows[r] = {r / length, 0, 1, prefix};
  for (index_t s = 0; s < queries.sequences; ++s) {
    const engine::rows_of_sequence at = queries.at(s);
    for (index_t q = 0; q < at.count; ++q) {
      rows[at.batch * length + at.begin + q] = {s, q, at.count, prefix + own.at(s).count};
    }
  }
}

}  // namespace detail

// Modifiers, in any order: masks (and-ed, on own keys), scores (on all keys, in the order written),
// sink, scale, lse_to, key_lengths, query_lengths, left_padding, ragged, on, scratch, count_tiles.
// Raises invalid_argument before anything is written when operands or modifiers do not fit. Results
// are bit-identical on any executor.
template <class Backend = backend::native, viewable Q, readable PrefixK, readable PrefixV,
          readable K, readable V, viewable Out, class... Modifiers>
void shared_prefix_attention(const Q& queries, const PrefixK& prefix_keys,
                             const PrefixV& prefix_values, const K& keys, const V& values,
                             Out&& result, const Modifiers&... modifiers) {
  using namespace detail;
  static_assert((... && (mask_function<Modifiers> || score_function<Modifiers> ||
                         key_option<Modifiers> || call_option<Modifiers>)),
                "heed::shared_prefix_attention: a modifier is neither a mask (bool of a position), "
                "a score (of a score and a position), nor an option such as heed::scale");
  static_assert((... && !score_term<Modifiers>),
                "heed::shared_prefix_attention: terms such as relative embeddings need queries at "
                "their places, and the prefix sees those of all sequences as one head's");
  const auto read = [](const auto& operand) { return read_view_of(operand).template lifted<4>(); };
  const auto q = read(queries);
  const auto prefix_k = read(prefix_keys);
  const auto prefix_v = read(prefix_values);
  const auto k = read(keys);
  const auto v = read(values);
  const auto out_view = output_view_of(result);
  const auto out = out_view.template lifted<4>();
  using query_type = typename decltype(q)::value_type;
  using out_type = typename decltype(out)::value_type;
  using Real = accumulator<query_type, out_type, typename decltype(prefix_k)::value_type,
                           typename decltype(prefix_v)::value_type,
                           typename decltype(k)::value_type, typename decltype(v)::value_type>;

  // Checks, in the caller's names; what is about masks, sink and scale follows with the own keys.
  const operand query = erase("q", q), output = erase("out", out);
  check_prefix(query, output, erase("prefix_k", prefix_k), erase("prefix_v", prefix_v),
               erase("k", k), erase("v", v));
  const auto check_apart = [&](const operand& written) {
    const auto check = [&](const operand& input) { check_disjoint(written, input); };
    check(query);
    for_each_array("prefix_k", prefix_k, check);
    for_each_array("prefix_v", prefix_v, check);
    for_each_array("k", k, check);
    for_each_array("v", v, check);
  };
  check_apart(output);
  if constexpr ((... || is_lse_to<Modifiers>)) {
    const operand lse = erase("lse", log_sum_exp_view<Real, view_rank<Q>>(modifiers...));
    check_output(query, lse);
    check_disjoint(lse, output);
    check_apart(lse);
  }
  const index_t prefixes = prefix_k.extent(0), prefix = prefix_k.extent(2);
  const index_t batches = q.extent(0), heads = q.extent(1), length = q.extent(2);
  const index_t depth = q.extent(3), value_depth = out.extent(3);
  const ragged* sequences = find<ragged>(modifiers...);
  const engine::batch_layout query_rows =
      query_layout(batches, length, sequences, find<query_lengths>(modifiers...));
  const engine::batch_layout own =
      key_layout(batches, k.extent(2), sequences, find<key_lengths>(modifiers...),
                 find<left_padding>(modifiers...));
  constexpr bool scored = (... || is_score<Modifiers>);
  const call_shape joint{query_rows.sequences, heads, query_rows.longest(), prefix + own.longest()};
  std::apply([&](const auto&... score) { (check_modifier(score, joint), ...); },
             std::tuple_cat(keep<is_score<Modifiers>>(modifiers)...));

  // Scratch memory; the two calls have theirs in the inner workspace.
  const scratch* named = find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  workspace& memory = named != nullptr ? named->memory : memory_of_thread.get();
  const index_t rows = batches * heads * length;
  const bool copies = !can_be_folded(q, prefixes);
  query_type* query_copy = nullptr;
  Real *prefix_out = nullptr, *own_out = nullptr;
  Real *folded_lse = nullptr, *prefix_lse = nullptr, *own_lse = nullptr;
  folded_row* folded_rows = nullptr;
  const auto lay_out = [&](bump& from) {
    query_copy = from.take<query_type>(copies ? rows * depth : 0);
    prefix_out = from.take<Real>(rows * value_depth);
    own_out = from.take<Real>(rows * value_depth);
    folded_lse = from.take<Real>(rows);
    prefix_lse = from.take<Real>(rows);
    own_lse = from.take<Real>(rows);
    folded_rows = from.take<folded_row>(scored ? batches * length : 0);
  };
  bump counted;
  lay_out(counted);
  bump taken(memory.reserve(counted.bytes()));
  lay_out(taken);
  const scratch inner(memory.inner());
  const auto partial_out = [&](Real* data) {
    return by_token(data, batches, heads, length, value_depth);
  };
  const auto partial_lse = [&](Real* data) {
    return tensor_view<Real, 3>(data, {batches, heads, length});
  };

  // Own keys.
  auto own_source = std::apply([&](const auto&... kept) { return engine_source(k, v, kept...); },
                               std::tuple_cat(for_own_keys(modifiers, prefix)...));
  own_source.keys = own;
  run_attention<Backend, out_type>(q, partial_out(own_out), std::make_tuple(own_source),
                                   lse_to{partial_lse(own_lse)}, inner, modifiers...);

  // The prefix, with the queries of all sequences as rows of one head.
  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  const auto& runner = pick<picks_executor>(default_runner, modifiers...);
  auto rows_of_queries = q;
  if (copies) {
    const auto copy = by_token(query_copy, batches, heads, length, depth);
    runner.runner.run(batches * length, [&](index_t item, int) {
      for (index_t h = 0; h < heads; ++h) {
        const query_type* from = q.row(item / length, h, item % length);
        query_type* to = copy.row(item / length, h, item % length);
        for (index_t d = 0; d < depth; ++d) to[d] = from[d];
      }
    });
    rows_of_queries = copy;
  }
  const index_t folded_length = batches / prefixes * length;
  if constexpr (scored) {
    list_rows(query_rows, own, prefix, batches, length, folded_rows);
  }
  auto prefix_source =
      std::apply([&](const auto&... score) { return engine_source(prefix_k, prefix_v, score...); },
                 std::tuple_cat(for_prefix(modifiers, folded_rows, folded_length)...));
  prefix_source.keys = key_layout(prefixes, prefix, nullptr, nullptr, nullptr);
  std::apply(
      [&](const auto&... option) {
        run_attention<Backend, out_type>(
            folded(rows_of_queries, prefixes), folded(partial_out(prefix_out), prefixes),
            std::make_tuple(prefix_source),
            lse_to{tensor_view<Real, 3>(folded_lse, {prefixes, heads, folded_length})}, inner,
            option...);
      },
      std::tuple_cat(keep<is_option_of_prefix<Modifiers>>(modifiers)...));

  // Back into the order of the batch; rows behind a query length attend to nothing.
  for (index_t b = 0; b < batches; ++b) {
    const index_t count = query_rows.lengths != nullptr ? query_rows.lengths[b] : length;
    for (index_t h = 0; h < heads; ++h) {
      const Real* from = folded_lse + (b * prefixes / batches * heads + h) * folded_length +
                         b % (batches / prefixes) * length;
      Real* to = prefix_lse + (b * heads + h) * length;
      for (index_t i = 0; i < length; ++i) to[i] = i < count ? from[i] : minus_infinity<Real>();
    }
  }
  std::apply(
      [&](const auto&... option) {
        merge({part{partial_out(prefix_out), partial_lse(prefix_lse)},
               part{partial_out(own_out), partial_lse(own_lse)}},
              out_view, option...);
      },
      std::tuple_cat(keep<is_option_of_merge<Modifiers>>(modifiers)...));
}

HEED_NAMESPACE_END
