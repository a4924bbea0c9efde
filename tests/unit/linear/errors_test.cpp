// Every error of the linear family: one message that names the operand and both values, and
// nothing is written.
#include "support/errors.hpp"

#include <Eigen/Core>

#include "heed/linear/attention.hpp"
#include "heed/linear/lightning.hpp"
#include "heed/linear/mamba2.hpp"
#include "heed/linear/performer.hpp"
#include "heed/linear/selective_scan.hpp"
#include "heed/linear/state.hpp"
#include "unit/linear/support.hpp"

#if defined(HEED_HAS_EXCEPTIONS)

namespace {

using heed::index_t;
using heed_test::numbers;
namespace linear = heed::linear;

constexpr index_t B = 2, H = 4, L = 6, D = 5, E = 3;

struct operands {
  numbers<float> q{{B, H, L, D}}, k{{B, 2, L, D}}, v{{B, 2, L, E}}, out{{B, H, L, E}, 7};
  numbers<float> state{{B, 2, D, E}, 7}, z{{B, 2, D}, 7};

  template <class Call>
  void expect(const std::string& text, const Call& call) {
    heed_test::expect_error(text, call);
    for (const auto* x : {&out, &state, &z}) {
      for (const float y : x->data) ASSERT_EQ(y, 7) << "something was written; " << text;
    }
  }
  template <class... Modifiers>
  void expect_of_modifiers(const std::string& text, const Modifiers&... modifiers) {
    expect(text, [&] { linear::attention(q.r4(), k.r4(), v.r4(), out.v4(), modifiers...); });
  }
};

TEST(linear_errors, shapes) {
  operands o;
  const auto q = o.q.r4(), k = o.k.r4(), v = o.v.r4();
  const auto out = o.out.v4();
  const auto expect = [&](const char* text, auto a, auto b, auto c, auto d) {
    o.expect(text, [&] { linear::attention(a, b, c, d); });
  };
  expect("q: number of sequences 1 differs from that of k, 2", q.slice(0, 0, 1), k, v, out);
  expect("q: length 5 differs from that of k, 6", q.slice(2, 0, 5), k, v, out);
  expect("v: batch 1 differs from k's 2", q, k, v.slice(0, 0, 1), out);
  expect("out: batch 1 differs from k's 2", q, k, v, out.slice(0, 0, 1));
  expect("q: depth 4 differs from k's 5", q.slice(3, 0, 4), k, v, out);
  expect("v: length 5 differs from k's 6", q, k, v.slice(2, 0, 5), out);
  expect("out: length 5 differs from q's 6", q, k, v, out.slice(2, 0, 5));
  expect("out: depth 2 differs from v's 3", q, k, v, out.slice(3, 0, 2));
  expect("out: head count 3 differs from the largest of q, k and v, 4", q, k, v,
         out.slice(1, 0, 3));
  expect("k and v: head count 2 does not divide that of out, 3", q.slice(1, 0, 3), k, v,
         out.slice(1, 0, 3));
  const numbers<float> k3({B, 3, L, D}), v3({B, 3, L, E}), k4({B, 4, L, D}), v4({B, 4, L, E});
  expect("v: head count 3 does not divide the state's 4", q, k4.r4(), v3.r4(), out);
  expect("k: head count 3 does not divide the state's 4", q, k3.r4(), v4.r4(), out);
  expect("q: head count 3 does not divide that of out, 4", q.slice(1, 0, 3), k4.r4(), v4.r4(), out);
  expect("out: axis 1 of extent 4 has stride 0, its rows would overwrite each other", q, k, v,
         heed::tensor_view<float, 4>(out.data(), {B, H, L, E}, {L * E, 0, E, 1}));
  expect("k: data is null, extents are [2, 2, 6, 5]", q,
         heed::tensor_view<const float, 4>(nullptr, {B, 2, L, D}), v, out);
  const numbers<float> wide({B, 2, L, E});
  o.expect("out: is the memory of v", [&] {
    linear::attention(wide.r4(), wide.r4(),
                      heed::tensor_view<const float, 4>(out.data(), {B, 2, L, E}),
                      heed::tensor_view<float, 4>(out.data(), {B, 2, L, E}));
  });
}

TEST(linear_errors, options) {
  operands o;
  o.expect_of_modifiers("chunk: 0 tokens, must be at least 1", linear::chunk{0});
  o.expect_of_modifiers("chunk: -3 tokens, must be at least 1", linear::chunk{-3});
#if !defined(__FAST_MATH__)  // infinities are assumed away there
  o.expect_of_modifiers("scale: value is not finite", heed::scale{HUGE_VAL});
#endif
  const std::vector<index_t> short_list = {6}, long_list = {6, 7}, cumulative = {0, 6};
  const std::vector<index_t> falling = {0, 4, 2, 6};
  const std::vector<index_t> lengths = {6, 4}, other = {6, 3}, one = {1, 6}, five = {0, 5};
  o.expect_of_modifiers("key_lengths: count 1 differs from the batch 2",
                        heed::key_lengths{short_list});
  o.expect_of_modifiers("key_lengths: entry 1 is 7, must lie in [0, 6]",
                        heed::key_lengths{long_list});
  o.expect_of_modifiers(
      "q: sequence 1 has 3 queries and 4 keys; causal linear attention reads as it writes",
      heed::key_lengths{lengths}, heed::query_lengths{other});
  o.expect_of_modifiers("k: batch 2, a ragged batch has its sequences along one batch of 1",
                        heed::ragged{cumulative, cumulative});
  const auto ragged = [&](const char* text, const heed::ragged& rows, const auto&... rest) {
    o.expect(text, [&] {
      linear::attention(o.q.r4().slice(0, 0, 1), o.k.r4().slice(0, 0, 1), o.v.r4().slice(0, 0, 1),
                        o.out.v4().slice(0, 0, 1), rows, rest...);
    });
  };
  ragged("cumulative_keys: must start with 0", {cumulative, one});
  ragged("cumulative_keys: entry 2 is 2, less than 4 before it", {cumulative, falling});
  ragged("cumulative_keys: total 5 differs from the length 6", {cumulative, five});
  ragged("ragged: key_lengths is for batches that are not ragged", {cumulative, cumulative},
         heed::key_lengths{short_list});
  ragged("ragged: query_lengths is for batches that are not ragged", {cumulative, cumulative},
         heed::query_lengths{short_list});
  const std::vector<index_t> three = {0, 3, 6};
  ragged("cumulative_queries: number of sequences 2 differs from that of k, 1",
         {three, cumulative});
}

TEST(linear_errors, gates) {
  operands o;
  numbers<float> token({B, 2, L}, -1), channel({B, 2, L, D}, -1), head({2}, -1);
  token.v3()(1, 0, 4) = 0.5f;
  o.expect_of_modifiers("decay: log decay 0.5 at batch 1, head 0, token 4 is above 0",
                        linear::token_decay(token.r3()));
  channel.v4()(1, 1, 3, 2) = 1e-3f;
  o.expect_of_modifiers("decay: log decay 0.001 at batch 1, head 1, token 3, channel 2 is above 0",
                        linear::channel_decay(channel.r4()));
  numbers<double> precise({B, 2, L, D}, -1);
  precise.v4()(0, 0, 0, 4) = 1e-300;
  o.expect_of_modifiers("decay: log decay 1e-300 at batch 0, head 0, token 0, channel 4 is above 0",
                        linear::channel_decay(precise.r4()));
  numbers<float> deep({B, 2, L, 40}, -1);  // wider than a vector
  deep.v4()(0, 1, 2, 3) = 2;
  numbers<float> q({B, H, L, 40}), k({B, 2, L, 40});
  o.expect("decay: log decay 2 at batch 0, head 1, token 2, channel 3 is above 0", [&] {
    linear::attention(q.r4(), k.r4(), o.v.r4(), o.out.v4(), linear::channel_decay(deep.r4()));
  });
  head.data[1] = 0.25f;
  o.expect_of_modifiers("decay: log decay 0.25 of head 1 is above 0",
                        linear::head_decay(head.r1()));
  const numbers<float> three({3}), heads({B, 3, L}), batch({1, 2, L}), length({B, 2, L - 1});
  const numbers<float> depth({B, 2, L, D + 1});
  o.expect_of_modifiers("decay: head count 3 does not divide the state's 2",
                        linear::head_decay(three.r1()));
  o.expect_of_modifiers("decay: head count 3 does not divide the state's 2",
                        linear::token_decay(heads.r3()));
  o.expect_of_modifiers("decay: batch 1 differs from the call's 2",
                        linear::token_decay(batch.r3()));
  o.expect_of_modifiers("decay: length 5 differs from that of k, 6",
                        linear::token_decay(length.r3()));
  o.expect_of_modifiers("decay: depth 6 differs from the number of features 5",
                        linear::channel_decay(depth.r4()));
  o.expect_of_modifiers("delta: head count 3 does not divide the state's 2",
                        linear::delta(heads.r3()));
  o.expect_of_modifiers("strength: length 5 differs from that of k, 6",
                        linear::strength(length.r3()));
  o.expect_of_modifiers("strength: numbers per token 5 differs from the only one: 1",
                        linear::strength(channel.r4()));
  const numbers<float> u({2, D + 1}), u3({3, D});
  o.expect_of_modifiers("bonus: depth 6 differs from the number of features 5",
                        linear::bonus(u.r2()));
  o.expect_of_modifiers("bonus: head count 3 does not divide the state's 2",
                        linear::bonus(u3.r2()));
  // Gates without memory are no gates at all, which is another call.
  const heed::tensor_view<const float, 3> nothing(nullptr, {B, 2, L}), empty(nullptr, {B, 2, 0});
  o.expect_of_modifiers("strength: data is null, extents are [2, 2, 6, 1]",
                        linear::strength(nothing));
  o.expect_of_modifiers("delta: data is null, extents are [2, 2, 6, 1]", linear::delta(nothing));
  o.expect_of_modifiers("strength: length 0 differs from that of k, 6", linear::strength(empty));
  o.expect_of_modifiers("delta: length 0 differs from that of k, 6", linear::delta(empty));
  o.expect_of_modifiers("bonus: data is null, extents are [2, 5]",
                        linear::bonus(heed::tensor_view<const float, 2>(nullptr, {2, D})));
  // What lies behind a sequence's end is not looked at.
  token.v3()(1, 0, 4) = -1;
  token.v3()(0, 1, 5) = 3;
  const std::vector<index_t> lengths = {5, 6};
  operands fine;
  linear::attention(fine.q.r4(), fine.k.r4(), fine.v.r4(), fine.out.v4(),
                    linear::token_decay(token.r3()), heed::key_lengths{lengths});
  EXPECT_EQ(fine.out.data[0], 0);
}

TEST(linear_errors, states) {
  operands o;
  const linear::normalized sum{linear::sum_of_weights{}};
  numbers<float> batch({1, 2, D, E}), heads({B, 4, D, E}), rows({B, 2, D + 1, E});
  numbers<float> columns({B, 2, D, E + 1}), z({B, 2, D + 1});
  o.expect_of_modifiers("initial_state: batch 1 differs from the number of sequences 2",
                        linear::initial_state(batch.r4()));
  o.expect_of_modifiers("initial_state: head count 4 differs from the state's 2",
                        linear::initial_state(heads.r4()));
  o.expect_of_modifiers("final_state: rows 6 differs from the number of features 5",
                        linear::final_state(rows.v4()));
  o.expect_of_modifiers("final_state: columns 4 differs from the depth of v, 3",
                        linear::final_state(columns.v4()));
  o.expect_of_modifiers("initial_state: lacks the sum of keys [B, H, D] that the normaliser reads",
                        linear::initial_state(o.state.r4()), sum);
  o.expect_of_modifiers("final_state: has a sum of keys, which only a normaliser reads",
                        linear::final_state(o.state.v4(), o.z.v3()));
  o.expect_of_modifiers(
      "final_state: depth of the sum of keys 6 differs from the number of features 5",
      linear::final_state(o.state.v4(), z.v3()), sum);
  o.expect_of_modifiers(
      "final_state: axis 0 of extent 2 has stride 0, its rows would overwrite each other",
      linear::final_state(
          heed::tensor_view<float, 4>(o.state.data.data(), {B, 2, D, E}, {0, D * E, E, 1})));
  o.expect_of_modifiers(
      "initial_state: data is null, extents are [2, 2, 5, 3]",
      linear::initial_state(heed::tensor_view<const float, 4>(nullptr, {B, 2, D, E})));
  o.expect_of_modifiers(
      "final_state: sum of keys: axis 1 of extent 2 has stride 0, its rows would overwrite each "
      "other",
      linear::final_state(o.state.v4(),
                          heed::tensor_view<float, 3>(o.z.data.data(), {B, 2, D}, {2 * D, 0, 1})),
      sum);
  o.expect("state: extent -1 is below 0", [] { linear::state<float>(1, 2, -1, 3); });
}

TEST(linear_errors, methods) {
  operands o;
  numbers<float> slopes({2}, 1), A({2}, -1), dt({B, 2, L}, 1);
  slopes.data[1] = -0.5f;
  o.expect("slopes: slope -0.5 of head 1 is below 0",
           [&] { linear::lightning(o.q.r4(), o.k.r4(), o.v.r4(), o.out.v4(), slopes.r1()); });
  dt.v3()(0, 1, 2) = -2;
  const auto y = o.out.v4().slice(1, 0, 2);
  o.expect("dt: step -2 at batch 0, head 1, token 2 is below 0",
           [&] { linear::mamba2(o.v.r4(), dt.r3(), A.r1(), o.k.r4(), o.k.r4(), y); });
  dt.v3()(0, 1, 2) = 2;
  A.data[0] = 1;
  o.expect("A: log decay 1 of head 0 is above 0",
           [&] { linear::mamba2(o.v.r4(), dt.r3(), A.r1(), o.k.r4(), o.k.r4(), y); });
  const numbers<float> x({B, L, E}), b({B, L, D}), rates({E + 1, D}, -1);
  o.expect("A: channels 4 differs from those of x, 3", [&] {
    linear::selective_scan(x.r3(), x.r3(), rates.r2(), b.r3(), b.r3(),
                           heed::tensor_view<float, 3>(o.out.data.data(), {B, L, E}));
  });
  numbers<float> grow({E, D}, -1);
  grow.v2()(2, 1) = 0.5f;
  o.expect("A: rate 0.5 of channel 2, state 1 is above 0", [&] {
    linear::selective_scan(x.r3(), x.r3(), grow.r2(), b.r3(), b.r3(),
                           heed::tensor_view<float, 3>(o.out.data.data(), {B, L, E}));
  });
  grow.v2()(2, 1) = -1;
  const numbers<float> skip({2});
  o.expect("y: axis 2 has extent 6, must have 5",
           [&] { linear::add_skip(o.v.r4().slice(2, 0, 5), skip.r1(), y); });
  o.expect("D: axis 0 has extent 2, must have 1",
           [&] { linear::add_skip(o.v.r4().slice(1, 0, 1), skip.r1(), y.slice(1, 0, 1)); });
  o.expect("D: data is null, extents are [2]",
           [&] { linear::add_skip(o.v.r4(), heed::tensor_view<const float, 1>(nullptr, {2}), y); });
  o.expect("dt: channels 1 differs from those of x, 3", [&] {
    linear::selective_scan(x.r3(), x.r3().slice(2, 0, 1), grow.r2(), b.r3(), b.r3(),
                           heed::tensor_view<float, 3>(o.out.data.data(), {B, L, E}));
  });
  const linear::random_features<float> features(D + 1, 8, 1);
  o.expect("k: depth 5 differs from that of the features, 6",
           [&] { linear::performer(o.q.r4(), o.k.r4(), o.v.r4(), o.out.v4(), features); });
  const linear::random_features<float> fitting(D, 8, 1);
  const std::vector<index_t> too_long = {6, 5000}, too_few = {6};
  const auto bidirectional = [&](const char* text, const std::vector<index_t>& lengths) {
    o.expect(text, [&] {
      linear::performer(o.q.r4(), o.k.r4(), o.v.r4(), o.out.v4(), fitting, linear::bidirectional{},
                        heed::key_lengths{lengths});
    });
  };
  bidirectional("key_lengths: entry 1 is 5000, must lie in [0, 6]", too_long);
  bidirectional("key_lengths: count 1 differs from the batch 2", too_few);
  o.expect("random_features: depth 0 and count 8 must be at least 1",
           [] { linear::random_features<float>(0, 8, 1); });
}

}  // namespace

#else
TEST(linear_errors, need_exceptions) { GTEST_SKIP() << "built without exceptions"; }
#endif
