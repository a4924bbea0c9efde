// Arrays of external cases as views, and how far a result is from one.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "heed/core/element.hpp"
#include "heed/core/tensor_view.hpp"
#include "support/npy.hpp"

namespace heed_test {

// An array of a case that owns its numbers.
template <class T>
struct case_array {
  std::vector<T> numbers;
  std::vector<std::int64_t> shape;

  explicit case_array(const npy_array& from) : numbers(from.as<T>()), shape(from.shape) {}

  template <int Rank = 4>
  heed::tensor_view<const T, Rank> view() const {
    std::array<heed::index_t, static_cast<std::size_t>(Rank)> extents{};
    std::copy(shape.begin(), shape.end(), extents.begin());
    return {numbers.data(), extents};
  }
  heed::index_t extent(std::size_t axis) const { return shape[axis]; }
};

// √(Σ (got − wanted)² / Σ wanted²); infinity where a number is NaN.
template <class Got, class Wanted>
double relative_error(const Got& got, const Wanted& wanted) {
  double error = 0, size = 0;
  for (heed::index_t b = 0; b < wanted.extent(0); ++b) {
    for (heed::index_t h = 0; h < wanted.extent(1); ++h) {
      for (heed::index_t i = 0; i < wanted.extent(2); ++i) {
        for (heed::index_t d = 0; d < wanted.extent(3); ++d) {
          const double w = heed::widen<double>(wanted(b, h, i, d));
          const double e = heed::widen<double>(got(b, h, i, d)) - w;
          error += e * e;
          size += w * w;
        }
      }
    }
  }
  return error == 0 ? 0 : error < HUGE_VAL ? std::sqrt(error / size) : HUGE_VAL;
}

}  // namespace heed_test
