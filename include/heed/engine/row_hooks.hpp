// A problem whose rows of weights are kept whole, for normalisers, weight transforms and observers.
#pragma once

#include <tuple>

#include "../core/weight_row.hpp"
#include "problem.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Softmax, sinks included: done by the backend's kernel.
struct softmax_normalizer {};

// Hooks is a tuple of transforms, observers and output functions, in the order of the call.
template <class Problem, class Normalizer, class Hooks>
struct hooked_problem : Problem {
  Normalizer normalizer;
  Hooks hooks;
};

template <class Problem>
inline constexpr bool is_hooked = false;
template <class Problem, class Normalizer, class Hooks>
inline constexpr bool is_hooked<hooked_problem<Problem, Normalizer, Hooks>> = true;

template <class Hook>
inline constexpr bool wants_visibility = false;
template <class Hook>
requires(Hook::needs_visibility) inline constexpr bool wants_visibility<Hook> = true;

// Calls use(hook) for those hooks of a problem that Select picks.
template <class Hooks, class Use>
HEED_INLINE void for_each_hook(const Hooks& hooks, Use use) {
  std::apply([&](const auto&... hook) HEED_LAMBDA_INLINE { (use(hook), ...); }, hooks);
}

// Observers of sums over queries among the hooks: each has sums of its own in scratch memory.
template <class Hooks>
constexpr int column_observers = 0;
template <class... Hooks>
constexpr int column_observers<std::tuple<Hooks...>> = (0 + ... +
                                                        static_cast<int>(column_observer<Hooks>));

template <class Hooks>
constexpr bool any_wants_visibility = false;
template <class... Hooks>
constexpr bool any_wants_visibility<std::tuple<Hooks...>> = (false || ... ||
                                                             wants_visibility<Hooks>);

}  // namespace engine
HEED_NAMESPACE_END
