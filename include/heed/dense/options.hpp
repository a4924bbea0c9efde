// What may follow the operands of an attention call besides masks and scores.
#pragma once

#include <span>

#include "../core/executor.hpp"
#include "../core/view_of.hpp"
#include "../core/weight_row.hpp"
#include "../core/workspace.hpp"
#include "../engine/problem.hpp"

HEED_NAMESPACE_BEGIN

// Factor of q·k, in place of 1/√D. Any finite number, 0 and negative ones included.
struct scale {
  double value;
  constexpr explicit scale(double factor) : value(factor) {}
};

// Where the log-sum-exp of every row's scores goes: [B, Hq, Lq] (or the last axes of it, as the
// rank of q says), float, or double where the operands are; natural logarithm, −∞ for a row that
// attends to nothing.
template <class T, int Rank>
struct lse_to {
  tensor_view<T, Rank> view;
};
template <class T, int Rank>
lse_to(tensor_view<T, Rank>) -> lse_to<T, Rank>;

// The executor that runs the call: serial (the default), thread_pool, openmp, tbb_executor, or a
// program's own. Results are bit-identical on all of them.
template <executor E>
struct on {
  E& runner;
  explicit on(E& executor) : runner(executor) {}
};

// Scratch memory that a program owns, in place of the calling thread's.
struct scratch {
  workspace& memory;
  explicit scratch(workspace& memory_of_caller) : memory(memory_of_caller) {}
};

// Number of keys of every batch entry, in tensors of the longest: keys behind it do not exist.
struct key_lengths {
  std::span<const index_t> values;
  explicit key_lengths(std::span<const index_t> lengths) : values(lengths) {}
};
// Number of queries of every batch entry; rows behind it come out as 0.
struct query_lengths {
  std::span<const index_t> values;
  explicit query_lengths(std::span<const index_t> lengths) : values(lengths) {}
};
// Number of keys to leave out at the left of every batch entry. Positions count from the first key
// that is left.
struct left_padding {
  std::span<const index_t> values;
  explicit left_padding(std::span<const index_t> counts) : values(counts) {}
};

// A ragged batch: sequence i has queries [cumulative_queries[i], cumulative_queries[i + 1]) and
// keys likewise. The operands have batch 1 and all sequences one after the other. Masks and scores
// see the sequence's number as the batch, and positions within the sequence.
struct ragged {
  std::span<const index_t> cumulative_queries;
  std::span<const index_t> cumulative_keys;
  ragged(std::span<const index_t> queries, std::span<const index_t> keys)
      : cumulative_queries(queries), cumulative_keys(keys) {}
};

// Adds up how many tiles the call looked at, by visibility.
using engine::tile_counts;
struct count_tiles {
  tile_counts& counts;
  explicit count_tiles(tile_counts& to) : counts(to) {}
};

namespace detail {

template <class M>
inline constexpr bool is_lse_to = false;
template <class T, int Rank>
inline constexpr bool is_lse_to<lse_to<T, Rank>> = true;
template <class M>
inline constexpr bool is_on = false;
template <class E>
inline constexpr bool is_on<on<E>> = true;

template <class M>
inline constexpr bool is_score = score_function<M> && !mask_function<M>;
template <class M, class... Types>
inline constexpr bool is_any_of = (std::is_same_v<M, Types> || ...);

template <class M>
concept sink_function = requires(const M& m) {
  m.template logit<float>(index_t{0});
};

// Options of a whole call, and those that belong to one set of keys.
template <class M>
concept call_option = is_lse_to<M> || is_on<M> || sink_function<M> ||
    is_any_of<M, scale, scratch, query_lengths, ragged, count_tiles>;
template <class M>
concept key_option = is_any_of<M, key_lengths, left_padding>;

// The first modifier that Select picks, or `otherwise`.
template <template <class> class Select, class Default>
constexpr const Default& pick(const Default& otherwise) {
  return otherwise;
}
template <template <class> class Select, class Default, class First, class... Rest>
constexpr const auto& pick(const Default& otherwise, const First& first, const Rest&... rest) {
  if constexpr (Select<First>::value) {
    return first;
  } else {
    return pick<Select>(otherwise, rest...);
  }
}

template <class M>
struct picks_lse : std::bool_constant<is_lse_to<M>> {};
template <class M>
struct picks_executor : std::bool_constant<is_on<M>> {};
template <class M>
struct picks_normalizer : std::bool_constant<normalizer_function<M>> {};
template <class M>
struct picks_sink : std::bool_constant<sink_function<M>> {};
// The modifier of one type, or null where the call has none.
template <class Wanted>
constexpr const Wanted* find() {
  return nullptr;
}
template <class Wanted, class First, class... Rest>
constexpr const Wanted* find(const First& first, const Rest&... rest) {
  if constexpr (std::is_same_v<First, Wanted>) {
    return &first;
  } else {
    return find<Wanted>(rest...);
  }
}

}  // namespace detail

HEED_NAMESPACE_END
