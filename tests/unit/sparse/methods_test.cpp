// Quest, SpargeAttn, LSH and the estimator-selector chains against the oracles of
// reference/sparse.hpp, over odd shapes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/sparse.hpp"
#include "heed/sparse/longformer.hpp"
#include "heed/sparse/lsh.hpp"
#include "heed/sparse/quest.hpp"
#include "heed/sparse/sparge.hpp"
#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::position;
using heed::tensor_view;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;
namespace sparse = heed::sparse;

template <class Backend>
class sparse_methods : public ::testing::Test {};
TYPED_TEST_SUITE(sparse_methods, heed_test::method_backends, heed_test::backend_name);

struct operands {
  tensor<float> q, k, v, out;
  tensor<double> wanted;
  operands(index_t b, index_t h, index_t g, index_t queries, index_t keys, index_t depth,
           unsigned seed, layout how = layout::by_token)
      : q(b, h, queries, depth, how),
        k(b, g, keys, depth, how),
        v(b, g, keys, depth + 3, how),
        out(b, h, queries, depth + 3, how),
        wanted(b, h, queries, depth + 3) {
    q.fill(seed), k.fill(seed + 1), v.fill(seed + 2);
  }
  void expect(const reference::predicate& visible) {
    reference::options how;
    how.visible = visible;
    reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
    EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 1e-5);
    EXPECT_EQ(out.overwritten_around(), 0);
  }
};

TYPED_TEST(sparse_methods, quest) {
  heed::thread_pool pool(2);
  for (const auto& [queries, keys, page, pages] :
       {std::array<index_t, 4>{1, 300, 16, 4}, {5, 131, 7, 3}, {70, 90, 64, 1}, {9, 9, 4, 9}}) {
    SCOPED_TRACE(queries);
    operands x(2, 4, 2, queries, keys, 24, 5);
    const auto kept = reference::quest(x.q.read(), x.k.read(), page, pages);
    sparse::quest<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), page, pages,
                             heed::on{pool});
    x.expect([&, size = page](const position& p) {
      return p.k <= p.aligned_q() && kept(p.batch, p.head, p.q, p.k / size);
    });
  }
}

// Blocks of alike rows, so that some pass the test of self-similarity and some do not.
void make_alike(tensor<float>& x, index_t block) {
  const auto view = x.view();
  for (index_t b = 0; b < view.extent(0); ++b) {
    for (index_t h = 0; h < view.extent(1); ++h) {
      for (index_t i = 0; i < view.extent(2); ++i) {
        if (i / block % 3 == 1) continue;
        for (index_t d = 0; d < view.extent(3); ++d) {
          view(b, h, i, d) = view(b, h, i / block * block, d) + 0.3f * view(b, h, i, d);
        }
      }
    }
  }
}

TYPED_TEST(sparse_methods, sparge) {
  for (const bool causal : {false, true}) {
    for (const bool by_mass : {false, true}) {
      SCOPED_TRACE(causal);
      operands x(2, 4, 2, 170, 210, 16, 40);
      make_alike(x.q, 20), make_alike(x.k, 16);
      sparse::sparge_options how;
      how.block_q = 20, how.block_k = 16, how.similarity = 0.3, how.causal = causal;
      const auto kept = reference::sparge(
          x.q.read(), x.k.read(), 20, 16, 0.3, causal,
          [&](const std::vector<double>& scores, const std::vector<bool>& candidates) {
            return by_mass ? reference::nucleus(scores, candidates, 0.6, false)
                           : reference::highest(scores, candidates, 3);
          });
      const auto run = [&](const auto& keep) {
        const auto list = sparse::sparge_list(x.q.read(), x.k.read(), keep, how);
        index_t count = 0;
        for (index_t b = 0; b < 2; ++b) {
          for (index_t h = 0; h < 4; ++h) {
            for (index_t i = 0; i < 9; ++i) {
              for (index_t j = 0; j < 14; ++j) {
                const bool mine = list.view()(position{b, h, i * 20, j * 16, 170, 210});
                ASSERT_EQ(mine, kept(b, h, i, j)) << b << h << " " << i << " " << j;
                count += mine;
              }
            }
          }
        }
        EXPECT_GT(count, 2 * 4 * 9);
        EXPECT_LT(count, 2 * 4 * 9 * 12);
        if (causal) {
          sparse::sparge<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), keep, how,
                                    heed::causal{});
        } else {
          sparse::sparge<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), keep, how);
        }
      };
      if (by_mass) {
        run(sparse::top_p(0.6, false));
      } else {
        run(sparse::top_k(3));
      }
      x.expect([&](const position& p) {
        return (!causal || p.k <= p.aligned_q()) && kept(p.batch, p.head, p.q / 20, p.k / 16);
      });
    }
  }
}

// Grouped heads, values of another depth, padding, and entries of the batch with and without global
// tokens.
TYPED_TEST(sparse_methods, longformer) {
  const index_t length = 45, window = 4;
  operands local(2, 4, 2, length, length, 16, 1), global(2, 4, 2, length, length, 16, 7);
  std::vector<index_t> state(2 * length, 0);
  for (const index_t token : {0, 17, 30}) state[static_cast<std::size_t>(token)] = 1;
  for (index_t token = 40; token < length; ++token) state[static_cast<std::size_t>(token)] = -1;
  const tensor_view<const index_t, 2> of(state.data(), {2, length});
  const auto call = [&](const auto& vg) {
    sparse::longformer<TypeParam>(local.q.read(), local.k.read(), local.v.read(),
                                  global.q.read().slice(2, 0, 3), global.k.read(), vg, of, window,
                                  local.out.view());
  };
  const auto wrong = tensor<float>(2, 2, length, 16).fill(9);
  EXPECT_EQ(heed_test::error_of([&] { call(wrong.read()); }),
            "vg: extent 16 of axis 3, must be 19");
  local.out.for_each([](float& x) { EXPECT_TRUE(heed_test::is_nan(static_cast<double>(x))); });

  call(global.v.read());
  reference::options how;
  how.visible = [&](const position& p) { return of(p.batch, p.k) >= 0; };
  reference::attention(global.q.read(), global.k.read(), global.v.read(), global.wanted.view(),
                       how);
  how.visible = [&](const position& p) {
    return of(p.batch, p.q) >= 0 &&
           (of(p.batch, p.k) == 1 || (of(p.batch, p.k) == 0 && std::abs(p.q - p.k) <= window));
  };
  reference::attention(local.q.read(), local.k.read(), local.v.read(), local.wanted.view(), how);
  const index_t tokens[] = {0, 17, 30};
  for (index_t h = 0; h < 4; ++h) {
    for (index_t n = 0; n < 3; ++n) {  // row n of qg is the n-th global token
      for (index_t d = 0; d < 19; ++d) {
        local.wanted.view()(0, h, tokens[n], d) = global.wanted.read()(0, h, n, d);
      }
    }
  }
  EXPECT_LE(heed_test::worst_error(local.out.read(), local.wanted.read(), 5e-6), 1e-5);
  EXPECT_EQ(local.out.overwritten_around(), 0);
}

TYPED_TEST(sparse_methods, lsh) {
  unsigned seed = 70;
  for (const auto& [length, chunk, rounds] :
       {std::array<index_t, 3>{96, 8, 2}, {120, 40, 3}, {65, 5, 1}, {64, 64, 1}, {7, 7, 2}}) {
    for (const bool causal : {false, true}) {
      for (const int kind : {0, 1, 2}) {
        SCOPED_TRACE("length " + std::to_string(length) + " kind " + std::to_string(kind));
        tensor<float> x(2, 2, length, 20, layout::interleaved), v(2, 2, length, 9, layout::padded),
            out(2, 2, length, 9, layout::by_token);
        x.fill(++seed), v.fill(++seed);
        std::mt19937 generator(++seed);
        std::normal_distribution<float> normal;
        std::vector<float> turns(static_cast<std::size_t>(20 * rounds * 3));
        for (float& t : turns) t = normal(generator);
        const auto buckets = sparse::lsh_buckets(
            x.read(), tensor_view<const float, 3>(turns.data(), {20, rounds, 3}));
        const tensor_view<const index_t, 4> numbers(buckets.data(), {2, 2, rounds, length});
        sparse::lsh_options how;
        how.chunk = chunk, how.causal = causal;
        how.duplicates = kind == 0, how.across_buckets = kind != 2;
        // A self score that float can tell from a lone neighbour's, and that shows in sums.
        how.self_score = -2;
        sparse::lsh_attention<TypeParam>(x.read(), v.read(), out.view(), numbers, how);
        tensor<double> wanted(2, 2, length, 9);
        reference::lsh_options oracle{chunk, causal, kind != 2, kind == 0, -2, 1 / std::sqrt(20.0)};
        reference::lsh_attention(
            x.read(), v.read(), wanted.view(), rounds,
            [&](index_t b, index_t h, index_t r, index_t t) { return numbers(b, h, r, t); },
            oracle);
        EXPECT_LE(heed_test::worst_error(out.read(), wanted.read(), 5e-6), 2e-5);
        EXPECT_EQ(out.overwritten_around(), 0);
      }
    }
  }
}

}  // namespace
