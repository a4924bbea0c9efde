// heed::merge: attention over any split of the keys, merged, is attention over all of them.
#include "heed/dense/merge.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/mask.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

template <class T>
struct log_sum_exp {
  std::vector<T> data;
  heed::tensor_view<T, 3> view;
  explicit log_sum_exp(const heed::tensor_view<const T, 4>& out, T value = T(-7))
      : data(static_cast<std::size_t>(out.extent(0) * out.extent(1) * out.extent(2)), value),
        view(data.data(), {out.extent(0), out.extent(1), out.extent(2)}) {}
};

template <class Backend>
class merge : public ::testing::Test {};
TYPED_TEST_SUITE(merge, heed_test::method_backends, heed_test::backend_name);

// Cuts the keys at random, attends to each piece, and merges the pieces in a random order.
template <class Backend, class T>
void check_splits(double bound) {
  std::mt19937 random(11);
  struct shape {
    index_t batches, heads, key_heads, queries, keys, depth, value_depth;
  };
  for (const shape& s :
       {shape{2, 4, 2, 1, 700, 40, 40}, shape{1, 2, 1, 33, 130, 72, 72},
        shape{2, 3, 3, 5, 17, 111, 300}, shape{1, 2, 2, 3, 4, 8, 0}, shape{1, 1, 1, 9, 0, 8, 8}}) {
    tensor<T> q(s.batches, s.heads, s.queries, s.depth);
    tensor<T> k(s.batches, s.key_heads, s.keys, s.depth, layout::by_token);
    tensor<T> v(s.batches, s.key_heads, s.keys, s.value_depth, layout::by_token);
    q.fill(1), k.fill(2), v.fill(3);
    // Where nothing is visible, a part's lse is −∞: that happens in some pieces for some rows.
    const auto visible = [](const heed::position& p) { return (p.k / 8 + p.q) % 2 == 0; };
    tensor<double> wanted(s.batches, s.heads, s.queries, s.value_depth);
    std::vector<double> wanted_lse;
    reference::options how;
    how.visible = visible;
    how.lse = &wanted_lse;
    reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);

    for (int pieces : {1, 2, 3, 7}) {
      std::vector<index_t> cuts = {0, s.keys};
      while (static_cast<int>(cuts.size()) <= pieces) {
        cuts.push_back(static_cast<index_t>(random()) % (s.keys + 1));  // twice the same: no keys
      }
      std::sort(cuts.begin(), cuts.end());
      std::vector<tensor<T>> outs;
      std::vector<log_sum_exp<T>> sums;
      for (int i = 0; i < pieces; ++i) {
        const index_t begin = cuts[static_cast<std::size_t>(i)];
        const index_t count = cuts[static_cast<std::size_t>(i) + 1] - begin;
        outs.emplace_back(s.batches, s.heads, s.queries, s.value_depth,
                          i % 2 == 0 ? layout::padded : layout::by_token);
        sums.emplace_back(outs.back().read());
        const heed::mask own{[&](heed::position p) {
          p.k += begin;
          return visible(p);
        }};
        heed::attention<Backend>(q.read(), k.read().slice(2, begin, count),
                                 v.read().slice(2, begin, count), outs.back().view(), own,
                                 heed::lse_to{sums.back().view});
      }
      std::vector<std::size_t> order(static_cast<std::size_t>(pieces));
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::shuffle(order.begin(), order.end(), random);
      std::vector<heed::part<T>> parts;
      for (std::size_t i : order) parts.emplace_back(outs[i].read(), sums[i].view);

      tensor<T> out(s.batches, s.heads, s.queries, s.value_depth, layout::by_token);
      log_sum_exp<T> lse(out.read());
      heed::merge(parts, out.view(), heed::lse_to{lse.view});
      EXPECT_EQ(out.overwritten_around(), 0);
      EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), bound), 2 * bound)
          << s.keys << " keys in " << pieces;
      for (std::size_t i = 0; i < wanted_lse.size(); ++i) {
        const double got = static_cast<double>(lse.data[i]);
        if (got == wanted_lse[i]) continue;
        EXPECT_NEAR(got, wanted_lse[i], bound * (2 + std::abs(wanted_lse[i])));
      }
    }
  }
}
TYPED_TEST(merge, any_split_of_the_keys_in_any_order_gives_the_whole) {
  check_splits<TypeParam, float>(5e-6);
  check_splits<TypeParam, double>(1e-13);
}

// Two parts of one row whose merge is known.
template <class T>
struct two_parts {
  std::vector<T> a = {1, 2, 3}, b = {5, 6, 7}, lse_a = {0}, lse_b = {0};
  std::vector<T> out = std::vector<T>(3), lse = {T(42)};
  void run() {
    using view = heed::tensor_view<T, 2>;
    using row = heed::tensor_view<T, 1>;
    heed::merge({heed::part{view(a.data(), {1, 3}), row(lse_a.data(), {1})},
                 heed::part{view(b.data(), {1, 3}), row(lse_b.data(), {1})}},
                view(out.data(), {1, 3}), heed::lse_to{row(lse.data(), {1})});
  }
};

TEST(merge_of_two, weighs_by_the_log_sum_exp) {
  two_parts<double> x;
  x.lse_b = {std::log(3.0)};
  x.run();
  for (std::size_t d = 0; d < 3; ++d) EXPECT_NEAR(x.out[d], (x.a[d] + 3 * x.b[d]) / 4, 1e-15);
  EXPECT_NEAR(x.lse[0], std::log(4.0), 1e-15);
}

TEST(merge_of_two, survives_log_sum_exps_beyond_the_range_of_exp) {
  for (const float shift : {-3e4f, 3e4f, 1e38f, -1e38f}) {
    two_parts<float> x;
    x.lse_a = {shift}, x.lse_b = {shift};
    x.run();
    EXPECT_EQ(x.out, (std::vector<float>{3, 4, 5}));
    EXPECT_NEAR(x.lse[0], shift + std::log(2.f), 1e-6f * std::abs(shift));
  }
  two_parts<float> x;  // the weight of b underflows
  x.lse_a = {500.f}, x.lse_b = {-500.f};
  x.run();
  EXPECT_EQ(x.out, x.a);
  EXPECT_EQ(x.lse, x.lse_a);
}

TEST(merge_of_two, a_part_without_keys_counts_nothing_whatever_it_holds) {
  const float minus_infinity = heed::minus_infinity<float>();
  for (const double poison : {not_a_number, infinity, 17.0}) {
    two_parts<float> x;
    x.b.assign(3, static_cast<float>(poison));
    x.lse_a = {-3.f}, x.lse_b = {minus_infinity};
    x.run();
    EXPECT_EQ(x.out, x.a);
    EXPECT_EQ(x.lse, x.lse_a);
    x.lse_a = {minus_infinity};
    x.run();
    EXPECT_EQ(x.out, (std::vector<float>{0, 0, 0}));
    EXPECT_TRUE(heed::is_minus_infinity(x.lse[0]));
  }
}

TEST(merge_of_two, an_infinite_log_sum_exp_outweighs_the_finite_ones) {
#if defined(__FAST_MATH__)
  GTEST_SKIP() << "-ffast-math assumes that there are no infinities";
#endif
  two_parts<double> x;
  x.lse_b = {infinity};
  x.run();
  EXPECT_EQ(x.out, x.b);
  EXPECT_EQ(x.lse[0], infinity);
  x.lse_a = {infinity};
  x.run();
  EXPECT_EQ(x.out, (std::vector<double>{3, 4, 5}));
}

TEST(merge_of_two, a_nan_that_counts_reaches_the_result) {
#if defined(__FAST_MATH__)
  GTEST_SKIP() << "-ffast-math assumes that there is no NaN";
#endif
  two_parts<double> x;
  x.b[1] = not_a_number;
  x.run();
  EXPECT_EQ(x.out[0], 3);
  EXPECT_TRUE(heed_test::is_nan(x.out[1]));
  for (auto lse : {&two_parts<double>::lse_a, &two_parts<double>::lse_b}) {
    two_parts<double> y;
    y.*lse = {not_a_number};
    y.run();
    for (double value : y.out) EXPECT_TRUE(heed_test::is_nan(value));
    EXPECT_TRUE(heed_test::is_nan(y.lse[0]));
  }
}

TEST(merge_of_parts, one_is_copied_bit_by_bit_and_none_is_attention_to_nothing) {
  tensor<float> a(2, 3, 5, 300), out(2, 3, 5, 300, layout::by_token);
  a.fill(1);
  log_sum_exp<float> lse(a.read(), 1.25f);
  heed::merge({heed::part{a.read(), lse.view}}, out.view());
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < 3; ++h) {
      for (index_t l = 0; l < 5; ++l) {
        EXPECT_EQ(std::memcmp(out.view().row(b, h, l), a.view().row(b, h, l), 1200), 0);
      }
    }
  }
  heed::merge(std::vector<heed::part<float>>(), out.view(), heed::lse_to{lse.view});
  out.for_each([](float x) { EXPECT_EQ(x, 0.f); });
  for (float x : lse.data) EXPECT_TRUE(heed::is_minus_infinity(x));
}

template <class T, class Out>
void check_output_type(double bound) {
  tensor<T> a(1, 2, 3, 20), b(1, 2, 3, 20);
  a.fill(1), b.fill(2);
  log_sum_exp<T> lse_a(a.read(), T(0.5)), lse_b(b.read(), T(-0.25));
  tensor<Out> out(1, 2, 3, 20, layout::padded);
  using Real = heed::accumulator<T, Out>;
  std::vector<Real> lse(6);
  heed::merge({heed::part{a.view(), lse_a.view}, heed::part{b.view(), lse_b.view}}, out.view(),
              heed::lse_to{heed::tensor_view<Real, 3>(lse.data(), {1, 2, 3})});
  const double share = 1 / (1 + std::exp(-0.75));
  tensor<double> wanted(1, 2, 3, 20);
  for (index_t h = 0; h < 2; ++h) {
    for (index_t l = 0; l < 3; ++l) {
      for (index_t d = 0; d < 20; ++d) {
        wanted.view()(0, h, l, d) = share * static_cast<double>(a.view()(0, h, l, d)) +
                                    (1 - share) * static_cast<double>(b.view()(0, h, l, d));
      }
    }
  }
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), bound) << heed::element_name<Out>();
  for (Real x : lse) EXPECT_NEAR(static_cast<double>(x), 0.5 - std::log(share), 1e-6);
}
TEST(merge_of_parts, outputs_are_of_any_element_type) {
  check_output_type<float, float>(1e-6);
  check_output_type<float, double>(1e-6);
  check_output_type<float, Eigen::half>(2e-3);
  check_output_type<float, Eigen::bfloat16>(2e-2);
  check_output_type<double, float>(1e-6);
  check_output_type<double, double>(1e-15);
  check_output_type<double, Eigen::bfloat16>(2e-2);
}

TEST(merge_of_parts, an_output_may_be_a_part) {
  // Keys that arrive one set after the other, as around a ring of processes.
  tensor<float> q(2, 2, 3, 16), k(2, 1, 90, 16), v(2, 1, 90, 16);
  q.fill(1), k.fill(2), v.fill(3);
  tensor<double> wanted(2, 2, 3, 16);
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), {});
  tensor<float> sum(2, 2, 3, 16, layout::padded), next(2, 2, 3, 16);
  log_sum_exp<float> sum_lse(sum.read(), heed::minus_infinity<float>()), next_lse(next.read());
  for (index_t begin = 0; begin < 90; begin += 30) {
    heed::attention(q.read(), k.read().slice(2, begin, 30), v.read().slice(2, begin, 30),
                    next.view(), heed::lse_to{next_lse.view});
    heed::merge({heed::part{sum.read(), sum_lse.view}, heed::part{next.read(), next_lse.view}},
                sum.view(), heed::lse_to{sum_lse.view});
  }
  EXPECT_LE(heed_test::worst_error(sum.read(), wanted.read()), 1e-5);
  EXPECT_EQ(sum.overwritten_around(), 0);
}

TEST(merge_of_parts, results_are_bit_identical_on_any_executor) {
  tensor<float> a(3, 7, 29, 24), b(3, 7, 29, 24);
  a.fill(1), b.fill(2);
  log_sum_exp<float> lse_a(a.read(), 0.5f), lse_b(b.read());
  for (std::size_t i = 0; i < lse_b.data.size(); ++i) {
    lse_b.data[i] = std::sin(static_cast<float>(i));
  }
  const auto run = [&](auto& executor) {
    tensor<float> out(3, 7, 29, 24);
    heed::merge({heed::part{a.read(), lse_a.view}, heed::part{b.read(), lse_b.view}}, out.view(),
                heed::on{executor});
    return std::vector<float>(out.view().data(), out.view().data() + out.view().size());
  };
  heed::serial serial;
  const std::vector<float> wanted = run(serial);
  for (int threads : {1, 2, 5}) {
    heed::thread_pool pool(threads);
    const std::vector<float> got = run(pool);
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)), 0);
  }
}

struct refused_call {
  std::vector<float> a = std::vector<float>(400, 1.f), b = a;
  std::vector<float> sums = std::vector<float>(100, 0.f);
  std::vector<float> out_data = std::vector<float>(400, 42.f), lse_data = out_data;
  heed::tensor_view<float, 4> part_out{b.data(), {2, 3, 4, 5}}, out{out_data.data(), {2, 3, 4, 5}};
  heed::tensor_view<float, 3> part_lse{sums.data(), {2, 3, 4}}, lse{lse_data.data(), {2, 3, 4}};

  void expect(const std::string& text) const {
    const heed::part first{heed::tensor_view<const float, 4>(a.data(), {2, 3, 4, 5}),
                           heed::tensor_view<const float, 3>(sums.data(), {2, 3, 4})};
    heed_test::expect_error(text, [&] {
      heed::merge({first, heed::part{part_out, part_lse}}, out, heed::lse_to{lse});
    });
    for (float x : out_data) ASSERT_EQ(x, 42.f) << text;
    for (float x : lse_data) ASSERT_EQ(x, 42.f) << text;
  }
};

TEST(merge_errors, shapes_and_overlaps) {
  using view = heed::tensor_view<float, 4>;
  using sums = heed::tensor_view<float, 3>;
  const auto refuse = [](const std::string& text, const std::function<void(refused_call&)>& spoil) {
    refused_call c;
    spoil(c);
    c.expect(text);
  };
  refuse("part 2: batch 1 differs from out's 2", [](auto& c) {
    c.part_out = view(c.b.data(), {1, 3, 4, 5});
  });
  refuse("part 2: head count 2 differs from out's 3", [](auto& c) {
    c.part_out = view(c.b.data(), {2, 2, 4, 5});
  });
  refuse("part 2: length 3 differs from out's 4", [](auto& c) {
    c.part_out = view(c.b.data(), {2, 3, 3, 5});
  });
  refuse("part 2: depth 6 differs from out's 5", [](auto& c) {
    c.part_out = view(c.b.data(), {2, 3, 4, 6});
  });
  refuse("part 2: data is null, extents are [2, 3, 4, 5]", [](auto& c) {
    c.part_out = view(nullptr, {2, 3, 4, 5});
  });
  refuse("lse of part 2: length 3 differs from out's 4", [](auto& c) {
    c.part_lse = sums(c.sums.data(), {2, 3, 3});
  });
  refuse("lse: head count 2 differs from out's 3", [](auto& c) {
    c.lse = sums(c.lse_data.data(), {2, 2, 4});
  });
  refuse("out: axis 1 of extent 3 has stride 0, its rows would overwrite each other", [](auto& c) {
    c.out = view(c.out_data.data(), {2, 3, 4, 5}, {20, 0, 5, 1});
  });
  refuse("out: data is null, extents are [2, 3, 4, 5]", [](auto& c) {
    c.out = view(nullptr, {2, 3, 4, 5});
  });
  refuse("out: overlaps part 2, in the row at its byte 0", [](auto& c) {
    c.part_out = view(c.out_data.data() + 5, {2, 3, 4, 5});
  });
  // The same memory in another order is no merge in place.
  refuse("out: overlaps part 2, in the row at its byte 0", [](auto& c) {
    c.part_out = view(c.out_data.data(), {2, 3, 4, 5}, {20, 40, 5, 1});
  });
  refuse("out: overlaps lse of part 2, in the row at its byte 0", [](auto& c) {
    c.part_lse = sums(c.out_data.data(), {2, 3, 4});
  });
  refuse("lse: overlaps lse of part 2, in the row at its byte 0", [](auto& c) {
    c.part_lse = sums(c.lse_data.data() + 1, {2, 3, 4});
  });
  refuse("lse: overlaps part 2, in the row at its byte 0", [](auto& c) {
    c.part_out = view(c.lse_data.data(), {2, 3, 4, 5});
  });
  refuse("lse: overlaps out, in the row at its byte 0", [](auto& c) {
    c.lse = sums(c.out_data.data(), {2, 3, 4});
  });
}

}  // namespace
