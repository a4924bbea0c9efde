// What the calls of this family share: they find what they need among their modifiers, compare the
// operands with the grid, and bring the log-sum-exps of their lists back into the order of tokens.
#pragma once

#include <tuple>

#include "../../core/check_data.hpp"
#include "../../dense/attention.hpp"
#include "tile_lists.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

template <class M>
inline constexpr bool is_lse_to = false;
template <class T, int Rank>
inline constexpr bool is_lse_to<lse_to<T, Rank>> = true;
// What windows and blocks take: options of the call.
template <class M>
concept window_option =
    heed::detail::call_option<M> && !std::is_same_v<M, query_lengths> && !std::is_same_v<M, ragged>;

// Those of them that the call over lists gets as they are, in a tuple of one or none.
template <class M>
auto options_of_call(const M& modifier) {
  if constexpr (is_lse_to<M> || std::is_same_v<M, scratch>) {
    return std::tuple<>();
  } else {
    return std::tuple<const M&>(modifier);
  }
}

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
  heed::detail::check_data(name, x);
}
template <int N, class Q, class K, class V, class Out>
void check_tokens(const pattern<N>& which, index_t batches, const Q& q, const K& k, const V& v,
                  const Out& out) {
  check_tokens_of(which, "q", q, batches);
  check_tokens_of(which, "k", k, batches);
  check_tokens_of(which, "v", v, batches);
  check_tokens_of(which, "out", out, batches);
}

// Raises unless the caller's log-sum-exp, where there is one, is [B, H, N].
template <class Real, class... Modifiers>
void check_lse(const std::array<index_t, 3>& extents, const Modifiers&... modifiers) {
  const auto lse = first_of<picks_lse>(modifiers...);
  if constexpr (!std::is_null_pointer_v<std::remove_const_t<decltype(lse)>>) {
    const auto to = lse->view.template lifted<3>();
    static_assert(std::is_same_v<typename decltype(to)::element_type, Real>,
                  "heed: lse_to has the type of the sums: double where an operand is, else float");
    for (int axis = 0; axis < 3; ++axis) {
      const index_t wanted = extents[static_cast<std::size_t>(axis)];
      if (to.extent(axis) != wanted) {
        raise(message("lse: axis ")
              << axis << " has extent " << to.extent(axis) << ", call has " << wanted);
      }
    }
    const auto written = heed::detail::erase("lse", to);
    heed::detail::check_operand(written);
    heed::detail::check_distinct_rows(written);
  }
}

// Calls attend(options…) with scratch memory, and with a log-sum-exp where the caller wants one,
// which then goes from [sequences, H, most_queries] to the caller's [B, H, N].
template <class Real, class Attend, class... Modifiers>
void attend_lists(const tile_lists& lists, index_t heads, workspace& memory, const Attend& attend,
                  const Modifiers&... modifiers) {
  const auto lse = first_of<picks_lse>(modifiers...);
  if constexpr (std::is_null_pointer_v<std::remove_const_t<decltype(lse)>>) {
    attend(scratch(memory));
  } else {
    const auto to = lse->view.template lifted<3>();
    const std::array<index_t, 3> extents{lists.sequences(), heads, lists.most_queries};
    const auto lay_out = [&](heed::detail::bump& from) {
      return from.take<Real>(extents[0] * extents[1] * extents[2]);
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory.reserve(counted.bytes()));
    const tensor_view<Real, 3> rows(lay_out(taken), extents);
    attend(scratch(memory.inner()), lse_to{rows});
    for (index_t s = 0; s < extents[0]; ++s) {
      const index_t* tokens = lists.query_rows + s * lists.most_queries;
      for (index_t h = 0; h < heads; ++h) {
        for (index_t i = 0; i < lists.query_counts[s]; ++i) {
          to(s / lists.tiles, h, tokens[i]) = rows(s, h, i);
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
