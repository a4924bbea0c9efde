// What the tile loop visits and in which pieces: tiles end where a mask's blocks of queries do, and
// values are added right for steps that lie apart, whatever is masked between and within them.
#include "heed/engine/tile_loop.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/mask.hpp"
#include "heed/reference/dense.hpp"
#include "heed/sparse/attention.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;
namespace engine = heed::engine;
namespace reference = heed::reference;
namespace sparse = heed::sparse;

TEST(plan, rows_end_where_blocks_of_queries_do) {
  const auto rows = [](index_t wanted, index_t block) {
    return engine::aligned_rows(wanted, block, 6);
  };
  EXPECT_EQ(rows(66, 0), 66);
  EXPECT_EQ(rows(66, 64), 64);
  EXPECT_EQ(rows(192, 64), 64);  // never several blocks that fill two strips
  EXPECT_EQ(rows(66, 128), 64);  // an equal part
  EXPECT_EQ(rows(24, 64), 16);   // a third would not be one
  EXPECT_EQ(rows(66, 100), 50);
  EXPECT_EQ(rows(24, 61), 24);  // no equal parts
  EXPECT_EQ(rows(66, 8), 64);   // several that do not
  EXPECT_EQ(rows(6, 8), 6);
  EXPECT_EQ(rows(66, 1), 66);
  EXPECT_EQ(rows(66, 1000000), 64);
}

// Every other block of keys for even blocks of queries, the others for odd ones.
sparse::block_list checkerboard(index_t length, index_t block_q, index_t block_k) {
  return sparse::list_where(
      sparse::blocks_of({1, 1, length, length}, block_q, block_k),
      [](index_t, index_t, index_t i, index_t j) { return (i + j) % 2 == 0; });
}

template <class Backend>
class tile_loop : public ::testing::Test {};
TYPED_TEST_SUITE(tile_loop, heed_test::all_backends, heed_test::backend_name);

TYPED_TEST(tile_loop, no_tile_straddles_blocks_of_queries) {
  const index_t length = 512;
  tensor<float> q(1, 1, length, 8), out(1, 1, length, 8);
  q.fill(1);
  for (const index_t block : {64, 128, 256}) {
    heed::tile_counts counts;
    sparse::attention<TypeParam>(q.read(), q.read(), q.read(), out.view(),
                                 checkerboard(length, block, 64), heed::count_tiles{counts});
    EXPECT_EQ(counts.some, 0) << block;
    EXPECT_EQ(counts.none, 0) << block;
    EXPECT_GT(counts.all, 0) << block;
  }
}

// Steps 0, 2, 4, … of 64 keys, parts of some of them, and values that are not finite where nobody
// looks: in all steps between, and in the hidden part of step 16.
TYPED_TEST(tile_loop, steps_that_lie_apart_are_added_like_neighbours) {
  for (const index_t queries : {3, 40}) {  // in place, and packed
    const index_t keys = 64 * 21 + 17;
    tensor<float> q(1, 2, queries, 20), k(1, 2, keys, 20), v(1, 2, keys, 24);
    q.fill(1), k.fill(2), v.fill(3);
    const heed::mask some{[](const heed::position& p) {
      const index_t step = p.k / 64, within = p.k % 64;
      if (step % 2 != 0 || step == 8) return false;
      if (step % 6 == 4) return within >= 20;        // its beginning is hidden from all
      if (step % 6 == 2) return within < 40;         // its end
      return step != 12 || (within + p.q) % 3 != 0;  // scattered
    }};
    for (index_t key = 0; key < keys; ++key) {
      bool seen = key / 64 % 2 == 0 && key / 64 != 8 && key / 64 != 16;
      for (index_t i = 0; i < queries; ++i) seen = seen || some(heed::position{0, 0, i, key, 0, 0});
      if (!seen) {
        v.view()(0, 0, key, 5) = std::numeric_limits<float>::infinity();
        v.view()(0, 1, key, 23) = std::numeric_limits<float>::quiet_NaN();
      }
    }
    // Key 12·64 + 1 is hidden from some queries only: its infinity reaches the others alone.
    v.view()(0, 0, 12 * 64 + 1, 7) = std::numeric_limits<float>::infinity();
    tensor<float> out(1, 2, queries, 24);
    tensor<double> wanted(1, 2, queries, 24);
    reference::options how;
    how.visible = some;
    heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), some);
    reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
    index_t infinite = 0;
    for (index_t h = 0; h < 2; ++h) {
      for (index_t i = 0; i < queries; ++i) {
        for (index_t d = 0; d < 24; ++d) {
          const double got = static_cast<double>(out.view()(0, h, i, d));
          const double right = wanted.view()(0, h, i, d);
          if (right - right != 0) {
            EXPECT_EQ(got, right) << h << " " << i << " " << d;
            ++infinite;
          } else {
            EXPECT_NEAR(got, right, 1e-5) << h << " " << i << " " << d;
          }
        }
      }
    }
    EXPECT_EQ(infinite, queries - (queries + 0) / 3);  // (1 + q) % 3 != 0, in head 0, channel 7
  }
}

// On a matrix unit too, whose kernel for values has its own way to steps that lie apart.
template <class Backend, class T>
void check_listed_blocks_in() {
  const index_t length = 640;
  tensor<T> q(1, 2, length, 40), k(1, 2, length, 40), v(1, 2, length, 72), out(1, 2, length, 72);
  q.fill(1), k.fill(2), v.fill(3);
  for (const index_t block : {32, 64, 96}) {
    const sparse::block_list list = sparse::list_where(
        sparse::blocks_of({1, 1, length, length}, block, 64),
        [](index_t, index_t, index_t i, index_t j) { return (i * 5 + j * 3) % 7 < 3 || j == 9; });
    reference::options how;
    how.visible = list.view();
    tensor<double> truth(1, 2, length, 72), plain = truth;
    reference::attention(q.read(), k.read(), v.read(), truth.view(), how);
    reference::plain<T>(q.read(), k.read(), v.read(), plain.view(), how);
    sparse::attention<Backend>(q.read(), k.read(), v.read(), out.view(), list);
    EXPECT_LE(heed_test::worst_error(out.read(), truth.read()),
              2 * heed_test::worst_error(plain.read(), truth.read()) + 1e-5)
        << "blocks of " << block;
  }
}
TYPED_TEST(tile_loop, listed_blocks_in_sixteen_bits) {
  check_listed_blocks_in<TypeParam, Eigen::bfloat16>();
  check_listed_blocks_in<TypeParam, Eigen::half>();
}

}  // namespace
