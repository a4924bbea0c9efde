// What the tests of low-rank attention share.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "heed/reference/lowrank.hpp"
#include "support/tensor.hpp"
#include "support/vector_case.hpp"

namespace lowrank_test {

using heed::index_t;
namespace reference = heed::reference;

// √(Σ (got − wanted)² / Σ wanted²); infinity where a number is missing.
template <class T>
double relative_rms(const heed::tensor_view<T, 4>& got, const std::vector<double>& wanted) {
  double error = 0, size = 0;
  std::size_t at = 0;
  for (index_t b = 0; b < got.extent(0); ++b) {
    for (index_t h = 0; h < got.extent(1); ++h) {
      for (index_t l = 0; l < got.extent(2); ++l) {
        for (index_t d = 0; d < got.extent(3); ++d, ++at) {
          const double g = heed::widen<double>(got(b, h, l, d));
          if (at >= wanted.size() || heed_test::is_nan(g)) return HUGE_VAL;
          error += (g - wanted[at]) * (g - wanted[at]);
          size += wanted[at] * wanted[at];
        }
      }
    }
  }
  if (at != wanted.size()) return HUGE_VAL;
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

// An array of a case that owns its numbers.
template <class T>
struct array {
  std::vector<T> numbers;
  std::vector<std::int64_t> shape;

  explicit array(const heed_test::npy_array& from) : numbers(from.as<T>()), shape(from.shape) {}
  template <int Rank>
  heed::tensor_view<const T, Rank> view() const {
    std::array<index_t, static_cast<std::size_t>(Rank)> extents{};
    EXPECT_EQ(shape.size(), extents.size());
    std::copy(shape.begin(), shape.end(), extents.begin());
    return {numbers.data(), extents};
  }
};

// y[row] = w·x[row] + bias, rows of x one after the other: torch.nn.Linear with weight [out, in].
template <class T>
std::vector<float> linear(const std::vector<T>& x, const array<float>& w,
                          const std::vector<float>& bias = {}) {
  const auto outputs = static_cast<std::size_t>(w.shape[0]);
  const auto inputs = static_cast<std::size_t>(w.shape[1]);
  std::vector<float> y(x.size() / inputs * outputs);
  for (std::size_t row = 0; row < x.size() / inputs; ++row) {
    for (std::size_t o = 0; o < outputs; ++o) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[o]);
      for (std::size_t i = 0; i < inputs; ++i) {
        sum += static_cast<double>(x[row * inputs + i]) *
               static_cast<double>(w.numbers[o * inputs + i]);
      }
      y[row * outputs + o] = static_cast<float>(sum);
    }
  }
  return y;
}

// [B, L, columns] with heads of `depth` from column `first` on, seen as [B, H, L, depth].
template <class T>
heed::tensor_view<T, 4> heads_of(T* data, index_t batches, index_t length, index_t columns,
                                 index_t first, index_t heads, index_t depth) {
  return {data + first, {batches, heads, length, depth}, {length * columns, depth, columns, 1}};
}

}  // namespace lowrank_test
