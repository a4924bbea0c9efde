// Score terms in the engine: a term that writes down where it is called meets every visible score
// once, with its own place and operands, packed and in place, over several blocks and sources.
#include "heed/engine/score_terms.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/dense.hpp"
#include "heed/score/softcap.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;
namespace reference = heed::reference;

double of_place(index_t head, index_t q, index_t k) {
  return 0.25 * static_cast<double>((head * 5 + q * 3 + k * 7) % 13);
}

// Adds sign·of_place, and the first channels of query and key times `weight`.
struct placed_term {
  static constexpr bool is_score_term = true;
  double weight = 0;

  template <class S, class P>
  S operator()(S s, const P&) const {
    return s;
  }
  template <class Tiles>
  class worker {
   public:
    worker(const placed_term& term, const heed::term_sizes& sizes, heed::detail::bump& memory)
        : weight_(term.weight), sizes_(sizes) {
      mark_ = memory.take<double>(1);
    }
    template <class Tile>
    void add(const Tile& tile) {
      if (mark_ != nullptr) *mark_ = 1;  // memory of its own
      EXPECT_LE(tile.rows, sizes_.strip_rows);
      EXPECT_LE(tile.first_row + tile.rows, sizes_.item_rows);
      EXPECT_LT(tile.step * 64, sizes_.block_keys);
      EXPECT_EQ(tile.depth, sizes_.depth);
      using real = std::remove_cvref_t<decltype(*tile.scores)>;
      for (int r = 0; r < tile.rows; ++r) {
        const auto row = tile.row_at(tile.first_row + r);
        for (int c = 0; c < tile.count; ++c) {
          const index_t k = tile.first_key + c;
          const double product =
              static_cast<double>(row.query[0]) * static_cast<double>(tile.key_rows[k][0]);
          tile.scores[r * tile.stride + c] += static_cast<real>(
              static_cast<double>(tile.sign) * (of_place(row.head, row.q, k) + weight_ * product));
        }
      }
    }

   private:
    double weight_;
    heed::term_sizes sizes_;
    double* mark_ = nullptr;
  };
};
static_assert(heed::score_term<placed_term>);

template <class Backend>
class score_terms : public ::testing::Test {};
TYPED_TEST_SUITE(score_terms, heed_test::all_backends, heed_test::backend_name);

TYPED_TEST(score_terms, are_added_before_the_scale_and_the_scores) {
  for (const index_t queries : {1, 3, 50}) {
    const index_t heads = 4, keys = 700;
    tensor<float> q(2, heads, queries, 9), k(2, 2, keys, 9), v(2, 2, keys, 8);
    q.fill(1), k.fill(2), v.fill(3);
    for (const double scale : {0.3, -0.2}) {
      reference::options how;
      how.scale = scale;
      how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
      how.scores = {[&](double s, const heed::position& p) {
                      const double product =
                          static_cast<double>(q.read()(p.batch, p.head, p.q, 0)) *
                          static_cast<double>(k.read()(p.batch, p.head / 2, p.k, 0));
                      return s + scale * (of_place(p.head, p.q, p.k) + 0.5 * product);
                    },
                    [](double s, const heed::position&) { return 4 * std::tanh(s / 4); }};
      tensor<float> out(2, heads, queries, 8);
      tensor<double> wanted(2, heads, queries, 8);
      reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
      heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), placed_term{0.5},
                                 heed::softcap{4.f}, heed::causal{}, heed::scale{scale});
      EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 1e-5)
          << queries << " queries, scale " << scale;
    }
  }
}

TYPED_TEST(score_terms, belong_to_their_source) {
  tensor<float> q(1, 2, 20, 8), k(1, 2, 90, 8), v(1, 2, 90, 8), all_k(1, 2, 180, 8),
      all_v(1, 2, 180, 8), out(1, 2, 20, 8);
  q.fill(1), k.fill(2), v.fill(3);
  for (index_t h = 0; h < 2; ++h) {
    for (index_t t = 0; t < 180; ++t) {
      for (index_t d = 0; d < 8; ++d) {
        all_k.view()(0, h, t, d) = k.view()(0, h, t % 90, d);
        all_v.view()(0, h, t, d) = v.view()(0, h, t % 90, d) + (t < 90 ? 0.f : 1.f);
      }
    }
  }
  reference::options how;
  const double scale = 0.5;
  how.scale = scale;
  how.scores = {[&](double s, const heed::position& p) {
    return p.k < 90 ? s : s + scale * of_place(p.head, p.q, p.k - 90);
  }};
  tensor<double> wanted(1, 2, 20, 8);
  reference::attention(q.read(), all_k.read(), all_v.read(), wanted.view(), how);
  const auto second_v = all_v.read().slice(2, 90, 90);
  heed::attention<TypeParam>(q.read(),
                             heed::sources{heed::source{k.read(), v.read()},
                                           heed::source{k.read(), second_v, placed_term{}}},
                             out.view(), heed::scale{scale});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 1e-5);
}

}  // namespace
