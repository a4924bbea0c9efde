// Exact attention over dense keys and values.
//
//   out[b, h, i, :] = Σ_j softmax_j(scores(scale·q[b, h, i]·k[b, h', j])) v[b, h', j, :],  h' = h /
//   (Hq / Hkv)
//
//   q   [B, Hq, Lq, D]      float, double, Eigen::half, Eigen::bfloat16, in any combination;
//   k   [B, Hkv, Lk, D]     sums are kept in float, or in double where one operand is double;
//   v   [B, Hkv, Lk, Dv]    k and v may also be quantized_view: integer codes with scales
//   out [B, Hq, Lq, Dv]     any of the four may be a gathered_view: rows of a tensor by their
//   numbers
//
// Operands may lack leading axes: [H, L, D] or [L, D]. Memory beside the operands is linear in Lk;
// the matrix of scores is never stored (Rabe and Staats, "Self-attention does not need O(n²)
// memory", 2021; Dao et al., "FlashAttention", 2022).
#pragma once

#include <tuple>

#include "../backend/select.hpp"
#include "../engine/attend.hpp"
#include "../mask/algebra.hpp"
#include "detail/check.hpp"
#include "detail/row_hooks.hpp"
#include "options.hpp"

HEED_NAMESPACE_BEGIN

// One set of keys and values with the masks, scores, key_lengths and left_padding that apply to it.
template <class K, class V, class... Modifiers>
struct source {
  static constexpr int rank = K::rank;
  using key_type = typename K::value_type;
  using value_type = typename V::value_type;

  K k;
  V v;
  std::tuple<Modifiers...> modifiers;

  template <readable Keys, readable Values>
  source(const Keys& keys, const Values& values, const Modifiers&... rest)
      : k(read_view_of(keys)), v(read_view_of(values)), modifiers(rest...) {
    static_assert((... && (mask_function<Modifiers> || score_function<Modifiers> ||
                           detail::key_option<Modifiers>)),
                  "heed::source: a modifier is neither a mask, a score, key_lengths nor "
                  "left_padding");
  }
};
template <readable K, readable V, class... Modifiers>
source(const K&, const V&, const Modifiers&...) -> source<read_view<K>, read_view<V>, Modifiers...>;

// Several sets under one softmax: sources{source{k1, v1}, source{k2, v2, causal{}}}. All have the
// same number of KV heads.
template <class... Sources>
struct sources {
  std::tuple<Sources...> all;
  explicit sources(const Sources&... list) : all(list...) {}
};

namespace detail {

// A score that hides keys is also a mask (bias{} with entries of −∞).
template <class Score>
struct hidden_by {
  Score score;
  template <class P>
  HEED_INLINE auto operator()(const P& p) const {
    return score.visible(p);
  }
};
template <class M>
concept hiding_score = score_function<M> && requires(const M& m, const position& p) {
  m.visible(p);
};

// The masks among modifiers, each in a tuple of one or none, and likewise the scores.
template <class M>
constexpr auto masks_in(const M& modifier) {
  if constexpr (mask_function<M>) {
    return std::tuple<M>(modifier);
  } else if constexpr (hiding_score<M>) {
    return std::tuple<hidden_by<M>>(hidden_by<M>{modifier});
  } else {
    return std::tuple<>();
  }
}
template <class M>
constexpr auto scores_in(const M& modifier) {
  if constexpr (score_function<M> && !mask_function<M>) {
    return std::tuple<M>(modifier);
  } else {
    return std::tuple<>();
  }
}

constexpr engine::everything conjunction() { return {}; }
template <class M>
constexpr M conjunction(const M& mask) {
  return mask;
}
template <class A, class B, class... Rest>
constexpr auto conjunction(const A& a, const B& b, const Rest&... rest) {
  return conjunction(a & b, rest...);
}

// A source as the engine wants it: rank 4, one mask, a tuple of scores.
template <class K, class V, class... Modifiers>
constexpr auto engine_source(const K& k, const V& v, const Modifiers&... modifiers) {
  const auto mask = std::apply([](const auto&... masks) { return conjunction(masks...); },
                               std::tuple_cat(masks_in(modifiers)...));
  const auto scores = std::tuple_cat(scores_in(modifiers)...);
  const auto keys = k.template lifted<4>();
  const auto values = v.template lifted<4>();
  return engine::source_of<
      std::remove_const_t<decltype(keys)>, std::remove_const_t<decltype(values)>,
      std::remove_const_t<decltype(mask)>, std::remove_const_t<decltype(scores)>>{
      keys, values, {}, mask, scores};
}

// How the sequences lie along the keys of one source.
HEED_NOINLINE inline engine::batch_layout key_layout(index_t batches, index_t length,
                                                     const ragged* rows, const key_lengths* lengths,
                                                     const left_padding* padding) {
  engine::batch_layout keys;
  keys.length = length;
  keys.sequences = batches;
  if (rows != nullptr) {
    if (lengths != nullptr || padding != nullptr) {
      raise("ragged: key_lengths and left_padding are for batches that are not ragged");
    }
    check_cumulative("cumulative_keys", rows->cumulative_keys, "k", length);
    keys.sequences = static_cast<index_t>(rows->cumulative_keys.size()) - 1;
    keys.cumulative = rows->cumulative_keys.data();
  }
  if (padding != nullptr) {
    check_lengths("left_padding", padding->values, batches, length, nullptr);
    keys.padding = padding->values.data();
  }
  if (lengths != nullptr) {
    check_lengths("key_lengths", lengths->values, batches, length, keys.padding);
    keys.lengths = lengths->values.data();
  }
  return keys;
}

// And along the queries.
HEED_NOINLINE inline engine::batch_layout query_layout(index_t batches, index_t length,
                                                       const ragged* rows,
                                                       const query_lengths* lengths) {
  engine::batch_layout queries;
  queries.length = length;
  queries.sequences = batches;
  if (rows != nullptr) {
    if (lengths != nullptr) raise("ragged: query_lengths is for batches that are not ragged");
    check_ragged(*rows, batches);
    check_cumulative("cumulative_queries", rows->cumulative_queries, "q", length);
    queries.sequences = static_cast<index_t>(rows->cumulative_queries.size()) - 1;
    queries.cumulative = rows->cumulative_queries.data();
  }
  if (lengths != nullptr) {
    check_lengths("query_lengths", lengths->values, batches, length, nullptr);
    queries.lengths = lengths->values.data();
  }
  return queries;
}

// Lets masks, scores and the sink compare their arrays with the call.
template <class Source, class Sink>
void check_hooks(const Source& source, const Sink& sink, const engine::batch_layout& queries,
                 index_t heads) {
  const call_shape shape{queries.sequences,    heads, queries.extent(),
                         source.keys.extent(), 0,     source.k.extent(3)};
  check_modifier(source.mask, shape);
  std::apply([&](const auto&... score) { (check_modifier(score, shape), ...); }, source.scores);
  check_modifier(sink, shape);
}

// The factor of q·k: 1/√D unless the call names one.
HEED_NOINLINE inline double scale_factor(index_t depth, const scale* wanted) {
  const double factor = wanted != nullptr ? wanted->value
                        : depth == 0      ? 1.0
                                          : 1.0 / __builtin_sqrt(static_cast<double>(depth));
  if (!(factor - factor == 0)) raise("scale: value is not finite");
  return factor;
}

// Everything behind the overloads of attention(). Result is the element type of what the caller
// gets in the end, which chooses the tiles: out may hold a partial result, in the type of the sums.
template <class Backend, class Result, class Q, class Out, class... Sources, class... Modifiers>
void run_attention(const Q& query_view, const Out& out_view, const std::tuple<Sources...>& sources,
                   const Modifiers&... modifiers) {
  static_assert(backend::available<Backend>,
                "heed: this backend needs instruction sets that the compiler's target lacks; "
                "compile for them (for avx512: -mavx512f -mavx512bw -mavx512dq -mavx512vl) or "
                "choose another backend");
  using query_type = typename Q::value_type;
  using out_type = typename Out::value_type;
  using Real = accumulator<query_type, out_type, typename Sources::key_type...,
                           typename Sources::value_type...>;
  check_combination<Modifiers...>();
  const engine::no_sink no_sink;
  const auto& sink = pick<picks_sink>(no_sink, modifiers...);

  const auto q = read_view_of(query_view).template lifted<4>();
  const auto out = out_view.template lifted<4>();
  const auto lse = log_sum_exp_view<Real, Q::rank>(modifiers...);
  constexpr bool wants_lse = (... || is_lse_to<Modifiers>);
  const operand query = erase("q", q);
  const operand query_memory = memory_of("q", q), output_memory = memory_of("out", out);
  check_operand(query);
  check_output(query, erase("out", out));
  check_distinct_rows(output_memory);
  check_disjoint(output_memory, query_memory);
  if (wants_lse) {
    check_output(query, erase("lse", lse));
    check_disjoint(erase("lse", lse), output_memory);
    check_disjoint(erase("lse", lse), query_memory);
  }
  const engine::batch_layout queries = query_layout(
      q.extent(0), q.extent(2), find<ragged>(modifiers...), find<query_lengths>(modifiers...));
  std::apply(
      [&](const auto&... source) {
        const auto check = [&](const operand& k, const operand& v) {
          check_source(query, erase("out", out), k, v);
          require_equal("k", "head count", k.extents[1], "the first source",
                        std::get<0>(sources).k.extent(1));
        };
        (check(erase("k", source.k), erase("v", source.v)), ...);
        const auto check_apart = [&](const operand& in) {
          check_disjoint(output_memory, in);
          if (wants_lse) check_disjoint(erase("lse", lse), in);
        };
        (for_each_array("k", source.k, check_apart), ...);
        (for_each_array("v", source.v, check_apart), ...);
        (check_lists("k", source.k, source.keys), ...);
        (check_lists("v", source.v, source.keys), ...);
        (check_hooks(source, sink, queries, q.extent(1)), ...);
      },
      sources);
  check_lists("q", q, queries);
  check_lists("out", out, queries);
  [[maybe_unused]] const call_shape whole{q.extent(0), q.extent(1), q.extent(2), all_keys(sources),
                                          out.extent(3)};
  (check_row_hook(modifiers, whole,
                  [&](const void* self, const auto& use) {
                    use(output_memory), use(query_memory);
                    ((self == &modifiers ? void() : for_each_output(modifiers, use)), ...);
                    if (wants_lse) use(erase("lse", lse));
                    std::apply(
                        [&](const auto&... source) {
                          (for_each_array("k", source.k, use), ...);
                          (for_each_array("v", source.v, use), ...);
                        },
                        sources);
                  }),
   ...);
  const double factor = scale_factor(q.extent(3), find<scale>(modifiers...));

  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  const auto& runner = pick<picks_executor>(default_runner, modifiers...);
  const scratch* memory = find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  workspace& space = memory != nullptr ? memory->memory : memory_of_thread.get();
  const count_tiles* counter = find<count_tiles>(modifiers...);
  constexpr bool hooked = (... || row_hook<Modifiers>);
  // Rows of weights are kept in the type of the sums: the tiles are those of operands of that type.
  using Tiles = std::conditional_t<
      hooked, typename Backend::template tiles<Real, Real>,
      engine::tiles_for<
          typename Backend::template tiles<Real, query_type, Result, typename Sources::key_type...,
                                           typename Sources::value_type...>,
          Sources...>>;
  const auto erased_sources = std::apply(
      [](const auto&... source) {
        return std::make_tuple(engine::erased<Tiles, hooked>(source)...);
      },
      sources);
  const engine::problem problem{q,
                                out,
                                lse,
                                queries,
                                erased_sources,
                                static_cast<Real>(factor),
                                engine::sink_calls<Real>(sink),
                                counter != nullptr ? &counter->counts : nullptr};
  if constexpr (hooked) {
    const auto with_hooks = with_row_hooks(problem, modifiers...);
    engine::attend<Tiles, std::remove_const_t<decltype(with_hooks)>>(with_hooks, space)
        .run(runner.runner);
  } else {
    engine::attend<Tiles, std::remove_const_t<decltype(problem)>>(problem, space)
        .run(runner.runner);
  }
}

}  // namespace detail

// Attention of q over one set of keys and values. Modifiers, in any order: masks (and-ed), scores
// (applied in the order written), sink, scale, lse_to, key_lengths, query_lengths, left_padding,
// ragged, on, scratch, count_tiles; and what works on whole rows of weights: a normaliser in place
// of the softmax (normalizer/), transforms of the weights in the order written, observers
// (observer/). Raises invalid_argument before anything is written when operands or modifiers do not
// fit.
template <class Backend = backend::native, rows_of_tensor Q, readable K, readable V,
          rows_of_tensor Out, class... Modifiers>
void attention(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
  static_assert((... && (mask_function<Modifiers> || score_function<Modifiers> ||
                         detail::key_option<Modifiers> || detail::call_option<Modifiers> ||
                         row_hook<Modifiers>)),
                "heed::attention: a modifier is neither a mask (bool of a position), a score (of a "
                "score and a position), nor an option such as heed::scale, nor a hook on rows of "
                "weights such as heed::sigmoid_weights");
  auto source = detail::engine_source(read_view_of(k), read_view_of(v), modifiers...);
  detail::check_keys_and_values(detail::erase("k", source.k), detail::erase("v", source.v));
  source.keys = detail::key_layout(
      source.k.extent(0), source.k.extent(2), detail::find<ragged>(modifiers...),
      detail::find<key_lengths>(modifiers...), detail::find<left_padding>(modifiers...));
  const auto result = output_view_of(out);
  detail::run_attention<Backend, typename decltype(result)::value_type>(
      read_view_of(q), result, std::make_tuple(source), modifiers...);
}

// Attention of q over several sets of keys and values under one softmax. Masks and scores belong to
// the sources and see positions within their own keys; the other modifiers are as above.
template <class Backend = backend::native, rows_of_tensor Q, class... Sources, rows_of_tensor Out,
          class... Modifiers>
void attention(const Q& q, const sources<Sources...>& keys_and_values, Out&& out,
               const Modifiers&... modifiers) {
  static_assert((... && (detail::call_option<Modifiers> || row_hook<Modifiers>)),
                "heed::attention over sources: masks, scores, key_lengths and left_padding belong "
                "into a source; the call takes options such as heed::scale and heed::sink");
  static_assert((... && !std::is_same_v<Modifiers, ragged>),
                "heed::attention over sources: a ragged batch has one source");
  auto engine_sources = std::apply(
      [&](const auto&... source) {
        const auto convert = [&](const auto& s) {
          return std::apply(
              [&](const auto&... own) {
                auto converted = detail::engine_source(s.k, s.v, own...);
                detail::check_keys_and_values(detail::erase("k", converted.k),
                                              detail::erase("v", converted.v));
                converted.keys = detail::key_layout(converted.k.extent(0), converted.k.extent(2),
                                                    nullptr, detail::find<key_lengths>(own...),
                                                    detail::find<left_padding>(own...));
                return converted;
              },
              s.modifiers);
        };
        return std::make_tuple(convert(source)...);
      },
      keys_and_values.all);
  const auto result = output_view_of(out);
  detail::run_attention<Backend, typename decltype(result)::value_type>(
      read_view_of(q), result, engine_sources, modifiers...);
}

HEED_NAMESPACE_END
