// Eigen's matrices and tensors as tensor_view, without including Eigen: its types are known by
// their members, so that programs without Eigen pay nothing.
//
//   Matrix, Array, Map, Ref, Block, …    rows × cols → [rows, cols], stride outerStride()
//   Tensor, TensorMap, TensorFixedSize   [d0, d1, …], dense
//
// Only row-major layouts with contiguous rows have a view; everything else would need a copy.
// Newer types are covered as long as they keep the members of Eigen 3.4.
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "../config.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// Anything two-dimensional of Eigen, expressions included.
template <class X>
concept eigen_matrix = requires(const X& x) {
  typename X::Scalar;
  bool{X::IsRowMajor};
  int{X::RowsAtCompileTime};
  int{X::ColsAtCompileTime};
  x.rows();
  x.cols();
};

// Expressions, sparse and structured matrices lack these.
template <class X>
concept eigen_matrix_in_memory = requires(const X& x) {
  x.data();
  x.outerStride();
  x.innerStride();
  int{X::InnerStrideAtCompileTime};
};

// Anything of Eigen's tensor module, expressions included.
template <class X>
concept eigen_tensor = !eigen_matrix<X> && requires {
  typename X::Scalar;
  typename X::Nested;
  typename X::StorageKind;
  int{X::NumDimensions};
};

// TensorRef has data() too, but what it refers to need not lie in memory; RawAccess says so.
template <class X>
concept eigen_tensor_in_memory = requires(const X& x) {
  x.data();
  x.dimensions();
  int{X::Layout};
  requires bool{X::RawAccess};
};

template <class X>
struct eigen_matrix_traits {
  static constexpr int rank = 2;

  // Matrix, Array and classes derived from them; the others only refer to memory.
  static constexpr bool owns_memory = [] {
    if constexpr (requires { typename X::PlainObject; }) {
      return std::is_base_of_v<typename X::PlainObject, X>;
    } else {
      return false;
    }
  }();

  template <class Y>
  static auto view(Y& x) {
    static_assert(eigen_matrix_in_memory<X>,
                  "heed: the Eigen argument is an expression or a structured matrix, its elements "
                  "do not lie in memory; evaluate it into a row-major matrix first, nothing is "
                  "copied silently");
    if constexpr (eigen_matrix_in_memory<X>) {
      constexpr bool row_major = bool{X::IsRowMajor};
      constexpr bool column = int{X::ColsAtCompileTime} == 1 && int{X::RowsAtCompileTime} != 1;
      static_assert(row_major || !column,
                    "heed: the Eigen argument is a column vector, which Eigen stores column-major; "
                    "use Eigen::RowVectorX, or map the memory as a matrix with Eigen::RowMajor, "
                    "nothing is copied silently");
      static_assert(
          row_major || column,
          "heed: the Eigen argument is column-major; use a type with Eigen::RowMajor such "
          "as Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, "
          "nothing is copied silently");
      constexpr int inner_stride = int{X::InnerStrideAtCompileTime};
      constexpr int known_at_run_time = -1;  // Eigen::Dynamic
      static_assert(inner_stride == 1 || inner_stride == known_at_run_time || !row_major,
                    "heed: the Eigen argument has an inner stride other than 1; the elements of a "
                    "row must be contiguous, nothing is copied silently");

      const auto rows = static_cast<index_t>(x.rows()), cols = static_cast<index_t>(x.cols());
      if (cols > 1 && x.innerStride() != 1) {
        raise(message("Eigen argument: inner stride ")
              << static_cast<index_t>(x.innerStride())
              << ", the elements of a row must be contiguous (stride 1)");
      }
      using element_type = std::remove_pointer_t<decltype(x.data())>;
      return tensor_view<element_type, 2>(x.data(), {rows, cols},
                                          {static_cast<index_t>(x.outerStride()), 1});
    }
  }
};

template <class X>
struct eigen_tensor_traits {
  static constexpr int rank = int{X::NumDimensions};

  // A Tensor hands on its constness to its elements; a map does not.
  static constexpr bool owns_memory = [] {
    if constexpr (eigen_tensor_in_memory<X>) {
      return !std::is_same_v<decltype(std::declval<X&>().data()),
                             decltype(std::declval<const X&>().data())>;
    } else {
      return false;
    }
  }();

  template <class Y>
  static auto view(Y& x) {
    static_assert(eigen_tensor_in_memory<X>,
                  "heed: the Eigen tensor argument is an expression, its elements do not lie in "
                  "memory; evaluate it into a row-major tensor first, nothing is copied silently");
    if constexpr (eigen_tensor_in_memory<X>) {
      constexpr int row_major = 1;  // Eigen::RowMajor
      static_assert(rank >= 1, "heed: the Eigen tensor argument has no axis");
      static_assert(int{X::Layout} == row_major,
                    "heed: the Eigen tensor argument is column-major; use a type with "
                    "Eigen::RowMajor such as Eigen::Tensor<float, 4, Eigen::RowMajor>, nothing is "
                    "copied silently");
      using element_type = std::remove_pointer_t<decltype(x.data())>;
      // Constant indices: whether Eigen's are signed depends on the class.
      const auto extents = [&x]<std::size_t... Axis>(std::index_sequence<Axis...>) {
        return std::array<index_t, sizeof...(Axis)>{static_cast<index_t>(x.dimensions()[Axis])...};
      }
      (std::make_index_sequence<static_cast<std::size_t>(rank)>());
      return tensor_view<element_type, rank>(x.data(), extents);
    }
  }
};

}  // namespace detail

HEED_NAMESPACE_END
