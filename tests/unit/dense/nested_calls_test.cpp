// A score functor may call attention itself, on the same thread: neither call disturbs the other.
#include <gtest/gtest.h>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/score/score.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;

template <class Backend>
class nested_calls : public ::testing::Test {
 protected:
  template <class T>
  void check() {
    constexpr index_t queries = 70, keys = 200, depth = 40;
    tensor<T> q(1, 2, queries, depth), k(1, 1, keys, depth), v(1, 1, keys, depth);
    tensor<T> alone(1, 2, queries, depth), outer(1, 2, queries, depth);
    tensor<T> inner(1, 2, queries, depth), wanted_inner(1, 2, queries, depth);
    q.fill(1), k.fill(2), v.fill(3);
    heed::attention<Backend>(q.read(), k.read(), v.read(), wanted_inner.view());
    bool nested = false;
    int calls = 0;
    const auto calling = heed::score{[&](float s, const heed::position& p) {
      if (nested && p.k == 130 && p.q % 16 == 9) {
        ++calls;
        heed::attention<Backend>(q.read(), k.read(), v.read(), inner.view());
      }
      return s;
    }};
    heed::attention<Backend>(q.read(), k.read(), v.read(), alone.view(), calling, heed::causal{});
    EXPECT_EQ(calls, 0);
    nested = true;
    heed::attention<Backend>(q.read(), k.read(), v.read(), outer.view(), calling, heed::causal{});
    EXPECT_GT(calls, 0);
    for (index_t h = 0; h < 2; ++h) {
      for (index_t row = 0; row < queries; ++row) {
        for (index_t d = 0; d < depth; ++d) {
          ASSERT_EQ(heed::widen<double>(outer.read()(0, h, row, d)),
                    heed::widen<double>(alone.read()(0, h, row, d)));
          ASSERT_EQ(heed::widen<double>(inner.read()(0, h, row, d)),
                    heed::widen<double>(wanted_inner.read()(0, h, row, d)));
        }
      }
    }
  }
};
TYPED_TEST_SUITE(nested_calls, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(nested_calls, in_float) { this->template check<float>(); }
TYPED_TEST(nested_calls, in_bfloat16) { this->template check<Eigen::bfloat16>(); }
TYPED_TEST(nested_calls, in_half) { this->template check<Eigen::half>(); }

}  // namespace
