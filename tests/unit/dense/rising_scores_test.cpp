// Scores that rise, fall or jump along the keys: the running reference point of the softmax moves
// in the middle of a block, for some rows of a strip and not for others, in small and in huge
// steps.
#include <gtest/gtest.h>

#include <cmath>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;
namespace reference = heed::reference;

// Causal or of all keys, in one type: every combination of types costs compile time.
heed::window band(bool causal) {
  return {heed::window::unlimited, causal ? 0 : heed::window::unlimited};
}

template <class Backend, class T>
double error_of(const tensor<T>& q, const tensor<T>& k, const tensor<T>& v, bool causal,
                const tensor<double>& truth) {
  const auto wanted = truth.read();
  tensor<T> out(1, 2, wanted.extent(2), wanted.extent(3));
  heed::attention<Backend>(q.read(), k.read(), v.read(), out.view(), band(causal), heed::scale{1});
  return heed_test::worst_error(out.read(), wanted);
}

// Scores are sign(row)·course(key)·step plus a little noise, q = (±1, noise), k = (course,
// noise). The oracle takes far longer than the kernels: one result serves all backends.
template <class T, class Backends, class Course>
void check(Backends backends, const char* name, index_t queries, index_t keys, double step,
           Course course) {
  constexpr index_t depth = 24, value_depth = 40;
  tensor<T> q(1, 2, queries, depth), k(1, 1, keys, depth), v(1, 1, keys, value_depth);
  q.fill(1, 0.25), k.fill(2, 0.25), v.fill(3);
  for (index_t head = 0; head < 2; ++head) {
    for (index_t row = 0; row < queries; ++row) {
      const double sign = row % 3 == 0 ? 1 : row % 3 == 1 ? -1 : 0.125;
      q.view()(0, head, row, 0) = heed::narrow<T>(sign);
    }
  }
  for (index_t key = 0; key < keys; ++key) {
    k.view()(0, 0, key, 0) = heed::narrow<T>(step * course(key));
  }
  for (const bool causal : {false, true}) {
    reference::options how;
    how.scale = 1;
    if (causal) how.visible = [](const heed::position& p) { return heed::causal{}(p); };
    tensor<double> truth(1, 2, queries, value_depth), plain = truth;
    reference::attention(q.read(), k.read(), v.read(), truth.view(), how);
    reference::plain<T>(q.read(), k.read(), v.read(), plain.view(), how);
    const double limit = 2 * heed_test::worst_error(plain.read(), truth.read()) + 1e-5;
    heed_test::for_each_backend(backends, [&]<class Backend>(std::type_identity<Backend>) {
      EXPECT_LE((error_of<Backend>(q, k, v, causal, truth)), limit)
          << Backend::name << ", " << name << " " << queries << "x" << keys << " step " << step
          << " causal " << causal;
    });
  }
}

template <class T, class Backends>
void check_all(Backends backends, double largest_step = 30000) {
  for (const index_t queries : {5, 33, 70}) {
    for (const double step : {0.03, 0.5, 40.0, largest_step}) {
      check<T>(backends, "rising", queries, 700, step, [](index_t key) { return double(key); });
      check<T>(backends, "falling", queries, 700, step, [](index_t key) { return -double(key); });
      check<T>(backends, "one peak", queries, 1100, step,
               [](index_t key) { return key == 650 ? 99. : 0.; });
      check<T>(backends, "stairs of 64", queries, 640, step,
               [](index_t key) { return double(key / 64); });
    }
  }
}

// What is masked stays so under a scale that turns every score to next to nothing.
template <class Backend, class T>
void check_tiny_scale(double value) {
  tensor<T> q(1, 1, 40, 24), k(1, 1, 40, 24), v(1, 1, 40, 8), out(1, 1, 40, 8);
  q.fill(1), k.fill(2);
  for (index_t key = 0; key < 40; ++key) {
    for (index_t d = 0; d < 8; ++d) {
      v.view()(0, 0, key, d) = heed::narrow<T>(static_cast<float>(key));
    }
  }
  heed::attention<Backend>(q.read(), k.read(), v.read(), out.view(), band(true),
                           heed::scale{value});
  for (index_t row = 0; row < 40; ++row) {
    const double mean = static_cast<double>(row) / 2;
    EXPECT_NEAR(heed::widen<double>(out.read()(0, 0, row, 3)), mean, 0.01 * mean)
        << Backend::name << ", scale " << value;
  }
}
TEST(rising_scores, tiny_scales_leave_masked_keys_out) {
  for (const double value : {1e-30, 1e-37, -1e-38, 1e-40}) {
    heed_test::for_each_backend(heed_test::all_backends{},
                                [&]<class Backend>(std::type_identity<Backend>) {
                                  check_tiny_scale<Backend, float>(value);
                                });
    heed_test::for_each_backend(heed_test::method_backends{},
                                [&]<class Backend>(std::type_identity<Backend>) {
                                  check_tiny_scale<Backend, Eigen::bfloat16>(value);
                                  check_tiny_scale<Backend, Eigen::half>(value);
                                });
  }
}

// In 16 bits unit/dense/attention_test compares all backends.
TEST(rising_scores, in_float) { check_all<float>(heed_test::all_backends{}); }
TEST(rising_scores, in_bfloat16) { check_all<Eigen::bfloat16>(heed_test::method_backends{}); }
// Keys up to step·1100 must be finite.
TEST(rising_scores, in_half) { check_all<Eigen::half>(heed_test::method_backends{}, 59); }

}  // namespace
