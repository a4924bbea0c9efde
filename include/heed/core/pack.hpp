// pack<T, N>: N values of one type in a vector register, on the compiler's vector extensions.
//
// Score functors and mask predicates are written once, for scalars and packs alike: every operator
// and every function here exists for both. Integer packs hold positions; arithmetic between an
// integer pack and a floating-point scalar gives a floating-point pack, as it does for scalars.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <type_traits>
#include <utility>

#include "../config.hpp"
#include "element.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <int Bytes>
struct sized_types;
template <>
struct sized_types<4> {
  using integer = std::int32_t;
  using real = float;
};
template <>
struct sized_types<8> {
  using integer = std::int64_t;
  using real = double;
};

template <class T, int N>
struct vector_of {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

}  // namespace detail

// Signed integer and floating-point types of the same width as T.
template <class T>
using integer_of = typename detail::sized_types<sizeof(T)>::integer;
template <class T>
using real_of = typename detail::sized_types<sizeof(T)>::real;

// One boolean per lane, as all bits set or all bits clear of an integer of the lane's width.
template <int Bytes, int N>
struct lane_mask {
  using vector = typename detail::vector_of<typename detail::sized_types<Bytes>::integer, N>::type;
  vector bits;

  HEED_INLINE lane_mask() = default;
  HEED_INLINE explicit lane_mask(vector v) : bits(v) {}
  HEED_INLINE lane_mask(bool value) : bits(vector{} - static_cast<int>(value)) {}

  HEED_INLINE bool operator[](int lane) const { return bits[lane] != 0; }

  HEED_INLINE friend lane_mask operator&(lane_mask a, lane_mask b) {
    return lane_mask(a.bits & b.bits);
  }
  HEED_INLINE friend lane_mask operator|(lane_mask a, lane_mask b) {
    return lane_mask(a.bits | b.bits);
  }
  HEED_INLINE friend lane_mask operator^(lane_mask a, lane_mask b) {
    return lane_mask(a.bits ^ b.bits);
  }
  HEED_INLINE friend lane_mask operator!(lane_mask a) { return lane_mask(~a.bits); }
};

template <class T, int N>
struct pack {
  static_assert(std::is_arithmetic_v<T> && N >= 1);
  using value_type = T;
  using vector = typename detail::vector_of<T, N>::type;
  using mask = lane_mask<static_cast<int>(sizeof(T)), N>;
  using integer_pack = pack<integer_of<T>, N>;
  using real_pack = pack<real_of<T>, N>;
  static constexpr int size = N;

  vector v;

  HEED_INLINE pack() = default;
  HEED_INLINE explicit pack(vector value) : v(value) {}
  // Every lane the same. A floating-point value never becomes an integer pack silently.
  template <class U>
  requires(std::is_arithmetic_v<U> &&
           (std::is_floating_point_v<T> || std::is_integral_v<U>)) HEED_INLINE pack(U value)
      : v(static_cast<T>(value) - vector{}) {}
  // Positions become real numbers.
  template <std::integral I>
  requires(std::is_floating_point_v<T> && sizeof(I) == sizeof(T)) HEED_INLINE pack(pack<I, N> other)
      : v(__builtin_convertvector(other.v, vector)) {}

  HEED_INLINE T operator[](int lane) const { return v[lane]; }

  HEED_INLINE friend pack operator+(pack a, pack b) { return pack(a.v + b.v); }
  HEED_INLINE friend pack operator-(pack a, pack b) { return pack(a.v - b.v); }
  HEED_INLINE friend pack operator*(pack a, pack b) { return pack(a.v * b.v); }
  HEED_INLINE friend pack operator/(pack a, pack b) { return pack(a.v / b.v); }
  HEED_INLINE friend pack operator-(pack a) { return pack(-a.v); }
  HEED_INLINE friend pack operator%(pack a, pack b) requires std::is_integral_v<T> {
    return pack(a.v % b.v);
  }
  HEED_INLINE friend pack& operator+=(pack& a, pack b) { return a = a + b; }
  HEED_INLINE friend pack& operator-=(pack& a, pack b) { return a = a - b; }
  HEED_INLINE friend pack& operator*=(pack& a, pack b) { return a = a * b; }
  HEED_INLINE friend pack& operator/=(pack& a, pack b) { return a = a / b; }

  HEED_INLINE friend mask operator<(pack a, pack b) { return mask(a.v < b.v); }
  HEED_INLINE friend mask operator<=(pack a, pack b) { return mask(a.v <= b.v); }
  HEED_INLINE friend mask operator>(pack a, pack b) { return mask(a.v > b.v); }
  HEED_INLINE friend mask operator>=(pack a, pack b) { return mask(a.v >= b.v); }
  HEED_INLINE friend mask operator==(pack a, pack b) { return mask(a.v == b.v); }
  HEED_INLINE friend mask operator!=(pack a, pack b) { return mask(a.v != b.v); }
};

// Integer pack with floating-point scalar: real arithmetic.
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator*(U a, pack<T, N> b) {
  return pack<real_of<T>, N>(a) * pack<real_of<T>, N>(b);
}
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator*(pack<T, N> a, U b) {
  return b * a;
}
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator/(pack<T, N> a, U b) {
  return pack<real_of<T>, N>(a) / pack<real_of<T>, N>(b);
}
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator+(U a, pack<T, N> b) {
  return pack<real_of<T>, N>(a) + pack<real_of<T>, N>(b);
}
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator+(pack<T, N> a, U b) {
  return b + a;
}
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator-(U a, pack<T, N> b) {
  return pack<real_of<T>, N>(a) - pack<real_of<T>, N>(b);
}
template <std::integral T, int N, std::floating_point U>
HEED_INLINE pack<real_of<T>, N> operator-(pack<T, N> a, U b) {
  return pack<real_of<T>, N>(a) - pack<real_of<T>, N>(b);
}

template <class T>
inline constexpr bool is_pack = false;
template <class T, int N>
inline constexpr bool is_pack<pack<T, N>> = true;

// ---- functions of scalars and packs ----------------------------------------------------------

template <class T, int N>
HEED_INLINE pack<T, N> select(lane_mask<static_cast<int>(sizeof(T)), N> condition,
                              std::type_identity_t<pack<T, N>> yes, pack<T, N> no) {
  return pack<T, N>(condition.bits ? yes.v : no.v);
}
template <class T>
requires std::is_arithmetic_v<T> HEED_INLINE T select(bool condition, std::type_identity_t<T> yes,
                                                      T no) {
  return condition ? yes : no;
}

template <class T, int N>
HEED_INLINE pack<T, N> max(pack<T, N> a, std::type_identity_t<pack<T, N>> b) {
  return pack<T, N>(a.v > b.v ? a.v : b.v);
}
template <class T>
requires std::is_arithmetic_v<T> HEED_INLINE T max(T a, std::type_identity_t<T> b) {
  return a > b ? a : b;
}
template <class T, int N>
HEED_INLINE pack<T, N> min(pack<T, N> a, std::type_identity_t<pack<T, N>> b) {
  return pack<T, N>(a.v < b.v ? a.v : b.v);
}
template <class T>
requires std::is_arithmetic_v<T> HEED_INLINE T min(T a, std::type_identity_t<T> b) {
  return a < b ? a : b;
}
template <class T, int N>
HEED_INLINE pack<T, N> abs(pack<T, N> a) {
  return max(a, -a);
}
template <class T>
requires std::is_arithmetic_v<T> HEED_INLINE T abs(T a) { return a < T(0) ? -a : a; }

// table[index], lane by lane; the caller keeps every index in range.
template <class T, class I, int N>
requires std::is_arithmetic_v<T> HEED_INLINE pack<T, N> lookup(const T* table, pack<I, N> index) {
  pack<T, N> result;
  for (int lane = 0; lane < N; ++lane) result.v[lane] = table[index.v[lane]];
  return result;
}
template <class T>
HEED_INLINE T lookup(const T* table, index_t index) {
  return table[index];
}

// Reads a pack's lanes with the bits of another type of the same width.
template <class To, class From, int N>
HEED_INLINE pack<To, N> bits_as(pack<From, N> a) {
  return pack<To, N>(std::bit_cast<typename pack<To, N>::vector>(a.v));
}

// True where a value is minus infinity. Compares bits, so that it also holds where the compiler was
// told that infinities do not occur (-ffast-math).
template <class T, int N>
HEED_INLINE auto is_minus_infinity(pack<T, N> a) {
  using integer = integer_of<T>;
  constexpr integer pattern = sizeof(T) == 4 ? static_cast<integer>(0xff800000u)
                                             : static_cast<integer>(0xfff0000000000000ull);
  return bits_as<integer>(a) == pack<integer, N>(pattern);
}
HEED_INLINE bool is_minus_infinity(float a) {
  return std::bit_cast<std::uint32_t>(a) == 0xff800000u;
}
HEED_INLINE bool is_minus_infinity(double a) {
  return std::bit_cast<std::uint64_t>(a) == 0xfff0000000000000ull;
}

// The score of a masked key. Finite, so that it behaves under -ffast-math; far below any real
// score.
template <class T>
inline constexpr T masked_score = sizeof(T) == 4 ? T(-1.7e38L) : T(-8.9e307L);

template <class T>
HEED_INLINE T minus_infinity() {
  if constexpr (sizeof(T) == 4) {
    return std::bit_cast<T>(std::uint32_t{0xff800000u});
  } else {
    return std::bit_cast<T>(std::uint64_t{0xfff0000000000000ull});
  }
}

// ---- moving values between lanes, memory and bit words -----------------------------------------

template <class P>
HEED_INLINE P load_pack(const typename P::value_type* from) {
  P result;
  __builtin_memcpy(&result.v, from, sizeof(result.v));
  return result;
}
template <class T, int N>
HEED_INLINE void store_pack(T* to, pack<T, N> a) {
  __builtin_memcpy(to, &a.v, sizeof(a.v));
}

// 0, 1, 2, … in the lanes.
template <class P>
HEED_INLINE P lane_indices() {
  return []<std::size_t... I>(std::index_sequence<I...>) HEED_LAMBDA_INLINE {
    return P(typename P::vector{static_cast<typename P::value_type>(I)...});
  }
  (std::make_index_sequence<static_cast<std::size_t>(P::size)>{});
}

namespace detail {

// Lower or upper half of a pack.
template <bool Upper, class T, int N>
HEED_INLINE pack<T, N / 2> half_of(pack<T, N> a) {
  if constexpr (N == 2) {
    return pack<T, 1>(a.v[Upper ? 1 : 0]);
  } else {
    return [&]<std::size_t... I>(std::index_sequence<I...>) HEED_LAMBDA_INLINE {
      return pack<T, N / 2>(
          __builtin_shufflevector(a.v, a.v, static_cast<int>(I + (Upper ? N / 2 : 0))...));
    }
    (std::make_index_sequence<static_cast<std::size_t>(N / 2)>{});
  }
}

}  // namespace detail

// Sum and maximum over the lanes, as a tree: the order is fixed by the number of lanes.
template <class T, int N>
HEED_INLINE T sum_lanes(pack<T, N> a) {
  if constexpr (N == 1) {
    return a.v[0];
  } else {
    return sum_lanes(detail::half_of<false>(a) + detail::half_of<true>(a));
  }
}
template <class T, int N>
HEED_INLINE T max_lanes(pack<T, N> a) {
  if constexpr (N == 1) {
    return a.v[0];
  } else {
    return max_lanes(max(detail::half_of<false>(a), detail::half_of<true>(a)));
  }
}

// Bit l of the word is lane l of the mask, and back.
template <int Bytes, int N>
HEED_INLINE std::uint64_t to_bits(lane_mask<Bytes, N> mask) {
  // Lanes become bytes with one bit each, and a multiplication adds up eight of them at a time.
  using byte_vector = typename detail::vector_of<std::int8_t, N>::type;
  const byte_vector bytes = __builtin_convertvector(mask.bits, byte_vector);
  const auto one_bit_each = []<std::size_t... I>(std::index_sequence<I...>) HEED_LAMBDA_INLINE {
    return byte_vector{static_cast<std::int8_t>(static_cast<std::uint8_t>(1u << I % 8))...};
  }
  (std::make_index_sequence<static_cast<std::size_t>(N)>{});
  const byte_vector bits = bytes & one_bit_each;
  std::uint64_t words[(N + 7) / 8] = {};
  __builtin_memcpy(words, &bits, sizeof(bits));
  std::uint64_t result = 0;
  for (int word = 0; word < (N + 7) / 8; ++word) {
    result |= (words[word] * 0x0101010101010101ull >> 56) << 8 * word;
  }
  return result;
}
template <class T, int N>
HEED_INLINE lane_mask<static_cast<int>(sizeof(T)), N> from_bits(std::uint64_t bits) {
  using integer = integer_of<T>;
  const pack<integer, N> one_bit_each =
      []<std::size_t... I>(std::index_sequence<I...>) HEED_LAMBDA_INLINE {
    return pack<integer, N>(typename pack<integer, N>::vector{(integer{1} << I)...});
  }
  (std::make_index_sequence<static_cast<std::size_t>(N)>{});
  return pack<integer, N>(pack<integer, N>(static_cast<integer>(bits)).v & one_bit_each.v) !=
         pack<integer, N>(0);
}

namespace detail {

template <class V, class T, std::size_t Count>
HEED_INLINE V polynomial(V x, const T (&coefficients)[Count]) {
  V sum(coefficients[Count - 1]);
  for (std::size_t i = Count - 1; i-- > 0;) sum = sum * x + V(coefficients[i]);
  return sum;
}

// (2^x - 1) / x on [-1/2, 1/2]; relative error of 1 + x·p(x): 2.0e-7 (float), 8.5e-18 (double).
inline constexpr float exp2_float[] = {0.69314718056f, 0.24022349038f, 0.055503810138f,
                                       0.0096663685154f, 0.0013381302537f};
inline constexpr double exp2_double[] = {
    0.69314718055994529,    0.24022650695910097,    0.055504108664821597,   0.0096181291076068882,
    0.0013333558146416936,  0.0001540353044173605,  1.5252733829836119e-05, 1.3215442587921689e-06,
    1.0178062445845774e-07, 7.0725859492692234e-09, 4.4549605981865186e-10};

// tanh(√y) / √y on [0, 0.4]; relative error 4.5e-9 (float), 1.8e-20 (double).
inline constexpr float tanh_float[] = {0.99999999546f,  -0.33333251447f, 0.13330917169f,
                                       -0.05370427744f, 0.020536971998f, -0.0055997850373f};
inline constexpr double tanh_double[] = {1.0,
                                         -0.33333333333333331,
                                         0.13333333333333047,
                                         -0.05396825396807025,
                                         0.021869488529984531,
                                         -0.0088632354054770362,
                                         0.0035921264066712316,
                                         -0.0014558198409947475,
                                         0.00058993649707074752,
                                         -0.00023872537985122707,
                                         9.5641468861229153e-05,
                                         -3.6454945092527852e-05,
                                         1.1640010153659797e-05,
                                         -2.2098203520238975e-06};

}  // namespace detail

// 2^x. Relative error at most 3e-7 (float), 4e-16 (double); 0 below the smallest normal number, the
// largest power of two above the largest exponent. Written without the add-a-magic-number trick and
// without infinities, so that it stays right under -ffast-math.
template <class T, int N>
HEED_INLINE pack<T, N> exp2(pack<T, N> x) {
  using integer = integer_of<T>;
  constexpr integer bias = sizeof(T) == 4 ? 127 : 1023;
  constexpr integer mantissa_bits = sizeof(T) == 4 ? 23 : 52;
  const pack<T, N> lowest(static_cast<T>(1 - bias)), highest(static_cast<T>(bias));
  // The bound comes first, so that a NaN passes through to the result.
  const pack<T, N> bounded = min(highest, max(lowest, x));
  const pack<T, N> half = select(bounded < pack<T, N>(0), T(-0.5), pack<T, N>(0.5));
  const pack<integer, N> whole(
      __builtin_convertvector((bounded + half).v, typename pack<integer, N>::vector));
  const pack<T, N> rest = bounded - pack<T, N>(whole);
  pack<T, N> value;
  if constexpr (sizeof(T) == 4) {
    value = detail::polynomial(rest, detail::exp2_float) * rest + pack<T, N>(1);
  } else {
    value = detail::polynomial(rest, detail::exp2_double) * rest + pack<T, N>(1);
  }
  const pack<integer, N> power((whole.v + bias) << mantissa_bits);
  return select(x < lowest, T(0), value * bits_as<T>(power));
}
HEED_INLINE float exp2(float x) { return std::exp2(x); }
HEED_INLINE double exp2(double x) { return std::exp2(x); }

// e^x = 2^n · e^r with |r| ≤ ln(2)/2; relative error at most 4e-7 (float), 6e-16 (double).
template <class T, int N>
HEED_INLINE pack<T, N> exp(pack<T, N> x) {
  // ln 2 = high + low, high short enough that n·high is exact.
  constexpr T high = sizeof(T) == 4 ? T(0.693359375) : T(0.693145751953125);
  constexpr T low = static_cast<T>(0.69314718055994530941723L - static_cast<long double>(high));
  constexpr T log2_e = T(1.44269504088896340735992L);
  const pack<T, N> lowest(static_cast<T>(sizeof(T) == 4 ? -87 : -708));
  const pack<T, N> highest(static_cast<T>(sizeof(T) == 4 ? 88 : 709));
  const pack<T, N> bounded = min(highest, max(lowest, x));
  const pack<T, N> half = select(bounded < pack<T, N>(0), T(-0.5), pack<T, N>(0.5));
  const pack<T, N> n(pack<integer_of<T>, N>(__builtin_convertvector(
      (bounded * log2_e + half).v, typename pack<integer_of<T>, N>::vector)));
  const pack<T, N> rest = bounded - n * high - n * low;
  return select(x < lowest, T(0), exp2(rest * log2_e) * exp2(n));
}
HEED_INLINE float exp(float x) { return std::exp(x); }
HEED_INLINE double exp(double x) { return std::exp(x); }

// Natural logarithm of positive normal numbers; relative error at most 4 units in the last place.
template <class T, int N>
HEED_INLINE pack<T, N> log(pack<T, N> x) {
  using integer = integer_of<T>;
  constexpr integer mantissa_bits = sizeof(T) == 4 ? 23 : 52;
  // Exponent chosen so that the mantissa lies in [1/√2, √2): then s below is at most 0.172.
  constexpr integer root_half = sizeof(T) == 4 ? static_cast<integer>(0x3f3504f3)
                                               : static_cast<integer>(0x3fe6a09e667f3bcdll);
  const pack<integer, N> raw = bits_as<integer>(x);
  const pack<integer, N> exponent((raw.v - root_half) >> mantissa_bits);
  const pack<T, N> mantissa = bits_as<T>(pack<integer, N>(raw.v - (exponent.v << mantissa_bits)));
  const pack<T, N> s = (mantissa - pack<T, N>(1)) / (mantissa + pack<T, N>(1));
  const pack<T, N> y = s * s;
  // log(mantissa) = 2·artanh(s)
  constexpr int terms = sizeof(T) == 4 ? 5 : 12;
  pack<T, N> sum(T(1) / T(2 * terms - 1));
  for (int k = terms - 2; k >= 0; --k) sum = sum * y + pack<T, N>(T(1) / T(2 * k + 1));
  return T(0.69314718055994530942L) * pack<T, N>(exponent) + T(2) * s * sum;
}
HEED_INLINE float log(float x) { return std::log(x); }
HEED_INLINE double log(double x) { return std::log(x); }

template <class T, int N>
HEED_INLINE pack<T, N> tanh(pack<T, N> x) {
  const pack<T, N> y = x * x;
  pack<T, N> small;
  if constexpr (sizeof(T) == 4) {
    small = x * detail::polynomial(y, detail::tanh_float);
  } else {
    small = x * detail::polynomial(y, detail::tanh_double);
  }
  // The bound comes first, so that a NaN passes through.
  const pack<T, N> magnitude = min(pack<T, N>(T(20)), abs(x));
  const pack<T, N> large = T(1) - T(2) / (exp(magnitude + magnitude) + T(1));
  const pack<T, N> signed_large = select(x < pack<T, N>(0), -large, large);
  return select(y < pack<T, N>(T(0.39)), small, signed_large);
}
HEED_INLINE float tanh(float x) { return std::tanh(x); }
HEED_INLINE double tanh(double x) { return std::tanh(x); }

template <class S>
HEED_INLINE S sigmoid(S x) {
  return S(1) / (S(1) + exp(-x));
}

HEED_NAMESPACE_END
