// heed::shared_prefix_attention against the double-precision oracle over each sequence's joined
// keys, and against attention over two key sources.
#include "heed/dense/shared_prefix.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "heed/core/quantize.hpp"
#include "heed/core/thread_pool.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/reference/dense.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

struct shape {
  index_t batches, prefixes, heads, key_heads, queries, prefix, own, depth, value_depth;
  friend std::ostream& operator<<(std::ostream& out, const shape& s) {
    return out << "B" << s.batches << "/" << s.prefixes << " H" << s.heads << "/" << s.key_heads
               << " L" << s.queries << "x" << s.prefix << "+" << s.own << " D" << s.depth << "/"
               << s.value_depth;
  }
};

// Decoding and several queries, grouped heads, one prefix and one for each group or sequence, and
// empty axes.
const std::vector<shape> shapes = {
    {3, 1, 4, 2, 1, 150, 70, 40, 40},  {16, 1, 8, 2, 1, 513, 5, 72, 72},
    {2, 1, 2, 1, 5, 129, 66, 111, 24}, {6, 2, 4, 4, 3, 65, 9, 24, 40},
    {4, 4, 2, 1, 2, 33, 40, 16, 16},   {1, 1, 4, 2, 7, 100, 20, 40, 40},
    {3, 1, 2, 2, 33, 200, 130, 64, 8}, {5, 1, 2, 1, 2, 0, 30, 16, 16},
    {5, 1, 2, 1, 2, 30, 0, 16, 16},    {2, 1, 2, 2, 3, 0, 0, 8, 8},
    {0, 1, 2, 1, 3, 9, 9, 8, 8},       {2, 2, 2, 1, 0, 9, 9, 8, 8},
    {2, 1, 0, 1, 3, 9, 9, 8, 8},       {3, 1, 2, 1, 4, 10, 3, 16, 0},
    {4, 2, 3, 1, 1, 64, 64, 0, 16},
};

template <class Q, class Prefix = Q, class Own = Q, class Out = Q>
struct operands {
  using Real = heed::accumulator<Q, Prefix, Own, Out>;
  shape s;
  tensor<Q> q;
  tensor<Prefix> prefix_k, prefix_v;
  tensor<Own> k, v;
  tensor<Out> out;
  std::vector<Real> lse_data;
  heed::tensor_view<Real, 3> lse;

  operands(const shape& of, layout how, unsigned seed)
      : s(of),
        q(s.batches, s.heads, s.queries, s.depth, how),
        prefix_k(s.prefixes, s.key_heads, s.prefix, s.depth, how),
        prefix_v(s.prefixes, s.key_heads, s.prefix, s.value_depth, how),
        k(s.batches, s.key_heads, s.own, s.depth, how),
        v(s.batches, s.key_heads, s.own, s.value_depth, how),
        out(s.batches, s.heads, s.queries, s.value_depth, how),
        lse_data(static_cast<std::size_t>(s.batches * s.heads * s.queries), Real(-7)),
        lse(lse_data.data(), {s.batches, s.heads, s.queries}) {
    q.fill(seed), prefix_k.fill(seed + 1), prefix_v.fill(seed + 2);
    k.fill(seed + 3), v.fill(seed + 4);
  }

  template <class Backend, class... Modifiers>
  void run(const Modifiers&... modifiers) {
    heed::shared_prefix_attention<Backend>(q.read(), prefix_k.read(), prefix_v.read(), k.read(),
                                           v.read(), out.view(), heed::lse_to{lse}, modifiers...);
  }

  // Each sequence's keys or values behind its prefix's, as doubles.
  template <class Left, class Right>
  tensor<double> joined(const tensor<Left>& left, const tensor<Right>& right) const {
    const auto a = left.read();
    const auto b = right.read();
    tensor<double> all(s.batches, s.key_heads, s.prefix + s.own, a.extent(3));
    for (index_t n = 0; n < s.batches; ++n) {
      for (index_t h = 0; h < s.key_heads; ++h) {
        for (index_t j = 0; j < s.prefix + s.own; ++j) {
          for (index_t d = 0; d < a.extent(3); ++d) {
            all.view()(n, h, j, d) =
                j < s.prefix ? heed::widen<double>(a(n / (s.batches / s.prefixes), h, j, d))
                             : heed::widen<double>(b(n, h, j - s.prefix, d));
          }
        }
      }
    }
    return all;
  }

  // The largest error of out; checks lse.
  double error(const reference::options& options, double relative = 5e-6) const {
    tensor<double> wanted(s.batches, s.heads, s.queries, s.value_depth);
    std::vector<double> wanted_lse;
    reference::options how = options;
    how.lse = &wanted_lse;
    reference::attention(q.read(), joined(prefix_k, k).read(), joined(prefix_v, v).read(),
                         wanted.view(), how);
    EXPECT_EQ(out.overwritten_around(), 0) << s;
    for (std::size_t i = 0; i < lse_data.size(); ++i) {
      const double got = static_cast<double>(lse_data[i]), w = wanted_lse[i];
      if (got == w) continue;
      // The amx backend sums rounded weights.
      const double rounded = heed::is_bfloat16<Q> ? 0x1p-8 : heed::is_half<Q> ? 0x1p-11 : 0;
      const double precision = std::is_same_v<Real, double> ? 1e-13 : 1e-5;
      EXPECT_NEAR(got, w, precision * (1 + std::abs(w)) + rounded)
          << "lse of row " << i << " at " << s;
    }
    return heed_test::worst_error(out.read(), wanted.read(), relative);
  }
};

// Every key of the prefix, and own keys as under causal{}.
reference::options causal_behind(index_t prefix) {
  reference::options how;
  how.visible = [prefix](const heed::position& p) { return p.k < prefix || p.k <= p.aligned_q(); };
  return how;
}

template <class Backend>
class shared_prefix_on_every_backend : public ::testing::Test {};
TYPED_TEST_SUITE(shared_prefix_on_every_backend, heed_test::all_backends, heed_test::backend_name);

// Modifiers and element types are those of the two calls of attention that it makes.
template <class Backend>
class shared_prefix : public ::testing::Test {};
TYPED_TEST_SUITE(shared_prefix, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(shared_prefix_on_every_backend, matches_the_oracle_in_every_shape_and_layout) {
  unsigned seed = 1;
  for (const shape& s : shapes) {
    for (layout how : heed_test::layouts) {
      operands<float> x(s, how, seed += 7);
      x.template run<TypeParam>();
      EXPECT_LE(x.error({}), 1e-5) << s << " layout " << static_cast<int>(how);
      x.template run<TypeParam>(heed::causal{});
      EXPECT_LE(x.error(causal_behind(s.prefix)), 1e-5)
          << s << " causal, layout " << static_cast<int>(how);
    }
  }
}

TYPED_TEST(shared_prefix, double_operands_are_summed_in_double) {
  unsigned seed = 500;
  for (const shape& s : shapes) {
    operands<double> x(s, layout::padded, seed += 7);
    x.template run<TypeParam>(heed::causal{});
    EXPECT_LE(x.error(causal_behind(s.prefix), 1e-13), 1e-13) << s;
  }
}

// As for attention: twice the error of a plain implementation in the same type.
template <class Backend, class T>
void check_low_precision() {
  unsigned seed = 900;
  for (const shape& s : shapes) {
    operands<T> x(s, layout::by_token, seed += 7);
    x.template run<Backend>(heed::causal{});
    const reference::options how = causal_behind(s.prefix);
    tensor<double> truth(s.batches, s.heads, s.queries, s.value_depth), plain = truth;
    const auto k = x.joined(x.prefix_k, x.k), v = x.joined(x.prefix_v, x.v);
    reference::attention(x.q.read(), k.read(), v.read(), truth.view(), how);
    reference::plain<T>(x.q.read(), k.read(), v.read(), plain.view(), how);
    const double allowed = 2 * heed_test::worst_error(plain.read(), truth.read()) + 1e-5;
    EXPECT_LE(x.error(how, 0), allowed) << s;
  }
}
TYPED_TEST(shared_prefix, sixteen_bit_types_are_within_twice_the_plain_error) {
  check_low_precision<TypeParam, Eigen::bfloat16>();
  check_low_precision<TypeParam, Eigen::half>();
}

// Types meet in what a backend packs and unpacks, which tests of attention() see on all of them:
// here once on every backend, and the other mixes on the target's best.
constexpr shape mixed{4, 1, 4, 2, 3, 130, 20, 40, 24};
template <class Backend, class Operands>
void check_mixed(Operands x, double bound) {
  x.template run<Backend>(heed::causal{});
  EXPECT_LE(x.error(causal_behind(mixed.prefix)), bound);
}
TYPED_TEST(shared_prefix, element_types_mix) {
  check_mixed<TypeParam>(
      operands<float, Eigen::bfloat16, Eigen::half, float>(mixed, layout::by_token, 3), 1e-5);
}
TEST(shared_prefix_natively, element_types_mix) {
  const shape& s = mixed;
  const auto run = [](auto x, double bound) {
    check_mixed<heed::backend::native>(std::move(x), bound);
  };
  using half = Eigen::half;
  using bfloat16 = Eigen::bfloat16;
  run(operands<half, float, float, bfloat16>(s, layout::dense, 4), 1e-2);
  run(operands<bfloat16, bfloat16, bfloat16, float>(s, layout::dense, 5), 1e-5);
  run(operands<float, half, double, float>(s, layout::padded, 6), 1e-5);
  run(operands<float, float, float, double>(s, layout::padded, 7), 1e-12);
}

// The prefix as codes, which every sequence's softmax sees as it sees them as a key source.
TYPED_TEST(shared_prefix, a_prefix_of_codes) {
  for (const index_t queries : {1, 3}) {
    const shape s = {5, 1, 4, 2, queries, 130, 20, 40, 40};
    operands<float> x(s, layout::by_token, 3);
    tensor<std::int8_t> k_codes(1, 2, 130, 40), v_codes(1, 2, 130, 40);
    tensor<float> k_scales(1, 2, 1, 40), v_scales(1, 2, 130, 1);
    heed::quantize(x.prefix_k.read(), k_codes.view(), k_scales.view(), heed::per_channel);
    heed::quantize(x.prefix_v.read(), v_codes.view(), v_scales.view());
    const auto of_batches = [&](index_t batches) {
      const auto repeated = [&](const auto& one) {
        auto extents = one.extents(), strides = one.strides();
        if (batches > 1) extents[0] = batches, strides[0] = 0;
        using element = const typename std::remove_cvref_t<decltype(one)>::value_type;
        return heed::tensor_view<element, 4>(one.data(), extents, strides);
      };
      using view = heed::quantized_view<std::int8_t, 4>;
      return std::pair(view(repeated(k_codes.read()), repeated(k_scales.read()), heed::per_channel),
                       view(repeated(v_codes.read()), repeated(v_scales.read())));
    };
    tensor<float> wanted(5, 4, queries, 40);
    const auto [all_k, all_v] = of_batches(5);
    heed::attention<TypeParam>(x.q.read(),
                               heed::sources{heed::source{all_k, all_v},
                                             heed::source{x.k.read(), x.v.read(), heed::causal{}}},
                               wanted.view());
    const auto [one_k, one_v] = of_batches(1);
    heed::shared_prefix_attention<TypeParam>(x.q.read(), one_k, one_v, x.k.read(), x.v.read(),
                                             x.out.view(), heed::causal{});
    tensor<double> truth(5, 4, queries, 40);
    for (index_t b = 0; b < 5; ++b) {
      for (index_t h = 0; h < 4; ++h) {
        for (index_t i = 0; i < queries; ++i) {
          for (index_t d = 0; d < 40; ++d) {
            truth.view()(b, h, i, d) = static_cast<double>(wanted.read()(b, h, i, d));
          }
        }
      }
    }
    EXPECT_LE(heed_test::worst_error(x.out.read(), truth.read()), 1e-4) << queries;
  }
}

TYPED_TEST(shared_prefix, own_keys_of_different_lengths) {
  const shape s{4, 1, 4, 2, 3, 90, 70, 40, 40};
  const std::vector<index_t> keys = {70, 65, 0, 1}, queries = {3, 2, 1, 0};
  for (layout how : {layout::dense, layout::by_token}) {
    operands<float> x(s, how, 8);
    for (index_t b = 0; b < 4; ++b) {  // what lies behind a length is never read
      for (index_t j = keys[static_cast<std::size_t>(b)]; j < 70; ++j) {
        for (index_t h = 0; h < 2; ++h) {
          for (index_t d = 0; d < 40; ++d) {
            x.k.view()(b, h, j, d) = x.v.view()(b, h, j, d) = not_a_number;
          }
        }
      }
    }
    reference::options options;
    for (index_t length : keys) options.key_lengths.push_back(s.prefix + length);
    x.template run<TypeParam>(heed::key_lengths{keys});
    EXPECT_LE(x.error(options), 1e-5);
    options.visible = causal_behind(s.prefix).visible;
    x.template run<TypeParam>(heed::key_lengths{keys}, heed::causal{});
    EXPECT_LE(x.error(options), 1e-5);
    options.query_lengths = queries;
    x.template run<TypeParam>(heed::key_lengths{keys}, heed::query_lengths{queries},
                              heed::causal{});
    EXPECT_LE(x.error(options), 1e-5);
  }
}

TYPED_TEST(shared_prefix, own_keys_behind_left_padding_and_other_masks) {
  const shape s{3, 1, 4, 2, 5, 80, 40, 24, 24};
  operands<float> x(s, layout::dense, 9);
  const std::vector<index_t> padding = {0, 7, 40};
  const std::vector<std::uint8_t> bits = [] {
    std::vector<std::uint8_t> list;
    for (int i = 0; i < 5 * 40; ++i) list.push_back(i % 3 != 0);
    return list;
  }();
  const heed::array_mask mask{heed::tensor_view<const std::uint8_t, 2>(bits.data(), {5, 40})};
  const auto for_each_sequence = [&](const tensor<float>& t) {
    const auto view = t.read();
    return decltype(view)(view.data(), {3, 2, 80, 24}, {0, view.stride(1), view.stride(2), 1});
  };
  const auto check = [&](const auto&... modifiers) {
    tensor<float> wanted(3, 4, 5, 24);
    std::vector<float> wanted_lse(60);
    heed::attention<TypeParam>(
        x.q.read(),
        heed::sources{heed::source{for_each_sequence(x.prefix_k), for_each_sequence(x.prefix_v)},
                      heed::source{x.k.read(), x.v.read(), modifiers...}},
        wanted.view(), heed::lse_to{heed::tensor_view<float, 3>(wanted_lse.data(), {3, 4, 5})});
    x.template run<TypeParam>(modifiers...);
    for (std::size_t i = 0; i < 60; ++i) EXPECT_NEAR(x.lse_data[i], wanted_lse[i], 1e-5);
    double worst = 0;
    for (index_t i = 0; i < wanted.view().size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(wanted.view().data()[i]) -
                                       static_cast<double>(x.out.view().data()[i])));
    }
    EXPECT_LE(worst, 1e-5);
  };
  check(heed::left_padding{padding});
  check(heed::left_padding{padding}, heed::causal{});
  check(heed::window{3}, heed::causal{});
  check(mask, heed::causal_upper_left{});
}

TYPED_TEST(shared_prefix, scores_see_the_joined_keys) {
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
  const heed::alibi alibi{heed::tensor_view<const float, 1>(slopes.data(), {4})};
  const auto distance = [&](double score, const heed::position& p) {
    return score - static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                       std::abs(static_cast<double>(p.aligned_q() - p.k));
  };
  const auto cap = [](double score, const heed::position&) { return 3 * std::tanh(score / 3); };
  for (const shape& s :
       {shape{4, 1, 4, 2, 3, 70, 20, 16, 16}, shape{4, 2, 4, 2, 1, 130, 70, 16, 16},
        shape{4, 1, 4, 1, 9, 40, 90, 16, 16}}) {
    const std::vector<index_t> keys = {s.own, s.own / 2, 0, 1};
    operands<float> x(s, layout::dense, 10);
    reference::options how = causal_behind(s.prefix);
    for (index_t length : keys) how.key_lengths.push_back(s.prefix + length);
    how.scores = {distance, cap};
    x.template run<TypeParam>(heed::causal{}, alibi, heed::key_lengths{keys}, heed::softcap{3.f});
    EXPECT_LE(x.error(how), 1e-5) << s;
    // A functor that takes one position at a time, and looks at all of it.
    const auto scored = [](auto score, const heed::position& p) {
      return score + decltype(score)(0.01) *
                         static_cast<decltype(score)>(p.batch * 5 + p.head * 3 + p.q - p.k % 11 +
                                                      p.keys % 7 - p.queries);
    };
    how.scores = {scored};
    x.template run<TypeParam>(
        heed::causal{}, heed::key_lengths{keys},
        heed::score{[&](float score, const heed::position& p) { return scored(score, p); }});
    EXPECT_LE(x.error(how), 1e-5) << s;
  }
}

TYPED_TEST(shared_prefix, a_bias_of_minus_infinity_hides_keys_of_the_prefix_too) {
  const shape s{3, 1, 2, 1, 4, 70, 30, 16, 16};
  operands<float> x(s, layout::by_token, 12);
  std::vector<float> entries(3 * 4 * 100);
  const auto hidden = [](index_t b, index_t q, index_t k) { return (k / 5 + q + b) % 4 == 0; };
  for (index_t i = 0; i < 1200; ++i) {
    entries[static_cast<std::size_t>(i)] = hidden(i / 400, i / 100 % 4, i % 100)
                                               ? heed::minus_infinity<float>()
                                               : std::sin(static_cast<float>(i));
  }
  reference::options how;
  how.visible = [&](const heed::position& p) { return !hidden(p.batch, p.q, p.k); };
  how.scores = {[&](double score, const heed::position& p) {
    return score +
           static_cast<double>(entries[static_cast<std::size_t>(p.batch * 400 + p.q * 100 + p.k)]);
  }};
  x.template run<TypeParam>(
      heed::bias{heed::tensor_view<const float, 4>(entries.data(), {3, 1, 4, 100})});
  EXPECT_LE(x.error(how), 1e-5);
}

TYPED_TEST(shared_prefix, sinks_count_once_and_scales_apply_to_all_keys) {
  for (const index_t own : {0, 40}) {
    const shape s{3, 1, 4, 2, 2, 90, own, 16, 16};
    operands<float> x(s, layout::dense, 14);
    const std::vector<float> logits = {3, 1, -1, 0};
    reference::options how = causal_behind(s.prefix);
    how.sinks.assign(logits.begin(), logits.end());
    how.scale = -0.3;
    x.template run<TypeParam>(heed::causal{}, heed::scale{-0.3},
                              heed::sink{heed::tensor_view<const float, 1>(logits.data(), {4})});
    EXPECT_LE(x.error(how), 1e-5);
  }
}

TYPED_TEST(shared_prefix, a_ragged_batch_shares_one_prefix) {
  const std::vector<index_t> queries = {0, 1, 1, 8, 20}, keys = {0, 30, 36, 50, 80};
  const shape s{1, 1, 4, 2, 20, 130, 80, 24, 24};
  operands<float> x(s, layout::by_token, 15);
  const auto fade =
      heed::score{[](auto score, const auto& p) { return score - 0.05f * (p.aligned_q() - p.k); }};
  x.template run<TypeParam>(heed::ragged{queries, keys}, heed::causal{}, fade);
  for (std::size_t n = 0; n + 1 < queries.size(); ++n) {
    const index_t lq = queries[n + 1] - queries[n], lk = keys[n + 1] - keys[n];
    tensor<double> wanted(1, 4, lq, 24);
    std::vector<reference::key_source> all(2);
    all[0].k = x.prefix_k.read(), all[0].v = x.prefix_v.read();
    all[1].k = x.k.read().slice(2, keys[n], lk), all[1].v = x.v.read().slice(2, keys[n], lk);
    all[1].visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
    all[0].scores = {[lk](double score, const heed::position& p) {
      return score - 0.05 * static_cast<double>(p.aligned_q() + lk - p.k);
    }};
    all[1].scores = {[](double score, const heed::position& p) {
      return score - 0.05 * static_cast<double>(p.aligned_q() - p.k);
    }};
    reference::attention(x.q.read().slice(2, queries[n], lq), all, wanted.view(), {});
    EXPECT_LE(heed_test::worst_error(x.out.read().slice(2, queries[n], lq), wanted.read(), 5e-6),
              1e-5)
        << "sequence " << n;
  }
}

// The tree of prefixes of the header's comment.
TYPED_TEST(shared_prefix, levels_of_prefixes_are_merged) {
  const shape s{6, 2, 4, 2, 2, 70, 20, 40, 40};
  operands<float> x(s, layout::by_token, 16);
  tensor<float> root_k(1, 2, 150, 40), root_v(1, 2, 150, 40), above(6, 4, 2, 40), out(6, 4, 2, 40);
  root_k.fill(1), root_v.fill(2);
  std::vector<float> above_lse(48);
  const heed::tensor_view<float, 3> above_view(above_lse.data(), {6, 4, 2});
  x.template run<TypeParam>(heed::causal{});
  heed::shared_prefix_attention<TypeParam>(x.q.read(), root_k.read(), root_v.read(),
                                           x.k.read().slice(2, 0, 0), x.v.read().slice(2, 0, 0),
                                           above.view(), heed::lse_to{above_view});
  heed::merge({heed::part{above.read(), above_view}, heed::part{x.out.read(), x.lse}}, out.view());

  std::vector<reference::key_source> all(2);
  const auto repeat = [](const tensor<float>& t) {
    const auto view = t.read();
    return decltype(view)(view.data(), {6, 2, 150, 40}, {0, view.stride(1), view.stride(2), 1});
  };
  const auto k = x.joined(x.prefix_k, x.k), v = x.joined(x.prefix_v, x.v);
  all[0].k = repeat(root_k), all[0].v = repeat(root_v);
  all[1].k = k.read(), all[1].v = v.read(), all[1].visible = causal_behind(70).visible;
  tensor<double> wanted(6, 4, 2, 40);
  reference::attention(x.q.read(), all, wanted.view(), {});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 1e-5);
}

TYPED_TEST(shared_prefix, the_prefix_is_visited_once_for_all_sequences) {
  using Tiles = typename TypeParam::template tiles<float>;
  for (layout how : {layout::dense, layout::by_token}) {
    const shape s{8, 1, 2, 1, 12, 640, 0, 16, 16};
    operands<float> x(s, how, 18);
    heed::tile_counts counts;
    x.template run<TypeParam>(heed::count_tiles{counts});
    const index_t rows = 8 * 2 * 12;
    EXPECT_EQ(counts.visited(), (rows + Tiles::strip_rows - 1) / Tiles::strip_rows * 10);
  }
}

TYPED_TEST(shared_prefix, results_are_bit_identical_on_any_executor_and_scratch_is_reused) {
  for (const index_t queries : {1, 3}) {
    operands<float> x({5, 1, 4, 2, queries, 1500, 40, 40, 24}, layout::dense, 17);
    const auto run = [&](const auto&... options) {
      x.template run<TypeParam>(heed::causal{}, options...);
      return std::vector<float>(x.out.view().data(), x.out.view().data() + x.out.view().size());
    };
    const std::vector<float> wanted = run();
    const auto same = [&](const std::vector<float>& got) {
      return std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)) == 0;
    };
    for (int threads : {1, 2, 5}) {
      heed::thread_pool pool(threads);
      EXPECT_TRUE(same(run(heed::on{pool}))) << threads << " threads";
    }
    heed::workspace memory;
    EXPECT_TRUE(same(run(heed::scratch{memory})));
    const index_t size = memory.size(), inner = memory.inner().size();
    ASSERT_GT(size, inner);
    ASSERT_GT(inner, 0);
    std::memset(memory.reserve(size - inner), 0xff, static_cast<std::size_t>(size - inner));
    std::memset(memory.inner().reserve(inner), 0xff, static_cast<std::size_t>(inner));
    EXPECT_TRUE(same(run(heed::scratch{memory})));
    EXPECT_EQ(memory.size(), size);
    // A call inside a score of the call.
    bool called = false;
    operands<float> other({3, 1, 2, 1, 2, 900, 10, 40, 40}, layout::dense, 19);
    const heed::score nested{[&](float score, const heed::position&) {
      if (!called) other.template run<TypeParam>();
      called = true;
      return score;
    }};
    run(nested);
    EXPECT_TRUE(called);
    EXPECT_LE(x.error(causal_behind(1500)), 1e-5);
    EXPECT_LE(other.error({}), 1e-5);
  }
}

struct refused_call {
  using view = heed::tensor_view<float, 4>;
  std::vector<float> data[6] = {std::vector<float>(4096, 0.5f), std::vector<float>(4096, 0.5f),
                                std::vector<float>(4096, 0.5f), std::vector<float>(4096, 0.5f),
                                std::vector<float>(4096, 0.5f), std::vector<float>(4096, 42.f)};
  std::vector<float> lse_data = std::vector<float>(4096, 42.f);
  view q{data[0].data(), {4, 4, 3, 8}}, prefix_k{data[1].data(), {2, 2, 9, 8}},
      prefix_v{data[2].data(), {2, 2, 9, 6}}, k{data[3].data(), {4, 2, 7, 8}},
      v{data[4].data(), {4, 2, 7, 6}}, out{data[5].data(), {4, 4, 3, 6}};
  heed::tensor_view<float, 3> lse{lse_data.data(), {4, 4, 3}};

  template <class... Modifiers>
  void expect(const std::string& text, const Modifiers&... modifiers) const {
    heed::tile_counts counts;
    heed_test::expect_error(text, [&] {
      heed::shared_prefix_attention(q, prefix_k, prefix_v, k, v, out, heed::lse_to{lse},
                                    heed::count_tiles{counts}, modifiers...);
    });
    for (float x : data[5]) ASSERT_EQ(x, 42.f) << text;
    for (float x : lse_data) ASSERT_EQ(x, 42.f) << text;
    EXPECT_EQ(counts.visited(), 0) << text;
  }
};

TEST(shared_prefix_errors, shapes) {
  using view = refused_call::view;
  const auto refuse = [](const std::string& text, const std::function<void(refused_call&)>& spoil) {
    refused_call c;
    spoil(c);
    c.expect(text);
  };
  refuse("prefix_v: batch 1 differs from prefix_k's 2", [](auto& c) {
    c.prefix_v = view(c.data[2].data(), {1, 2, 9, 6});
  });
  refuse("prefix_v: length 8 differs from prefix_k's 9", [](auto& c) {
    c.prefix_v = view(c.data[2].data(), {2, 2, 8, 6});
  });
  refuse("prefix_k: batch 3 does not divide q's batch 4", [](auto& c) {
    c.prefix_k = view(c.data[1].data(), {3, 2, 9, 8});
    c.prefix_v = view(c.data[2].data(), {3, 2, 9, 6});
  });
  refuse("prefix_k: batch 0 does not divide q's batch 4", [](auto& c) {
    c.prefix_k = view(c.data[1].data(), {0, 2, 9, 8});
    c.prefix_v = view(c.data[2].data(), {0, 2, 9, 6});
  });
  refuse("prefix_k: depth 7 differs from q's 8", [](auto& c) {
    c.prefix_k = view(c.data[1].data(), {2, 2, 9, 7});
  });
  refuse("out: depth 6 differs from prefix_v's 5", [](auto& c) {
    c.prefix_v = view(c.data[2].data(), {2, 2, 9, 5});
  });
  refuse("prefix_k: head count 3 does not divide query head count 4", [](auto& c) {
    c.prefix_k = view(c.data[1].data(), {2, 3, 9, 8});
    c.prefix_v = view(c.data[2].data(), {2, 3, 9, 6});
  });
  refuse("k: head count 4 differs from prefix_k's 2", [](auto& c) {
    c.k = view(c.data[3].data(), {4, 4, 7, 8});
    c.v = view(c.data[4].data(), {4, 4, 7, 6});
  });
  refuse("k: batch 1 differs from q's 4", [](auto& c) {
    c.k = view(c.data[3].data(), {1, 2, 7, 8});
    c.v = view(c.data[4].data(), {1, 2, 7, 6});
  });
  refuse("v: length 6 differs from k's 7", [](auto& c) {
    c.v = view(c.data[4].data(), {4, 2, 6, 6});
  });
  refuse("out: length 2 differs from q's 3", [](auto& c) {
    c.out = view(c.data[5].data(), {4, 4, 2, 6});
  });
  refuse("lse: head count 2 differs from q's 4", [](auto& c) {
    c.lse = heed::tensor_view<float, 3>(c.lse_data.data(), {4, 2, 3});
  });
  refuse("prefix_k: data is null, extents are [2, 2, 9, 8]", [](auto& c) {
    c.prefix_k = view(nullptr, {2, 2, 9, 8});
  });
  refuse("out: overlaps prefix_v, in the row at its byte 0", [](auto& c) {
    c.prefix_v = view(c.data[5].data(), {2, 2, 9, 6});
  });
  refuse("out: overlaps q, in the row at its byte 0", [](auto& c) {
    c.q = view(c.data[5].data(), {4, 4, 3, 8});
  });
  refuse("lse: overlaps k, in the row at its byte 0", [](auto& c) {
    c.k = view(c.lse_data.data(), {4, 2, 7, 8});
  });
  refuse("prefix_k: length 2147483390 and k's 7 are together over the limit of 2147483392",
         [](auto& c) {
           const index_t length = 2147483390;
           c.prefix_k = view(c.data[1].data(), {2, 2, length, 8}, {0, 0, 0, 1});
           c.prefix_v = view(c.data[2].data(), {2, 2, length, 6}, {0, 0, 0, 1});
         });
}

TEST(shared_prefix_errors, modifiers) {
  const refused_call c;
  const std::vector<index_t> lengths = {7, 8, 7, 7};
  c.expect("key_lengths: entry 1 is 8, must lie in [0, 7]", heed::key_lengths{lengths});
  c.expect("query_lengths: entry 0 is 7, must lie in [0, 3]", heed::query_lengths{lengths});
  const std::vector<float> numbers(64);
  c.expect("bias: key axis has extent 7, call has 16 keys",
           heed::bias{heed::tensor_view<const float, 2>(numbers.data(), {3, 7})});
  const std::vector<std::uint8_t> bits(64, 1);
  c.expect("array_mask: key axis has extent 16, call has 7 keys",
           heed::array_mask{heed::tensor_view<const std::uint8_t, 2>(bits.data(), {3, 16})});
  c.expect("sink: logits have extent 3, call has 4 heads",
           heed::sink{heed::tensor_view<const float, 1>(numbers.data(), {3})});
  const std::vector<index_t> cumulative = {0, 3};
  c.expect("q: batch 4, a ragged batch has its sequences along one batch of 1",
           heed::ragged{cumulative, cumulative});
}

}  // namespace
