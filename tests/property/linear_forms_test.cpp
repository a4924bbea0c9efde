// The three forms of a linear state agree: the recurrence (chunks of one token), chunks of any
// size, and the quadratic form (one chunk), for random rules, shapes and lengths from 0 to 10 000.
#include "heed/linear/attention.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::numbers;
using heed_test::relative_rms;
namespace linear = heed::linear;

template <class Backend>
class linear_forms : public ::testing::Test {};
TYPED_TEST_SUITE(linear_forms, heed_test::method_backends, heed_test::backend_name);

template <class Real>
struct forms {
  std::mt19937 generator;
  index_t length, depth, values;
  numbers<Real> q, k, v, token, channel, beta, u, state, key_sum;

  forms(unsigned seed, index_t tokens) : generator(seed), length(tokens) {
    depth = pick(1, 24), values = pick(1, 20);
    q = heed_test::random_numbers<Real>({1, 2, length, depth}, seed + 1);
    k = heed_test::random_numbers<Real>({1, 1, length, depth}, seed + 2,
                                        0.7 / std::sqrt(double(depth)));
    v = heed_test::random_numbers<Real>({1, 1, length, values}, seed + 3);
    // From hardly any decay to resets.
    const double low = -std::pow(10.0, double(pick(0, 5)) - 3);
    token = heed_test::random_log_decays<Real>({1, 1, length}, seed + 4, low);
    channel = heed_test::random_log_decays<Real>({1, 1, length, depth}, seed + 5, low);
    beta = heed_test::random_numbers<Real>({1, 1, length}, seed + 6, 0.1, 0.5);
    u = heed_test::random_numbers<Real>({1, depth}, seed + 7);
    state = heed_test::random_numbers<Real>({1, 1, depth, values}, seed + 8);
    key_sum = heed_test::random_numbers<Real>({1, 1, depth}, seed + 9);
  }
  index_t pick(index_t low, index_t high) {
    return std::uniform_int_distribution<index_t>(low, high)(generator);
  }

  template <class Backend, class... Rule>
  void expect_agreement(double tolerance, bool quadratic, const Rule&... rule) {
    constexpr bool sums = (... || linear::detail::is_instance<linear::normalized, Rule>);
    const auto run = [&](index_t chunk, numbers<Real>& out, numbers<Real>& last) {
      out = numbers<Real>({1, 2, length, values}, Real(NAN));
      last = numbers<Real>(state.shape, Real(NAN));
      auto z = key_sum;
      const auto call = [&](const auto&... states) {
        linear::attention<Backend>(q.r4(), k.r4(), v.r4(), out.v4(), linear::chunk{chunk}, rule...,
                                   states...);
      };
      if constexpr (sums) {
        call(linear::initial_state(state.r4(), key_sum.r3()),
             linear::final_state(last.v4(), z.v3()));
      } else {
        call(linear::initial_state(state.r4()), linear::final_state(last.v4()));
      }
    };
    numbers<Real> steps, last_step, out, last;
    run(1, steps, last_step);
    if (length == 0) {
      EXPECT_EQ(last_step.data, state.data);
    }
    std::vector<index_t> chunks = {pick(2, 9), pick(10, 100), 32};
    if (quadratic) chunks.push_back(length + 1);
    for (const index_t chunk : chunks) {
      run(chunk, out, last);
      EXPECT_LE(relative_rms(out.data, steps.data), tolerance) << "chunk " << chunk;
      EXPECT_LE(relative_rms(last.data, last_step.data), tolerance) << "chunk " << chunk;
    }
  }
  template <class Backend>
  void expect_all(double tolerance, bool quadratic) {
    const linear::token_decay by_token(token.r3());
    const linear::channel_decay by_channel(channel.r4());
    const linear::delta write(beta.r3());
    switch (pick(0, 8)) {
      case 0:
        return expect_agreement<Backend>(tolerance, quadratic);
      case 1:
        return expect_agreement<Backend>(tolerance, quadratic, by_token);
      case 2:
        return expect_agreement<Backend>(tolerance, quadratic, by_channel);
      case 3:
        return expect_agreement<Backend>(tolerance, quadratic, write);
      case 4:
        return expect_agreement<Backend>(tolerance, quadratic, write, by_token);
      case 5:
        return expect_agreement<Backend>(tolerance, quadratic, write, by_channel);
      case 6:
        return expect_agreement<Backend>(tolerance, quadratic, linear::bonus(u.r2()), by_channel);
      case 7:
        return expect_agreement<Backend>(tolerance, quadratic, linear::strength(beta.r3()),
                                         by_token);
      default:
        for (auto* x : {&q, &k, &key_sum}) {
          for (Real& e : x->data) e = std::abs(e);
        }
        return expect_agreement<Backend>(tolerance, quadratic, by_channel,
                                         linear::normalized{linear::sum_of_weights{1e-2}});
    }
  }
};

TYPED_TEST(linear_forms, agree_in_double) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 generator(seed);
    const index_t most = seed % 3 == 0 ? 10 : 400;
    const index_t length = std::uniform_int_distribution<index_t>(0, most)(generator);
    forms<double>(100 * seed, length).template expect_all<TypeParam>(1e-11, true);
  }
}

TYPED_TEST(linear_forms, agree_over_long_sequences) {
  for (unsigned seed = 0; seed < 18; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 generator(seed);
    const index_t length =
        seed == 0 ? 10000 : std::uniform_int_distribution<index_t>(0, 10000)(generator);
    forms<float>(1000 + 100 * seed, length).template expect_all<TypeParam>(3e-5, length < 1500);
  }
}

}  // namespace
