// The vectors of a backend, for loops over rows in scratch memory: their width, 2^x, and rows of
// operands widened into rows of whole vectors and back.
#pragma once

#include <type_traits>

#include "detail/lane_operations.hpp"
#include "scalar.hpp"
#include "select.hpp"

HEED_NAMESPACE_BEGIN
namespace backend {

namespace detail {

// Vectors of one lane: the plain loops of the scalar backend.
template <class Real>
struct single_lanes {
  using pack_type = pack<Real, 1>;
  static constexpr int rows = 2;
  static constexpr int columns = 2;
  HEED_INLINE static pack_type fma(pack_type a, pack_type b, pack_type c) { return a * b + c; }
  HEED_INLINE static pack_type exp2(pack_type x) { return heed::exp2(x); }
  template <class T>
  HEED_INLINE static pack_type load(const T* from) {
    return pack_type(widen<Real>(*from));
  }
  template <class T>
  HEED_INLINE static void store(T* to, pack_type a) {
    *to = narrow<T>(a[0]);
  }
};

template <class Backend, class Real>
struct row_lanes {
  using type = typename Backend::template lanes<Real>;
};
template <class Real>
struct row_lanes<scalar, Real> {
  using type = single_lanes<Real>;
};
#if defined(HEED_HAS_AMX)
// Rows of float and double have nothing to do on the matrix unit.
template <class Real>
struct row_lanes<amx, Real> : row_lanes<avx512, Real> {};
#endif

}  // namespace detail

template <class Backend, class Real>
struct vectors {
  using lanes_type = typename detail::row_lanes<Backend, Real>::type;
  using pack_type = typename lanes_type::pack_type;
  static constexpr int lanes = pack_type::size;

  // Elements of a row of n in whole vectors.
  static constexpr index_t padded(index_t n) { return (n + lanes - 1) / lanes * lanes; }

  HEED_INLINE static pack_type exp2(pack_type x) { return lanes_type::exp2(x); }
  HEED_INLINE static pack_type fma(pack_type a, pack_type b, pack_type c) {
    return lanes_type::fma(a, b, c);
  }

  // ---- rows in scratch memory, n a multiple of the lanes ----

  static void clear(Real* row, index_t n) {
    for (index_t i = 0; i < n; ++i) row[i] = 0;
  }
  static void add(const Real* from, index_t n, Real* to) {
    for (index_t i = 0; i < n; i += lanes) {
      store_pack(to + i, load_pack<pack_type>(to + i) + load_pack<pack_type>(from + i));
    }
  }
  // to = from·factor, which may be the same row
  static void scale(const Real* from, index_t n, Real factor, Real* to) {
    for (index_t i = 0; i < n; i += lanes) {
      store_pack(to + i, load_pack<pack_type>(from + i) * pack_type(factor));
    }
  }
  static void multiply(const Real* from, index_t n, Real* to) {
    for (index_t i = 0; i < n; i += lanes) {
      store_pack(to + i, load_pack<pack_type>(to + i) * load_pack<pack_type>(from + i));
    }
  }
  static Real sum(const Real* row, index_t n) {
    pack_type total(Real(0));
    for (index_t i = 0; i < n; i += lanes) total += load_pack<pack_type>(row + i);
    return sum_lanes(total);
  }
  static Real dot(const Real* a, const Real* b, index_t n) {
    pack_type total(Real(0));
    for (index_t i = 0; i < n; i += lanes) {
      total = fma(load_pack<pack_type>(a + i), load_pack<pack_type>(b + i), total);
    }
    return sum_lanes(total);
  }
  // By the exponents' bits, so that it also holds under -ffast-math.
  static bool all_finite(const Real* row, index_t n) {
    using integer = integer_of<Real>;
    using integers = pack<integer, lanes>;
    const integers exponent(sizeof(Real) == 4 ? static_cast<integer>(0x7f800000)
                                              : static_cast<integer>(0x7ff0000000000000ll));
    typename integers::mask found(false);
    for (index_t i = 0; i < n; i += lanes) {
      const integers bits(bits_as<integer>(load_pack<pack_type>(row + i)).v & exponent.v);
      found = found | (bits == exponent);
    }
    for (int lane = 0; lane < lanes; ++lane) {
      if (found[lane]) return false;
    }
    return true;
  }

  // ---- rows of operands ----

  // n elements into a row of padded(n), which ends with zeros.
  template <class T>
  static void load_row(const T* from, index_t n, Real* to) {
    index_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      store_pack(to + i, lanes_type::template load<T>(from + i));
    }
    if (i == n) return;
    for (index_t j = i; j < i + lanes; ++j) to[j] = j < n ? widen<Real>(from[j]) : Real(0);
  }
  // to[i] = from[i]·factor, rounded to the type of the elements.
  template <class T>
  static void store_row(const Real* from, index_t n, Real factor, T* to) {
    index_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      lanes_type::template store<T>(to + i, load_pack<pack_type>(from + i) * pack_type(factor));
    }
    for (; i < n; ++i) to[i] = narrow<T>(from[i] * factor);
  }
};

}  // namespace backend
HEED_NAMESPACE_END
