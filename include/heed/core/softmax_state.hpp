// The softmax state of a set of keys, and how the states of two sets become that of their union.
//
//   maximum  m = max_j t_j            with t_j = log2(e)·score_j: exponents of two
//   sum      l = Σ_j 2^(t_j − m)
//   weighted o = Σ_j 2^(t_j − m) v_j  [depth]
//
// out = o / l and log-sum-exp = (m + log2 l)·ln 2. Merging is associative, so that keys may be cut
// into any sets: decode splits, shared prefixes, rings of processes (Rabe and Staats 2021; Dao
// 2022).
#pragma once

#include <cmath>

#include "element.hpp"
#include "pack.hpp"
#include "tensor_view.hpp"

HEED_NAMESPACE_BEGIN

template <class Real>
struct softmax_state {
  static constexpr Real log2_e = Real(1.44269504088896340735992L);
  static constexpr Real ln_2 = Real(0.69314718055994530941723L);

  Real maximum = masked_score<Real>;
  Real sum = 0;
  Real* weighted = nullptr;  // [depth], caller's memory; 0 for the empty set
  index_t depth = 0;

  // State of no keys over caller's memory of `depth` numbers.
  static softmax_state empty(Real* weighted, index_t depth) {
    for (index_t d = 0; d < depth; ++d) weighted[d] = 0;
    return {masked_score<Real>, 0, weighted, depth};
  }

  // Adds one key by its score (natural units) and value row.
  template <class T>
  void add(Real score, const T* value) {
    const Real exponent = score * log2_e;
    const Real latest = maximum > exponent ? maximum : exponent;
    const Real shrink = weight(maximum - latest), grow = weight(exponent - latest);
    maximum = latest;
    sum = sum * shrink + grow;
    for (index_t d = 0; d < depth; ++d) {
      weighted[d] = weighted[d] * shrink + grow * widen<Real>(value[d]);
    }
  }

  // Union with the state of other keys.
  void merge(const softmax_state& other) {
    const Real latest = maximum > other.maximum ? maximum : other.maximum;
    const Real mine = weight(maximum - latest), theirs = weight(other.maximum - latest);
    maximum = latest;
    sum = sum * mine + other.sum * theirs;
    for (index_t d = 0; d < depth; ++d) {
      weighted[d] = weighted[d] * mine + other.weighted[d] * theirs;
    }
  }

  // Natural logarithm of Σ e^score; −∞ for no keys.
  Real log_sum_exp() const {
    return sum == 0 ? minus_infinity<Real>() : (maximum + std::log2(sum)) * ln_2;
  }
  // Factor from `weighted` to the output; 0 for no keys, whose output is 0.
  Real normalizer() const { return sum == 0 ? Real(0) : Real(1) / sum; }

  // Writes out[depth] and returns the log-sum-exp.
  template <class T>
  Real finish(T* out) const {
    const Real factor = normalizer();
    for (index_t d = 0; d < depth; ++d) out[d] = narrow<T>(weighted[d] * factor);
    return log_sum_exp();
  }

 private:
  static Real weight(Real exponent) {
    return exponent < Real(sizeof(Real) == 4 ? -126 : -1022) ? Real(0) : std::exp2(exponent);
  }
};

HEED_NAMESPACE_END
