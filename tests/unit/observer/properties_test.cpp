// Properties of calls with observers: bit-identical for any number of workers, scratch memory
// linear in the sequence, any element type, NaN seen and unseen, the same output as without
// observers.
#include <cstring>

#include "heed/core/quantize.hpp"
#include "heed/core/thread_pool.hpp"
#include "heed/mask/causal.hpp"
#include "heed/normalizer/relaxed.hpp"
#include "support/backends.hpp"
#include "support/rows.hpp"

namespace {

using heed::index_t;
using heed_test::observed;
using heed_test::tensor;

// Items in reverse order, on alternating workers.
struct backwards {
  int workers() const { return 3; }
  template <class Body>
  void run(index_t count, const Body& body) const {
    for (index_t item = count; item-- > 0;) body(item, static_cast<int>(item % 3));
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class Backend>
class observer_properties : public ::testing::Test {};
TYPED_TEST_SUITE(observer_properties, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(observer_properties, bit_identical_on_any_executor) {
  const index_t heads = 4, queries = 700, keys = 720;
  tensor<float> q(2, heads, queries, 24), k(2, 2, keys, 24), v(2, 2, keys, 16);
  q.fill(1), k.fill(2), v.fill(3);
  const auto run = [&](auto& executor) {
    observed seen(2, heads, queries, keys);
    tensor<float> out(2, heads, queries, 16);
    seen.with_all([&](const auto&... all) {
      heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::causal{}, all...,
                                 heed::on{executor});
    });
    return seen;
  };
  heed::serial serial;
  const observed wanted = run(serial);
  const auto expect_same = [&](const observed& got, const char* what) {
    EXPECT_TRUE(same_bits(got.sums, wanted.sums)) << what;
    EXPECT_TRUE(same_bits(got.entropy, wanted.entropy)) << what;
    EXPECT_TRUE(same_bits(got.maxima, wanted.maxima)) << what;
    EXPECT_TRUE(same_bits(got.weights, wanted.weights)) << what;
    EXPECT_TRUE(same_bits(got.top, wanted.top)) << what;
  };
  backwards reversed;
  expect_same(run(reversed), "backwards");
  for (int threads : {2, 5}) {
    heed::thread_pool pool(threads);
    expect_same(run(pool), "threads");
  }
  // Not trivially the same: sums that are added in another order differ in their last bits.
  std::vector<float> other(wanted.sums.size());
  for (index_t i = 0; i < queries; ++i) {
    for (std::size_t h = 0; h < 8; ++h) {
      for (std::size_t j = 0; j < static_cast<std::size_t>(keys); ++j) {
        const auto row = static_cast<std::size_t>(queries - 1 - i);
        other[h * static_cast<std::size_t>(keys) + j] +=
            wanted.weights[(h * static_cast<std::size_t>(queries) + row) *
                               static_cast<std::size_t>(keys) +
                           j];
      }
    }
  }
  EXPECT_FALSE(same_bits(other, wanted.sums));
}

TYPED_TEST(observer_properties, scratch_is_linear_in_the_sequence) {
  const auto bytes = [](index_t length) {
    tensor<float> q(1, 1, length, 8), out(1, 1, length, 8);
    q.fill(1);
    std::vector<float> sums(static_cast<std::size_t>(length));
    heed::workspace memory;
    heed::attention<TypeParam>(
        q.read(), q.read(), q.read(), out.view(), heed::scratch{memory},
        heed::column_sums_to{heed::tensor_view<float, 3>(sums.data(), {1, 1, length})});
    return memory.size();
  };
  // A sixteenth of the matrix of weights, whatever the cache size that the rows are cut by.
  EXPECT_LE(bytes(4096), 4096 * 4096 * static_cast<index_t>(sizeof(float)) / 16);
}

TYPED_TEST(observer_properties, element_types) {
  const index_t heads = 4, queries = 40, keys = 170;
  tensor<Eigen::bfloat16> q(1, heads, queries, 32), out(1, heads, queries, 16);
  tensor<Eigen::half> k(1, 2, keys, 32);
  tensor<float> v(1, 2, keys, 16);
  q.fill(1, 2), k.fill(2), v.fill(3);
  std::vector<std::int8_t> codes(static_cast<std::size_t>(v.view().size()));
  std::vector<float> scales(static_cast<std::size_t>(2 * keys));
  const heed::tensor_view<std::int8_t, 4> code_view(codes.data(), {1, 2, keys, 16});
  const heed::tensor_view<float, 4> scale_view(scales.data(), {1, 2, keys, 1});
  heed::quantize(v.read(), code_view, scale_view, heed::per_token);
  const heed::quantized_view<std::int8_t, 4> values(
      heed::tensor_view<const std::int8_t, 4>(code_view),
      heed::tensor_view<const float, 4>(scale_view), heed::per_token);
  const auto truth =
      heed::reference::weighted_attention(q.read(), k.read(), values, {heed::reference::softmax()});
  observed seen(1, heads, queries, keys);
  seen.with_all([&](const auto&... all) {
    heed::attention<TypeParam>(q.read(), k.read(), values, out.view(), all...);
  });
  seen.compare(truth);
  const heed::tensor_view<const double, 4> wanted(truth.out.data(), out.read().extents());
  EXPECT_LE(heed_test::worst_error(out.read(), wanted, 0x1p-8), 1e-5);

  // Sums in double where an operand is; a target in another type.
  tensor<double> wide(1, heads, queries, 32), wide_out(1, heads, queries, 16);
  wide.fill(1, 2);
  const auto exact = heed::reference::weighted_attention(wide.read(), k.read(), v.read(),
                                                         {heed::reference::softmax()});
  tensor<double> sums(1, 1, heads, keys);
  tensor<Eigen::half> entropy(1, 1, heads, queries);
  const auto by_head = [](auto view) {
    using view_type = decltype(view);
    return heed::tensor_view<typename view_type::element_type, 3>(
        view.data(), {1, view.extent(2), view.extent(3)});
  };
  heed::attention<TypeParam>(wide.read(), k.read(), v.read(), wide_out.view(),
                             heed::column_sums_to{by_head(sums.view())},
                             heed::row_entropy_to{by_head(entropy.view())});
  const auto wanted_sums = heed::reference::column_sums(exact.weights, queries, keys);
  const auto wanted_entropy = heed::reference::row_entropy(exact.weights, keys);
  for (index_t h = 0; h < heads; ++h) {
    for (index_t j = 0; j < keys; ++j) {
      EXPECT_NEAR(sums.view()(0, 0, h, j), wanted_sums[static_cast<std::size_t>(h * keys + j)],
                  1e-12);
    }
    for (index_t i = 0; i < queries; ++i) {
      EXPECT_NEAR(heed::widen<double>(entropy.view()(0, 0, h, i)),
                  wanted_entropy[static_cast<std::size_t>(h * queries + i)], 4e-3);
    }
  }
}

// One NaN key: rows that see it are NaN, others know nothing of it.
TYPED_TEST(observer_properties, nan_is_seen_by_those_who_see_it) {
  const index_t length = 140, bad = 100;
  tensor<float> q(1, 1, length, 16), k(1, 1, length, 16), v(1, 1, length, 8), out(1, 1, length, 8);
  q.fill(1), k.fill(2), v.fill(3);
  k.view()(0, 0, bad, 3) = NAN;
  v.view()(0, 0, bad, 5) = NAN;
  observed seen(1, 1, length, length);
  seen.with_all([&](const auto&... all) {
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::causal{}, all...);
  });
  for (index_t i = 0; i < length; ++i) {
    const bool sees = i >= bad;
    EXPECT_EQ(heed_test::is_nan(static_cast<double>(out.view()(0, 0, i, 5))), sees) << i;
    EXPECT_EQ(heed_test::is_nan(static_cast<double>(seen.entropy[static_cast<std::size_t>(i)])),
              sees);
    for (index_t j = 0; j < length; ++j) {
      const float w = seen.weights[static_cast<std::size_t>(i * length + j)];
      if (j > i) {
        ASSERT_EQ(w, 0.f) << i << ' ' << j;
      } else {
        ASSERT_EQ(heed_test::is_nan(static_cast<double>(w)), sees) << i << ' ' << j;
      }
    }
  }
  // Keys that only rows behind `bad` see have NaN sums like all before it; none sees more than
  // those.
  for (index_t j = 0; j < length; ++j) {
    EXPECT_TRUE(heed_test::is_nan(static_cast<double>(seen.sums[static_cast<std::size_t>(j)])));
  }
}

// Infinite values behind a mask, though relaxed attention lifts every weight that is visible.
TYPED_TEST(observer_properties, what_is_masked_does_not_leak) {
  const index_t length = 70;
  tensor<float> q(1, 1, length, 16), v(1, 1, length, 8), out(1, 1, length, 8);
  q.fill(1), v.fill(3);
  for (index_t d = 0; d < 8; ++d) v.view()(0, 0, length - 1, d) = INFINITY;
  heed::attention<TypeParam>(q.read(), q.read(), v.read(), out.view(), heed::causal{},
                             heed::relaxed{0.25});
  for (index_t i = 0; i < length; ++i) {
    EXPECT_EQ(std::isfinite(out.view()(0, 0, i, 2)), i + 1 < length) << i;
  }
}

// Each observer of sums has sums of its own, though all lie in one scratch memory.
TYPED_TEST(observer_properties, two_observers_of_sums_and_no_query_at_all) {
  tensor<float> q(2, 4, 50, 16), k(2, 2, 90, 16), out(2, 4, 50, 16);
  q.fill(1), k.fill(2);
  std::vector<float> first(8 * 90, 77), second(8 * 90, 78);
  const heed::column_sums_to a{heed::tensor_view<float, 3>(first.data(), {2, 4, 90})};
  const heed::column_sums_to b{heed::tensor_view<float, 3>(second.data(), {2, 4, 90})};
  heed::attention<TypeParam>(q.read(), k.read(), k.read(), out.view(), a, b);
  EXPECT_TRUE(same_bits(first, second));
  double all = 0;
  for (float sum : first) all += static_cast<double>(sum);
  EXPECT_NEAR(all, 8 * 50, 1e-2);
  const std::vector<index_t> none = {0, 0};
  heed::attention<TypeParam>(q.read(), k.read(), k.read(), out.view(), a,
                             heed::query_lengths{none});
  for (float sum : first) EXPECT_EQ(sum, 0.f);
  out.fill(4);
  heed::attention<TypeParam>(q.read(), k.read(), k.read(), out.view(), heed::query_lengths{none});
  out.for_each([](float x) { EXPECT_EQ(x, 0.f); });
}

TYPED_TEST(observer_properties, wide_logits) {
  tensor<float> q(1, 2, 60, 32), k(1, 2, 90, 32), v(1, 2, 90, 8), out(1, 2, 60, 8);
  q.fill(1, 40), k.fill(2, 40), v.fill(3);
  const auto truth = heed::reference::weighted_attention(q.read(), k.read(), v.read(),
                                                         {heed::reference::softmax()});
  observed seen(1, 2, 60, 90);
  seen.with_all([&](const auto&... all) {
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), all...);
  });
  // Scores of 10^4 round by 10^-3, and so do weights.
  seen.compare(truth, 3e-3);
}

}  // namespace
