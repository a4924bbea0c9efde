// linear::attention against the recurrence in double: decays, writes, reads, normalisers, shapes,
// strides, element types, head counts, ragged batches, states, executors.
#include "heed/linear/attention.hpp"

#include <Eigen/Core>

#include "heed/core/thread_pool.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::numbers;
using heed_test::relative_rms;
using heed_test::tensor;
namespace linear = heed::linear;
namespace reference = heed::reference;

template <class Backend>
class linear_attention : public ::testing::Test {};
TYPED_TEST_SUITE(linear_attention, heed_test::method_backends, heed_test::backend_name);

struct sizes {
  index_t batches = 2, heads = 2, length = 45, depth = 16, values = 20;
};

// Operands of one call with as many heads everywhere, and what the oracle says.
struct case_of {
  sizes s;
  numbers<float> q, k, v, token, channel, head, beta, u, state, key_sum;
  reference::linear_rule rule;

  explicit case_of(const sizes& z, double low = -2) : s(z) {
    const auto b = s.batches, h = s.heads, l = s.length, d = s.depth, e = s.values;
    q = heed_test::random_numbers<float>({b, h, l, d}, 1);
    k = heed_test::random_numbers<float>({b, h, l, d}, 2, 1 / std::sqrt(double(d) + 1));
    v = heed_test::random_numbers<float>({b, h, l, e}, 3);
    token = heed_test::random_log_decays<float>({b, h, l}, 4, low);
    channel = heed_test::random_log_decays<float>({b, h, l, d}, 5, low);
    head = heed_test::random_log_decays<float>({h}, 6, low);
    beta = heed_test::random_numbers<float>({b, h, l}, 7, 0.2, 0.5);
    u = heed_test::random_numbers<float>({h, d}, 8);
    state = heed_test::random_numbers<float>({b, h, d, e}, 9);
    key_sum = heed_test::random_numbers<float>({b, h, d}, 10);
    rule.scale = d == 0 ? 1 : 1 / std::sqrt(double(d));
  }
  auto by_token() {
    return [this](index_t b, index_t h, index_t t, index_t) { return double(token.r3()(b, h, t)); };
  }
  auto by_channel() {
    return [this](index_t b, index_t h, index_t t, index_t c) {
      return double(channel.r4()(b, h, t, c));
    };
  }
  auto strengths() {
    return [this](index_t b, index_t h, index_t t) { return double(beta.r3()(b, h, t)); };
  }

  // Runs the call with an initial and a final state and compares all results.
  template <class Backend, class... Modifiers>
  void expect(bool with_sum, const Modifiers&... modifiers) {
    const auto wide = [](const numbers<float>& x) {
      numbers<double> y(x.shape);
      std::copy(x.data.begin(), x.data.end(), y.data.begin());
      return y;
    };
    auto S = wide(state), z = wide(key_sum);
    numbers<double> wanted({s.batches, s.heads, s.length, s.values});
    const auto wq = wide(q), wk = wide(k), wv = wide(v);
    reference::linear_attention(wq.r4(), wk.r4(), wv.r4(), wanted.v4(), rule, S.v4(), z.v3());
    numbers<float> out(wanted.shape, NAN), last(state.shape, NAN), last_sum(key_sum.shape, NAN);
    if (with_sum) {
      linear::attention<Backend>(q.r4(), k.r4(), v.r4(), out.v4(),
                                 linear::initial_state(state.r4(), key_sum.r3()),
                                 linear::final_state(last.v4(), last_sum.v3()), modifiers...);
      EXPECT_LE(relative_rms(last_sum.data, z.data), 3e-6);
    } else {
      linear::attention<Backend>(q.r4(), k.r4(), v.r4(), out.v4(),
                                 linear::initial_state(state.r4()), linear::final_state(last.v4()),
                                 modifiers...);
    }
    EXPECT_LE(relative_rms(out.data, wanted.data), 5e-6);
    EXPECT_LE(relative_rms(last.data, S.data), 5e-6);
  }
};

const sizes odd_sizes[] = {
    {2, 2, 45, 16, 20}, {1, 1, 1, 5, 3},    {1, 2, 2, 17, 1},   {1, 1, 33, 1, 40},
    {1, 1, 64, 64, 64}, {1, 1, 100, 33, 7}, {1, 1, 17, 70, 65}, {1, 1, 0, 4, 4},
};

TYPED_TEST(linear_attention, sums) {
  for (const sizes& s : odd_sizes) {
    case_of c(s);
    c.template expect<TypeParam>(false);
    c.rule.strength = c.strengths();
    c.template expect<TypeParam>(false, linear::strength(c.beta.r3()));
  }
}

TYPED_TEST(linear_attention, decays) {
  for (const sizes& s : odd_sizes) {
    for (const double low : {-0.1, -3.0, -300.0}) {
      case_of c(s, low);
      c.rule.log_decay = [&](index_t, index_t h, index_t, index_t) {
        return double(c.head.data[std::size_t(h)]);
      };
      c.template expect<TypeParam>(false, linear::head_decay(c.head.r1()));
      c.rule.log_decay = c.by_token();
      c.template expect<TypeParam>(false, linear::token_decay(c.token.r3()));
      c.rule.log_decay = c.by_channel();
      c.template expect<TypeParam>(false, linear::channel_decay(c.channel.r4()));
    }
  }
}

TYPED_TEST(linear_attention, delta_rules) {
  for (const sizes& s : odd_sizes) {
    for (const double low : {-0.1, -20.0}) {
      case_of c(s, low);
      c.rule.delta = true;
      c.rule.strength = c.strengths();
      const linear::delta write(c.beta.r3());
      c.template expect<TypeParam>(false, write);
      c.rule.log_decay = c.by_token();
      c.template expect<TypeParam>(false, write, linear::token_decay(c.token.r3()));
      c.rule.log_decay = c.by_channel();
      c.template expect<TypeParam>(false, write, linear::channel_decay(c.channel.r4()));
    }
  }
}

TYPED_TEST(linear_attention, reads_before_writes) {
  for (const sizes& s : odd_sizes) {
    for (const double low : {-0.1, -40.0}) {
      case_of c(s, low);
      c.rule.bonus = [&](index_t h, index_t d) { return double(c.u.r2()(h, d)); };
      const linear::bonus read(c.u.r2());
      c.template expect<TypeParam>(false, read);
      c.rule.log_decay = c.by_token();
      c.template expect<TypeParam>(false, read, linear::token_decay(c.token.r3()));
      c.rule.log_decay = c.by_channel();
      c.template expect<TypeParam>(false, read, linear::channel_decay(c.channel.r4()));
    }
  }
}

TYPED_TEST(linear_attention, normalised_by_the_sum_of_keys) {
  for (const sizes& s : odd_sizes) {
    case_of c(s, -2);
    for (auto* x : {&c.q, &c.k, &c.key_sum}) {
      for (float& e : x->data) e = std::abs(e);
    }
    c.rule.normalizer = [](double d) { return 1 / (d + 1e-3); };
    c.rule.log_decay = c.by_channel();
    c.template expect<TypeParam>(true, linear::normalized{linear::sum_of_weights{1e-3}},
                                 linear::channel_decay(c.channel.r4()));
    c.rule.log_decay = c.by_token();
    c.rule.strength = c.strengths();
    for (float& e : c.beta.data) e = std::abs(e);
    c.template expect<TypeParam>(true, linear::normalized{linear::sum_of_weights{1e-3}},
                                 linear::token_decay(c.token.r3()), linear::strength(c.beta.r3()));
  }
}

TYPED_TEST(linear_attention, every_query_reads_every_key) {
  const auto q = heed_test::random_numbers<float>({2, 3, 70, 9}, 1);
  const auto k = heed_test::random_numbers<float>({2, 3, 45, 9}, 2);
  const auto v = heed_test::random_numbers<float>({2, 3, 45, 5}, 3);
  const auto wide = [](const numbers<float>& x) {
    numbers<double> y(x.shape);
    std::transform(x.data.begin(), x.data.end(), y.data.begin(),
                   [](float a) { return a > 0 ? a + 1.0 : std::exp(double(a)); });
    return y;
  };
  numbers<double> wv(v.shape), wanted({2, 3, 70, 5}), S({2, 3, 9, 5}), z({2, 3, 9});
  std::copy(v.data.begin(), v.data.end(), wv.data.begin());
  reference::linear_rule rule;
  rule.bidirectional = true;
  rule.normalizer = [](double d) { return 1 / (d + 1e-6); };
  const auto wq = wide(q), wk = wide(k);
  reference::linear_attention(wq.r4(), wk.r4(), wv.r4(), wanted.v4(), rule, S.v4(), z.v3());
  numbers<float> out(wanted.shape, NAN);
  linear::attention<TypeParam>(q.r4(), k.r4(), v.r4(), out.v4(), linear::elu_plus_one,
                               linear::bidirectional{},
                               linear::normalized{linear::sum_of_weights{1e-6}});
  EXPECT_LE(relative_rms(out.data, wanted.data), 2e-6);
}

// Heads: queries, keys and values may each be shared by others.
TYPED_TEST(linear_attention, shared_heads) {
  constexpr index_t L = 40, D = 8, E = 6;
  for (const auto& [hq, hk, hv] : {std::array<index_t, 3>{6, 3, 1}, {6, 1, 3}, {1, 2, 4}}) {
    SCOPED_TRACE(::testing::Message() << hq << " " << hk << " " << hv);
    const index_t hs = std::max(hk, hv), ho = std::max(hs, hq);
    const auto q = heed_test::random_numbers<float>({1, hq, L, D}, 1);
    const auto k = heed_test::random_numbers<float>({1, hk, L, D}, 2, 0.3);
    const auto v = heed_test::random_numbers<float>({1, hv, L, E}, 3);
    const auto g = heed_test::random_log_decays<float>({1, 1, L}, 4, -1);
    numbers<float> out({1, ho, L, E}, NAN), alone({1, 1, L, E}, NAN);
    linear::attention<TypeParam>(q.r4(), k.r4(), v.r4(), out.v4(), linear::token_decay(g.r3()));
    for (index_t h = 0; h < ho; ++h) {
      const index_t s = h / (ho / hs);
      linear::attention<TypeParam>(
          q.r4().slice(1, h / (ho / hq), 1), k.r4().slice(1, s / (hs / hk), 1),
          v.r4().slice(1, s / (hs / hv), 1), alone.v4(), linear::token_decay(g.r3()));
      const auto first = out.data.begin() + h * L * E;
      EXPECT_TRUE(std::equal(first, first + L * E, alone.data.begin())) << "head " << h;
    }
  }
}

// Strides and element types, against the same numbers in float and dense layout.
template <class Backend, class T, class Out>
void expect_as_in_float(layout how, double tolerance) {
  constexpr index_t B = 2, H = 3, L = 37, D = 20, E = 13;
  tensor<T> q(B, H, L, D, how), k(B, H, L, D, how), v(B, H, L, E, how), g(B, H, L, D, how);
  tensor<Out> out(B, H, L, E, how);
  q.fill(1), k.fill(2, 0.3), v.fill(3), g.fill(4);
  g.for_each([](T& x) { x = heed::narrow<T>(-0.2 * std::abs(heed::widen<double>(x))); });
  tensor<double> fq(B, H, L, D), fk(B, H, L, D), fv(B, H, L, E), fg(B, H, L, D), fo(B, H, L, E);
  const auto copy = [](const auto& from, auto& to) {
    const auto a = from.read();
    const auto b = to.view();
    for (index_t i = 0; i < B; ++i) {
      for (index_t h = 0; h < H; ++h) {
        for (index_t l = 0; l < L; ++l) {
          for (index_t d = 0; d < a.extent(3); ++d) {
            b(i, h, l, d) = heed::widen<double>(a(i, h, l, d));
          }
        }
      }
    }
  };
  copy(q, fq), copy(k, fk), copy(v, fv), copy(g, fg);
  linear::attention<Backend>(q.read(), k.read(), v.read(), out.view(),
                             linear::channel_decay(g.read()));
  linear::attention<heed::backend::scalar>(fq.read(), fk.read(), fv.read(), fo.view(),
                                           linear::channel_decay(fg.read()));
  EXPECT_LE(heed_test::worst_error(out.read(), fo.read(), tolerance), tolerance);
  EXPECT_EQ(out.overwritten_around(), 0);
}
TYPED_TEST(linear_attention, strides_and_element_types) {
  for (const layout how : heed_test::layouts)
    expect_as_in_float<TypeParam, float, float>(how, 3e-6);
  expect_as_in_float<TypeParam, Eigen::bfloat16, Eigen::bfloat16>(layout::by_token, 5e-3);
  expect_as_in_float<TypeParam, Eigen::half, float>(layout::padded, 3e-6);
}

// A ragged batch and lengths are the sequences alone.
TYPED_TEST(linear_attention, ragged_batches_and_lengths) {
  constexpr index_t D = 8, E = 6;
  const std::vector<index_t> cumulative = {0, 5, 5, 45, 46, 90}, lengths = {5, 0, 40, 1, 44};
  case_of c({1, 2, 90, D, E});
  numbers<float> out({1, 2, 90, E}, NAN), last({5, 2, D, E}, NAN);
  linear::attention<TypeParam>(c.q.r4(), c.k.r4(), c.v.r4(), out.v4(),
                               linear::token_decay(c.token.r3()), linear::delta(c.beta.r3()),
                               heed::ragged{cumulative, cumulative},
                               linear::final_state(last.v4()));
  numbers<float> padded({5, 2, 44, E}, NAN);
  numbers<float> pq({5, 2, 44, D}, NAN), pk(pq), pv({5, 2, 44, E}, NAN), pg({5, 2, 44}, NAN),
      pb(pg);
  for (index_t i = 0; i < 5; ++i) {
    const index_t n = lengths[std::size_t(i)], at = cumulative[std::size_t(i)];
    for (index_t h = 0; h < 2; ++h) {
      for (index_t t = 0; t < n; ++t) {
        for (index_t d = 0; d < D; ++d) {
          pq.v4()(i, h, t, d) = c.q.r4()(0, h, at + t, d);
          pk.v4()(i, h, t, d) = c.k.r4()(0, h, at + t, d);
        }
        for (index_t d = 0; d < E; ++d) {
          pv.v4()(i, h, t, d) = c.v.r4()(0, h, at + t, d);
        }
        pg.v3()(i, h, t) = c.token.r3()(0, h, at + t);
        pb.v3()(i, h, t) = c.beta.r3()(0, h, at + t);
      }
    }
  }
  numbers<float> padded_last({5, 2, D, E}, NAN);
  linear::attention<TypeParam>(pq.r4(), pk.r4(), pv.r4(), padded.v4(), linear::token_decay(pg.r3()),
                               linear::delta(pb.r3()), heed::key_lengths{lengths},
                               linear::final_state(padded_last.v4()));
  EXPECT_EQ(last.data, padded_last.data);
  for (index_t i = 0; i < 5; ++i) {
    for (index_t h = 0; h < 2; ++h) {
      for (index_t t = 0; t < 44; ++t) {
        for (index_t d = 0; d < E; ++d) {
          const float wanted = t < lengths[std::size_t(i)]
                                   ? out.r4()(0, h, cumulative[std::size_t(i)] + t, d)
                                   : 0.0f;
          ASSERT_EQ(padded.r4()(i, h, t, d), wanted) << i << " " << t;
        }
      }
    }
  }
}

// A NaN or infinity in one token leaves the outputs before it alone.
TYPED_TEST(linear_attention, nothing_leaks_from_later_tokens) {
  case_of c({1, 1, 40, 8, 6});
  numbers<float> clean({1, 1, 40, 6}), dirty({1, 1, 40, 6});
  const auto run = [&](numbers<float>& out, const auto&... modifiers) {
    linear::attention<TypeParam>(c.q.r4(), c.k.r4(), c.v.r4(), out.v4(), modifiers...);
  };
  const auto compare = [&](const auto&... modifiers) {
    const auto k = c.k, v = c.v;
    run(clean, modifiers...);
    for (const bool in_keys : {false, true}) {
      (in_keys ? c.k.v4()(0, 0, 21, 3) : c.v.v4()(0, 0, 21, 3)) = in_keys ? NAN : INFINITY;
      run(dirty, modifiers...);
      for (index_t t = 0; t < 21; ++t) {
        for (index_t d = 0; d < 6; ++d) {
          ASSERT_NEAR(dirty.r4()(0, 0, t, d), clean.r4()(0, 0, t, d), 1e-5);
        }
      }
      if (in_keys) {
        EXPECT_TRUE(heed_test::is_nan(double(dirty.r4()(0, 0, 25, 0))));
      }
      c.k = k, c.v = v;
    }
  };
  compare();
  compare(linear::token_decay(c.token.r3()));
  compare(linear::channel_decay(c.channel.r4()));
  compare(linear::delta(c.beta.r3()), linear::channel_decay(c.channel.r4()));
}

TYPED_TEST(linear_attention, same_bits_on_any_number_of_workers) {
  case_of c({3, 2, 70, 12, 9});
  numbers<float> one({3, 2, 70, 9}), many(one), own(one);
  const linear::delta write(c.beta.r3());
  const linear::channel_decay decay(c.channel.r4());
  const auto run = [&](numbers<float>& out, const auto&... rest) {
    linear::attention<TypeParam>(c.q.r4(), c.k.r4(), c.v.r4(), out.v4(), write, decay, rest...);
  };
  heed::thread_pool pool(3);
  heed::workspace memory;
  run(one);
  run(many, heed::on{pool});
  run(own, heed::scratch{memory});
  EXPECT_EQ(one.data, many.data);
  EXPECT_EQ(one.data, own.data);
  EXPECT_GT(memory.size(), 0);
}

}  // namespace
