// How the calls of this family find what they need among their modifiers, and compare the lengths
// of their operands with the grid.
#pragma once

#include "../../dense/options.hpp"
#include "../pattern.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

template <class M>
inline constexpr bool is_lse_to = false;
template <class T, int Rank>
inline constexpr bool is_lse_to<lse_to<T, Rank>> = true;
template <class M>
inline constexpr bool is_refused =
    std::is_same_v<M, key_lengths> || std::is_same_v<M, query_lengths> ||
    std::is_same_v<M, left_padding> || std::is_same_v<M, ragged>;

// The first modifier of a kind, or null.
template <template <class> class Kind>
constexpr std::nullptr_t first_of() {
  return nullptr;
}
template <template <class> class Kind, class First, class... Rest>
constexpr auto first_of(const First& first, const Rest&... rest) {
  if constexpr (Kind<First>::value) {
    return &first;
  } else {
    return first_of<Kind>(rest...);
  }
}
template <class M>
struct picks_lse : std::bool_constant<is_lse_to<M>> {};
template <class M>
struct picks_scratch : std::bool_constant<std::is_same_v<M, scratch>> {};

// The workspace that a modifier names, else the calling thread's.
template <class... Modifiers>
workspace& workspace_of(thread_workspace& of_thread, const Modifiers&... modifiers) {
  const auto named = first_of<picks_scratch>(modifiers...);
  if constexpr (std::is_null_pointer_v<std::remove_const_t<decltype(named)>>) {
    return of_thread.get();
  } else {
    return named->memory;
  }
}

// An operand's batch and length; its heads and depth are compared by the call over its rows.
template <int N, class T>
void check_tokens_of(const pattern<N>& which, const char* name, const tensor_view<T, 4>& x,
                     index_t batches) {
  if (x.extent(0) != batches) {
    raise(message(name) << ": batch " << x.extent(0) << " differs from q's " << batches);
  }
  which.check_length(name, x.extent(2));
}
template <int N, class Q, class K, class V, class Out>
void check_tokens(const pattern<N>& which, index_t batches, const Q& q, const K& k, const V& v,
                  const Out& out) {
  check_tokens_of(which, "q", q, batches);
  check_tokens_of(which, "k", k, batches);
  check_tokens_of(which, "v", v, batches);
  check_tokens_of(which, "out", out, batches);
}

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
