// The Moore-Penrose inverse of small matrices by the cubic iteration of Razavi et al., "A New
// Iterative Method for Finding Approximate Inverses of Complex Matrices", 2014, as Xiong et al.,
// "Nyströmformer", AAAI 2021, use it:
//
//   Z₀ = Aᵀ / (max column sum of |A| · max row sum of |A|)
//   Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z)))
//
//   a, z [B, H, m, m]
//
// The start converges for every A. Upstream programs take the two maxima over all matrices of the
// tensor: what one batch entry gets then depends on the others. Both forms are here.
#pragma once

#include <algorithm>

#include "../backend/products.hpp"
#include "detail/call.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {

// What the maxima of the starting value are taken over.
enum class inverse_start {
  each_matrix,   // every matrix by itself
  whole_tensor,  // all batch entries and heads together
};

struct inverse_options {
  int iterations = 6;
  inverse_start start = inverse_start::each_matrix;
};

namespace detail {

// max column sum · max row sum, as a pair since both maxima may be over many matrices.
template <class Real>
struct norms {
  Real column = 0, row = 0;
  void join(const norms& other) {
    column = std::max(column, other.column);
    row = std::max(row, other.row);
  }
};

template <class Real>
norms<Real> norms_of(const Real* a, index_t a_row, index_t m, Real* columns) {
  norms<Real> result;
  for (index_t j = 0; j < m; ++j) columns[j] = 0;
  for (index_t i = 0; i < m; ++i) {
    Real row = 0;
    for (index_t j = 0; j < m; ++j) {
      const Real x = std::abs(a[i * a_row + j]);
      row += x;
      columns[j] += x;
    }
    result.row = std::max(result.row, row);
  }
  for (index_t j = 0; j < m; ++j) result.column = std::max(result.column, columns[j]);
  return result;
}

// One matrix; `memory` has 3·m·m numbers.
template <class Backend, class Real>
void invert(const Real* a, index_t a_row, index_t m, Real scale, int iterations, Real* z,
            index_t z_row, Real* memory) {
  using product = backend::products<Backend, Real>;
  Real *az = memory, *inner = memory + m * m, *next = memory + 2 * m * m;
  for (index_t i = 0; i < m; ++i) {
    for (index_t j = 0; j < m; ++j) z[i * z_row + j] = a[j * a_row + i] * scale;
  }
  // to = factor·I − from·by
  const auto refine = [m](Real* to, Real factor, const Real* from, index_t from_row,
                          const Real* by) {
    for (index_t i = 0; i < m * m; ++i) to[i] = 0;
    for (index_t i = 0; i < m; ++i) to[i * m + i] = factor;
    product::subtract(m, m, m, from, from_row, 1, by, m, to, m);
  };
  for (int step = 0; step < iterations; ++step) {
    for (index_t i = 0; i < m * m; ++i) az[i] = next[i] = 0;
    product::add(m, m, m, a, a_row, 1, z, z_row, az, m);
    for (index_t i = 0; i < m * m; ++i) inner[i] = -az[i];
    for (index_t i = 0; i < m; ++i) inner[i * m + i] += Real(7);
    refine(next, Real(15), az, m, inner);
    refine(inner, Real(13), az, m, next);
    for (index_t i = 0; i < m * m; ++i) next[i] = 0;
    product::add(m, m, m, z, z_row, 1, inner, m, next, m);
    for (index_t i = 0; i < m; ++i) {
      for (index_t j = 0; j < m; ++j) z[i * z_row + j] = next[i * m + j] * Real(0.25);
    }
  }
}

template <class Real>
void check_inverse(const tensor_view<const Real, 4>& a, const tensor_view<Real, 4>& z,
                   int iterations) {
  using namespace heed::detail;
  const operand from = erase("a", a), to = erase("z", z);
  check_operand(from);
  require_equal("a", "row count", a.extent(2), "its column count", a.extent(3));
  check_output(from, to);
  require_equal("z", "depth", z.extent(3), "a", a.extent(3));
  check_disjoint(to, from);
  if (iterations < 0) raise(message("iterations: ") << iterations << " is negative");
}

}  // namespace detail

// z = pseudo-inverse of a, both float or both double. Options: on, scratch. Raises
// invalid_argument before anything is written where shapes do not fit.
template <class Backend = backend::native, viewable A, viewable Z, class... Modifiers>
void pseudo_inverse(const A& a, Z&& z, const inverse_options& how = {},
                    const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_on<Modifiers> || std::is_same_v<Modifiers, scratch>)),
                "heed::lowrank::pseudo_inverse: options are heed::on and heed::scratch");
  const auto from = read_view_of(a).template lifted<4>();
  const auto to = output_view_of(z).template lifted<4>();
  using Real = typename decltype(to)::value_type;
  static_assert(std::is_same_v<typename decltype(from)::value_type, Real> &&
                    (std::is_same_v<Real, float> || std::is_same_v<Real, double>),
                "heed::lowrank::pseudo_inverse: a and z are both float or both double");
  detail::check_inverse(from, to, how.iterations);

  const index_t m = from.extent(2), heads = from.extent(1), count = from.extent(0) * heads;
  composed::call_memory memory(modifiers...);
  composed::with_executor(
      [&](auto& executor) {
        detail::norms<Real>* maxima = nullptr;
        Real* matrices = nullptr;  // per worker
        memory.carve([&](heed::detail::bump& take) {
          maxima = take.template take<detail::norms<Real>>(count);
          matrices = take.template take<Real>(executor.workers() * 3 * m * m);
        });
        executor.run(count, [&](index_t item, int worker) {
          maxima[item] = detail::norms_of(from.row(item / heads, item % heads, 0), from.stride(2),
                                          m, matrices + worker * 3 * m * m);
        });
        if (how.start == inverse_start::whole_tensor && count > 0) {
          detail::norms<Real> all;
          for (index_t item = 0; item < count; ++item) all.join(maxima[item]);
          std::fill(maxima, maxima + count, all);
        }
        executor.run(count, [&](index_t item, int worker) {
          const Real size = maxima[item].column * maxima[item].row;
          detail::invert<Backend>(from.row(item / heads, item % heads, 0), from.stride(2), m,
                                  size > 0 ? Real(1) / size : Real(0), how.iterations,
                                  to.row(item / heads, item % heads, 0), to.stride(2),
                                  matrices + worker * 3 * m * m);
        });
      },
      modifiers...);
}

}  // namespace lowrank
HEED_NAMESPACE_END
