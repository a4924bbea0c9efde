// Selectors and estimators against their definitions: ties, infinities, NaN, masses.
#include "heed/sparse/select.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/reference/sparse.hpp"
#include "heed/sparse/estimate.hpp"
#include "support/sparse_lists.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::error_of;
using heed_test::tensor;
namespace reference = heed::reference;
namespace sparse = heed::sparse;

constexpr float infinity = std::numeric_limits<float>::infinity();

// What a selector keeps of one row.
template <class Selector>
std::vector<index_t> kept(const std::vector<float>& scores, const Selector& keep) {
  const auto count = static_cast<index_t>(scores.size());
  const auto list = sparse::select(
      heed::tensor_view<const float, 4>(scores.data(), {1, 1, 1, count}), keep, 1, 1);
  return list.blocks;
}
using numbers = std::vector<index_t>;

TEST(select, top_k) {
  EXPECT_EQ(kept({1, 5, 3, 4}, sparse::top_k(2)), (numbers{1, 3}));
  EXPECT_EQ(kept({2, 2, 7, 2, 2}, sparse::top_k(3)), (numbers{0, 1, 2}));  // ties: lower first
  EXPECT_EQ(kept({0.0f, -0.0f, -1}, sparse::top_k(1)), (numbers{0}));
  EXPECT_EQ(kept({-0.0f, 0.0f, -1}, sparse::top_k(1)), (numbers{0}));
  EXPECT_EQ(kept({1, -infinity, 3, NAN, infinity}, sparse::top_k(9)), (numbers{0, 2, 4}));
  EXPECT_EQ(kept({1, -infinity, 3, NAN, infinity}, sparse::top_k(1)), (numbers{4}));
  EXPECT_EQ(kept({-infinity, -infinity}, sparse::top_k(1)), numbers{});
  EXPECT_EQ(kept({}, sparse::top_k(1)), numbers{});
}

TEST(select, top_p) {
  const auto logs = [](std::vector<float> weights) {
    for (float& w : weights) w = std::log(w);
    return weights;
  };
  const auto row = logs({0.1f, 0.4f, 0.2f, 0.3f});
  EXPECT_EQ(kept(row, sparse::top_p(0.35)), (numbers{1}));
  EXPECT_EQ(kept(row, sparse::top_p(0.65)), (numbers{1, 3}));
  EXPECT_EQ(kept(row, sparse::top_p(0.75)), (numbers{1, 2, 3}));
  EXPECT_EQ(kept(row, sparse::top_p(1)), (numbers{0, 1, 2, 3}));
  // Without the one that goes beyond the mass.
  EXPECT_EQ(kept(row, sparse::top_p(0.75, false)), (numbers{1, 3}));
  EXPECT_EQ(kept(row, sparse::top_p(0.05, false)), (numbers{1}));
  // Forced ones come on top and take no mass.
  EXPECT_EQ(kept({row[0], row[1], infinity, row[3]}, sparse::top_p(0.45)), (numbers{1, 2}));
  EXPECT_EQ(kept({infinity, -infinity}, sparse::top_p(0.5)), (numbers{0}));
  EXPECT_EQ(kept({1, 1, 1, 1}, sparse::top_p(0.5)), (numbers{0, 1}));
  EXPECT_EQ(kept({1e30f, 1, NAN}, sparse::top_p(0.9)), (numbers{0}));
}

TEST(select, threshold) {
  EXPECT_EQ(kept({1, 5, 3, -infinity, NAN, infinity}, sparse::threshold(3)), (numbers{1, 2, 5}));
  EXPECT_EQ(kept({-2, -1, -3}, sparse::threshold(-2)), (numbers{0, 1}));
}

TEST(select, random_rows_match_the_oracle_on_any_executor) {
  std::mt19937 generator(3);
  std::uniform_int_distribution<int> draw(-40, 40);
  sparse::table scores({2, 3, 20, 37});
  for (float& x : scores.values) x = static_cast<float>(draw(generator)) / 8;  // with ties
  const sparse::table& read = scores;
  heed::thread_pool pool(3);
  const auto expect = [&](const auto& keep, const reference::row_selector& oracle) {
    const auto list = sparse::select(read.view(), keep, 8, 16);
    const auto threaded = sparse::select(read.view(), keep, 8, 16, pool);
    EXPECT_EQ(list.blocks, threaded.blocks);
    EXPECT_EQ(list.offsets, threaded.offsets);
    for (std::size_t r = 0; r < 120; ++r) {
      const std::vector<double> row(scores.values.begin() + static_cast<long>(r * 37),
                                    scores.values.begin() + static_cast<long>(r * 37 + 37));
      const std::vector<bool> wanted = oracle(row, std::vector<bool>(37, true));
      std::vector<bool> got(37);
      for (index_t i = list.offsets[r]; i < list.offsets[r + 1]; ++i) {
        got[static_cast<std::size_t>(list.blocks[static_cast<std::size_t>(i)])] = true;
      }
      ASSERT_EQ(got, wanted) << r;
    }
  };
  for (index_t count : {1, 5, 36, 37, 50}) {
    expect(sparse::top_k(count), [=](const auto& row, const auto& candidates) {
      return reference::highest(row, candidates, count);
    });
  }
  for (double mass : {0.01, 0.5, 0.9, 0.999, 1.0}) {
    for (bool crossing : {true, false}) {
      expect(sparse::top_p(mass, crossing), [=](const auto& row, const auto& candidates) {
        return reference::nucleus(row, candidates, mass, crossing);
      });
    }
  }
}

TEST(select, refuses_bad_arguments) {
  EXPECT_EQ(error_of([] { sparse::top_k(0); }), "top_k: count 0 is not positive");
  EXPECT_EQ(error_of([] { sparse::top_k(-3); }), "top_k: count -3 is not positive");
  EXPECT_EQ(error_of([] { sparse::top_p(0); }), "top_p: mass 0 is outside of (0, 1]");
  EXPECT_EQ(error_of([] { sparse::top_p(1.5); }), "top_p: mass 1.5 is outside of (0, 1]");
  EXPECT_EQ(error_of([] { sparse::threshold(-HUGE_VAL); }),
            "threshold: the least score is not a number");
  EXPECT_EQ(error_of([] {
              const float score = 1;
              sparse::select(heed::tensor_view<const float, 4>(&score, {1, 1, 1, 1}),
                             sparse::top_k(1), 0, 4);
            }),
            "block list: block_q 0 is not positive");
}

// Every estimator against a plain sum in double.
TEST(estimate, scores_are_what_they_say) {
  tensor<float> q(2, 4, 37, 19, heed_test::layout::interleaved),
      k(2, 2, 53, 19, heed_test::layout::by_token);
  q.fill(1), k.fill(2);
  const auto query = q.read(), key = k.read();
  heed::thread_pool pool(3);
  const auto pooled = sparse::pooled_scores(query, key, 8, 10, 0, pool);
  const auto bounds = sparse::bound_scores(query, sparse::block_bounds(key, 10, pool), 0.5, pool);
  const auto most = sparse::maximum_scores(query, key, 10, 0.25, true, pool);
  const auto mass = sparse::sampled_mass(query, key, 5, 4, 0.3, true, pool);
  ASSERT_EQ(pooled.extents, (heed::tensor_view<float, 4>::shape{2, 4, 5, 6}));
  ASSERT_EQ(mass.extents, (heed::tensor_view<float, 4>::shape{2, 4, 1, 53}));
  const auto product = [&](index_t b, index_t h, index_t i, index_t j) {
    double sum = 0;
    for (index_t d = 0; d < 19; ++d) {
      sum += static_cast<double>(query(b, h, i, d)) * static_cast<double>(key(b, h / 2, j, d));
    }
    return sum;
  };
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < 4; ++h) {
      for (index_t j = 0; j < 6; ++j) {
        const index_t first = j * 10, last = std::min<index_t>(53, first + 10);
        for (index_t i = 0; i < 5; ++i) {
          double sum = 0;
          const index_t begin = i * 8, end = std::min<index_t>(37, begin + 8);
          for (index_t x = begin; x < end; ++x) {
            for (index_t y = first; y < last; ++y) sum += product(b, h, x, y);
          }
          sum /= static_cast<double>((end - begin) * (last - first)) * std::sqrt(19.0);
          ASSERT_NEAR(static_cast<double>(pooled.view()(b, h, i, j)), sum, 1e-5);
        }
        for (index_t i = 0; i < 37; ++i) {
          double bound = 0, best = -HUGE_VAL;
          for (index_t d = 0; d < 19; ++d) {
            double highest = -HUGE_VAL;
            for (index_t y = first; y < last; ++y) {
              highest = std::max(highest, static_cast<double>(query(b, h, i, d)) *
                                              static_cast<double>(key(b, h / 2, y, d)));
            }
            bound += highest;
          }
          for (index_t y = first; y < last && y <= i + 16; ++y) {
            best = std::max(best, product(b, h, i, y));
          }
          ASSERT_NEAR(static_cast<double>(bounds.view()(b, h, i, j)), 0.5 * bound, 1e-5);
          const double got = static_cast<double>(most.view()(b, h, i, j));
          if (got != 0.25 * best) {
            ASSERT_NEAR(got, 0.25 * best, 1e-5);
          }
        }
      }
      std::vector<double> wanted(53);
      for (index_t i = 5; i < 37; i += 4) {
        double total = 0;
        for (index_t y = 0; y <= i + 16; ++y) total += std::exp(0.3 * product(b, h, i, y));
        for (index_t y = 0; y <= i + 16; ++y) {
          wanted[static_cast<std::size_t>(y)] += std::exp(0.3 * product(b, h, i, y)) / total / 8;
        }
      }
      for (index_t y = 0; y < 53; ++y) {
        ASSERT_NEAR(static_cast<double>(mass.view()(b, h, 0, y)),
                    wanted[static_cast<std::size_t>(y)], 1e-6);
      }
    }
  }
}

TEST(estimate, causality_by_blocks) {
  sparse::table scores({1, 1, 3, 5}, 1.0f);
  sparse::make_causal(scores.view(), {4, 3, 10, 13}, true);
  // Queries stand at keys 3…6, 7…10, 11…12.
  const std::vector<float> wanted = {1, infinity, infinity, -infinity, -infinity,  //
                                     1, 1,        infinity, infinity,  -infinity,  //
                                     1, 1,        1,        infinity,  infinity};
  EXPECT_EQ(scores.values, wanted);
}

TEST(estimate, refuses_what_does_not_fit) {
  tensor<float> q(2, 4, 8, 6), k(1, 4, 8, 6), three(2, 3, 8, 6), deep(2, 4, 8, 7);
  const auto scores = [&](const tensor<float>& keys) {
    return error_of([&] { sparse::pooled_scores(q.read(), keys.read(), 2, 2); });
  };
  EXPECT_EQ(scores(k), "k: batch 1 differs from q's 2");
  EXPECT_EQ(scores(three), "k: head count 3 does not divide query head count 4");
  EXPECT_EQ(scores(deep), "k: depth 7 differs from q's 6");
  EXPECT_EQ(error_of([&] { sparse::pooled_means(q.read(), 0); }), "block: 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::block_bounds(q.read(), 0); }), "block: 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::maximum_scores(q.read(), q.read(), 0, 1, true); }),
            "block_k: 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::sampled_mass(q.read(), q.read(), 8, 1, 1, true); }),
            "first: 8 must lie in [0, 8)");
  EXPECT_EQ(error_of([&] { sparse::sampled_mass(q.read(), q.read(), 0, 0, 1, true); }),
            "step: 0 is not positive");
}

}  // namespace
