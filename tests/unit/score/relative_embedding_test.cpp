// Relative embeddings, Shaw's, Music Transformer's and Transformer-XL's scores in attention calls:
// against the oracle, under masks, in prefill and decode, on every backend and element type.
#include "heed/score/relative_embedding.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/observer/scores.hpp"
#include "heed/reference/score.hpp"
#include "heed/score/music_transformer.hpp"
#include "heed/score/shaw.hpp"
#include "heed/score/softcap.hpp"
#include "heed/score/transformer_xl.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

template <class Backend>
class relative_embedding : public ::testing::Test {};
TYPED_TEST_SUITE(relative_embedding, heed_test::all_backends, heed_test::backend_name);

struct call {
  index_t batches, heads, key_heads, queries, keys, depth;
  index_t entries, first, table_heads;
};
// Rows in place and packed, strips that span heads, blocks and splits of keys, tables that end
// before, within and behind the distances that occur, more queries than keys.
const std::vector<call> calls = {
    {1, 1, 1, 1, 1, 1, 1, 0, 1},          {2, 2, 2, 65, 65, 16, 129, -64, 1},
    {1, 2, 1, 65, 200, 20, 9, -4, 2},     {1, 4, 2, 33, 777, 40, 777, -776, 4},
    {1, 8, 2, 1, 777, 40, 777, -776, 1},  {1, 8, 2, 1, 1100, 24, 50, -600, 8},
    {1, 8, 2, 4, 300, 24, 100, -50, 8},   {2, 8, 1, 7, 150, 72, 40, -90, 8},
    {1, 2, 2, 300, 700, 24, 30, -500, 2}, {1, 1, 1, 100, 64, 24, 30, 5, 1},
    {1, 6, 2, 13, 130, 33, 301, -150, 1}, {1, 2, 2, 5, 0, 8, 3, -1, 1},
    {1, 2, 1, 20, 90, 0, 5, -2, 1},
};

template <class T>
struct operands {
  tensor<T> q, k, v, table, bias, out;
  operands(const call& c, layout how, unsigned seed)
      : q(c.batches, c.heads, c.queries, c.depth, how),
        k(c.batches, c.key_heads, c.keys, c.depth, how),
        v(c.batches, c.key_heads, c.keys, 24, how),
        table(1, c.table_heads, c.entries, c.depth, how),
        bias(1, 1, c.table_heads, c.depth, how),
        out(c.batches, c.heads, c.queries, 24, how) {
    q.fill(seed), k.fill(seed + 1), v.fill(seed + 2), table.fill(seed + 3), bias.fill(seed + 4);
  }
  heed::tensor_view<const T, 3> entries() const {
    const auto x = table.read();
    return {x.data(), {x.extent(1), x.extent(2), x.extent(3)}, {x.stride(1), x.stride(2), 1}};
  }
  heed::tensor_view<const T, 2> query_bias() const {
    const auto x = bias.read();
    return {x.data(), {x.extent(2), x.extent(3)}, {x.stride(2), 1}};
  }
  // Error of the call that was made, beyond 5e-6 of the number.
  double error(const reference::options& how) {
    tensor<double> wanted(out.read().extent(0), out.read().extent(1), out.read().extent(2), 24);
    reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
    EXPECT_EQ(out.overwritten_around(), 0);
    return heed_test::worst_error(out.read(), wanted.read(), 5e-6);
  }
};

TYPED_TEST(relative_embedding, is_the_formula_in_every_shape) {
  unsigned seed = 1;
  for (const call& c : calls) {
    for (const double scale : {0.3, -0.2, 0.0}) {
      operands<float> x(c, heed_test::layouts[seed % 4], seed);
      reference::options how;
      how.scale = scale;
      how.scores = {
          reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), scale)};
      const heed::relative_embedding term(x.entries(), c.first, x.query_bias());
      heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), term,
                                 heed::scale{scale});
      EXPECT_LE(x.error(how), 2e-5)
          << c.queries << "x" << c.keys << " D" << c.depth << " scale " << scale;
      how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
      heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
                                 term, heed::scale{scale});
      EXPECT_LE(x.error(how), 2e-5) << c.queries << "x" << c.keys << " D" << c.depth << " causal";
      ++seed;
    }
  }
}

TYPED_TEST(relative_embedding, meets_masks_with_far_steps_and_other_scores) {
  // Steps that are far apart in one block, and rows that see nothing.
  const call c{1, 4, 2, 90, 1500, 20, 1200, -1100, 4};
  operands<float> x(c, layout::padded, 77);
  const auto far = [](const heed::position& p) {
    return (p.k / 64) % 5 == 0 && p.q % 7 != 3 && p.k % 3 != 1;
  };
  const auto cap = [](double s, const heed::position&) { return 3 * std::tanh(s / 3); };
  reference::options how;
  how.scale = 0.25;
  how.visible = far;
  how.scores = {
      reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), 0.25), cap};
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.25},
                             heed::mask{far}, heed::softcap{3.f},
                             heed::relative_embedding(x.entries(), c.first, x.query_bias()));
  EXPECT_LE(x.error(how), 2e-5);
}

TYPED_TEST(relative_embedding, transformer_xl_is_two_terms) {
  unsigned seed = 400;
  for (const call& c : calls) {
    operands<float> x(c, heed_test::layouts[seed % 4], seed + 1);
    ++seed;
    tensor<float> u(1, 1, c.heads, c.depth);
    u.fill(seed + 9);
    const heed::tensor_view<const float, 2> content(u.read().data(), {c.heads, c.depth});
    reference::options how;
    how.scale = 0.3;
    how.visible = [](const heed::position& p) { return p.aligned_q() - p.k <= 200; };
    how.scores = {
        reference::content_bias(x.k.read(), c.heads, content, 0.3),
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), 0.3)};
    heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.3},
                               heed::window{200, heed::window::unlimited},
                               heed::transformer_xl(x.entries(), content, x.query_bias(), c.first));
    EXPECT_LE(x.error(how), 2e-5) << c.queries << "x" << c.keys << " D" << c.depth;
  }
}

TYPED_TEST(relative_embedding, named_forms_are_it_with_their_tables) {
  const call c{1, 2, 2, 70, 131, 20, 131, -130, 2};
  operands<float> x(c, layout::by_token, 5);
  reference::options how;
  how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
  const double scale = 1 / std::sqrt(20.0);
  how.scores = {reference::relative_embedding(x.q.read(), x.entries(), -130, {}, scale)};
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
                             heed::music_transformer{x.entries()});
  EXPECT_LE(x.error(how), 2e-5);
  // Of Shaw's, one table for all heads, by descending distance: a view with a negative stride.
  const auto all = x.entries();
  const heed::tensor_view<const float, 2> turned(all.row(index_t{1}, index_t{20}), {21, 20},
                                                 {-all.stride(1), 1});
  how.visible = {};
  how.scores = {reference::relative_embedding(x.q.read(), turned, -10, {}, scale)};
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(),
                             heed::shaw{turned, 10});
  EXPECT_LE(x.error(how), 2e-5);
}

// Where whole rows of scores are kept, for observers.
TYPED_TEST(relative_embedding, is_in_the_scores_that_observers_see) {
  for (const index_t queries : {index_t{1}, index_t{70}}) {
    const call c{1, 4, 2, queries, 700, 20, 300, -250, 4};
    operands<float> x(c, layout::padded, 6);
    tensor<float> scores(1, 4, queries, 700);
    std::vector<double> weights;
    reference::options how;
    how.scale = 0.25;
    how.weights = &weights;
    how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
    how.scores = {
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), 0.25)};
    std::vector<float> lse(static_cast<std::size_t>(4 * queries));
    heed::attention<TypeParam>(
        x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.25}, heed::causal{},
        heed::relative_embedding(x.entries(), c.first, x.query_bias()),
        heed::scores_to{scores.view()},
        heed::lse_to{heed::tensor_view<float, 3>(lse.data(), {1, 4, queries})});
    EXPECT_LE(x.error(how), 2e-5);
    std::size_t at = 0;
    scores.for_each([&](float s) {
      const double w = weights[at];
      if (w > 1e-30) {
        EXPECT_NEAR(static_cast<double>(s - lse[at / 700]), std::log(w), 1e-4) << at;
      }
      ++at;
    });
  }
}

template <class Backend, class T>
void check_type(double bound) {
  for (const index_t queries : {index_t{1}, index_t{9}, index_t{110}}) {
    const call c{1, 4, 2, queries, 260, 40, 100, -60, 4};
    operands<T> x(c, layout::dense, 21);
    reference::options how;
    how.scale = 0.1;
    how.scores = {
        reference::content_bias(x.k.read(), c.heads, x.query_bias(), 0.1),
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), 0.1)};
    heed::attention<Backend>(
        x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::scale{0.1},
        heed::transformer_xl(x.entries(), x.query_bias(), x.query_bias(), c.first));
    EXPECT_LE(x.error(how), bound) << queries;
  }
}
TYPED_TEST(relative_embedding, element_types) {
  check_type<TypeParam, double>(1e-12);
  check_type<TypeParam, Eigen::half>(2e-3);
  check_type<TypeParam, Eigen::bfloat16>(2e-2);
}

TYPED_TEST(relative_embedding, is_bit_identical_for_any_number_of_threads) {
  const call c{1, 4, 2, 130, 1700, 24, 900, -800, 4};
  operands<float> x(c, layout::dense, 3);
  const heed::transformer_xl term(x.entries(), x.query_bias(), x.query_bias(), c.first);
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
                             term);
  tensor<float> again = x.out;
  heed::thread_pool pool(3);
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), again.view(), heed::causal{}, term,
                             heed::on{pool});
  EXPECT_EQ(std::memcmp(again.view().data(), x.out.view().data(),
                        static_cast<std::size_t>(again.view().size()) * sizeof(float)),
            0);
}

// Step by step through a growing cache, and several sets of keys under one softmax.
TYPED_TEST(relative_embedding, decoding_gives_the_rows_of_the_whole_call) {
  const call c{1, 4, 2, 80, 80, 16, 159, -79, 4};
  operands<float> x(c, layout::dense, 8);
  const heed::relative_embedding term(x.entries(), c.first, x.query_bias());
  heed::attention<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
                             term);
  for (index_t at = 0; at < 80; at += 13) {
    tensor<float> step(1, 4, 1, 24);
    heed::attention<TypeParam>(x.q.read().slice(2, at, 1), x.k.read().slice(2, 0, at + 1),
                               x.v.read().slice(2, 0, at + 1), step.view(), term);
    for (index_t h = 0; h < 4; ++h) {
      for (index_t d = 0; d < 24; ++d) {
        EXPECT_NEAR(step.view()(0, h, 0, d), x.out.view()(0, h, at, d), 1e-5) << at;
      }
    }
  }
}

TYPED_TEST(relative_embedding, nan_behind_a_mask_does_not_leak) {
  for (const index_t queries : {index_t{1}, index_t{64}}) {
    const call c{1, 2, 1, queries, 130, 16, 261, -130, 1};
    operands<float> x(c, layout::dense, 8);
    // Distances ahead of the query are masked; so is the first key.
    x.table.view()(0, 0, 131, 3) = NAN;
    for (index_t d = 0; d < 16; ++d) x.k.view()(0, 0, 0, d) = NAN;
    reference::options how;
    how.visible = [](const heed::position& p) { return p.k <= p.aligned_q() && p.k > 0; };
    const double scale = 0.25;
    how.scores = {
        reference::content_bias(x.k.read(), 2, x.query_bias(), scale),
        reference::relative_embedding(x.q.read(), x.entries(), c.first, x.query_bias(), scale)};
    heed::attention<TypeParam>(
        x.q.read(), x.k.read(), x.v.read(), x.out.view(), heed::causal{},
        heed::mask{[](const heed::position& p) { return p.k > 0; }},
        heed::transformer_xl(x.entries(), x.query_bias(), x.query_bias(), c.first));
    EXPECT_LE(x.error(how), 2e-5);
  }
}

}  // namespace
