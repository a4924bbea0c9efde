// Linear attention: the primitive that every method of this folder is written on.
//
//   S_t   = diag(e^g_t)·S_{t−1} + β_t·φ(k_t)·x_tᵀ
//   z_t   = diag(e^g_t)·z_{t−1} + β_t·φ(k_t)
//   out_t = S_tᵀ·(scale·φ(q_t)) · f(z_t·(scale·φ(q_t)))
//
//   x_t = v_t, or under the delta rule v_t − (diag(e^g_t)·S_{t−1})ᵀφ(k_t)
//
//   q   [B, Hq, L, D]      float, double, Eigen::half, Eigen::bfloat16, in any combination; sums
//   k   [B, Hk, L, D]      are kept in float, or in double where one operand is double
//   v   [B, Hv, L, Dv]
//   out [B, H, L, Dv]      H = max(Hq, Hk, Hv); states S [B, Hs, features, Dv], Hs = max(Hk, Hv)
//
// Every head count divides the larger ones; head h of n reads head h / (n / m) of m. Operands may
// lack leading axes. Reads are causal, with q and k of one length, unless the call says
// `bidirectional{}`. scale is 1/√D without a feature map and 1 with one. Memory beside the operands
// is that of a chunk and a state per thread.
//
// Katharopoulos et al., "Transformers are RNNs", 2020; the chunked form with decay: Sun et al.,
// "Retentive Network", 2023, Yang et al., "Gated Linear Attention Transformers", 2024.
#pragma once

#include "detail/check.hpp"
#include "detail/run.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {
namespace detail {

template <template <class> class Template, class M>
inline constexpr bool is_instance = false;
template <template <class> class Template, class T>
inline constexpr bool is_instance<Template, Template<T>> = true;

// A decay by what it can do, so that methods may bring their own.
template <class M>
concept decay_policy = requires {
  { M::kind } -> std::convertible_to<decay_kind>;
};

template <class M>
struct picks_map : std::bool_constant<feature_map<M>> {};
template <class M>
struct picks_decay : std::bool_constant<decay_policy<M>> {};
template <class M>
struct picks_normalized : std::bool_constant<is_instance<normalized, M>> {};
template <class M>
struct picks_strength : std::bool_constant<is_instance<strength, M>> {};
template <class M>
struct picks_delta : std::bool_constant<is_instance<delta, M>> {};
template <class M>
struct picks_bonus : std::bool_constant<is_instance<bonus, M>> {};
template <class M>
struct picks_initial : std::bool_constant<is_instance<initial_state, M>> {};
template <class M>
struct picks_final : std::bool_constant<is_instance<final_state, M>> {};

template <class M>
concept option = feature_map<M> || decay_policy<M> || is_instance<normalized, M> ||
    is_instance<strength, M> || is_instance<delta, M> || is_instance<bonus, M> ||
    is_instance<initial_state, M> || is_instance<final_state, M> || heed::detail::is_on<M> ||
    heed::detail::is_any_of<M, chunk, bidirectional, scale, scratch, key_lengths, query_lengths,
                            ragged>;

template <class M>
using element_in = std::remove_const_t<typename decltype(std::declval<M>().values)::value_type>;

}  // namespace detail

// Linear attention of q over k and v. Modifiers, in any order, at most one of each: a feature map,
// a decay, strength or delta, normalized, bonus, initial_state, final_state, chunk, bidirectional,
// scale, key_lengths, query_lengths, ragged, on, scratch. Raises invalid_argument before anything
// is written when operands or modifiers do not fit, or a log decay is above 0. out must not overlap
// an operand.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void attention(const Q& query, const K& key, const V& value, Out&& output,
               const Modifiers&... modifiers) {
  static_assert(backend::available<Backend>,
                "heed: this backend needs instruction sets that the compiler's target lacks");
  static_assert((... && detail::option<Modifiers>),
                "heed::linear::attention: a modifier is neither a feature map, a decay, nor an "
                "option of linear/options.hpp");
  using heed::detail::find;
  using heed::detail::pick;
  const identity no_map;
  const detail::no_decay no_decay;
  const normalized<detail::no_normalizer> no_normalizer{{}};
  const auto& map = pick<detail::picks_map>(no_map, modifiers...);
  const auto& decay = pick<detail::picks_decay>(no_decay, modifiers...);
  const auto& normalizer = pick<detail::picks_normalized>(no_normalizer, modifiers...);
  // Without arrays: views of nothing, of a type that adds no instantiation.
  struct no_values {
    tensor_view<const float, 4> values;
  };
  struct no_bonus {
    tensor_view<const float, 2> values;
  };
  struct no_state {
    tensor_view<float, 4> s;
    tensor_view<float, 3> z;
  };
  const no_values none;
  const no_bonus plain_read;
  const no_state no_state_;
  constexpr bool is_delta = (... || detail::is_instance<delta, Modifiers>);
  constexpr bool is_strong = (... || detail::is_instance<strength, Modifiers>);
  static_assert(!(is_delta && is_strong),
                "heed::linear::attention: the delta rule has its own strengths");
  const auto& strengths = [&]() -> const auto& {
    if constexpr (is_delta) {
      return pick<detail::picks_delta>(none, modifiers...);
    } else {
      return pick<detail::picks_strength>(none, modifiers...);
    }
  }
  ();
  const auto& extra = pick<detail::picks_bonus>(plain_read, modifiers...);
  const auto& first = pick<detail::picks_initial>(no_state_, modifiers...);
  const auto& last = pick<detail::picks_final>(no_state_, modifiers...);

  const auto q = read_view_of(query).template lifted<4>();
  const auto k = read_view_of(key).template lifted<4>();
  const auto v = read_view_of(value).template lifted<4>();
  const auto out = output_view_of(output).template lifted<4>();
  using Query = typename decltype(q)::value_type;
  using Key = typename decltype(k)::value_type;
  using Value = typename decltype(v)::value_type;
  using Result = typename decltype(out)::value_type;
  using Strength = typename decltype(strengths.values)::value_type;
  using Bonus = typename decltype(extra.values)::value_type;
  using Initial = typename decltype(first.s)::value_type;
  using Final = typename decltype(last.s)::value_type;
  using Map = std::remove_cvref_t<decltype(map)>;
  using Decay = std::remove_cvref_t<decltype(decay)>;
  using Normalizer = std::remove_cvref_t<decltype(normalizer.f)>;
  using Call = detail::call<Query, Key, Value, Result, Map, Decay, Normalizer, Strength, Bonus,
                            Initial, Final>;
  using Real = accumulator<Query, Key, Value, Result>;

  Call call{
      q,       k,       v,      out,    map, decay, normalizer.f, strengths.values, extra.values,
      first.s, first.z, last.s, last.z, {},  {}};
  call.is_delta = is_delta;
  if constexpr (is_delta) {
    call.has_strength = strengths.has_values;
  } else {
    call.has_strength = is_strong;
  }
  call.has_initial = (... || detail::is_instance<initial_state, Modifiers>);
  call.reads_before = (... || detail::is_instance<bonus, Modifiers>);
  call.is_normalized = (... || detail::is_instance<normalized, Modifiers>);
  call.is_bidirectional = (... || std::is_same_v<Modifiers, bidirectional>);
  static_assert(!((... || std::is_same_v<Modifiers, bidirectional>)&&(
                    is_delta || Decay::kind != decay_kind::none ||
                    (... || detail::is_instance<bonus, Modifiers>))),
                "heed::linear::attention: bidirectional reads have no order to decay or erase in");
  static_assert(!(is_delta && ((... || detail::is_instance<bonus, Modifiers>) ||
                               (... || detail::is_instance<normalized, Modifiers>))),
                "heed::linear::attention: the delta rule has neither a bonus nor a sum of keys");
  const bool wants_state = (... || detail::is_instance<final_state, Modifiers>);
  if (const auto* given = find<chunk>(modifiers...)) call.chunk = given->tokens;
  call.keys = detail::token_layout("k", k.extent(0), k.extent(2), find<ragged>(modifiers...),
                                   find<key_lengths>(modifiers...));
  call.queries =
      detail::query_layout(call.is_bidirectional, q.extent(0), q.extent(2), call.keys,
                           find<ragged>(modifiers...), find<query_lengths>(modifiers...));
  const scale* factor = find<scale>(modifiers...);
  call.scale = factor != nullptr ? factor->value
               : std::is_same_v<Map, identity> && q.extent(3) != 0
                   ? 1.0 / std::sqrt(static_cast<double>(q.extent(3)))
                   : 1.0;
  detail::check_call(call, wants_state);

  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  const auto& runner = pick<heed::detail::picks_executor>(default_runner, modifiers...);
  const scratch* memory = find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  detail::runner<Backend, Real, Call>(call).run(
      runner.runner, memory != nullptr ? memory->memory : memory_of_thread.get());
}

}  // namespace linear
HEED_NAMESPACE_END
