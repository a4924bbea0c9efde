// Attention over block lists, row lists, and by dispatch, against the double-precision oracle with
// the list as its predicate: odd shapes, layouts, element types, backends, executors.
#include "heed/sparse/attention.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/dense.hpp"
#include "heed/routed/dispatch.hpp"
#include "heed/score/alibi.hpp"
#include "support/backends.hpp"
#include "support/sparse_lists.hpp"
#include "support/tensor.hpp"

namespace {

using heed::call_shape;
using heed::index_t;
using heed::position;
using heed::tensor_view;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;
namespace sparse = heed::sparse;

struct shape {
  index_t batches, heads, key_heads, queries, keys, depth, value_depth;
  index_t listed_batches, listed_heads, block_q, block_k;
  call_shape call() const { return {batches, heads, queries, keys}; }
};
const std::vector<shape> shapes = {
    {1, 1, 1, 200, 333, 40, 24, 1, 1, 64, 64}, {2, 4, 2, 130, 131, 16, 16, 2, 2, 16, 32},
    {2, 4, 2, 67, 190, 33, 17, 1, 4, 5, 7},    {1, 6, 2, 3, 257, 64, 64, 1, 1, 1, 16},
    {1, 2, 1, 1, 300, 24, 24, 1, 2, 1, 48},    {2, 2, 2, 65, 64, 8, 8, 2, 2, 1, 64},
    {1, 2, 1, 0, 9, 8, 8, 1, 1, 4, 4},         {1, 2, 1, 7, 0, 8, 8, 1, 1, 4, 4},
};

enum class way { blocks, rows, dispatch };

template <class Backend>
class sparse_attention : public ::testing::Test {};
TYPED_TEST_SUITE(sparse_attention, heed_test::method_backends, heed_test::backend_name);

sparse::block_list list_for(const shape& s, way how, unsigned seed, double density) {
  call_shape listed = s.call();
  listed.batches = s.listed_batches, listed.heads = s.listed_heads;
  return heed_test::random_list(
      sparse::blocks_of(listed, s.block_q, how == way::rows ? 1 : s.block_k), density, seed);
}

template <class Backend, class Q, class K, class V, class Out, class... Modifiers>
void run(way how, const sparse::block_list& list, const Q& q, const K& k, const V& v,
         const Out& out, const Modifiers&... modifiers) {
  if (how == way::blocks) {
    sparse::attention<Backend>(q, k, v, out, list, modifiers...);
  } else if (how == way::rows) {
    sparse::attention<Backend>(q, k, v, out, sparse::row_list(list), modifiers...);
  } else {
    heed::routed::attention<Backend>(q, k, v, out, list, modifiers...);
  }
}

// One call, with causality and ALiBi (which see the operands' own positions) on top of the list.
template <class Backend, class T>
void expect_oracle(const shape& s, way how, layout where, unsigned seed, double tolerance) {
  SCOPED_TRACE("way " + std::to_string(static_cast<int>(how)) + " shape " +
               std::to_string(s.queries) + "x" + std::to_string(s.keys));
  using Real = heed::accumulator<T>;
  tensor<T> q(s.batches, s.heads, s.queries, s.depth, where),
      k(s.batches, s.key_heads, s.keys, s.depth, where),
      v(s.batches, s.key_heads, s.keys, s.value_depth, where),
      out(s.batches, s.heads, s.queries, s.value_depth, where);
  q.fill(seed), k.fill(seed + 1), v.fill(seed + 2);
  const auto list = list_for(s, how, seed + 3, 0.25);
  const auto seen = list.view().for_heads(s.heads);
  std::vector<Real> slopes(static_cast<std::size_t>(s.heads));
  for (std::size_t h = 0; h < slopes.size(); ++h) slopes[h] = Real(0.01) * Real(h + 1);
  reference::options options;
  options.visible = [&](const position& p) { return seen(p) && p.k <= p.aligned_q(); };
  options.scores = {[&](double score, const position& p) {
    return score + static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                       static_cast<double>(p.k - p.aligned_q());
  }};
  std::vector<double> wanted_lse;
  options.lse = &wanted_lse;
  tensor<double> wanted(s.batches, s.heads, s.queries, s.value_depth);
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), options);
  std::vector<Real> lse(wanted_lse.size(), Real(NAN));
  run<Backend>(how, list, q.read(), k.read(), v.read(), out.view(), heed::causal{},
               heed::alibi{tensor_view<const Real, 1>(slopes.data(), {s.heads})},
               heed::lse_to{tensor_view<Real, 3>(lse.data(), {s.batches, s.heads, s.queries})});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), tolerance), 2 * tolerance);
  EXPECT_EQ(out.overwritten_around(), 0);
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (static_cast<double>(lse[i]) == wanted_lse[i]) continue;  // −∞ of a row without keys
    ASSERT_NEAR(static_cast<double>(lse[i]), wanted_lse[i],
                tolerance * (1 + std::abs(wanted_lse[i])))
        << i;
  }
}

TYPED_TEST(sparse_attention, matches_the_oracle) {
  unsigned seed = 1;
  for (const shape& s : shapes) {
    for (way how : {way::blocks, way::rows, way::dispatch}) {
      seed += 10;
      const layout where = heed_test::layouts[seed / 10 % heed_test::layouts.size()];
      expect_oracle<TypeParam, float>(s, how, where, seed, 5e-6);
    }
  }
}

TYPED_TEST(sparse_attention, in_other_element_types) {
  unsigned seed = 900;
  for (way how : {way::blocks, way::rows, way::dispatch}) {
    expect_oracle<TypeParam, double>(shapes[2], how, layout::padded, ++seed, 1e-13);
    expect_oracle<TypeParam, Eigen::bfloat16>(shapes[1], how, layout::by_token, ++seed, 2e-2);
  }
}

// The tiles that are computed are those with a listed block, and NaN elsewhere does not matter.
TYPED_TEST(sparse_attention, visits_what_is_listed_only) {
  const index_t length = 64 * 20;
  tensor<float> q(1, 1, length, 16), k(1, 1, length, 16), v(1, 1, length, 16),
      out(1, 1, length, 16);
  q.fill(1), k.fill(2), v.fill(3);
  const auto list =
      heed_test::random_list(sparse::blocks_of({1, 1, length, length}, 64, 64), 0.1, 7);
  // Blocks that no query lists hold NaN.
  std::vector<bool> listed(20);
  for (index_t j : list.blocks) listed[static_cast<std::size_t>(j)] = true;
  ASSERT_TRUE(std::count(listed.begin(), listed.end(), false) > 0);
  tensor<double> wanted(1, 1, length, 16);
  reference::options options;
  options.visible = [&](const position& p) { return list.view()(p); };
  reference::attention(q.read(), k.read(), v.read(), wanted.view(), options);
  for (index_t j = 0; j < length; ++j) {
    if (listed[static_cast<std::size_t>(j / 64)]) continue;
    for (index_t d = 0; d < 16; ++d) {
      k.view()(0, 0, j, d) = NAN;
      v.view()(0, 0, j, d) = NAN;
    }
  }
  heed::tile_counts counts;
  sparse::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), list,
                               heed::count_tiles{counts});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 1e-5);
  using tiles = typename TypeParam::template tiles<float, float, float, float, float>;
  index_t visible = 0;
  for (index_t q_begin = 0; q_begin < length; q_begin += tiles::strip_rows) {
    const index_t q_end = std::min(length, q_begin + tiles::strip_rows);
    for (index_t j = 0; j < 20; ++j) {
      visible += list.view().tile({0, 0, q_begin, q_end, j * 64, j * 64 + 64, length, length}) !=
                 heed::visibility::none;
    }
  }
  EXPECT_LE(counts.visited(), visible * 11 / 10);  // strips need not begin where these do
  EXPECT_GE(counts.visited(), visible * 9 / 10);
  EXPECT_LT(counts.visited() + counts.none, length / tiles::strip_rows * 20);
}

TYPED_TEST(sparse_attention, is_the_same_on_any_executor) {
  heed::thread_pool pool(3);
  const shape s{2, 4, 2, 150, 310, 24, 24, 2, 2, 3, 32};
  tensor<float> q(2, 4, 150, 24), k(2, 2, 310, 24), v(2, 2, 310, 24), one(2, 4, 150, 24),
      many(2, 4, 150, 24);
  q.fill(1), k.fill(2), v.fill(3);
  for (way how : {way::blocks, way::rows, way::dispatch}) {
    const auto list = list_for(s, how, 5, 0.2);
    run<TypeParam>(how, list, q.read(), k.read(), v.read(), one.view());
    run<TypeParam>(how, list, q.read(), k.read(), v.read(), many.view(), heed::on{pool});
    EXPECT_EQ(heed_test::worst_error(many.read(),
                                     [&] {
                                       static tensor<double> wide(2, 4, 150, 24);
                                       const auto from = one.view();
                                       wide.for_each([&, i = 0](double& x) mutable {
                                         x = static_cast<double>(from.data()[i++]);
                                       });
                                       return wide.read();
                                     }()),
              0);
  }
}

}  // namespace
