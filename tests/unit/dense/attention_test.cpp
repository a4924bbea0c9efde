// heed::attention against the double-precision oracle: shapes, layouts, element types, backends.
#include "heed/dense/attention.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/reference/dense.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

struct shape {
  index_t batches, heads, key_heads, queries, keys, depth, value_depth;
  friend std::ostream& operator<<(std::ostream& out, const shape& s) {
    return out << "B" << s.batches << " H" << s.heads << "/" << s.key_heads << " L" << s.queries
               << "x" << s.keys << " D" << s.depth << "/" << s.value_depth;
  }
};

// Depths and lengths around every tile border, groups, and empty axes.
const std::vector<shape> shapes = {
    {1, 1, 1, 1, 1, 1, 1},       {2, 4, 2, 127, 513, 40, 40}, {1, 2, 1, 1, 239, 59, 59},
    {1, 8, 2, 1, 600, 128, 128}, {1, 6, 6, 1, 130, 72, 72},   {2, 2, 2, 113, 203, 111, 111},
    {1, 3, 1, 96, 33, 64, 80},   {1, 2, 2, 65, 64, 256, 24},  {1, 2, 1, 5, 70, 576, 512},
    {1, 1, 1, 200, 200, 1, 3},   {1, 4, 1, 3, 700, 8, 16},    {1, 1, 1, 7, 0, 8, 8},
    {1, 2, 1, 0, 9, 8, 8},       {0, 2, 1, 3, 9, 8, 8},       {2, 0, 0, 3, 9, 8, 8},
    {1, 2, 2, 9, 65, 16, 0},     {1, 2, 2, 9, 65, 0, 16},     {3, 5, 5, 17, 17, 33, 31},
    {1, 16, 1, 2, 129, 20, 20},  {1, 1, 1, 13, 1025, 12, 12}, {1, 2, 1, 61, 1, 32, 32},
};

template <class Backend>
class attention : public ::testing::Test {};
TYPED_TEST_SUITE(attention, heed_test::all_backends, heed_test::backend_name);

template <class T>
struct operands {
  shape s;
  tensor<T> q, k, v, out;
  operands(const shape& of, layout how, unsigned seed, double spread = 1)
      : s(of),
        q(of.batches, of.heads, of.queries, of.depth, how),
        k(of.batches, of.key_heads, of.keys, of.depth, how),
        v(of.batches, of.key_heads, of.keys, of.value_depth, how),
        out(of.batches, of.heads, of.queries, of.value_depth, how) {
    q.fill(seed, spread);
    k.fill(seed + 1, spread);
    v.fill(seed + 2);
  }
};

// Runs one call and the oracle; returns the largest error of the output beyond 5e-6 relative, and
// checks lse and what lies around the output.
template <class Backend, class T, class... Modifiers>
double error_of(operands<T>& x, const reference::options& how, const Modifiers&... modifiers) {
  using Real = heed::accumulator<T>;
  const shape& s = x.s;
  tensor<double> wanted(s.batches, s.heads, s.queries, s.value_depth);
  std::vector<double> wanted_lse;
  reference::options with_lse = how;
  with_lse.lse = &wanted_lse;
  reference::attention(x.q.read(), x.k.read(), x.v.read(), wanted.view(), with_lse);
  std::vector<Real> lse(static_cast<std::size_t>(s.batches * s.heads * s.queries),
                        std::numeric_limits<Real>::quiet_NaN());
  heed::attention<Backend>(
      x.q.read(), x.k.read(), x.v.read(), x.out.view(), modifiers...,
      heed::lse_to{heed::tensor_view<Real, 3>(lse.data(), {s.batches, s.heads, s.queries})});
  EXPECT_EQ(x.out.overwritten_around(), 0);
  for (std::size_t i = 0; i < lse.size(); ++i) {
    const double w = wanted_lse[i], g = static_cast<double>(lse[i]);
    if (g == w) continue;
    EXPECT_NEAR(g, w, 1e-5 + 5e-6 * std::abs(w)) << "lse of row " << i << " at " << s;
  }
  return heed_test::worst_error(x.out.read(), wanted.read(), 5e-6);
}

reference::options visible_where(reference::predicate visible) {
  reference::options how;
  how.visible = std::move(visible);
  return how;
}
bool causally(const heed::position& p) { return p.k <= p.aligned_q(); }

TYPED_TEST(attention, matches_the_oracle_in_every_shape_and_layout) {
  unsigned seed = 1;
  for (const shape& s : shapes) {
    for (layout how : heed_test::layouts) {
      operands<float> x(s, how, seed += 7);
      EXPECT_LE((error_of<TypeParam>(x, {})), 1e-5) << s << " layout " << static_cast<int>(how);
      EXPECT_LE((error_of<TypeParam>(x, visible_where(causally), heed::causal{})), 1e-5)
          << s << " causal, layout " << static_cast<int>(how);
    }
  }
}

TYPED_TEST(attention, double_operands_are_summed_in_double) {
  unsigned seed = 900;
  for (const shape& s : shapes) {
    operands<double> x(s, layout::padded, seed += 7);
    EXPECT_LE((error_of<TypeParam>(x, visible_where(causally), heed::causal{})), 1e-13) << s;
  }
}

// An output in 16 bits may be twice as far from the truth as a plain implementation in 16 bits.
template <class Backend, class T>
void check_low_precision(double spread) {
  unsigned seed = 1700;
  for (const shape& s : shapes) {
    for (const bool causal : {false, true}) {
      operands<T> x(s, layout::by_token, seed += 7, spread);
      reference::options how;
      if (causal) how.visible = causally;
      tensor<double> truth(s.batches, s.heads, s.queries, s.value_depth), plain = truth;
      reference::attention(x.q.read(), x.k.read(), x.v.read(), truth.view(), how);
      reference::plain<T>(x.q.read(), x.k.read(), x.v.read(), plain.view(), how);
      // Both in one type: every combination of types costs compile time.
      const heed::window band(heed::window::unlimited, causal ? 0 : heed::window::unlimited);
      heed::attention<Backend>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), band);
      EXPECT_LE(heed_test::worst_error(x.out.read(), truth.read()),
                2 * heed_test::worst_error(plain.read(), truth.read()) + 1e-5)
          << s << " causal " << causal << " spread " << spread;
    }
  }
}
TYPED_TEST(attention, bfloat16_is_within_twice_the_plain_error) {
  for (double spread : {1.0, 4.0, 16.0}) check_low_precision<TypeParam, Eigen::bfloat16>(spread);
}
TYPED_TEST(attention, half_is_within_twice_the_plain_error) {
  for (double spread : {1.0, 4.0, 16.0}) check_low_precision<TypeParam, Eigen::half>(spread);
}

template <class Backend, class Q, class K, class V, class O>
void check_mix(double bound) {
  const shape s{1, 4, 2, 19, 77, 24, 40};
  tensor<Q> q(s.batches, s.heads, s.queries, s.depth);
  tensor<K> k(s.batches, s.key_heads, s.keys, s.depth);
  tensor<V> v(s.batches, s.key_heads, s.keys, s.value_depth);
  tensor<O> out(s.batches, s.heads, s.queries, s.value_depth);
  tensor<double> wanted(s.batches, s.heads, s.queries, s.value_depth);
  q.fill(1), k.fill(2), v.fill(3);
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), {});
  heed::attention<Backend>(q.read(), k.read(), v.read(), out.view());
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), bound)
      << heed::element_name<Q>() << heed::element_name<K>() << heed::element_name<V>()
      << heed::element_name<O>();
}
using half = Eigen::half;
using bfloat16 = Eigen::bfloat16;
// Every type as a query, as a key or value and as an output on every backend; further mixes on the
// target's best.
TYPED_TEST(attention, element_types_mix) {
  check_mix<TypeParam, float, half, bfloat16, float>(1e-5);
  check_mix<TypeParam, half, bfloat16, float, half>(1e-3);
  check_mix<TypeParam, bfloat16, bfloat16, bfloat16, float>(1e-5);
  check_mix<TypeParam, double, float, half, double>(1e-12);
}
TEST(attention_natively, element_types_mix) {
  using native = heed::backend::native;
  check_mix<native, half, float, float, float>(1e-5);
  check_mix<native, float, float, float, half>(1e-3);
  check_mix<native, float, bfloat16, half, bfloat16>(1e-2);
  check_mix<native, float, float, float, double>(1e-12);
}

TYPED_TEST(attention, every_scale_is_applied_to_the_scores) {
  for (double scale : {0.0, 1.0, -0.3, 0.05, -100.0, 30.0}) {
    operands<float> x({1, 2, 1, 37, 81, 16, 16}, layout::dense, 31);
    reference::options how;
    how.scale = scale;
    // One float rounding of a score of size |scale|·20 is what any implementation has.
    const double bound = 1e-5 + std::abs(scale) * 2e-5;
    tensor<double> wanted(1, 2, 37, 16);
    reference::attention(x.q.read(), x.k.read(), x.v.read(), wanted.view(), how);
    heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(),
                               heed::scale{scale});
    EXPECT_LE(heed_test::worst_error(x.out.read(), wanted.read()), bound) << scale;
    const auto doubled = [](double s, const heed::position&) { return 2 * s; };
    how.scores = {doubled};
    reference::attention(x.q.read(), x.k.read(), x.v.read(), wanted.view(), how);
    heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{scale},
                               heed::score{[](auto s, auto) { return 2.f * s; }});
    EXPECT_LE(heed_test::worst_error(x.out.read(), wanted.read()), 2 * bound) << scale;
  }
}

TYPED_TEST(attention, scores_apply_in_the_order_written) {
  operands<float> x({1, 4, 2, 70, 131, 20, 20}, layout::padded, 5);
  std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
  const heed::alibi alibi{heed::tensor_view<const float, 1>(slopes.data(), {4})};
  const auto distance = [&](double s, const heed::position& p) {
    return s - static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                   std::abs(static_cast<double>(p.aligned_q() - p.k));
  };
  const auto cap = [](double s, const heed::position&) { return 3 * std::tanh(s / 3); };
  reference::options how;
  how.scores = {distance, cap};
  EXPECT_LE((error_of<TypeParam>(x, how, alibi, heed::softcap{3.f})), 1e-5);
  how.scores = {cap, distance};
  EXPECT_LE((error_of<TypeParam>(x, how, heed::softcap{3.f}, alibi)), 1e-5);
}

TYPED_TEST(attention, a_user_functor_is_called_for_packs_or_for_single_keys) {
  operands<float> x({2, 2, 2, 33, 95, 12, 12}, layout::dense, 77);
  reference::options how;
  how.scores = {
      [](double s, const heed::position& p) { return s - 0.1 * static_cast<double>(p.q - p.k); }};
  const auto generic = heed::score{[](auto s, auto p) { return s - 0.1f * (p.q - p.k); }};
  const auto single = heed::score{
      [](float s, heed::position p) { return s - 0.1f * static_cast<float>(p.q - p.k); }};
  EXPECT_LE((error_of<TypeParam>(x, how, generic)), 1e-5);
  EXPECT_LE((error_of<TypeParam>(x, how, single)), 1e-5);
}

TYPED_TEST(attention, masks_are_conjoined_and_dead_rows_give_zero) {
  for (const shape& s : shapes) {
    operands<float> x(s, layout::by_token, 13);
    const auto band = visible_where([](const heed::position& p) {
      const index_t distance = p.aligned_q() - p.k;
      return distance >= 0 && distance <= 30 && p.k % 3 != 0;
    });
    const heed::mask not_third{[](const heed::position& p) { return p.k % 3 != 0; }};
    EXPECT_LE((error_of<TypeParam>(x, band, heed::causal{}, heed::window{30}, not_third)), 1e-5)
        << s;
    const heed::mask nothing{[](const heed::position&) { return false; }};
    EXPECT_LE((error_of<TypeParam>(x, visible_where([](const heed::position&) { return false; }),
                                   nothing)),
              0)
        << s;
  }
}

// What is masked is never read into a result, wherever it lies in a tile.
TYPED_TEST(attention, nan_and_infinity_behind_a_mask_do_not_leak) {
  for (const index_t queries : {1, 5, 150}) {
    for (const double poison :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      operands<float> x({1, 2, 1, queries, 200, 20, 24}, layout::padded, 3);
      const auto hidden = [](index_t k) { return k % 7 == 2 || (k >= 64 && k < 80); };
      for (index_t k = 0; k < 200; ++k) {
        if (!hidden(k)) continue;
        for (index_t d = 0; d < 20; ++d) x.k.view()(0, 0, k, d) = static_cast<float>(poison);
        for (index_t d = 0; d < 24; ++d) x.v.view()(0, 0, k, d) = static_cast<float>(poison);
      }
      const heed::mask mask{[&](const heed::position& p) { return !hidden(p.k); }};
      const auto how = visible_where([&](const heed::position& p) { return !hidden(p.k); });
      EXPECT_LE((error_of<TypeParam>(x, how, mask)), 1e-5) << queries;
      // A bias of −∞ hides like a mask.
      std::vector<float> entries(200);
      for (index_t k = 0; k < 200; ++k) {
        entries[static_cast<std::size_t>(k)] =
            hidden(k) ? -std::numeric_limits<float>::infinity() : 0.f;
      }
      const heed::bias bias{heed::tensor_view<const float, 2>(entries.data(), {1, 200})};
      EXPECT_LE((error_of<TypeParam>(x, how, bias)), 1e-5) << queries;
    }
  }
}

TYPED_TEST(attention, a_visible_nan_reaches_the_result) {
#if defined(__FAST_MATH__)
  GTEST_SKIP() << "-ffast-math assumes that there is no NaN: what a visible one does is open";
#endif
  operands<float> x({1, 1, 1, 10, 100, 8, 8}, layout::dense, 3);
  x.v.view()(0, 0, 50, 3) = std::numeric_limits<float>::quiet_NaN();
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view());
  EXPECT_TRUE(std::isnan(x.out.view()(0, 0, 9, 3)));
  EXPECT_FALSE(std::isnan(x.out.view()(0, 0, 9, 2)));
  x.q.view()(0, 0, 4, 0) = std::numeric_limits<float>::quiet_NaN();
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view());
  EXPECT_TRUE(std::isnan(x.out.view()(0, 0, 4, 2)));
  EXPECT_FALSE(std::isnan(x.out.view()(0, 0, 5, 2)));
}

TYPED_TEST(attention, large_scores_are_as_exact_as_float_dot_products) {
  // Scores in the thousands: only relative differences survive in float, as in any implementation.
  operands<float> x({1, 2, 2, 40, 300, 64, 16}, layout::dense, 8, 16);
  tensor<double> truth(1, 2, 40, 16), plain = truth;
  reference::attention(x.q.read(), x.k.read(), x.v.read(), truth.view(), {});
  reference::plain<float>(x.q.read(), x.k.read(), x.v.read(), plain.view(), {});
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view());
  EXPECT_LE(heed_test::worst_error(x.out.read(), truth.read()),
            2 * heed_test::worst_error(plain.read(), truth.read()) + 1e-5);
}

TYPED_TEST(attention, sinks_enter_the_denominator_only) {
  for (const index_t queries : {1, 90}) {
    for (const float level : {-10.f, 0.f, 10.f}) {
      operands<float> x({1, 4, 2, queries, 700, 16, 16}, layout::dense, 21);
      std::vector<float> logits = {level, level + 1, level - 1, 0};
      reference::options how = visible_where(causally);
      how.sinks.assign(logits.begin(), logits.end());
      EXPECT_LE(
          (error_of<TypeParam>(x, how, heed::causal{},
                               heed::sink{heed::tensor_view<const float, 1>(logits.data(), {4})})),
          1e-5);
    }
  }
}

// Arrays of modifiers are as wide as the tensors, however short the sequences are.
TYPED_TEST(attention, a_bias_of_the_tensors_size_serves_shorter_sequences) {
  operands<float> x({2, 2, 2, 7, 9, 8, 8}, layout::dense, 41);
  std::vector<float> entries(7 * 9);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i] = 0.1f * static_cast<float>(i % 11);
  }
  reference::options how;
  how.key_lengths = {5, 3};
  how.query_lengths = {6, 7};
  how.scores = {[&](double s, const heed::position& p) {
    return s + static_cast<double>(entries[static_cast<std::size_t>(p.q * 9 + p.k)]);
  }};
  const std::vector<index_t> keys = {5, 3}, queries = {6, 7};
  const heed::bias bias{heed::tensor_view<const float, 2>(entries.data(), {7, 9})};
  EXPECT_LE(
      (error_of<TypeParam>(x, how, bias, heed::key_lengths{keys}, heed::query_lengths{queries})),
      1e-5);
}

TYPED_TEST(attention, key_lengths_query_lengths_and_left_padding_cut_the_batch) {
  const shape s{4, 4, 2, 70, 140, 16, 16};
  const std::vector<index_t> keys = {140, 65, 0, 1}, queries = {70, 64, 1, 0};
  for (const bool causal : {false, true}) {
    operands<float> x(s, layout::padded, 4);
    // What lies behind a length is never read.
    for (index_t b = 0; b < 4; ++b) {
      for (index_t k = keys[static_cast<std::size_t>(b)]; k < 140; ++k) {
        for (index_t h = 0; h < 2; ++h) {
          for (index_t d = 0; d < 16; ++d) {
            x.k.view()(b, h, k, d) = x.v.view()(b, h, k, d) =
                std::numeric_limits<float>::quiet_NaN();
          }
        }
      }
    }
    reference::options how;
    how.key_lengths = keys;
    how.query_lengths = queries;
    if (causal) {
      how.visible = causally;
      EXPECT_LE((error_of<TypeParam>(x, how, heed::key_lengths{keys}, heed::query_lengths{queries},
                                     heed::causal{})),
                1e-5);
    } else {
      EXPECT_LE(
          (error_of<TypeParam>(x, how, heed::key_lengths{keys}, heed::query_lengths{queries})),
          1e-5);
    }
  }
  const std::vector<index_t> skipped = {0, 7, 139, 140}, left = {100, 133, 1, 0};
  operands<float> x(s, layout::dense, 6);
  reference::options how = visible_where(causally);
  how.left_padding = skipped;
  EXPECT_LE((error_of<TypeParam>(x, how, heed::left_padding{skipped}, heed::causal{})), 1e-5);
  how.key_lengths = left;
  EXPECT_LE((error_of<TypeParam>(x, how, heed::left_padding{skipped}, heed::key_lengths{left},
                                 heed::causal{})),
            1e-5);
}

TYPED_TEST(attention, ragged_batches_equal_their_sequences_one_by_one) {
  const std::vector<index_t> queries = {0, 1, 1, 97, 160, 163}, keys = {0, 300, 365, 462, 462, 480};
  const index_t heads = 4, key_heads = 2, depth = 24;
  tensor<float> q(1, heads, queries.back(), depth, layout::by_token);
  tensor<float> k(1, key_heads, keys.back(), depth, layout::by_token);
  tensor<float> v(1, key_heads, keys.back(), depth, layout::padded);
  tensor<float> out(1, heads, queries.back(), depth, layout::padded);
  q.fill(1), k.fill(2), v.fill(3);
  std::vector<float> lse(static_cast<std::size_t>(heads * queries.back()), -7.f);
  heed::attention<TypeParam>(
      q.read(), k.read(), v.read(), out.view(), heed::ragged{queries, keys}, heed::causal{},
      heed::lse_to{heed::tensor_view<float, 3>(lse.data(), {1, heads, queries.back()})});
  EXPECT_EQ(out.overwritten_around(), 0);
  for (std::size_t i = 0; i + 1 < queries.size(); ++i) {
    const index_t lq = queries[i + 1] - queries[i], lk = keys[i + 1] - keys[i];
    tensor<double> wanted(1, heads, lq, depth);
    reference::attention(q.read().slice(2, queries[i], lq), k.read().slice(2, keys[i], lk),
                         v.read().slice(2, keys[i], lk), wanted.view(), visible_where(causally));
    EXPECT_LE(heed_test::worst_error(out.read().slice(2, queries[i], lq), wanted.read(), 5e-6),
              1e-5)
        << "sequence " << i;
  }
}

TYPED_TEST(attention, several_sources_share_one_softmax) {
  for (const index_t queries : {1, 3, 80}) {
    const index_t heads = 4, key_heads = 2, depth = 16;
    tensor<float> q(2, heads, queries, depth), out(2, heads, queries, depth);
    tensor<float> k1(1, key_heads, 150, depth), v1(1, key_heads, 150, depth);
    tensor<Eigen::bfloat16> k2(2, key_heads, 90, depth), v2(2, key_heads, 90, depth);
    q.fill(1), k1.fill(2), v1.fill(3), k2.fill(4), v2.fill(5);
    // The first source is a prefix that both batch entries share: its batch stride is 0.
    const auto shared = [](const auto& t) {
      const auto view = t.read();
      return decltype(view)(view.data(), {2, view.extent(1), view.extent(2), view.extent(3)},
                            {0, view.stride(1), view.stride(2), 1});
    };
    const std::vector<index_t> lengths = {90, 31};
    const heed::score nearer{[](auto s, auto p) { return s - 0.05f * (p.aligned_q() - p.k); }};
    heed::attention<TypeParam>(q.read(),
                               heed::sources{heed::source{shared(k1), shared(v1)},
                                             heed::source{k2.read(), v2.read(), heed::causal{},
                                                          nearer, heed::key_lengths{lengths}}},
                               out.view(), heed::sink{0.5f});
    reference::options how;
    how.sinks.assign(static_cast<std::size_t>(heads), 0.5);
    std::vector<reference::key_source> all(2);
    all[0].k = shared(k1), all[0].v = shared(v1);
    all[1].k = k2.read(), all[1].v = v2.read(), all[1].visible = causally;
    all[1].key_lengths = lengths;
    all[1].scores = {[](double s, const heed::position& p) {
      return s - 0.05 * static_cast<double>(p.aligned_q() - p.k);
    }};
    tensor<double> wanted(2, heads, queries, depth);
    reference::attention(q.read(), all, wanted.view(), how);
    EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 1e-5) << queries;
  }
}

TYPED_TEST(attention, values_may_be_a_view_of_the_keys) {
  // Multi-head latent attention: V is the first 512 of K's 576 numbers.
  tensor<float> q(1, 16, 1, 576), k(1, 1, 300, 576), out(1, 16, 1, 512);
  q.fill(1), k.fill(2);
  const heed::tensor_view<const float, 4> v(k.read().data(), {1, 1, 300, 512},
                                            {300 * 576, 300 * 576, 576, 1});
  heed::attention<TypeParam>(q.read(), k.read(), v, out.view());
  tensor<double> wanted(1, 16, 1, 512);
  reference::attention(q.read(), k.read(), v, wanted.view(), {});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 1e-5);
}

TYPED_TEST(attention, long_rows_at_the_issue_sizes) {
  for (const auto& [queries, keys] : {std::pair<index_t, index_t>{1023, 1024}, {1024, 1023}}) {
    operands<float> x({1, 1, 1, queries, keys, 32, 32}, layout::dense, 55);
    EXPECT_LE((error_of<TypeParam>(x, visible_where(causally), heed::causal{})), 1e-5);
  }
}

}  // namespace
