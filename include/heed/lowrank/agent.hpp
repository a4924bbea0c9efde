// Agent attention: n agents gather from the keys, the queries ask the agents,
//
//   out = softmax(scale·q aᵀ + B₂) · (softmax(scale·a kᵀ + B₁) v) [+ depthwise convolution of v]
//
//   q [B, Hq, Lq, D] · k [B, Hkv, Lk, D] · v [B, Hkv, Lk, Dv] · a [B, Hq, n, D]
//   B₁ [B|1, Hq|1, n|1, Lk|1], B₂ [B|1, Hq|1, Lq|1, n|1]
//
// Two attentions, linear in L where n is fixed. The agents are means of the queries over a grid, or
// given: learned tokens, latents. Han et al., "Agent Attention: On the Integration of Softmax and
// Linear Attention", ECCV 2024; agent_bias.hpp makes its biases from their tables. With learned
// agents: the induced set attention of Lee et al., "Set Transformer", ICML 2019.
#pragma once

#include "../score/bias.hpp"
#include "depthwise.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {

// Agents that are means of the queries: the tokens of q on a grid, one agent for each cell of
// another.
struct pooled_agents {
  grid queries;
  grid agents;
};

// B₁ and B₂, as modifiers.
template <element T>
struct gather_bias {
  bias<T> added;
  template <class U, int Rank>
  explicit gather_bias(const tensor_view<U, Rank>& values) : added(values) {}
};
template <class U, int Rank>
gather_bias(const tensor_view<U, Rank>&) -> gather_bias<std::remove_const_t<U>>;
template <element T>
struct spread_bias {
  bias<T> added;
  template <class U, int Rank>
  explicit spread_bias(const tensor_view<U, Rank>& values) : added(values) {}
};
template <class U, int Rank>
spread_bias(const tensor_view<U, Rank>&) -> spread_bias<std::remove_const_t<U>>;

namespace detail {

template <class M>
inline constexpr bool is_gather_bias = false;
template <class T>
inline constexpr bool is_gather_bias<gather_bias<T>> = true;
template <class M>
inline constexpr bool is_spread_bias = false;
template <class T>
inline constexpr bool is_spread_bias<spread_bias<T>> = true;

// What of the modifiers goes on to the first attention, and to the second.
template <class M>
struct is_for_gathering : std::bool_constant<is_gather_bias<M> || is_option_of_keys<M>::value> {};
template <class M>
struct is_for_spreading : std::bool_constant<is_spread_bias<M> || is_option_of_queries<M>::value> {
};
template <class M>
constexpr const auto& without_side(const M& modifier) {
  if constexpr (is_gather_bias<M> || is_spread_bias<M>) {
    return modifier.added;
  } else {
    return modifier;
  }
}

template <class... Modifiers>
void check_biases([[maybe_unused]] const call_shape& gathering,
                  [[maybe_unused]] const call_shape& spreading, const Modifiers&... modifiers) {
  [[maybe_unused]] const auto check = [&]<class M>(const M& modifier) {
    if constexpr (is_gather_bias<M>) modifier.added.check(gathering);
    if constexpr (is_spread_bias<M>) modifier.added.check(spreading);
  };
  (check(modifiers), ...);
}

HEED_NOINLINE inline void check_agents(const heed::detail::operand& q,
                                       const heed::detail::operand& agents,
                                       const heed::detail::operand& out) {
  using namespace heed::detail;
  check_operand(agents);
  require_equal("agents", "batch", agents.extents[0], "q", q.extents[0]);
  require_equal("agents", "head count", agents.extents[1], "q", q.extents[1]);
  require_equal("agents", "depth", agents.extents[3], "q", q.extents[3]);
  check_disjoint(out, agents);
}

}  // namespace detail

// Agents as an operand: [B, Hq, n, D], of any element type; stride 0 along the batch where they are
// learned. Modifiers: gather_bias, spread_bias, depthwise (needs Lq = Lk), scale, key_lengths,
// query_lengths, on, scratch. Raises invalid_argument before anything is written where operands or
// modifiers do not fit.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Agents, class... Modifiers>
void agent(const Q& queries, const K& keys, const V& values, Out&& result, const Agents& agents,
           const Modifiers&... modifiers) {
  static_assert((... && (detail::is_gather_bias<Modifiers> || detail::is_spread_bias<Modifiers> ||
                         detail::is_chain_option<Modifiers>)),
                "heed::lowrank::agent: options are gather_bias, spread_bias, depthwise, scale, "
                "key_lengths, query_lengths, on and scratch");
  const auto q = read_view_of(queries).template lifted<4>();
  const auto k = read_view_of(keys).template lifted<4>();
  const auto v = read_view_of(values).template lifted<4>();
  const auto a = read_view_of(agents).template lifted<4>();
  const auto out = output_view_of(result).template lifted<4>();
  using Real = accumulator<typename decltype(q)::value_type, typename decltype(k)::value_type,
                           typename decltype(v)::value_type, typename decltype(a)::value_type,
                           typename decltype(out)::value_type>;
  const detail::no_depthwise none;
  const auto& filter = heed::detail::pick<detail::picks_depthwise>(none, modifiers...);
  detail::check_attention_operands(q, k, v, out);
  const index_t batches = q.extent(0), heads = q.extent(1), count = a.extent(2);
  detail::check_agents(heed::detail::erase("q", q), heed::detail::erase("agents", a),
                       heed::detail::erase("out", out));
  filter.check(heads, q.extent(2), v.extent(2), v.extent(3));
  const index_t* query_counts =
      detail::checked_lengths<query_lengths>("query_lengths", batches, q.extent(2), modifiers...);
  const index_t* key_counts =
      detail::checked_lengths<key_lengths>("key_lengths", batches, k.extent(2), modifiers...);
  detail::check_biases({batches, heads, count, k.extent(2)}, {batches, heads, q.extent(2), count},
                       modifiers...);

  composed::call_memory memory(modifiers...);
  tensor_view<Real, 4> gathered;
  memory.carve([&](heed::detail::bump& take) {
    gathered = detail::take_view<Real>(take, batches, heads, count, v.extent(3));
  });
  const scratch inner = memory.inner();
  composed::with_kept<detail::is_for_gathering>(
      [&](const auto&... kept) {
        heed::attention<Backend>(a, k, v, gathered, inner, detail::without_side(kept)...);
      },
      modifiers...);
  detail::plus_convolution<Real>(
      filter, v, out, query_counts, key_counts, inner,
      [&](const auto& to, const scratch& memory_inside) {
        composed::with_kept<detail::is_for_spreading>(
            [&](const auto&... kept) {
              heed::attention<Backend>(q, a, gathered, to, memory_inside,
                                       detail::without_side(kept)...);
            },
            modifiers...);
      },
      modifiers...);
}

// Agents that are means of the queries.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void agent(const Q& queries, const K& keys, const V& values, Out&& result,
           const pooled_agents& agents, const Modifiers&... modifiers) {
  const auto q = read_view_of(queries).template lifted<4>();
  using Real = accumulator<typename decltype(q)::value_type>;
  heed::detail::check_operand(heed::detail::erase("q", q));
  detail::check_filled("q", q.extent(2), agents.queries);
  detail::check_grid("q", agents.queries);
  detail::check_grid("agents", agents.agents);
  const index_t* lengths = detail::checked_lengths<query_lengths>("query_lengths", q.extent(0),
                                                                  q.extent(2), modifiers...);
  composed::call_memory memory(modifiers...);
  tensor_view<Real, 4> means;
  memory.carve([&](heed::detail::bump& take) {
    means =
        detail::take_view<Real>(take, q.extent(0), q.extent(1), agents.agents.size(), q.extent(3));
  });
  composed::with_executor(
      [&](auto& executor) {
        detail::pool(q, agents.queries, means, agents.agents, lengths, executor);
      },
      modifiers...);
  // The first scratch of a call counts.
  agent<Backend>(queries, keys, values, std::forward<Out>(result), means, memory.inner(),
                 modifiers...);
}

}  // namespace lowrank
HEED_NAMESPACE_END
