// What selects from a quantised store: policies score its codes as they score the numbers that the
// codes stand for, and attention reads a subset of its rows in place, as it does of other stores.
#include "heed/cache/contiguous.hpp"
#include "heed/cache/policies/h2o.hpp"
#include "heed/cache/policies/keydiff.hpp"
#include "heed/cache/policies/l2_norm.hpp"
#include "heed/cache/policies/lagkv.hpp"
#include "heed/cache/policies/snapkv.hpp"
#include "heed/cache/policies/tova.hpp"
#include "heed/cache/quantized.hpp"
#include "heed/cache/subset.hpp"
#include "heed/reference/cache.hpp"
#include "support/backends.hpp"
#include "support/cache_checks.hpp"

namespace {

namespace cache = heed::cache;
namespace reference = heed::reference;
using heed::index_t;
using heed::tensor_view;
using heed_test::tensor;

constexpr index_t batches = 2, heads = 6, key_heads = 3, group = 2, depth = 24, value_depth = 20;

template <class Store>
Store filled(Store store, index_t length) {
  const auto k = tensor<float>(batches, key_heads, length, depth).fill(2, 1.5);
  const auto v = tensor<float>(batches, key_heads, length, value_depth).fill(3);
  store.append(k.view(), v.view());
  return store;
}
// A store of the numbers that a quantised one stands for.
template <class Store>
cache::contiguous<float> widened(const Store& store) {
  const auto numbers = [&](const auto& codes) {
    tensor<float> x(batches, key_heads, codes.extent(2), codes.extent(3));
    for (index_t row = 0; row < batches * key_heads * codes.extent(2); ++row) {
      const index_t b = row / codes.extent(2) / key_heads, h = row / codes.extent(2) % key_heads;
      for (index_t d = 0; d < codes.extent(3); ++d) {
        const index_t i = row % codes.extent(2);
        x.view()(b, h, i, d) = static_cast<float>(codes.value(b, h, i, d));
      }
    }
    return x;
  };
  const auto k = numbers(store.keys()), v = numbers(store.values());
  cache::contiguous<float> result(batches, key_heads, store.capacity(), depth, value_depth);
  result.append(k.view(), v.view());
  return result;
}

template <class Store, class Policy>
std::vector<double> scores_of(const Store& store, const Policy& policy, const tensor<float>& q) {
  const auto e = cache::detail::evidence_of(q.view(), store.keys(), store.values(), store.kept());
  std::vector<double> scores(static_cast<std::size_t>(batches * key_heads * store.size()));
  policy.score(e, tensor_view<double, 3>(scores.data(), {batches, key_heads, store.size()}));
  return scores;
}

template <class Store>
void expect_scores_of_numbers(Store store, bool same_for_all_heads) {
  auto numbers = widened(store);
  std::mt19937 random(11);
  auto chosen = heed_test::random_choice(store.kept(), random, 60);
  for (index_t h = 1; same_for_all_heads && h < key_heads; ++h) {
    for (index_t b = 0; b < batches; ++b) chosen.at(b, h) = chosen.at(b, 0);
  }
  store.keep(chosen);
  numbers.keep(chosen);
  const auto q = tensor<float>(batches, heads, 9, depth).fill(1, 1.5);
  const auto expect = [&](const auto& policy) {
    const auto got = scores_of(store, policy, q), wanted = scores_of(numbers, policy, q);
    double largest = 0;
    for (const double w : wanted) {
      largest = std::max(largest, w == cache::highest_score ? 0 : std::abs(w));
    }
    EXPECT_GT(largest, 0);
    // Integer products round queries to 2^-16 of their largest channel.
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_NEAR(got[i], wanted[i], 1e-4 * largest) << i;
    }
  };
  if (same_for_all_heads) {
    expect(cache::tova{});
    return;
  }
  expect(cache::attention_received<>{});
  expect(cache::snapkv(4, 5));
  expect(cache::l2_norm{});
  expect(cache::keydiff{});
  expect(cache::lagkv(3, 8));
}

TEST(quantized_policies, score_the_numbers_that_codes_stand_for) {
  for (const bool same : {false, true}) {
    expect_scores_of_numbers(
        filled(cache::quantized<>(batches, key_heads, 150, depth, value_depth, 8), 150), same);
    expect_scores_of_numbers(
        filled(cache::quantized<heed::int4_pair>(batches, key_heads, 90, depth, value_depth), 90),
        same);
  }
}

// Heavy hitters, evicted token by token.
TEST(quantized_policies, evict_as_they_do_from_numbers) {
  const auto q = tensor<float>(batches, heads, 60, depth).fill(1, 2);
  const auto all =
      widened(filled(cache::quantized<>(batches, key_heads, 60, depth, value_depth), 60));
  cache::quantized<> store(batches, key_heads, 20, depth, value_depth);
  cache::contiguous<float> numbers(batches, key_heads, 20, depth, value_depth);
  auto policy = cache::h2o(4), policy_of_numbers = cache::h2o(4);
  for (index_t token = 0; token < 60; ++token) {
    const auto k = all.keys().slice(2, token, 1), v = all.values().slice(2, token, 1);
    store.append(k, v);
    numbers.append(k, v);
    const auto query = q.view().slice(2, token, 1);
    cache::compress(policy, query, store, 19);
    cache::compress(policy_of_numbers, query, numbers, 19);
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < key_heads; ++h) {
        ASSERT_TRUE(std::ranges::equal(store.kept().at(b, h), numbers.kept().at(b, h))) << token;
      }
    }
  }
  EXPECT_EQ(store.size(), 19);
}

template <class Backend>
class subsets : public testing::Test {};
TYPED_TEST_SUITE(subsets, heed_test::method_backends, heed_test::backend_name);

// Causal attention over `some`, whose slots are the listed ones of the store.
template <class Backend, class Store, class Subset>
void expect_attention(const Store& store, const Subset& some, const cache::kept_tokens& slots,
                      index_t queries) {
  const auto q = tensor<float>(batches, heads, queries, depth, heed_test::layout::by_token).fill(1);
  tensor<float> out(batches, heads, queries, value_depth, heed_test::layout::padded);
  heed::attention<Backend>(q.view(), some, out.view(), heed::causal{});
  tensor<double> wanted(batches, heads, queries, value_depth);
  reference::options how;
  how.visible = [&](const heed::position& p) {
    const auto& list = slots.at(p.batch, p.head / group);
    const auto token = store.kept().at(p.batch, p.head / group);
    return std::binary_search(list.begin(), list.end(), p.k) &&
           token[static_cast<std::size_t>(p.k)] <= p.q + store.seen() - queries;
  };
  reference::attention(q.view(), store.keys(), store.values(), wanted.view(), how);
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 2e-5);
  EXPECT_EQ(out.overwritten_around(), 0);
}

template <class Backend, class Store>
void expect_subsets(Store store) {
  std::mt19937 random(7);
  store.keep(heed_test::random_choice(store.kept(), random, 90));
  for (const index_t queries : {1, 5, 40}) {
    auto slots = heed_test::random_choice(store.kept(), random, 30);
    if (queries == 5) slots.at(1, 2).clear();
    const auto some = cache::subset(store, slots);
    expect_attention<Backend>(store, some, slots, queries);
    // Some of the subset.
    const auto fewer = heed_test::random_choice(some.kept(), random, 50);
    auto original = fewer;
    for (index_t list = 0; list < batches * key_heads; ++list) {
      for (index_t& slot : original.at(list / key_heads, list % key_heads)) {
        slot = slots.at(list / key_heads, list % key_heads)[static_cast<std::size_t>(slot)];
      }
    }
    expect_attention<Backend>(store, cache::subset(some, fewer), original, queries);
  }
}

TYPED_TEST(subsets, are_read_in_place) {
  expect_subsets<TypeParam>(
      filled(cache::contiguous<float>(batches, key_heads, 333, depth, value_depth), 333));
  expect_subsets<TypeParam>(
      filled(cache::quantized<>(batches, key_heads, 340, depth, value_depth, 8), 333));
  expect_subsets<TypeParam>(
      filled(cache::quantized<heed::int4_pair>(batches, key_heads, 333, depth, value_depth), 333));
}

}  // namespace
