// One call of heed::attention_backward beside the oracle, over tensors in any layout.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "heed/dense/backward.hpp"
#include "heed/reference/backward.hpp"
#include "support/tensor.hpp"

namespace heed_test {

namespace reference = heed::reference;

// The worse of two errors of a gradient: of the root mean square over that of the truth, and of the
// largest element over the largest. Infinity where one is NaN and the other is not. Gradients that
// cancel to nearly nothing are measured by `floor`.
class error_measure {
 public:
  void add(double got, double wanted) {
    if (is_nan(got) && is_nan(wanted)) return;
    const double error = got - wanted;
    broken_ = broken_ || is_nan(error);
    errors_ += error * error, squares_ += wanted * wanted, ++count_;
    worst_ = std::max(worst_, std::abs(error)), largest_ = std::max(largest_, std::abs(wanted));
  }
  double result(double floor = 0.02) const {
    if (broken_) return HUGE_VAL;
    const double n = count_ > 0 ? static_cast<double>(count_) : 1.0;
    const double rms = std::sqrt(errors_ / n) / std::max(std::sqrt(squares_ / n), floor);
    return std::max(rms, 0.1 * worst_ / std::max(largest_, floor));
  }

 private:
  double errors_ = 0, squares_ = 0, worst_ = 0, largest_ = 0;
  index_t count_ = 0;
  bool broken_ = false;
};

template <class T>
double gradient_error(const heed::tensor_view<const T, 4>& got, const double* wanted) {
  error_measure measure;
  for (index_t b = 0; b < got.extent(0); ++b) {
    for (index_t h = 0; h < got.extent(1); ++h) {
      for (index_t l = 0; l < got.extent(2); ++l) {
        for (index_t d = 0; d < got.extent(3); ++d) {
          measure.add(heed::widen<double>(got(b, h, l, d)), *wanted++);
        }
      }
    }
  }
  return measure.result();
}

// All elements' bits, for comparisons that tolerate nothing.
inline std::vector<std::uint32_t> gradient_bits(const tensor<float>& x) {
  tensor<float> copy = x;
  std::vector<std::uint32_t> bits;
  copy.for_each([&](float& value) { bits.push_back(std::bit_cast<std::uint32_t>(value)); });
  return bits;
}

struct backward_shape {
  index_t batches, heads, key_heads, queries, keys, depth, value_depth;
  friend std::ostream& operator<<(std::ostream& out, const backward_shape& s) {
    return out << "B" << s.batches << " H" << s.heads << "/" << s.key_heads << " L" << s.queries
               << "x" << s.keys << " D" << s.depth << "/" << s.value_depth;
  }
};

// Operands of T, gradients of G; out and lse in the type of the sums.
template <class T, class G = T>
struct backward_call {
  using Real = heed::accumulator<T, G>;
  backward_shape s;
  tensor<T> q, k, v, d_out;
  tensor<Real> out, lse;
  tensor<G> d_q, d_k, d_v;

  explicit backward_call(const backward_shape& of, unsigned seed = 1, layout how = layout::dense)
      : s(of),
        q(of.batches, of.heads, of.queries, of.depth, how),
        k(of.batches, of.key_heads, of.keys, of.depth, how),
        v(of.batches, of.key_heads, of.keys, of.value_depth, how),
        d_out(of.batches, of.heads, of.queries, of.value_depth, how),
        out(of.batches, of.heads, of.queries, of.value_depth, how),
        lse(1, of.batches, of.heads, of.queries),
        d_q(of.batches, of.heads, of.queries, of.depth, how),
        d_k(of.batches, of.key_heads, of.keys, of.depth, how),
        d_v(of.batches, of.key_heads, of.keys, of.value_depth, how) {
    q.fill(seed), k.fill(seed + 1), v.fill(seed + 2), d_out.fill(seed + 3);
  }

  heed::tensor_view<Real, 3> lse_view() {
    return {lse.view().data(), {s.batches, s.heads, s.queries}};
  }
  template <class Backend, class... Modifiers>
  void forward(const Modifiers&... modifiers) {
    heed::attention<Backend>(q.read(), k.read(), v.read(), out.view(), modifiers...,
                             heed::lse_to{lse_view()});
  }
  template <class Backend, class... Modifiers>
  void backward(const Modifiers&... modifiers) {
    heed::attention_backward<Backend>(q.read(), k.read(), v.read(), out.read(), lse_view(),
                                      d_out.read(), d_q.view(), d_k.view(), d_v.view(),
                                      modifiers...);
  }
  reference::gradients truth(const reference::options& how = {},
                             const reference::backward_options& more = {}) const {
    return reference::attention_backward(q.read(), k.read(), v.read(), d_out.read(), how, more);
  }
  // Compares with the truth, and looks for writes beside the gradients.
  void expect(const reference::gradients& truth, double allowed) {
    EXPECT_LE(gradient_error<G>(d_q.read(), truth.q.data()), allowed) << "d_q at " << s;
    EXPECT_LE(gradient_error<G>(d_k.read(), truth.k.data()), allowed) << "d_k at " << s;
    EXPECT_LE(gradient_error<G>(d_v.read(), truth.v.data()), allowed) << "d_v at " << s;
    EXPECT_EQ(d_q.overwritten_around() + d_k.overwritten_around() + d_v.overwritten_around(), 0);
  }
  // The same modifiers for both passes.
  template <class Backend, class... Modifiers>
  void check(double allowed, const reference::options& how, const reference::backward_options& more,
             const Modifiers&... modifiers) {
    forward<Backend>(modifiers...);
    backward<Backend>(modifiers...);
    expect(truth(how, more), allowed);
  }
};

}  // namespace heed_test
