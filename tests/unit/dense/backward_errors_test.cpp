// Every argument of heed::attention_backward that does not fit gives one error that names the
// operand and both values, and nothing is written.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "heed/dense/backward.hpp"
#include "heed/mask/causal.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/sink.hpp"
#include "support/errors.hpp"

namespace {

using heed::index_t;
using view = heed::tensor_view<float, 4>;
using const_view = heed::tensor_view<const float, 4>;
using rows_view = heed::tensor_view<const float, 3>;

struct call {
  std::vector<float> inputs = std::vector<float>(4096, 0.5f);
  std::vector<float> outputs = std::vector<float>(8192, 42.f);
  const_view q{inputs.data(), {2, 4, 5, 8}}, k{inputs.data(), {2, 2, 7, 8}},
      v{inputs.data(), {2, 2, 7, 6}}, out{inputs.data(), {2, 4, 5, 6}},
      d_out{inputs.data(), {2, 4, 5, 6}};
  rows_view lse{inputs.data(), {2, 4, 5}};
  view d_q{outputs.data(), {2, 4, 5, 8}}, d_k{outputs.data() + 1000, {2, 2, 7, 8}},
      d_v{outputs.data() + 2000, {2, 2, 7, 6}};
  float* more = outputs.data() + 3000;

  template <class... Modifiers>
  void expect(const std::string& text, const Modifiers&... modifiers) const {
    heed_test::expect_error(text, [&] {
      heed::attention_backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, modifiers...);
    });
    for (const float x : outputs) ASSERT_EQ(x, 42.f) << text;
  }
};

TEST(backward_errors, the_call_itself_is_right) {
  call c;
  heed::attention_backward(c.q, c.k, c.v, c.out, c.lse, c.d_out, c.d_q, c.d_k, c.d_v);
  EXPECT_NE(c.outputs[0], 42.f);
}

TEST(backward_errors, operands) {
  call c;
  c.v = const_view(c.inputs.data(), {2, 2, 8, 6});
  c.expect("v: length 8 differs from k's 7");
  c = call();
  c.k = const_view(c.inputs.data(), {2, 2, 7, 9});
  c.expect("k: depth 9 differs from q's 8");
  c = call();
  c.k = const_view(c.inputs.data(), {2, 3, 7, 8});
  c.v = const_view(c.inputs.data(), {2, 3, 7, 6});
  c.expect("k: head count 3 does not divide query head count 4");
  c = call();
  c.out = const_view(c.inputs.data(), {2, 4, 5, 7});
  c.expect("out: depth 7 differs from v's 6");
  c = call();
  c.out = const_view(c.inputs.data(), {2, 4, 6, 6});
  c.expect("out: length 6 differs from q's 5");
  c = call();
  c.d_out = const_view(c.inputs.data(), {2, 4, 5, 5});
  c.expect("d_out: depth 5 differs from out's 6");
  c = call();
  c.d_out = const_view(c.inputs.data(), {2, 3, 5, 6});
  c.expect("d_out: head count 3 differs from out's 4");
  c = call();
  c.lse = rows_view(c.inputs.data(), {2, 4, 4});
  c.expect("lse: length 4 differs from q's 5");
  c = call();
  c.lse = rows_view(nullptr, {2, 4, 5});
  c.expect("lse: data is null, extents are [2, 4, 5, 1]");
  c = call();
  c.expect("lse_gradient: batch 1 differs from q's 2",
           heed::lse_gradient{rows_view(c.inputs.data(), {1, 4, 5})});
  c.expect("lse_gradient: data is null, extents are [2, 4, 5, 1]",
           heed::lse_gradient{rows_view(nullptr, {2, 4, 5})});
  c.expect("lse_gradient: length 0 differs from q's 5",
           heed::lse_gradient{rows_view(nullptr, {2, 4, 0})});
}

TEST(backward_errors, gradients) {
  call c;
  c.d_q = view(c.outputs.data(), {2, 4, 5, 7});
  c.expect("d_q: depth 7 differs from q's 8");
  c = call();
  c.d_k = view(c.outputs.data(), {2, 4, 7, 8});
  c.expect("d_k: head count 4 differs from k's 2");
  c = call();
  c.d_v = view(c.outputs.data(), {2, 2, 6, 6});
  c.expect("d_v: length 6 differs from v's 7");
  c = call();
  c.d_v = view(nullptr, {2, 2, 7, 6});
  c.expect("d_v: data is null, extents are [2, 2, 7, 6]");
  c = call();
  c.d_k = view(c.outputs.data() + 1000, {2, 2, 7, 8}, {0, 56, 8, 1});
  c.expect("d_k: axis 0 of extent 2 has stride 0, its rows would overwrite each other");
  c = call();
  c.d_k = view(c.outputs.data() + 316, {2, 2, 7, 8});
  c.expect("d_k: overlaps d_q, in the row at its byte 1248");
  c = call();
  c.q = const_view(c.outputs.data() + 1000, {2, 4, 5, 8});
  c.expect("d_k: overlaps q, in the row at its byte 0");
  c = call();
  c.lse = rows_view(c.outputs.data() + 2000, {2, 4, 5});
  c.expect("d_v: overlaps lse, in the row at its byte 0");
}

TEST(backward_errors, biases) {
  const call c;
  c.expect("bias_gradient_to: head axis has extent 3, call has 4 heads",
           heed::bias_gradient_to{view(c.more, {1, 3, 5, 7})});
  c.expect("bias_gradient_to: key axis has extent 8, call has 7 keys",
           heed::bias_gradient_to{heed::tensor_view<float, 2>(c.more, {5, 8})});
  c.expect("bias_gradient_to: batch axis has extent 4, call has 2 batches",
           heed::bias_gradient_to{view(c.more, {4, 1, 1, 7})});
  c.expect("bias_gradient_to: query axis has extent 2, call has 5 queries",
           heed::bias_gradient_to{heed::tensor_view<float, 3>(c.more, {1, 2, 7})});
  c.expect("bias_gradient_to: axis 2 of extent 5 has stride 0, its rows would overwrite each other",
           heed::bias_gradient_to{view(c.more, {1, 1, 5, 7}, {0, 0, 0, 1})});
  c.expect("bias_gradient_to: data is null, extents are [1, 1, 5, 7]",
           heed::bias_gradient_to{heed::tensor_view<float, 2>(nullptr, {5, 7})});
  c.expect("bias_gradient_to: overlaps d_v, in the row at its byte 0",
           heed::bias_gradient_to{heed::tensor_view<float, 2>(c.d_v.data(), {5, 7})});
}

TEST(backward_errors, sinks) {
  const call c;
  const heed::sink sink{0.f};
  c.expect("sink_gradient_to: extent 3 is neither 1 nor the call's 4 heads", sink,
           heed::sink_gradient_to{heed::tensor_view<float, 1>(c.more, {3})});
  c.expect("sink_gradient_to: data is null, extents are [1, 1, 1, 4]", sink,
           heed::sink_gradient_to{heed::tensor_view<float, 1>(nullptr, {4})});
  c.expect("sink_gradient_to: overlaps d_q, in the row at its byte 0", sink,
           heed::sink_gradient_to{heed::tensor_view<float, 1>(c.d_q.data(), {4})});
  const std::vector<float> three(3);
  c.expect("sink: logits have extent 3, call has 4 heads",
           heed::sink{heed::tensor_view<const float, 1>(three.data(), {3})});
}

TEST(backward_errors, modifiers_are_checked_like_those_of_the_forward_pass) {
  const call c;
  const std::vector<index_t> lengths = {8, 1}, queries = {0, 5}, keys = {0, 7};
  c.expect("key_lengths: entry 0 is 8, must lie in [0, 7]", heed::key_lengths{lengths});
  c.expect("query_lengths: entry 0 is 8, must lie in [0, 5]", heed::query_lengths{lengths});
  c.expect("q: batch 2, a ragged batch has its sequences along one batch of 1",
           heed::ragged{queries, keys});
  const std::vector<float> three(3);
  c.expect("alibi: slopes have extent 3, call has 4 heads",
           heed::alibi{heed::tensor_view<const float, 1>(three.data(), {3})});
}

}  // namespace
