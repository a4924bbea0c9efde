// Random lists, lengths and groups: sparse attention is dense attention under the same mask,
// however it runs, and the order of the keys does not matter.
#include "support/sparse_lists.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/routed/dispatch.hpp"
#include "heed/sparse/attention.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::position;
using heed_test::tensor;
namespace sparse = heed::sparse;

template <class Backend>
class sparse_lists : public ::testing::Test {};
TYPED_TEST_SUITE(sparse_lists, heed_test::method_backends, heed_test::backend_name);

double distance(const tensor<float>& a, const tensor<float>& b) {
  double worst = 0;
  for (index_t i = 0; i < a.view().size(); ++i) {
    worst = std::max(worst, static_cast<double>(std::abs(a.view().data()[i] - b.view().data()[i])));
  }
  return worst;
}

TYPED_TEST(sparse_lists, equal_dense_attention_under_their_mask) {
  std::mt19937 generator(2024);
  const auto draw = [&](index_t low, index_t high) {
    return std::uniform_int_distribution<index_t>(low, high)(generator);
  };
  for (unsigned round = 0; round < 60; ++round) {
    const index_t batches = draw(1, 2), key_heads = draw(1, 3), heads = key_heads * draw(1, 3);
    const index_t queries = draw(1, 260), keys = draw(1, 400), depth = draw(1, 70);
    const index_t block_q = draw(1, 100), block_k = draw(1, 100);
    const index_t kinds[] = {1, key_heads, heads};
    const index_t listed = kinds[draw(0, 2)];
    SCOPED_TRACE("round " + std::to_string(round));
    const auto list = heed_test::random_list(
        sparse::blocks_of({draw(0, 1) != 0 ? batches : 1, listed, queries, keys}, block_q, block_k),
        0.05 * static_cast<double>(draw(0, 20)), round);
    const sparse::block_list_view view = list.view();
    tensor<float> q(batches, heads, queries, depth), k(batches, key_heads, keys, depth),
        v(batches, key_heads, keys, depth), dense(batches, heads, queries, depth), got = dense;
    q.fill(round), k.fill(round + 100), v.fill(round + 200);
    // The mask element by element, from the list's arrays.
    std::vector<std::uint8_t> elements(static_cast<std::size_t>(batches * heads * queries * keys));
    std::vector<index_t> single_offsets{0}, single_rows;
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < heads; ++h) {
        for (index_t i = 0; i < queries; ++i) {
          for (index_t j :
               view.row(list.shape.batches == 1 ? 0 : b, h * listed / heads, i / block_q)) {
            for (index_t key = j * block_k; key < std::min(keys, (j + 1) * block_k); ++key) {
              elements[static_cast<std::size_t>(((b * heads + h) * queries + i) * keys + key)] = 1;
              single_rows.push_back(key);
            }
          }
          single_offsets.push_back(static_cast<index_t>(single_rows.size()));
        }
      }
    }
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), dense.view(),
                               heed::array_mask{heed::tensor_view<const std::uint8_t, 4>(
                                   elements.data(), {batches, heads, queries, keys})});
    sparse::attention<TypeParam>(q.read(), k.read(), v.read(), got.view(), list);
    EXPECT_LE(distance(got, dense), 2e-5);
    heed::routed::attention<TypeParam>(q.read(), k.read(), v.read(), got.view(), list);
    EXPECT_LE(distance(got, dense), 2e-5);
    const sparse::row_list rows({batches, heads, queries, keys}, 1, single_offsets, single_rows);
    sparse::attention<TypeParam>(q.read(), k.read(), v.read(), got.view(), rows);
    EXPECT_LE(distance(got, dense), 2e-5);

    // Keys in another order, the lists with them.
    std::vector<index_t> order(static_cast<std::size_t>(keys)), place(order.size());
    std::iota(order.begin(), order.end(), index_t{0});
    std::shuffle(order.begin(), order.end(), generator);
    for (index_t i = 0; i < keys; ++i) {
      place[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = i;
    }
    tensor<float> other_k(batches, key_heads, keys, depth), other_v = other_k;
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < key_heads; ++h) {
        for (index_t i = 0; i < keys; ++i) {
          const index_t from = order[static_cast<std::size_t>(i)];
          std::copy_n(k.view().row(b, h, from), depth, other_k.view().row(b, h, i));
          std::copy_n(v.view().row(b, h, from), depth, other_v.view().row(b, h, i));
        }
      }
    }
    for (index_t& row : single_rows) row = place[static_cast<std::size_t>(row)];
    for (std::size_t r = 0; r + 1 < single_offsets.size(); ++r) {
      std::sort(single_rows.begin() + single_offsets[r],
                single_rows.begin() + single_offsets[r + 1]);
    }
    sparse::attention<TypeParam>(
        q.read(), other_k.read(), other_v.read(), got.view(),
        sparse::row_list({batches, heads, queries, keys}, 1, single_offsets, single_rows));
    EXPECT_LE(distance(got, dense), 2e-5);
  }
}

}  // namespace
