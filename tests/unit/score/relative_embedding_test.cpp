// Relative embeddings, Shaw's, Music Transformer's and Transformer-XL's scores in attention calls:
// against the oracle, under masks, in prefill and decode, on every backend and element type.
#include "heed/score/relative_embedding.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/music_transformer.hpp"
#include "heed/score/shaw.hpp"
#include "heed/score/softcap.hpp"
#include "heed/score/transformer_xl.hpp"
#include "support/backends.hpp"
#include "unit/score/relative_operands.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

using call = heed_test::relative_call;
template <class T>
using operands = heed_test::relative_operands<T>;

template <class Backend>
class relative_embedding : public ::testing::Test {};
TYPED_TEST_SUITE(relative_embedding, heed_test::method_backends, heed_test::backend_name);

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

}  // namespace
