// view_of(x): a tensor_view of whatever a program keeps its tensors in. Nothing is copied: a layout
// that would need a copy does not compile, or is refused with an error.
//
//   tensor_view                                    itself
//   Eigen: row-major Matrix, Array, Map, Ref, …    rank 2; a row vector is [1, n]
//   Eigen: row-major Tensor, TensorMap             the tensor's own rank
//   std::mdspan and what is shaped like it         its rank, any strides with a contiguous last
//   axis
//
// No header of those libraries is included; their types are known by their members. Other types
// join in by specialising view_traits.
#pragma once

#include <type_traits>
#include <utility>

#include "../config.hpp"
#include "../interop/eigen.hpp"
#include "../interop/mdspan.hpp"
#include "gathered.hpp"
#include "quantized.hpp"
#include "tensor_view.hpp"

HEED_NAMESPACE_BEGIN

// How a type without const or reference is seen as a tensor. A specialisation has
//   static constexpr int rank
//   static tensor_view<…, rank> view(X& x), and for const X& too unless x is never const
//   static constexpr bool owns_memory (optional): true where the elements die with the object
template <class X>
struct view_traits {};

template <class T, int Rank>
struct view_traits<tensor_view<T, Rank>> {
  static constexpr int rank = Rank;
  static constexpr tensor_view<T, Rank> view(const tensor_view<T, Rank>& x) { return x; }
};

template <detail::eigen_matrix X>
struct view_traits<X> : detail::eigen_matrix_traits<X> {};

template <detail::eigen_tensor X>
struct view_traits<X> : detail::eigen_tensor_traits<X> {};

template <detail::mdspan_shaped X>
struct view_traits<X> : detail::mdspan_traits<X> {};

// Types that view_of knows. A type of a known kind with a layout that is refused is viewable too,
// so that the message about the layout is what the user reads.
template <class X>
concept viewable = requires {
  view_traits<std::remove_cvref_t<X>>::rank;
};

template <viewable X>
inline constexpr int view_rank = view_traits<std::remove_cvref_t<X>>::rank;

namespace detail {

template <class X>
constexpr bool owns_memory() {
  using traits = view_traits<std::remove_cvref_t<X>>;
  if constexpr (requires { traits::owns_memory; }) {
    return traits::owns_memory;
  } else {
    return false;
  }
}

// An argument that dies at the end of the full expression, and its elements with it.
template <class X>
inline constexpr bool is_owning_temporary = !std::is_lvalue_reference_v<X> && owns_memory<X>();

}  // namespace detail

// A view of x. Its elements are const where x does not allow writing, and where x is a temporary
// that owns them: it may be read until the end of the full expression.
template <viewable X>
constexpr auto view_of(X&& x) {
  const auto view = view_traits<std::remove_cvref_t<X>>::view(x);
  using element_type = typename decltype(view)::element_type;
  if constexpr (detail::is_owning_temporary<X>) {
    return tensor_view<const element_type, view_rank<X>>(view);
  } else {
    return tensor_view<element_type, view_rank<X>>(view);
  }
}

// A view of x to write into.
template <viewable X>
constexpr auto output_view_of(X&& x) {
  static_assert(!detail::is_owning_temporary<X>,
                "heed: the output is a temporary that owns its memory; what is written into it "
                "would be lost");
  const auto view = view_traits<std::remove_cvref_t<X>>::view(x);
  using element_type = typename decltype(view)::element_type;
  static_assert(!std::is_const_v<element_type>, "heed: the output is const");
  return tensor_view<element_type, view_rank<X>>(view);
}

// Rows of a tensor in another order, to write into.
template <class T>
constexpr gathered_view<T> output_view_of(const gathered_view<T>& x) {
  static_assert(!std::is_const_v<T>, "heed: the output is const");
  return x;
}

// What queries and outputs may be: tensors, or their rows in another order.
template <class X>
concept rows_of_tensor = viewable<X> || is_gathered<std::remove_cvref_t<X>>;

// What keys and values may be: the same, or codes with scales.
template <class X>
concept readable = rows_of_tensor<X> || is_quantized<std::remove_cvref_t<X>>;

// A view of x to read from: a tensor_view or gathered_view of const elements, or the quantized_view
// itself.
template <readable X>
constexpr auto read_view_of(const X& x) {
  if constexpr (is_quantized<X>) {
    return x;
  } else if constexpr (is_gathered<X>) {
    return gathered_view<const typename X::value_type>(x);
  } else {
    const auto view = view_of(x);
    using element_type = typename decltype(view)::value_type;
    return tensor_view<const element_type, view_rank<X>>(view);
  }
}
template <readable X>
using read_view = decltype(read_view_of(std::declval<const X&>()));

// Element type of an argument's view, const where it may only be read.
template <viewable X>
using view_element = typename decltype(view_of(std::declval<X>()))::element_type;

HEED_NAMESPACE_END
