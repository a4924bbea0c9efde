// The gradient oracle against central differences of the forward oracle: every number of every
// gradient, in double.
#include "heed/reference/backward.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace {

using heed::index_t;
using heed::position;
namespace reference = heed::reference;

struct numbers {
  std::array<index_t, 4> extents;
  std::vector<double> values;
  numbers(std::array<index_t, 4> of, unsigned seed) : extents(of) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    values.resize(static_cast<std::size_t>(of[0] * of[1] * of[2] * of[3]));
    for (double& x : values) x = normal(generator);
  }
  reference::operand read() const {
    return heed::tensor_view<const double, 4>(values.data(), extents);
  }
};

// loss = Σ out·d_out + Σ lse·d_lse over a call with GQA, Dv ≠ D, a mask with dead rows, two scores
// of which the first is curved, a bias and sinks.
struct example {
  numbers q{{2, 4, 5, 3}, 1}, k{{2, 2, 7, 3}, 2}, v{{2, 2, 7, 4}, 3}, d_out{{2, 4, 5, 4}, 4};
  numbers bias{{2, 4, 5, 7}, 5}, sinks{{1, 1, 1, 4}, 6}, d_lse{{1, 2, 4, 5}, 7};
  bool with_sinks = false;
  bool ragged = false;
  reference::backward_options more;

  reference::options how() const {
    reference::options result;
    result.scale = 0.7;
    result.visible = [](const position& p) { return p.q != 2 && (p.q + 2 * p.k) % 5 != 0; };
    result.scores = {
        [](double s, const position&) { return 1.5 * std::tanh(s / 1.5); },
        [this](double s, const position& p) {
          return s + bias.values[static_cast<std::size_t>(((p.batch * 4 + p.head) * 5 + p.q) * 7 +
                                                          p.k)];
        },
    };
    if (!ragged) result.key_lengths = {7, 4}, result.query_lengths = {3, 5};
    if (with_sinks) result.sinks = sinks.values;
    return result;
  }
  reference::gradients gradients() {
    more.derivatives = {[](double s, const position&) {
                          const double bent = std::tanh(s / 1.5);
                          return 1 - bent * bent;
                        },
                        [](double, const position&) { return 1.0; }};
    more.lse_gradient = d_lse.values;
    return reference::attention_backward(q.read(), k.read(), v.read(), d_out.read(), how(), more);
  }
  double loss() const {
    reference::options options = how();
    std::vector<double> out, lse;
    options.lse = &lse;
    if (ragged) {
      reference::ragged_attention(q.read(), k.read(), v.read(), out, more.cu_q, more.cu_k, options);
    } else {
      reference::attention(q.read(), k.read(), v.read(), out, options);
    }
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * d_out.values[i];
    for (std::size_t i = 0; i < lse.size(); ++i) {
      if (std::isfinite(lse[i])) sum += lse[i] * d_lse.values[i];
    }
    return sum;
  }
  void expect_differences(numbers& of, const std::vector<double>& gradient, const char* name) {
    ASSERT_EQ(gradient.size(), of.values.size()) << name;
    constexpr double step = 1e-5;
    double largest = 0;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      const double at = of.values[i];
      of.values[i] = at + step;
      const double above = loss();
      of.values[i] = at - step;
      const double below = loss();
      of.values[i] = at;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * step), 1e-8) << name << " " << i;
      largest = std::max(largest, std::abs(gradient[i]));
    }
    EXPECT_GT(largest, 0.1) << name;
  }
  void expect_all() {
    const reference::gradients result = gradients();
    expect_differences(q, result.q, "q");
    expect_differences(k, result.k, "k");
    expect_differences(v, result.v, "v");
  }
};

TEST(reference_backward, central_differences) {
  example x;
  x.expect_all();
  // The bias is added last, so that its gradient is that of the last score.
  x.expect_differences(x.bias, x.gradients().scores, "bias");
}

TEST(reference_backward, central_differences_with_sinks) {
  example x;
  x.with_sinks = true;
  x.expect_all();
  x.expect_differences(x.sinks, x.gradients().sinks, "sinks");
}

TEST(reference_backward, central_differences_of_a_ragged_batch) {
  example x;
  x.q = numbers({1, 4, 5, 3}, 8), x.k = numbers({1, 2, 7, 3}, 9), x.v = numbers({1, 2, 7, 4}, 10);
  x.d_out = numbers({1, 4, 5, 4}, 11), x.d_lse = numbers({1, 1, 4, 5}, 12);
  x.ragged = true;
  x.more.cu_q = {0, 2, 5}, x.more.cu_k = {0, 4, 7};
  x.expect_all();
}

TEST(reference_backward, rows_without_keys_have_no_gradient) {
  example x;
  const reference::gradients result = x.gradients();
  for (std::size_t d = 0; d < 3; ++d) EXPECT_EQ(result.q[2 * 3 + d], 0.0);
}

TEST(reference_backward, errors) {
  const example x;
  reference::options how = x.how();
  try {
    reference::attention_backward(x.q.read(), x.k.read(), x.v.read(), x.d_out.read(), how);
    ADD_FAILURE() << "accepted scores without derivatives";
  } catch (const heed::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()), "derivatives: 0 for 2 scores");
  }
}

}  // namespace
