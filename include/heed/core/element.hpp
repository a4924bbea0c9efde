// Element types of operands: float, double, Eigen::half and Eigen::bfloat16. The two 16-bit types
// are storage only; all arithmetic is at least float. Eigen's headers are not needed here: its
// types are known by their declaration and their bits.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "../config.hpp"

namespace Eigen {
struct half;
struct bfloat16;
}  // namespace Eigen

HEED_NAMESPACE_BEGIN

template <class T>
inline constexpr bool is_half = std::is_same_v<std::remove_cv_t<T>, Eigen::half>;
template <class T>
inline constexpr bool is_bfloat16 = std::is_same_v<std::remove_cv_t<T>, Eigen::bfloat16>;

template <class T>
concept element = std::is_same_v < std::remove_cv_t<T>,
float > || std::is_same_v<std::remove_cv_t<T>, double> || is_half<T> || is_bfloat16<T>;

namespace detail {
template <class... Ts>
struct accumulator_of {
  using type =
      std::conditional_t<(std::is_same_v<std::remove_cv_t<Ts>, double> || ...), double, float>;
};
}  // namespace detail

// The type that sums are kept in: double as soon as one operand is double, else float.
template <class... Ts>
using accumulator = typename detail::accumulator_of<Ts...>::type;

namespace detail {

// IEEE binary16 to binary32, exact, subnormals included.
HEED_INLINE float half_bits_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x400u) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: an integer count of 2^-24.
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -value : value;
}

// binary32 to binary16, rounded to nearest even.
HEED_INLINE std::uint16_t float_to_half_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    result = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    const std::uint32_t odd = magnitude >> 13 & 1u;
    result = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
  } else if (magnitude < 0x33000000u) {  // below half of the smallest subnormal
    result = 0;
  } else {
    const std::uint32_t exponent = magnitude >> 23;
    const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const std::uint32_t shift = 126u - exponent;
    const std::uint32_t half_unit = 1u << (shift - 1);
    const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
    result = mantissa >> shift;
    if (rest > half_unit || (rest == half_unit && (result & 1u) != 0)) ++result;
  }
  return static_cast<std::uint16_t>(sign | result);
}

HEED_INLINE float bfloat16_bits_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

HEED_INLINE std::uint16_t float_to_bfloat16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace detail

// Widens one element to the type that arithmetic is done in.
template <class Real, element T>
HEED_INLINE Real widen(const T& value) {
  if constexpr (is_half<T>) {
    return static_cast<Real>(detail::half_bits_to_float(std::bit_cast<std::uint16_t>(value)));
  } else if constexpr (is_bfloat16<T>) {
    return static_cast<Real>(detail::bfloat16_bits_to_float(std::bit_cast<std::uint16_t>(value)));
  } else {
    return static_cast<Real>(value);
  }
}

// Rounds to an element type, to nearest even.
template <element T, class Real>
HEED_INLINE T narrow(Real value) {
  if constexpr (is_half<T>) {
    return std::bit_cast<T>(detail::float_to_half_bits(static_cast<float>(value)));
  } else if constexpr (is_bfloat16<T>) {
    return std::bit_cast<T>(detail::float_to_bfloat16_bits(static_cast<float>(value)));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
constexpr const char* element_name() {
  if constexpr (is_half<T>) {
    return "half";
  } else if constexpr (is_bfloat16<T>) {
    return "bfloat16";
  } else if constexpr (std::is_same_v<std::remove_cv_t<T>, double>) {
    return "double";
  } else {
    return "float";
  }
}

HEED_NAMESPACE_END
