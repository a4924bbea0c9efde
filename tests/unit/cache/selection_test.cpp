// Keeping and selecting where there is little to select from.
#include <gtest/gtest.h>

#include <limits>
#include <type_traits>
#include <vector>

#include "heed/cache/budget.hpp"
#include "heed/cache/contiguous.hpp"
#include "heed/cache/policies/streaming_llm.hpp"
#include "heed/cache/subset.hpp"
#include "support/cache_checks.hpp"
#include "support/tensor.hpp"

namespace {

namespace cache = heed::cache;
using heed::index_t;
using heed::tensor_view;
using heed_test::tensor;

TEST(cache_selection, a_store_without_tokens_keeps_none) {
  cache::contiguous<float> store(1, 1, 8, 4);
  store.keep(cache::all_but(store, 0, 0));
  EXPECT_EQ(store.size(), 0);
  const auto k = tensor<float>(1, 1, 3, 4).fill(1);
  store.append(k.read(), k.read());
  EXPECT_EQ(store.size(), 3);
}

TEST(cache_selection, nan_is_the_lowest_score) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  cache::contiguous<float> store(1, 1, 64, 4);
  const auto k = tensor<float>(1, 1, 40, 4).fill(1);
  store.append(k.read(), k.read());
  std::vector<double> scores;
  for (index_t i = 0; i < 40; ++i) scores.push_back(i % 3 == 0 ? double(nan) : double(i));
  const cache::kept_tokens kept = cache::top_tokens(
      tensor_view<const double, 3>(scores.data(), {1, 1, 40}), store.kept(), cache::budget(10));
  const std::vector<index_t> wanted{25, 26, 28, 29, 31, 32, 34, 35, 37, 38};
  EXPECT_EQ(std::vector<index_t>(kept.at(0, 0).begin(), kept.at(0, 0).end()), wanted);
}

TEST(cache_selection, scores_are_those_of_the_slots) {
  cache::contiguous<float> store(1, 2, 8, 4);
  const auto k = tensor<float>(1, 2, 5, 4).fill(1);
  store.append(k.read(), k.read());
  const std::vector<double> scores(16, 1.0);
  const auto with = [&](index_t b, index_t h, index_t n) {
    return heed_test::error_of([&] {
      cache::top_tokens(tensor_view<const double, 3>(scores.data(), {b, h, n}), store.kept(), 2);
    });
  };
  EXPECT_EQ(with(1, 2, 5), "accepted");
  EXPECT_EQ(with(1, 2, 4), "scores: 4 for the 5 slots of batch 0, head 0");
  EXPECT_EQ(with(1, 1, 5), "scores: [1, 1] batches and heads are not the 1 and 2 of the cache");
}

// A subset's spans point into itself.
TEST(cache_selection, a_subset_moves_and_is_not_copied) {
  cache::contiguous<float> store(1, 1, 8, 4);
  const auto k = tensor<float>(1, 1, 5, 4).fill(1);
  store.append(k.read(), k.read());
  auto first = cache::subset(store, cache::all_but(store, 1, 3));
  using subset = decltype(first);
  static_assert(!std::is_copy_constructible_v<subset>);
  static_assert(!std::is_copy_assignable_v<subset>);
  static_assert(std::is_move_constructible_v<subset>);
  const auto second = std::move(first);
  const auto tokens = second.kept().at(0, 0);
  EXPECT_EQ(std::vector<index_t>(tokens.begin(), tokens.end()), (std::vector<index_t>{0, 3, 4}));
}

}  // namespace
