// What the tests of linear attention share: random calls beside the oracle, arrays of cases, and
// the rule by which results are compared.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "heed/core/element.hpp"
#include "heed/core/tensor_view.hpp"
#include "heed/reference/linear.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"
#include "support/vector_case.hpp"

namespace heed_test {

// Numbers of any rank in memory of their own.
template <class T>
struct numbers {
  std::vector<T> data;
  std::vector<index_t> shape;

  numbers() = default;
  explicit numbers(std::vector<index_t> extents, T value = T(0)) : shape(std::move(extents)) {
    index_t count = 1;
    for (index_t extent : shape) count *= extent;
    data.assign(static_cast<std::size_t>(count), value);
  }
  explicit numbers(const npy_array& from)
      : data(from.as<T>()), shape(from.shape.begin(), from.shape.end()) {}

  // To write into, and to read from, by the number of axes.
  auto v1() { return view<1>(); }
  auto v2() { return view<2>(); }
  auto v3() { return view<3>(); }
  auto v4() { return view<4>(); }
  auto r1() const { return read<1>(); }
  auto r2() const { return read<2>(); }
  auto r3() const { return read<3>(); }
  auto r4() const { return read<4>(); }
  // [B, L, H, …] seen as [B, H, L, …]; three axes get a fourth of extent 1.
  heed::tensor_view<const T, 4> by_token() const {
    const index_t last = shape.size() > 3 ? shape[3] : 1;
    return heed::tensor_view<const T, 4>(data.data(), {shape[0], shape[1], shape[2], last})
        .permuted({0, 2, 1, 3});
  }
  heed::tensor_view<T, 4> by_token() {
    const index_t last = shape.size() > 3 ? shape[3] : 1;
    return heed::tensor_view<T, 4>(data.data(), {shape[0], shape[1], shape[2], last})
        .permuted({0, 2, 1, 3});
  }

 private:
  template <int Rank>
  heed::tensor_view<T, Rank> view() {
    return {data.data(), extents<Rank>()};
  }
  template <int Rank>
  heed::tensor_view<const T, Rank> read() const {
    return {data.data(), extents<Rank>()};
  }
  template <int Rank>
  std::array<index_t, static_cast<std::size_t>(Rank)> extents() const {
    std::array<index_t, static_cast<std::size_t>(Rank)> result{};
    std::copy(shape.begin(), shape.end(), result.begin());
    return result;
  }
};

template <class T>
numbers<T> random_numbers(std::vector<index_t> shape, unsigned seed, double spread = 1,
                          double shift = 0) {
  numbers<T> result(std::move(shape));
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  for (T& x : result.data) x = static_cast<T>(shift + spread * normal(generator));
  return result;
}
// Between low and 0, most of them near 0.
template <class T>
numbers<T> random_log_decays(std::vector<index_t> shape, unsigned seed, double low) {
  numbers<T> result(std::move(shape));
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform;
  for (T& x : result.data) x = static_cast<T>(low * std::pow(uniform(generator), 3));
  return result;
}

// Root of the mean square of the difference, relative to that of what is wanted.
template <class T, class U>
double relative_rms(const std::vector<T>& got, const std::vector<U>& wanted) {
  if (got.size() != wanted.size()) return HUGE_VAL;
  double error = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double g = heed::widen<double>(got[i]), w = static_cast<double>(wanted[i]);
    if (is_nan(g) != is_nan(w)) return HUGE_VAL;
    if (is_nan(g)) continue;
    error += (g - w) * (g - w);
    size += w * w;
  }
  if (error == 0) return 0;
  return is_nan(error) ? HUGE_VAL : std::sqrt(error / std::max(size, 1e-30));
}

}  // namespace heed_test
