// Owning tensors for tests, in every layout that a view may have: the elements around and between
// the rows are poisoned with NaN, so that reading or summing one of them shows.
#pragma once

#include <Eigen/Core>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "heed/core/element.hpp"
#include "heed/core/tensor_view.hpp"

namespace heed_test {

using heed::index_t;

// By the bits, so that it holds where the compiler was told that there are no NaN (-ffast-math).
inline bool is_nan(double x) {
  return (std::bit_cast<std::uint64_t>(x) & 0x7fffffffffffffffull) > 0x7ff0000000000000ull;
}

// How a [B, H, L, D] tensor lies in memory.
enum class layout {
  dense,       // [B, H, L, D]
  by_token,    // [B, L, H, D] seen as [B, H, L, D]
  padded,      // rows of D + 5 elements, one spare row per head, and an offset
  interleaved  // every row is the middle third of a row of 3 D
};
inline constexpr std::array layouts = {layout::dense, layout::by_token, layout::padded,
                                       layout::interleaved};

template <class T>
class tensor {
 public:
  tensor(index_t batches, index_t heads, index_t length, index_t depth,
         layout how = layout::dense) {
    const index_t b = batches, h = heads, l = length, d = depth;
    extents_ = {b, h, l, d};
    switch (how) {
      case layout::dense:
        strides_ = {h * l * d, l * d, d, 1};
        size_ = b * h * l * d;
        break;
      case layout::by_token:
        strides_ = {l * h * d, d, h * d, 1};
        size_ = b * h * l * d;
        break;
      case layout::padded:
        strides_ = {h * (l + 1) * (d + 5), (l + 1) * (d + 5), d + 5, 1};
        offset_ = 3;
        size_ = b * h * (l + 1) * (d + 5) + 3;
        break;
      case layout::interleaved:
        strides_ = {h * l * 3 * d, l * 3 * d, 3 * d, 1};
        offset_ = d;
        size_ = b * h * l * 3 * d + d;
        break;
    }
    // The block has no spare element behind the last one: a sanitizer sees a read past it.
    memory_.assign(static_cast<std::size_t>(size_), poison_);
  }

  heed::tensor_view<T, 4> view() { return {memory_.data() + offset_, extents_, strides_}; }
  heed::tensor_view<const T, 4> view() const {
    return {memory_.data() + offset_, extents_, strides_};
  }
  heed::tensor_view<const T, 4> read() const { return view(); }

  // Normal numbers times `spread`, the same for the same seed in every layout and element type.
  tensor& fill(unsigned seed, double spread = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for_each([&](T& x) { x = heed::narrow<T>(spread * static_cast<double>(normal(generator))); });
    return *this;
  }
  template <class F>
  void for_each(F f) {
    const auto v = view();
    for (index_t b = 0; b < v.extent(0); ++b) {
      for (index_t h = 0; h < v.extent(1); ++h) {
        for (index_t l = 0; l < v.extent(2); ++l) {
          for (index_t d = 0; d < v.extent(3); ++d) f(v(b, h, l, d));
        }
      }
    }
  }

  // Elements outside the view that are no longer poisoned.
  index_t overwritten_around() const {
    std::vector<bool> inside(memory_.size());
    const auto v = view();
    for (index_t b = 0; b < v.extent(0); ++b) {
      for (index_t h = 0; h < v.extent(1); ++h) {
        for (index_t l = 0; l < v.extent(2); ++l) {
          for (index_t d = 0; d < v.extent(3); ++d) {
            inside[static_cast<std::size_t>(&v(b, h, l, d) - memory_.data())] = true;
          }
        }
      }
    }
    index_t count = 0;
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      if (!inside[i] && std::memcmp(&memory_[i], &poison_, sizeof(T)) != 0) ++count;
    }
    return count;
  }

 private:
  std::array<index_t, 4> extents_{}, strides_{};
  index_t offset_ = 0, size_ = 0;
  // All bits set: a NaN in every element type.
  T poison_ = [] {
    T value;
    std::memset(static_cast<void*>(&value), 0xff, sizeof(T));
    return value;
  }();
  std::vector<T> memory_;
};

// Largest |got − wanted| beyond `relative`·|wanted|; infinity where one is NaN or infinite and the
// other is not the same.
template <class T, std::size_t = 0>
double worst_error(const heed::tensor_view<const T, 4>& got,
                   const heed::tensor_view<const double, 4>& wanted, double relative = 0) {
  double worst = 0;
  for (index_t b = 0; b < got.extent(0); ++b) {
    for (index_t h = 0; h < got.extent(1); ++h) {
      for (index_t l = 0; l < got.extent(2); ++l) {
        for (index_t d = 0; d < got.extent(3); ++d) {
          const double g = heed::widen<double>(got(b, h, l, d)), w = wanted(b, h, l, d);
          if (is_nan(g) != is_nan(w)) return HUGE_VAL;
          if (is_nan(g) || g == w) continue;
          const double error = std::abs(g - w) - relative * std::abs(w);
          if (is_nan(error)) return HUGE_VAL;  // one of them is infinite
          if (error > worst) worst = error;
        }
      }
    }
  }
  return worst;
}

}  // namespace heed_test
