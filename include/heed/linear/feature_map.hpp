// Feature maps: φ of linear attention, applied to the rows of queries and keys before the state
// sees them.
//
// A feature map has
//
//   index_t features(index_t depth) const          the number of features of a row of that depth
//   template <class Backend, class Real>
//   void map(const token_rows<Real>& x, Real* to, index_t to_row) const
//       writes features(x.depth) numbers for each row; rows of x and of `to` go on to whole
//       vectors: x ends with zeros there, what is written there is ignored
//
// A map that works on every number by itself is a functor of numbers and packs, wrapped in
// `elementwise`.
#pragma once

#include <cmath>
#include <concepts>
#include <type_traits>

#include "../backend/vectors.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// Rows of queries or keys of one head, and where they stand.
template <class Real>
struct token_rows {
  const Real* first = nullptr;
  index_t stride = 0, count = 0, depth = 0;
  index_t sequence = 0, head = 0;  // head of the operand
  index_t position = 0;            // of the first row, within its sequence
  index_t length = 0;              // of the sequence; of its longer side where q and k differ
  bool queries = false;

  const Real* row(index_t i) const { return first + i * stride; }
};

template <class M>
concept feature_map = requires(const M& m, const token_rows<float>& rows, float* to) {
  { m.features(index_t{1}) } -> std::convertible_to<index_t>;
  m.template map<backend::scalar, float>(rows, to, index_t{1});
};

// φ(x) = x
struct identity {
  constexpr index_t features(index_t depth) const { return depth; }
  template <class Backend, class Real>
  void map(const token_rows<Real>& x, Real* to, index_t to_row) const {
    for (index_t i = 0; i < x.count; ++i) {
      for (index_t d = 0; d < x.depth; ++d) to[i * to_row + d] = x.row(i)[d];
    }
  }
};

// φ(x)_d = f(x_d)
template <class F>
struct elementwise {
  F f;
  explicit constexpr elementwise(F function = {}) : f(function) {}

  constexpr index_t features(index_t depth) const { return depth; }
  template <class Backend, class Real>
  void map(const token_rows<Real>& x, Real* to, index_t to_row) const {
    using vectors = backend::vectors<Backend, Real>;
    for (index_t i = 0; i < x.count; ++i) {
      for (index_t d = 0; d < x.depth; d += vectors::lanes) {
        store_pack(to + i * to_row + d, f(load_pack<typename vectors::pack_type>(x.row(i) + d)));
      }
    }
  }
};

namespace detail {

struct elu_plus_one_function {
  template <class P>
  HEED_INLINE P operator()(P x) const {
    return select(x > P(0), x + P(1), exp(min(x, P(0))));
  }
};
struct relu_function {
  template <class P>
  HEED_INLINE P operator()(P x) const {
    return max(x, P(0));
  }
};

}  // namespace detail

// φ(x) = elu(x) + 1: x + 1 above 0, eˣ below
inline constexpr elementwise<detail::elu_plus_one_function> elu_plus_one;
// φ(x) = max(x, 0)
inline constexpr elementwise<detail::relu_function> relu;

// φ(x) = x / √(Σx² + ε), for the keys (and queries) of delta rules
struct l2_normalized {
  double epsilon = 1e-6;

  constexpr index_t features(index_t depth) const { return depth; }
  template <class Backend, class Real>
  void map(const token_rows<Real>& x, Real* to, index_t to_row) const {
    using vectors = backend::vectors<Backend, Real>;
    const index_t n = vectors::padded(x.depth);
    for (index_t i = 0; i < x.count; ++i) {
      const Real square = vectors::dot(x.row(i), x.row(i), n);
      const Real factor = Real(1) / std::sqrt(square + static_cast<Real>(epsilon));
      vectors::scale(x.row(i), n, factor, to + i * to_row);
    }
  }
};

}  // namespace linear
HEED_NAMESPACE_END
