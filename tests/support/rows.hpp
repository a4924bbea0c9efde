// What tests of observers share: a call with every observer, compared with the oracle's weights.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/observer/block_maxima.hpp"
#include "heed/observer/column_sums.hpp"
#include "heed/observer/row_entropy.hpp"
#include "heed/observer/scores.hpp"
#include "heed/observer/top_keys.hpp"
#include "heed/observer/weights.hpp"
#include "heed/reference/rows.hpp"
#include "support/tensor.hpp"

namespace heed_test {

// Targets of all observers for a call of shape [B, Hq, Lq, Lk], full of rubbish.
struct observed {
  static constexpr index_t most = 5, query_block = 7, key_block = 24;
  index_t batches, heads, queries, keys;
  std::vector<float> sums, entropy, maxima, weights, scores, largest, top_weights;
  std::vector<int> top;

  observed(index_t b, index_t h, index_t lq, index_t lk)
      : batches(b), heads(h), queries(lq), keys(lk) {
    const auto size = [](index_t n) { return static_cast<std::size_t>(n); };
    sums.assign(size(b * h * lk), 77);
    entropy.assign(size(b * h * lq), 77);
    largest.assign(size(b * h * lq), 77);
    maxima.assign(size(b * h * down() * across()), 77);
    weights.assign(size(b * h * lq * lk), 77);
    scores.assign(size(b * h * lq * lk), 77);
    top_weights.assign(size(b * h * lq * most), 77);
    top.assign(size(b * h * lq * most), 77);
  }
  index_t down() const { return (queries + query_block - 1) / query_block; }
  index_t across() const { return (keys + key_block - 1) / key_block; }

  // The modifiers, for use(observers...).
  template <class Use>
  void with_all(Use use) {
    using view3 = heed::tensor_view<float, 3>;
    using view4 = heed::tensor_view<float, 4>;
    use(heed::column_sums_to{view3(sums.data(), {batches, heads, keys})},
        heed::row_entropy_to{view3(entropy.data(), {batches, heads, queries})},
        heed::largest_scores_to{view3(largest.data(), {batches, heads, queries})},
        heed::block_maxima_to{view4(maxima.data(), {batches, heads, down(), across()}), query_block,
                              key_block},
        heed::weights_to{view4(weights.data(), {batches, heads, queries, keys})},
        heed::scores_to{view4(scores.data(), {batches, heads, queries, keys})},
        heed::top_keys_to{
            heed::tensor_view<int, 4>(top.data(), {batches, heads, queries, index_t{most}}),
            view4(top_weights.data(), {batches, heads, queries, index_t{most}})});
  }

  static void expect_near(const std::vector<float>& got, const std::vector<double>& wanted,
                          double tolerance, const char* what) {
    ASSERT_EQ(got.size(), wanted.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double g = static_cast<double>(got[i]), w = wanted[i];
      if (g == w) continue;  // infinities
      ASSERT_LE(std::abs(g - w), tolerance * (1 + std::abs(w))) << what << ' ' << i;
    }
  }

  void compare(const heed::reference::weighted_result& truth, double tolerance = 1e-5) const {
    expect_near(weights, truth.weights, tolerance, "weights");
    expect_near(scores, truth.scores, tolerance, "scores");
    expect_near(sums, heed::reference::column_sums(truth.weights, queries, keys), tolerance,
                "sums");
    expect_near(entropy, heed::reference::row_entropy(truth.weights, keys), tolerance, "entropy");
    expect_near(maxima,
                heed::reference::block_maxima(truth.weights, queries, keys, query_block, key_block),
                tolerance, "maxima");
    const auto width = static_cast<std::size_t>(keys);
    for (std::size_t row = 0; row < entropy.size(); ++row) {
      double top_score = -HUGE_VAL;
      std::vector<int> order;
      for (std::size_t j = 0; j < width; ++j) {
        top_score = std::max(top_score, truth.scores[row * width + j]);
        if (truth.scores[row * width + j] > -HUGE_VAL) order.push_back(static_cast<int>(j));
      }
      ASSERT_TRUE(top_score == static_cast<double>(largest[row]) ||
                  std::abs(top_score - static_cast<double>(largest[row])) <=
                      tolerance * (1 + std::abs(top_score)));
      // By the weights that the call itself reports: equal ones keep their order.
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return weights[row * width + static_cast<std::size_t>(a)] >
               weights[row * width + static_cast<std::size_t>(b)];
      });
      for (std::size_t rank = 0; rank < most; ++rank) {
        const std::size_t at = row * most + rank;
        ASSERT_EQ(top[at], rank < order.size() ? order[rank] : -1) << "row " << row;
        ASSERT_EQ(top_weights[at],
                  rank < order.size() ? weights[row * width + static_cast<std::size_t>(order[rank])]
                                      : 0.f);
      }
    }
  }
};

}  // namespace heed_test
