// What the methods promise beside their formulas: features estimate their kernels, states go on
// from call to call, head counts and streaming agree with whole calls.
#include "heed/linear/cosformer.hpp"
#include "heed/linear/delta_rule.hpp"
#include "heed/linear/kernelized.hpp"
#include "heed/linear/performer.hpp"
#include "heed/linear/retention.hpp"
#include "heed/linear/state.hpp"
#include "heed/linear/taylor.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::numbers;
using heed_test::relative_rms;
namespace linear = heed::linear;
using native = heed::backend::native;

template <class Map>
numbers<float> features_of(const Map& map, const numbers<float>& x, bool queries) {
  const index_t n = x.shape[0], depth = x.shape[1], count = map.features(depth);
  const index_t row = (count + 15) / 16 * 16, padded = (depth + 15) / 16 * 16;
  numbers<float> in({n, padded}), out({n, row}), result({n, count});
  for (index_t i = 0; i < n; ++i) {
    std::copy_n(x.data.begin() + i * depth, depth, in.data.begin() + i * padded);
  }
  linear::token_rows<float> rows{in.data.data(), padded, n, depth};
  rows.length = n;
  rows.queries = queries;
  map.template map<native>(rows, out.data.data(), row);
  for (index_t i = 0; i < n; ++i) {
    std::copy_n(out.data.begin() + i * row, count, result.data.begin() + i * count);
  }
  return result;
}
double dot(const float* a, const float* b, index_t n) {
  double sum = 0;
  for (index_t i = 0; i < n; ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

TEST(random_features, are_orthogonal_and_repeatable) {
  constexpr index_t depth = 16, count = 40;
  linear::random_features<float> one(depth, count, 7), again(depth, count, 7),
      other(depth, count, 8);
  // The rows are what unit vectors project to, times D^¼.
  numbers<float> basis({depth, depth});
  for (index_t d = 0; d < depth; ++d) basis.v2()(d, d) = 1;
  const auto rows = [&](const linear::random_features<float>& f) {
    numbers<float> to({depth, 48}), w({count, depth});
    f.project<native>({basis.data.data(), depth, depth, depth}, to.data.data(), 48);
    for (index_t r = 0; r < count; ++r) {
      for (index_t d = 0; d < depth; ++d) w.v2()(r, d) = 2 * to.v2()(d, r);
    }
    return w;
  };
  const auto w = rows(one);
  EXPECT_EQ(w.data, rows(again).data);
  EXPECT_NE(w.data, rows(other).data);
  double mean_square = 0;
  for (index_t a = 0; a < count; ++a) {
    const float* row = w.data.data() + a * depth;
    const double square = dot(row, row, depth);
    mean_square += square / count;
    for (index_t b = a / depth * depth; b < a; ++b) {
      EXPECT_NEAR(dot(row, w.data.data() + b * depth, depth), 0, 1e-5 * square) << a << " " << b;
    }
  }
  EXPECT_NEAR(mean_square, depth, 0.25 * depth);  // lengths of normal vectors
}

TEST(random_features, estimate_the_softmax_kernel) {
  constexpr index_t depth = 16, n = 6;
  const auto q = heed_test::random_numbers<float>({n, depth}, 1, 0.4);
  const auto k = heed_test::random_numbers<float>({n, depth}, 2, 0.4);
  numbers<double> mean({n, n});
  constexpr int draws = 256;
  for (int seed = 0; seed < draws; ++seed) {
    linear::random_features<float> features(depth, 64, std::uint64_t(seed));
    features.epsilon = 0;
    // As keys: without the shift by the row's own largest projection.
    const auto pq = features_of(features, q, false), pk = features_of(features, k, false);
    for (index_t i = 0; i < n; ++i) {
      for (index_t j = 0; j < n; ++j) {
        mean.v2()(i, j) += dot(pq.data.data() + i * 64, pk.data.data() + j * 64, 64) / draws;
      }
    }
  }
  for (index_t i = 0; i < n; ++i) {
    for (index_t j = 0; j < n; ++j) {
      const double s = dot(q.data.data() + i * depth, k.data.data() + j * depth, depth) / 4;
      EXPECT_NEAR(mean.r2()(i, j) / std::exp(s), 1, 0.08) << i << " " << j;
    }
  }
}

// One M for both sides, or cos(π(i − j)/2M) falls apart into two sines and cosines that do not
// match.
TEST(cosformer, of_more_keys_than_queries_is_its_formula) {
  for (const auto& [queries, keys] : {std::pair<index_t, index_t>{5, 9}, {9, 5}}) {
    constexpr index_t depth = 4;
    const auto q = heed_test::random_numbers<float>({1, 1, queries, depth}, 1);
    const auto k = heed_test::random_numbers<float>({1, 1, keys, depth}, 2);
    const auto v = heed_test::random_numbers<float>({1, 1, keys, depth}, 3);
    numbers<float> out({1, 1, queries, depth});
    numbers<double> wanted({1, 1, queries, depth});
    linear::cosformer(q.r4(), k.r4(), v.r4(), out.v4(), linear::bidirectional{});
    const double half_turn = std::acos(-1.0) / 2 / static_cast<double>(std::max(queries, keys));
    for (index_t i = 0; i < queries; ++i) {
      double sum = 0;
      for (index_t j = 0; j < keys; ++j) {
        double weight = 0;
        for (index_t d = 0; d < depth; ++d) {
          weight += std::max(q.r4()(0, 0, i, d), 0.f) * std::max(k.r4()(0, 0, j, d), 0.f);
        }
        weight *= std::cos(half_turn * static_cast<double>(i - j));
        sum += weight;
        for (index_t d = 0; d < depth; ++d) {
          wanted.v4()(0, 0, i, d) += weight * double(v.r4()(0, 0, j, d));
        }
      }
      for (index_t d = 0; d < depth; ++d) wanted.v4()(0, 0, i, d) /= std::max(sum, 1e-6);
    }
    EXPECT_LT(relative_rms(out.data, wanted.data), 1e-5) << queries << " queries, " << keys;
  }
}

// c of a sequence's keys is its own: large keys in one sequence leave the other ones alone.
TEST(performer, ragged_sequences_do_not_see_each_other) {
  constexpr index_t depth = 8, first = 6, all = 13;
  linear::random_features<float> features(depth, 32, 7);
  const auto q = heed_test::random_numbers<float>({1, 2, all, depth}, 1);
  auto k = heed_test::random_numbers<float>({1, 2, all, depth}, 2);
  const auto v = heed_test::random_numbers<float>({1, 2, all, depth}, 3);
  for (index_t h = 0; h < 2; ++h) {
    for (index_t t = first; t < all; ++t) {
      for (index_t d = 0; d < depth; ++d) k.v4()(0, h, t, d) *= 12;
    }
  }
  const std::vector<index_t> bounds = {0, first, all};
  numbers<float> together({1, 2, all, depth}), apart({1, 2, all, depth});
  linear::performer(q.r4(), k.r4(), v.r4(), together.v4(), features, linear::bidirectional{},
                    heed::ragged{bounds, bounds});
  for (const auto& [begin, count] : {std::pair<index_t, index_t>{0, first}, {first, all - first}}) {
    linear::performer(q.r4().slice(2, begin, count), k.r4().slice(2, begin, count),
                      v.r4().slice(2, begin, count), apart.v4().slice(2, begin, count), features,
                      linear::bidirectional{});
  }
  EXPECT_EQ(together.data, apart.data);
}

// Keys that come in two calls, the second of which brings large ones, are keys that come in one.
TEST(performer, states_go_on_where_every_query_reads_every_key) {
  constexpr index_t depth = 8, length = 12, half = 6, count = 32;
  linear::random_features<float> features(depth, count, 7);
  const auto q = heed_test::random_numbers<float>({1, 1, length, depth}, 1);
  auto k = heed_test::random_numbers<float>({1, 1, length, depth}, 2);
  const auto v = heed_test::random_numbers<float>({1, 1, length, depth}, 3);
  for (index_t i = half * depth; i < length * depth; ++i) k.data[static_cast<std::size_t>(i)] *= 3;
  numbers<float> whole({1, 1, length, depth}), pieces({1, 1, length, depth});
  linear::state<float> one(1, 1, count, depth), two(1, 1, count, depth);
  const auto read = [&](linear::state<float>& s, index_t begin, index_t keys, numbers<float>& out) {
    linear::performer(q.r4(), k.r4().slice(2, begin, keys), v.r4().slice(2, begin, keys), out.v4(),
                      features, linear::bidirectional{}, linear::initial_state(s.s(), s.key_sum()),
                      linear::final_state(s.s(), s.key_sum()));
  };
  read(one, 0, length, whole);
  read(two, 0, half, pieces);
  read(two, half, half, pieces);
  EXPECT_LT(relative_rms(pieces.data, whole.data), 1e-5);
}

// A sequence without keys has nothing to give; a sum of 0 is not divided by.
TEST(performer, without_keys_is_0) {
  constexpr index_t depth = 4, length = 3;
  linear::random_features<float> features(depth, 16, 1);
  const auto x = heed_test::random_numbers<float>({2, 1, length, depth}, 1);
  const std::vector<index_t> lengths = {0, 2}, none = {0, 0, 3}, rows = {0, 1, 3};
  numbers<float> out({2, 1, length, depth}, 7), ragged({1, 1, length, depth}, 7);
  linear::performer(x.r4(), x.r4(), x.r4(), out.v4(), features, linear::bidirectional{},
                    heed::key_lengths{lengths});
  linear::performer(x.r4().slice(0, 0, 1), x.r4().slice(0, 0, 1), x.r4().slice(0, 0, 1),
                    ragged.v4(), features, linear::bidirectional{}, heed::ragged{rows, none});
  for (index_t i = 0; i < length * depth; ++i) {
    const auto at = static_cast<std::size_t>(i);
    EXPECT_EQ(out.data[at], 0) << i;
    EXPECT_NE(out.data[at + length * depth], 0) << i;
    EXPECT_EQ(ragged.data[at] == 0, i < depth) << i;
  }
}

// Causal and bidirectional performers differ by what they read only: the last row reads all.
TEST(performer, last_causal_row_is_the_bidirectional_one) {
  constexpr index_t L = 50, D = 16, E = 5;
  const auto q = heed_test::random_numbers<float>({1, 2, L, D}, 1, 0.5);
  const auto k = heed_test::random_numbers<float>({1, 2, L, D}, 2, 0.5);
  const auto v = heed_test::random_numbers<float>({1, 2, L, E}, 3);
  linear::random_features<float> features(D, 32, 3);
  features.epsilon = 0;  // with it, the shift of the keys matters
  numbers<float> causal({1, 2, L, E}), all(causal);
  linear::performer(q.r4(), k.r4(), v.r4(), causal.v4(), features);
  linear::performer(q.r4(), k.r4(), v.r4(), all.v4(), features, linear::bidirectional{});
  for (index_t h = 0; h < 2; ++h) {
    for (index_t d = 0; d < E; ++d) {
      EXPECT_NEAR(causal.r4()(0, h, L - 1, d), all.r4()(0, h, L - 1, d), 1e-5);
      EXPECT_NEAR(causal.r4()(0, h, 0, d), v.r4()(0, h, 0, d), 1e-5);
    }
  }
}

TEST(quadratic_features, are_the_polynomial) {
  constexpr index_t depth = 9, n = 5;
  const auto q = heed_test::random_numbers<float>({n, depth}, 1);
  const auto k = heed_test::random_numbers<float>({n, depth}, 2);
  for (const auto& map : {linear::taylor_features, linear::square_features,
                          linear::quadratic_features{0.5, 2, 3, 0.7}}) {
    const double scale = map.scale != 0 ? map.scale : 1.0 / 3;
    const auto pq = features_of(map, q, true), pk = features_of(map, k, false);
    const index_t m = map.features(depth);
    for (index_t i = 0; i < n; ++i) {
      for (index_t j = 0; j < n; ++j) {
        const double s = scale * dot(q.data.data() + i * depth, k.data.data() + j * depth, depth);
        EXPECT_NEAR(dot(pq.data.data() + i * m, pk.data.data() + j * m, m),
                    map.constant + map.linear * s + map.square * s * s, 1e-4);
      }
    }
  }
}

TEST(retention, decays_of_the_paper) {
  constexpr index_t L = 70, D = 8;
  const auto q = heed_test::random_numbers<float>({1, 3, L, D}, 1);
  const auto k = heed_test::random_numbers<float>({1, 3, L, D}, 2);
  const auto v = heed_test::random_numbers<float>({1, 3, L, D}, 3);
  numbers<float> logs({3}), out({1, 3, L, D}), wanted(out);
  for (index_t h = 0; h < 3; ++h) {
    logs.data[std::size_t(h)] = float(std::log(1 - std::pow(2.0, -5.0 - double(h))));
  }
  linear::retention(q.r4(), k.r4(), v.r4(), out.v4());
  linear::attention(q.r4(), k.r4(), v.r4(), wanted.v4(), linear::head_decay(logs.r1()));
  EXPECT_LE(relative_rms(out.data, wanted.data), 1e-6);
}

// Prefill, then tokens one by one and in pieces, is the whole.
template <class Call, class Step>
void expect_streaming(linear::state<float>& memory, index_t values, const Call& call,
                      const Step& step) {
  constexpr index_t L = 80;
  numbers<float> whole({1, 2, L, values}, NAN), pieces(whole);
  call(whole.v4());
  index_t at = 0;
  for (const index_t n : {37, 1, 1, 0, 1, 20, 1, 19}) {
    step(memory, pieces.v4().slice(2, at, n), at, n);
    at += n;
  }
  ASSERT_EQ(at, L);
  EXPECT_EQ(memory.tokens(), L);
  EXPECT_LE(relative_rms(pieces.data, whole.data), 2e-6);
}

TEST(state, goes_on_from_call_to_call) {
  constexpr index_t L = 80, D = 10, E = 7;
  const auto q = heed_test::random_numbers<float>({1, 2, L, D}, 1);
  const auto k = heed_test::random_numbers<float>({1, 2, L, D}, 2, 0.3);
  const auto v = heed_test::random_numbers<float>({1, 2, L, E}, 3);
  const auto g = heed_test::random_log_decays<float>({1, 2, L}, 4, -1);
  const auto beta = heed_test::random_numbers<float>({1, 2, L}, 5, 0.1, 0.5);
  const auto part = [](const auto& x, index_t at, index_t n) { return x.slice(2, at, n); };
  {
    linear::state<float> memory(1, 2, D, E);
    expect_streaming(
        memory, E,
        [&](auto out) { linear::gated_delta_rule(q.r4(), k.r4(), v.r4(), out, beta.r3(), g.r3()); },
        [&](auto& m, auto out, index_t at, index_t n) {
          m.step(part(q.r4(), at, n), part(k.r4(), at, n), part(v.r4(), at, n), out,
                 linear::delta(part(beta.r3(), at, n)), linear::token_decay(part(g.r3(), at, n)));
        });
    memory.reset();
    EXPECT_EQ(memory.tokens(), 0);
    EXPECT_EQ(*std::max_element(memory.s().data(), memory.s().data() + 2 * D * E), 0);
  }
  {
    linear::state<float> memory(1, 2, D, E);
    expect_streaming(
        memory, E, [&](auto out) { linear::kernelized(q.r4(), k.r4(), v.r4(), out); },
        [&](auto& m, auto out, index_t at, index_t n) {
          m.step(part(q.r4(), at, n), part(k.r4(), at, n), part(v.r4(), at, n), out,
                 linear::elu_plus_one, linear::normalized{linear::sum_of_weights{1e-6}});
        });
  }
  linear::state<float> memory(1, 2, 2 * D, E);
  expect_streaming(
      memory, E, [&](auto out) { linear::cosformer(q.r4(), k.r4(), v.r4(), out); },
      [&](auto& m, auto out, index_t at, index_t n) {
        m.step(part(q.r4(), at, n), part(k.r4(), at, n), part(v.r4(), at, n), out,
               linear::cosformer_features{L, at},
               linear::normalized{linear::clamped_sum_of_weights{1e-6}});
      });
}

}  // namespace
