// random_numbers: a stream of pseudo-random numbers that is the same everywhere, which the
// distributions of <random> are not; that header also takes long to compile.
//
// Bits are those of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", 2014).
#pragma once

#include <cmath>
#include <cstdint>

#include "../config.hpp"

HEED_NAMESPACE_BEGIN

class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  // In (0, 1), never 0: its logarithm is finite.
  double uniform() { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; }
  // Of mean 0 and variance 1, by Box and Muller.
  double normal() {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(6.28318530717958647693 * uniform());
  }

 private:
  std::uint64_t state_;
};

HEED_NAMESPACE_END
