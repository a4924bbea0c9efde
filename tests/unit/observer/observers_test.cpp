// Observers of rows of weights against the oracle: column sums, entropy, top keys, block maxima,
// weights and scores of one call, over masks, scores, grouped heads, lengths, ragged batches and
// several sources.
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/rows.hpp"

namespace {

using heed::index_t;
using heed::reference::row_map;
using heed_test::observed;
using heed_test::tensor;

template <class Mask>
heed::reference::predicate predicate_of(const Mask& mask) {
  return [mask](const heed::position& p) { return mask(p); };
}

template <class Backend>
class observers : public ::testing::Test {};
TYPED_TEST_SUITE(observers, heed_test::method_backends, heed_test::backend_name);

template <class T>
void expect_out(const tensor<T>& out, const std::vector<double>& wanted, double tolerance) {
  const heed::tensor_view<const double, 4> truth(wanted.data(), out.read().extents());
  EXPECT_LE(heed_test::worst_error(out.read(), truth, tolerance), tolerance);
  EXPECT_EQ(out.overwritten_around(), 0);
}

TYPED_TEST(observers, masks_scores_groups_and_odd_shapes) {
  struct shape {
    index_t heads, key_heads, queries, keys, depth, value_depth;
  };
  unsigned seed = 0;
  for (const shape& s :
       {shape{1, 1, 1, 1, 1, 1}, shape{8, 2, 1, 700, 40, 24}, shape{4, 2, 130, 190, 59, 20},
        shape{2, 2, 513, 127, 24, 40}, shape{3, 1, 65, 64, 16, 8}, shape{2, 1, 9, 0, 16, 8}}) {
    SCOPED_TRACE(std::to_string(s.queries) + "x" + std::to_string(s.keys));
    tensor<float> q(2, s.heads, s.queries, s.depth, heed_test::layouts[seed % 4]);
    tensor<float> k(2, s.key_heads, s.keys, s.depth, heed_test::layouts[(seed + 1) % 4]);
    tensor<float> v(2, s.key_heads, s.keys, s.value_depth, heed_test::layouts[(seed + 2) % 4]);
    tensor<float> out(2, s.heads, s.queries, s.value_depth, heed_test::layouts[(seed + 3) % 4]);
    q.fill(++seed, 3), k.fill(++seed), v.fill(++seed);
    const heed::window window(70, 40);
    std::vector<float> logits(static_cast<std::size_t>(s.heads), 0.5f);
    heed::reference::options how;
    how.visible = predicate_of(window);
    how.scores = {[](double x, const heed::position&) { return 4 * std::tanh(x / 4); }};
    const auto truth = heed::reference::weighted_attention(
        q.read(), k.read(), v.read(),
        {heed::reference::softmax(std::vector<double>(logits.begin(), logits.end()))}, how);
    observed seen(2, s.heads, s.queries, s.keys);
    std::vector<float> lse(static_cast<std::size_t>(2 * s.heads * s.queries));
    seen.with_all([&](const auto&... all) {
      heed::attention<TypeParam>(
          q.read(), k.read(), v.read(), out.view(), window, heed::softcap{4.f}, all...,
          heed::sink{heed::tensor_view<const float, 1>(logits.data(), {s.heads})},
          heed::lse_to{heed::tensor_view<float, 3>(lse.data(), {2, s.heads, s.queries})});
    });
    expect_out(out, truth.out, 1e-5);
    if (s.keys > 0) seen.compare(truth);
    // The same log-sum-exp as without observers.
    std::vector<double> plain_lse, plain;
    how.lse = &plain_lse;
    how.sinks.assign(logits.begin(), logits.end());
    heed::reference::attention(q.read(), k.read(), v.read(), plain, how);
    observed::expect_near(lse, plain_lse, 1e-5, "lse");
  }
}

TYPED_TEST(observers, lengths_and_padding) {
  const index_t heads = 4, queries = 50, keys = 150;
  tensor<float> q(3, heads, queries, 20), k(3, 2, keys, 20), v(3, 2, keys, 12);
  tensor<float> out(3, heads, queries, 12);
  q.fill(1, 2), k.fill(2), v.fill(3);
  const std::vector<index_t> key_lengths = {100, 0, 70}, query_lengths = {50, 13, 0};
  const std::vector<index_t> padding = {9, 0, 80};
  // What does not exist must not be read.
  for (index_t h = 0; h < 2; ++h) {
    for (index_t d = 0; d < 20; ++d) k.view()(0, h, 3, d) = k.view()(2, h, 79, d) = NAN;
    for (index_t d = 0; d < 12; ++d) v.view()(0, h, 3, d) = v.view()(1, h, 149, d) = NAN;
  }
  heed::reference::options how;
  how.visible = predicate_of(heed::causal{});
  how.key_lengths = key_lengths, how.query_lengths = query_lengths, how.left_padding = padding;
  const auto truth = heed::reference::weighted_attention(q.read(), k.read(), v.read(),
                                                         {heed::reference::softmax()}, how);
  observed seen(3, heads, queries, keys);
  seen.with_all([&](const auto&... all) {
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::causal{}, all...,
                               heed::key_lengths{key_lengths}, heed::query_lengths{query_lengths},
                               heed::left_padding{padding});
  });
  expect_out(out, truth.out, 1e-5);
  seen.compare(truth);
}

TYPED_TEST(observers, ragged_batches) {
  const std::vector<index_t> cu_q = {0, 70, 70, 71, 100}, cu_k = {0, 80, 90, 90, 230};
  tensor<float> q(1, 4, 100, 20), k(1, 1, 230, 20), v(1, 1, 230, 12), out(1, 4, 100, 12);
  q.fill(1, 2), k.fill(2), v.fill(3);
  heed::reference::options how;
  how.visible = predicate_of(heed::causal{});
  const auto truth = heed::reference::ragged_weighted_attention(
      q.read(), k.read(), v.read(), cu_q, cu_k, {heed::reference::softmax()}, how);
  observed seen(1, 4, 100, 230);
  seen.with_all([&](const auto&... all) {
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::causal{}, all...,
                               heed::ragged{cu_q, cu_k});
  });
  expect_out(out, truth.out, 1e-5);
  seen.compare(truth);
}

TYPED_TEST(observers, several_sources_have_one_key_axis) {
  tensor<float> q(2, 4, 37, 20), k1(2, 2, 70, 20), v1(2, 2, 70, 12), k2(2, 2, 41, 20),
      v2(2, 2, 41, 12), out(2, 4, 37, 12);
  q.fill(1, 2), k1.fill(2), v1.fill(3), k2.fill(4), v2.fill(5);
  const std::vector<index_t> lengths = {70, 33};
  std::vector<heed::reference::key_source> sources(2);
  sources[0] = {k1.read(), v1.read()};
  sources[0].key_lengths = lengths;
  sources[1] = {k2.read(), v2.read(), predicate_of(heed::causal{})};
  const auto truth =
      heed::reference::weighted_attention(q.read(), sources, {heed::reference::softmax()});
  observed seen(2, 4, 37, 111);
  seen.with_all([&](const auto&... all) {
    heed::attention<TypeParam>(
        q.read(),
        heed::sources{heed::source{k1.read(), v1.read(), heed::key_lengths{lengths}},
                      heed::source{k2.read(), v2.read(), heed::causal{}}},
        out.view(), all...);
  });
  expect_out(out, truth.out, 1e-5);
  seen.compare(truth);
}

}  // namespace
