// What the tests of score functors share: every functor is compared with its formula, in double, on
// all positions of a call, one key at a time and in packs of every width that this target has.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <heed/core/pack.hpp>
#include <heed/core/position.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/errors.hpp"

namespace heed_test {

using heed::call_shape;
using heed::index_t;
using heed::pack;
using heed::pack_position;
using heed::position;

// Lengths that leave every kind of tail in a pack, more queries than keys, and single rows.
inline const std::vector<call_shape> odd_shapes{
    {1, 1, 1, 1}, {1, 2, 1, 37}, {2, 3, 5, 7}, {2, 1, 9, 4}, {1, 4, 17, 16}, {3, 2, 3, 67},
};

template <class T>
std::vector<T> random_values(std::size_t count, double low, double high, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> distribution(low, high);
  std::vector<T> values(count);
  for (T& value : values) value = T(static_cast<float>(distribution(generator)));
  return values;
}

template <class Real, int N>
pack_position<Real, N> make_pack_position(const call_shape& shape, index_t batch, index_t head,
                                          index_t q, index_t first_key) {
  pack_position<Real, N> p;
  p.batch = batch;
  p.head = head;
  p.q = q;
  p.queries = shape.queries;
  p.keys = shape.keys;
  p.first_key = first_key;
  p.valid = static_cast<int>(std::min<index_t>(N, shape.keys - first_key));
  for (int lane = 0; lane < N; ++lane) {
    p.k.v[lane] = static_cast<heed::integer_of<Real>>(first_key + std::min(lane, p.valid - 1));
  }
  return p;
}

// Calls visit(position) for every score of a call, with scores counted from 0.
template <class Visit>
void for_each_position(const call_shape& shape, const Visit& visit) {
  for (index_t batch = 0; batch < shape.batches; ++batch) {
    for (index_t head = 0; head < shape.heads; ++head) {
      for (index_t q = 0; q < shape.queries; ++q) {
        for (index_t k = 0; k < shape.keys; ++k) {
          visit(position{batch, head, q, k, shape.queries, shape.keys});
        }
      }
    }
  }
}

inline std::size_t score_number(const call_shape& shape, const position& p) {
  return static_cast<std::size_t>(
      ((p.batch * shape.heads + p.head) * shape.queries + p.q) * shape.keys + p.k);
}

// How far a result may lie from the formula: relative to the size of what was added up, or, for
// functors that do not add to the score, to the result.
struct tolerance {
  double relative_float = 4e-7;
  double relative_double = 1e-15;
  bool of_result = false;
};

template <class Real>
struct checker {
  const call_shape& shape;
  const std::vector<Real>& scores;
  const std::vector<double>& wanted;
  const std::vector<double>& limit;

  void expect(const position& p, Real got, const char* form, int width) const {
    const std::size_t i = score_number(shape, p);
    EXPECT_LE(std::abs(static_cast<double>(got) - wanted[i]), limit[i])
        << form << " of " << width << " x " << sizeof(Real) << " bytes, batch " << p.batch
        << " head " << p.head << " q " << p.q << " k " << p.k << " score " << scores[i] << " got "
        << got << " want " << wanted[i];
  }

  template <int N, class Functor>
  void packs(const Functor& functor) const {
    for_each_position(shape, [&](const position& at) {
      if (at.k % N != 0) return;
      const auto p = make_pack_position<Real, N>(shape, at.batch, at.head, at.q, at.k);
      pack<Real, N> s(Real(0));
      for (int lane = 0; lane < p.valid; ++lane) {
        s.v[lane] = scores[score_number(shape, at) + static_cast<std::size_t>(lane)];
      }
      const pack<Real, N> result = functor(s, p);
      for (int lane = 0; lane < p.valid; ++lane) {
        position key = at;
        key.k += lane;
        expect(key, result[lane], "pack", N);
      }
    });
  }
};

template <class Real, class Functor, class Formula>
void expect_formula_in(const Functor& functor, const call_shape& shape, const Formula& formula,
                       double largest_score, double relative, bool of_result = false) {
  const auto count =
      static_cast<std::size_t>(shape.batches * shape.heads * shape.queries * shape.keys);
  const auto scores = random_values<Real>(count, -largest_score, largest_score, 7);
  std::vector<double> wanted(count), limit(count);
  for_each_position(shape, [&](const position& p) {
    const std::size_t i = score_number(shape, p);
    const double s = static_cast<double>(scores[i]);
    wanted[i] = formula(s, p);
    const double terms = of_result ? 0 : std::abs(s) + std::abs(wanted[i] - s);
    limit[i] = relative * (terms + std::abs(wanted[i])) + 1e-30;
  });
  const checker<Real> check{shape, scores, wanted, limit};
  for_each_position(shape, [&](const position& p) {
    check.expect(p, functor(scores[score_number(shape, p)], p), "scalar", 1);
  });
  check.template packs<16 / sizeof(Real)>(functor);
#if defined(__AVX2__)
  check.template packs<32 / sizeof(Real)>(functor);
#endif
#if defined(__AVX512F__)
  check.template packs<64 / sizeof(Real)>(functor);
#endif
}

// formula(s, p) is the definition, for a score and a position, in double.
template <class Functor, class Formula>
void expect_formula(const Functor& functor, const call_shape& shape, const Formula& formula,
                    const tolerance& allowed = {}) {
  heed::check_modifier(functor, shape);
  for (const double largest : {3.0, 1e4, 1e20}) {
    SCOPED_TRACE("scores up to " + std::to_string(largest));
    expect_formula_in<float>(functor, shape, formula, largest, allowed.relative_float,
                             allowed.of_result);
    expect_formula_in<double>(functor, shape, formula, largest, allowed.relative_double,
                              allowed.of_result);
  }
}

// Distance on the axis of the keys, last query at last key.
inline double distance(const position& p) {
  return static_cast<double>(p.k - (p.q + p.keys - p.queries));
}

}  // namespace heed_test
