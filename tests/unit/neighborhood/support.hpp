// What tests of neighborhoods share: axes for the oracle, and a comparison of tensors.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/neighborhood/pattern.hpp"
#include "heed/reference/neighborhood.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"
#include "support/vector_case.hpp"

namespace heed_test {

template <int N>
std::vector<heed::reference::neighborhood_axis> axes_of(
    const heed::neighborhood::pattern<N>& which) {
  std::vector<heed::reference::neighborhood_axis> axes;
  for (std::size_t a = 0; a < which.grid.size(); ++a) {
    axes.push_back(
        {which.grid[a], which.window[a], which.stride[a], which.dilation[a], which.causal[a]});
  }
  return axes;
}

// Root of the mean squared error over that of the wanted values.
template <class Got>
double relative_rms(const Got& got, const std::vector<double>& wanted) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - wanted[i];
    error += difference * difference;
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(error / size);
}

// out[r, o] = Σ_i x[r, i]·weight[o, i] + bias[o]: the projections around an attention module.
inline std::vector<double> project(const std::vector<double>& x, const std::vector<double>& weight,
                                   const std::vector<double>& bias, std::size_t width) {
  const std::size_t rows = x.size() / width, columns = weight.size() / width;
  std::vector<double> out(rows * columns, 0.0);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < columns; ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (std::size_t i = 0; i < width; ++i) sum += x[r * width + i] * weight[o * width + i];
      out[r * columns + o] = sum;
    }
  }
  return out;
}

template <class T>
std::vector<T> input_as(const vector_case& c, const char* name) {
  const npy_array array = c.input(name);
  std::vector<T> result;
  for (float x : array.as<float>()) result.push_back(static_cast<T>(x));
  return result;
}

// The columns [first, first + heads·depth) of rows [B, N, width] as [B, heads, N, depth].
template <class T>
heed::tensor_view<T, 4> heads_of(T* rows, index_t batches, index_t length, index_t width,
                                 index_t first, index_t heads, index_t depth) {
  return {rows + first, {batches, heads, length, depth}, {length * width, depth, width, 1}};
}

}  // namespace heed_test
