// Polynomials of the scores as linear attention, by the features of their terms.
//
//   based     weights 1 + s + s²/2     s = q·k / √D, normalised by their sum
//   rebased   weights s²               likewise
//
// Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff",
// 2024; Aksenov et al., "Linear Transformers with Learnable Kernel Functions are Better In-Context
// Models", 2024 (its learned affine map comes before). Equal products x_i·x_j are kept once, times
// √2, so that a state has D·(D + 1)/2 rows for the square and not D².
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// φ(q)·φ(k) = constant + linear·s + square·s², s = scale·q·k; scale 0 stands for 1/√D.
struct quadratic_features {
  double constant = 1, linear = 1, square = 0.5;
  double scale = 0;

  index_t features(index_t depth) const {
    return (constant != 0 ? 1 : 0) + (linear != 0 ? depth : 0) +
           (square != 0 ? depth * (depth + 1) / 2 : 0);
  }
  template <class Backend, class Real>
  void map(const token_rows<Real>& x, Real* to, index_t to_row) const {
    const double whole = scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(x.depth));
    const Real factor = x.queries ? static_cast<Real>(whole) : Real(1);
    const auto root = [](double weight) { return static_cast<Real>(std::sqrt(weight)); };
    const Real root_linear = root(linear) * factor, root_square = root(square) * factor * factor;
    const Real root_pairs = root_square * static_cast<Real>(std::sqrt(2.0));
    for (index_t t = 0; t < x.count; ++t) {
      const Real* row = x.row(t);
      Real* phi = to + t * to_row;
      if (constant != 0) *phi++ = root(constant);
      for (index_t i = 0; linear != 0 && i < x.depth; ++i) *phi++ = root_linear * row[i];
      for (index_t i = 0; square != 0 && i < x.depth; ++i) {
        *phi++ = root_square * row[i] * row[i];
        const Real first = root_pairs * row[i];
        for (index_t j = i + 1; j < x.depth; ++j) *phi++ = first * row[j];
      }
    }
  }
};
inline constexpr quadratic_features taylor_features{};
inline constexpr quadratic_features square_features{0, 0, 1};

// Shapes, element types, further modifiers and errors are those of linear::attention.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void based(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, modifiers..., taylor_features, normalized{sum_of_weights{1e-6}});
}
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void rebased(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
  attention<Backend>(q, k, v, out, modifiers..., square_features, normalized{sum_of_weights{1e-6}});
}

}  // namespace linear
HEED_NAMESPACE_END
