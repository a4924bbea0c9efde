// Performer: softmax attention estimated by positive orthogonal random features (FAVOR+).
//
//   φ(x)_r = (exp(w_r·x' − |x'|²/2 − c) + ε) / √m,   x' = x / D^¼,  r < m
//   out_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j)
//
// E[φ(q)·φ(k)] = e^(q·k/√D) for normal w_r; rows w_r are orthogonal within blocks of D, which
// lowers the variance, and keep the lengths of normal vectors. c cancels but for ε: the largest
// w_r·x' of the row for queries; for keys the largest of all keys of the sequence and head where
// every query reads every key, and 0 where reads are causal or a state goes from call to call, so
// that what is written does not depend on other keys.
//
// Choromanski et al., "Rethinking Attention with Performers", 2021.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../backend/products.hpp"
#include "../core/random.hpp"
#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// Projections as a feature map. Real is the type that the calls sum in.
template <class Real>
class random_features {
 public:
  // m features for rows of `depth`, orthogonal in blocks; the same for the same seed everywhere.
  random_features(index_t depth, index_t count, std::uint64_t seed)
      : random_features(depth, count) {
    random_numbers numbers(seed);
    const auto n = static_cast<std::size_t>(depth);
    std::vector<std::vector<double>> block;  // orthonormal rows
    for (index_t r = 0; r < count; ++r) {
      if (r % depth == 0) block.clear();
      std::vector<double> row(n);
      for (double& x : row) x = numbers.normal();
      for (int pass = 0; pass < 2; ++pass) {  // the second one removes what rounding left
        for (const auto& other : block) {
          double dot = 0;
          for (std::size_t d = 0; d < n; ++d) dot += row[d] * other[d];
          for (std::size_t d = 0; d < n; ++d) row[d] -= dot * other[d];
        }
      }
      double square = 0, wanted = 0;
      for (const double x : row) square += x * x;
      for (std::size_t d = 0; d < n; ++d) {
        const double x = numbers.normal();
        wanted += x * x;
      }
      for (double& x : row) x /= std::sqrt(square);
      for (std::size_t d = 0; d < n; ++d)
        at(r, static_cast<index_t>(d)) = row[d] * std::sqrt(wanted);
      block.push_back(std::move(row));
    }
  }
  // A projection of one's own, [m, D].
  template <viewable X>
  explicit random_features(const X& projection)
      : random_features(view_of(projection).extent(1), view_of(projection).extent(0)) {
    const auto rows = read_view_of(projection);
    for (index_t r = 0; r < count_; ++r) {
      for (index_t d = 0; d < depth_; ++d) at(r, d) = widen<double>(rows(r, d));
    }
  }

  double epsilon = 1e-4;
  // c of the keys by sequence·heads + head; empty: 0
  std::vector<Real> key_shift;
  index_t key_heads = 1;

  index_t depth() const { return depth_; }
  index_t features(index_t) const { return count_; }

  template <class Backend>
  void map(const token_rows<Real>& x, Real* to, index_t to_row) const {
    using vectors = backend::vectors<Backend, Real>;
    using pack = typename vectors::pack_type;
    project<Backend>(x, to, to_row);
    const Real shrink = static_cast<Real>(1 / std::sqrt(static_cast<double>(depth_)));
    const pack whole(static_cast<Real>(1 / std::sqrt(static_cast<double>(count_))));
    const index_t n = vectors::padded(x.depth);
    for (index_t t = 0; t < x.count; ++t) {
      Real* row = to + t * to_row;
      Real shift = Real(0.5) * shrink * vectors::dot(x.row(t), x.row(t), n);
      if (x.queries) {
        Real most = row[0];
        for (index_t r = 1; r < count_; ++r) most = max(most, row[r]);
        shift += most;
      } else if (!key_shift.empty()) {
        shift += key_shift[static_cast<std::size_t>(x.sequence * key_heads + x.head)];
      }
      for (index_t r = 0; r < count_; r += vectors::lanes) {
        const pack value = exp(load_pack<pack>(row + r) - pack(shift));
        store_pack(row + r, (value + pack(static_cast<Real>(epsilon))) * whole);
      }
    }
  }
  template <class Backend, class Other>
  void map(const token_rows<Other>& x, Other* to, index_t to_row) const {
    static_assert(std::is_same_v<Real, Other>,
                  "heed::linear::random_features: must be of the type that the call sums in, "
                  "double where one of its operands is double");
    map<Backend>(x, to, to_row);
  }

  // to[t][r] = w_r·x'_t; rows of `to` have room for whole vectors
  template <class Backend>
  void project(const token_rows<Real>& x, Real* to, index_t to_row) const {
    using vectors = backend::vectors<Backend, Real>;
    for (index_t t = 0; t < x.count; ++t) vectors::clear(to + t * to_row, vectors::padded(count_));
    backend::products<Backend, Real>::add(x.count, vectors::padded(count_), depth_, x.first,
                                          x.stride, 1, rows_.data(), row_, to, to_row);
  }

 private:
  random_features(index_t depth, index_t count)
      : depth_(depth), count_(count), row_((count + 15) / 16 * 16) {
    if (depth < 1 || count < 1) {
      raise(message("random_features: depth ")
            << depth << " and count " << count << " must be at least 1");
    }
    rows_.assign(static_cast<std::size_t>(depth * row_), Real(0));
    shrink_ = 1 / std::sqrt(std::sqrt(static_cast<double>(depth)));
  }
  // Transposed, and with the factor of x' in it.
  struct cell {
    Real& to;
    double factor;
    void operator=(double w) { to = static_cast<Real>(w * factor); }
  };
  cell at(index_t r, index_t d) { return {rows_[static_cast<std::size_t>(d * row_ + r)], shrink_}; }

  index_t depth_, count_, row_;
  double shrink_ = 1;
  std::vector<Real> rows_;
};

namespace detail {

// The largest w_r·x' of all keys that exist, by sequence·heads + head.
template <class Backend, class Real, class Key>
std::vector<Real> largest_projections(const random_features<Real>& features,
                                      const tensor_view<const Key, 4>& k,
                                      const engine::batch_layout& sequences) {
  using vectors = backend::vectors<Backend, Real>;
  const index_t depth = vectors::padded(k.extent(3)), heads = k.extent(1);
  const index_t row = vectors::padded(features.features(k.extent(3)));
  std::vector<Real> x(static_cast<std::size_t>(depth)), to(static_cast<std::size_t>(row));
  std::vector<Real> most(static_cast<std::size_t>(sequences.sequences * heads), Real(0));
  for (index_t i = 0; i < sequences.sequences * heads; ++i) {
    const engine::rows_of_sequence rows = sequences.at(i / heads);
    for (index_t t = 0; t < rows.count; ++t) {
      vectors::load_row(k.row(rows.batch, i % heads, rows.begin + t), k.extent(3), x.data());
      features.template project<Backend>({x.data(), depth, 1, k.extent(3)}, to.data(), row);
      Real& best = most[static_cast<std::size_t>(i)];
      for (index_t r = 0; r < features.features(0); ++r) {
        if (r == 0 && t == 0) best = to[0];
        best = max(best, to[static_cast<std::size_t>(r)]);
      }
    }
  }
  return most;
}

}  // namespace detail

// Shapes, element types, further modifiers and errors are those of linear::attention; the depth of
// q and k must be that of the features.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class Real, class... Modifiers>
void performer(const Q& q, const K& k, const V& v, Out&& out, const random_features<Real>& features,
               const Modifiers&... modifiers) {
  const auto keys = read_view_of(k).template lifted<4>();
  detail::require_equal("k", "depth", keys.extent(3), "that of the features,", features.depth());
  const normalized normalizer{sum_of_weights{0}};
  constexpr bool reads_all = (... || std::is_same_v<Modifiers, bidirectional>);
  constexpr bool goes_on = (... || (detail::is_instance<initial_state, Modifiers> ||
                                    detail::is_instance<final_state, Modifiers>));
  if constexpr (!reads_all || goes_on) {
    attention<Backend>(q, k, v, out, modifiers..., features, normalizer);
  } else {
    detail::check_data("k", keys);
    random_features<Real> shifted = features;
    shifted.key_heads = keys.extent(1);
    shifted.key_shift = detail::largest_projections<Backend>(
        features, keys,
        detail::token_layout("k", keys.extent(0), keys.extent(2),
                             heed::detail::find<ragged>(modifiers...),
                             heed::detail::find<key_lengths>(modifiers...)));
    attention<Backend>(q, k, v, out, modifiers..., shifted, normalizer);
  }
}

}  // namespace linear
HEED_NAMESPACE_END
