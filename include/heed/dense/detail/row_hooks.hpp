// What a call does about normalisers, transforms and observers: which go together, whether they fit
// the operands, and the problem that the engine is given.
#pragma once

#include "../../engine/row_hooks.hpp"
#include "check.hpp"

HEED_NAMESPACE_BEGIN
namespace detail {

template <class... Modifiers>
constexpr void check_combination() {
  constexpr int normalizers = (0 + ... + static_cast<int>(normalizer_function<Modifiers>));
  constexpr int sinks = (0 + ... + static_cast<int>(sink_function<Modifiers>));
  static_assert(normalizers <= 1,
                "heed::attention: two normalisers in one call; one takes the softmax's place");
  static_assert(sinks <= 1, "heed::attention: two sinks in one call; give the logit of their sum");
  static_assert(normalizers == 0 || sinks == 0,
                "heed::attention: a sink is a logit of the softmax, this call has another "
                "normaliser");
  static_assert(normalizers == 0 || !(... || is_lse_to<Modifiers>),
                "heed::attention: lse_to is about the softmax, this call has another normaliser");
}

// Keys of all sources, one key axis behind the other.
template <class... Sources>
index_t all_keys(const std::tuple<Sources...>& sources) {
  return std::apply([](const auto&... source) { return (index_t{0} + ... + source.k.extent(2)); },
                    sources);
}

// Calls use(operand) for every array that a modifier writes into besides lse.
template <class Modifier, class Use>
void for_each_output(const Modifier& modifier, const Use& use) {
  if constexpr (requires { modifier.outputs([](const char*, const auto&) {}); }) {
    modifier.outputs([&](const char* name, const auto& view) { use(erase(name, view)); });
  }
}

// Lets a hook compare itself with the call, and its outputs with the other operands, those of other
// modifiers included: for_each_operand(address of this one, use).
template <class Modifier, class ForEachOperand>
void check_row_hook(const Modifier& modifier, const call_shape& shape,
                    const ForEachOperand& for_each_operand) {
  if constexpr (row_hook<Modifier>) {
    check_modifier(modifier, shape);
    for_each_output(modifier, [&](const operand& target) {
      check_operand(target);
      check_distinct_rows(target);
      for_each_operand(&modifier, [&](const operand& other) { check_disjoint(target, other); });
    });
  }
}

template <class M>
constexpr auto hooks_in(const M& modifier) {
  if constexpr (row_hook<M> && !normalizer_function<M>) {
    return std::tuple<M>(modifier);
  } else {
    return std::tuple<>();
  }
}

template <class Problem, class... Modifiers>
auto with_row_hooks(const Problem& problem, const Modifiers&... modifiers) {
  const engine::softmax_normalizer softmax;
  const auto& normalizer = pick<picks_normalizer>(softmax, modifiers...);
  const auto hooks = std::tuple_cat(hooks_in(modifiers)...);
  return engine::hooked_problem<Problem, std::remove_cvref_t<decltype(normalizer)>,
                                std::remove_const_t<decltype(hooks)>>{problem, normalizer, hooks};
}

}  // namespace detail
HEED_NAMESPACE_END
