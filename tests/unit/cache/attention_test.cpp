// Attention over stores: what masks and scores see is the whole sequence, less the tokens that were
// evicted. Compacted, paged and retrieved tokens against the oracle over all tokens.
#include "heed/cache/attention.hpp"

#include "heed/cache/contiguous.hpp"
#include "heed/cache/paged.hpp"
#include "heed/cache/subset.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/reference/cache.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "support/backends.hpp"
#include "support/cache_checks.hpp"

namespace {

namespace cache = heed::cache;
namespace reference = heed::reference;
using heed::index_t;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::layout;
using heed_test::tensor;

constexpr index_t heads = 6, key_heads = 3, group = 2, depth = 24, value_depth = 20;

template <class Backend>
class cache_attention : public testing::Test {};
TYPED_TEST_SUITE(cache_attention, heed_test::method_backends, heed_test::backend_name);

// Per batch entry and KV head.
using positions = std::vector<std::vector<index_t>>;
template <class Kept>
positions positions_of(const Kept& kept) {
  positions result;
  for (index_t b = 0; b < static_cast<index_t>(kept.seen.size()); ++b) {
    for (index_t h = 0; h < key_heads; ++h) {
      result.emplace_back(kept.at(b, h).begin(), kept.at(b, h).end());
    }
  }
  return result;
}

const std::vector<float> slopes = {0.5f, 0.25f, 0.1f, 0.05f, 0.02f, 0.01f};
double with_alibi(double s, const heed::position& p) {
  return s - static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                 static_cast<double>(std::abs(p.k - p.aligned_q()));
}

// The oracle over one sequence's tokens [1, Hkv, seen, D] of which the listed ones are left.
void expect_attention(const tensor_view<const float, 4>& got, const tensor_view<const float, 4>& q,
                      const tensor_view<const float, 4>& k, const tensor_view<const float, 4>& v,
                      const positions& kept, reference::options how) {
  tensor<double> wanted(q.extent(0), heads, q.extent(2), value_depth);
  reference::attention_over_kept(
      q, k, v, wanted.view(),
      [&](index_t b, index_t h) -> const std::vector<index_t>& {
        return kept[static_cast<std::size_t>(b * key_heads + h)];
      },
      std::move(how));
  EXPECT_LE(heed_test::worst_error(got, wanted.read()), 1e-5);
}

TYPED_TEST(cache_attention, of_compacted_tokens) {
  std::mt19937 random(5);
  for (const index_t length : {9, 150, 333}) {
    for (const index_t queries : {1, 5, 40}) {
      if (queries > length) continue;
      SCOPED_TRACE(testing::Message() << length << " tokens, " << queries << " queries");
      const auto q = tensor<float>(2, heads, queries, depth, layout::by_token).fill(1);
      const auto k = tensor<float>(2, key_heads, length, depth).fill(2);
      const auto v = tensor<float>(2, key_heads, length, value_depth).fill(3);
      auto bias = tensor<float>(1, heads, queries, length).fill(4);
      bias.view()(0, 2, 0, length / 2) = -HUGE_VALF;  // hides a key
      cache::contiguous<float> store(2, key_heads, length, depth, value_depth);
      // Evictions between appends, of other tokens in every head.
      const index_t half = length / 2;
      store.append(k.view().slice(2, 0, half), v.view().slice(2, 0, half));
      store.keep(heed_test::random_choice(store.kept(), random, 50));
      store.append(k.view().slice(2, half, length - half), v.view().slice(2, half, length - half));
      store.keep(heed_test::random_choice(store.kept(), random, 70));
      tensor<float> out(2, heads, queries, value_depth, layout::padded);
      heed::attention<TypeParam>(q.view(), store, out.view(),
                                 heed::window(length / 3, 2) & heed::causal{},
                                 heed::alibi{tensor_view<const float, 1>(slopes.data(), {heads})},
                                 heed::bias{bias.read()});
      reference::options how;
      how.visible = [&](const heed::position& p) {
        return p.k <= p.aligned_q() && p.k >= p.aligned_q() - length / 3;
      };
      how.scores = {with_alibi, [&](double s, const heed::position& p) {
                      return s + static_cast<double>(bias.read()(0, p.head, p.q, p.k));
                    }};
      expect_attention(out.read(), q.view(), k.view(), v.view(), positions_of(store.kept()), how);
      EXPECT_EQ(out.overwritten_around(), 0);
    }
  }
}

// Sequences of different lengths from one pool, forked, compacted and read through row lists; and
// a retrieval of some of their tokens.
TYPED_TEST(cache_attention, of_pages_and_of_retrieved_tokens) {
  std::mt19937 random(6);
  cache::paged<float> pool(key_heads, 60, 16, depth, value_depth);
  const auto k = tensor<float>(3, key_heads, 400, depth).fill(2);
  const auto v = tensor<float>(3, key_heads, 400, value_depth).fill(3);
  const auto tokens = [](const tensor<float>& x, index_t sequence, index_t begin, index_t end) {
    return x.view().slice(0, sequence, 1).slice(2, begin, end - begin);
  };
  const index_t a = pool.add();
  pool.append(a, tokens(k, 0, 0, 133), tokens(v, 0, 0, 133));
  const index_t b = pool.fork(a);
  pool.append(b, tokens(k, 1, 133, 150), tokens(v, 1, 133, 150));
  pool.keep(a, heed_test::random_choice(pool.batch({a}).kept(), random, 60));
  pool.append(a, tokens(k, 0, 133, 400), tokens(v, 0, 133, 400));
  const index_t c = pool.add();
  pool.append(c, tokens(k, 2, 0, 17), tokens(v, 2, 0, 17));
  pool.add();  // without tokens

  const index_t ids[] = {b, 3, a, c};
  const std::size_t tensor_of[] = {1, 2, 0, 2};  // the tensors' batch entry
  const index_t seen[] = {150, 0, 400, 17};
  auto whole_k = tensor<float>(3, key_heads, 400, depth).fill(2);
  auto whole_v = tensor<float>(3, key_heads, 400, value_depth).fill(3);
  for (index_t h = 0; h < key_heads; ++h) {  // b began as a
    for (index_t i = 0; i < 133; ++i) {
      std::copy_n(k.view().row(0, h, i), depth, whole_k.view().row(1, h, i));
      std::copy_n(v.view().row(0, h, i), value_depth, whole_v.view().row(1, h, i));
    }
  }
  for (const index_t queries : {1, 9}) {
    const auto q = tensor<float>(4, heads, queries, depth).fill(7);
    const auto batch = pool.batch(ids);
    const auto chosen = heed_test::random_choice(batch.kept(), random, 30);
    const auto some = cache::subset(batch, chosen);
    tensor<float> out(4, heads, queries, value_depth), retrieved(4, heads, queries, value_depth);
    const heed::alibi alibi{tensor_view<const float, 1>(slopes.data(), {heads})};
    heed::attention<TypeParam>(q.view(), batch, out.view(), heed::causal{}, alibi);
    heed::attention<TypeParam>(q.view(), some, retrieved.view(), heed::causal{}, alibi);
    const positions all = positions_of(batch.kept()), part = positions_of(some.kept());
    for (std::size_t s = 0; s < 4; ++s) {
      const auto at = static_cast<index_t>(s);
      const auto only = [&](const positions& from) {
        const auto first = from.begin() + at * key_heads;
        return positions(first, first + key_heads);
      };
      const auto of = static_cast<index_t>(tensor_of[s]);
      const auto keys = whole_k.read().slice(0, of, 1).slice(2, 0, seen[s]);
      const auto values = whole_v.read().slice(0, of, 1).slice(2, 0, seen[s]);
      reference::options how;
      how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
      how.scores = {with_alibi};
      expect_attention(out.read().slice(0, at, 1), q.view().slice(0, at, 1), keys, values,
                       only(all), how);
      expect_attention(retrieved.read().slice(0, at, 1), q.view().slice(0, at, 1), keys, values,
                       only(part), how);
    }
  }
}

// What lies behind a head's last row, or was evicted, reaches no result.
TYPED_TEST(cache_attention, hides_rows_without_meaning) {
  const auto q = tensor<float>(1, heads, 1, depth).fill(1);
  auto k = tensor<float>(1, key_heads, 100, depth).fill(2);
  auto v = tensor<float>(1, key_heads, 100, value_depth).fill(3);
  for (index_t h = 0; h < key_heads; ++h) {
    for (index_t i = 40; i < 100; ++i) {
      k.view()(0, h, i, 3) = v.view()(0, h, i, 5) = std::nanf("");
    }
  }
  cache::contiguous<float> store(1, key_heads, 100, depth, value_depth);
  store.append(k.view(), v.view());
  cache::kept_tokens tokens(1, key_heads);
  for (index_t h = 0; h < key_heads; ++h) {
    for (index_t i = h; i < 40 - 15 * h; ++i) tokens.at(0, h).push_back(i);
  }
  store.keep(tokens);
  tensor<float> out(1, heads, 1, value_depth);
  heed::attention<TypeParam>(q.view(), store, out.view());
  positions kept;
  for (index_t h = 0; h < key_heads; ++h) kept.push_back(tokens.at(0, h));
  expect_attention(out.read(), q.view(), k.view(), v.view(), kept, {});
  // A head that keeps nothing.
  tokens.at(0, 1).clear();
  tokens.at(0, 0) = {0, 1};
  tokens.at(0, 2) = {0};
  store.keep(tokens);
  heed::attention<TypeParam>(q.view(), store, out.view());
  for (index_t d = 0; d < value_depth; ++d) EXPECT_EQ(out.read()(0, 2, 0, d), 0);
}

TEST(cache_attention_errors, name_what_does_not_fit) {
  const auto q = tensor<float>(1, heads, 1, depth).fill(1);
  const auto k = tensor<float>(1, key_heads, 10, depth).fill(2);
  cache::contiguous<float> store(1, key_heads, 10, depth);
  store.append(k.view(), k.view());
  tensor<float> out(1, heads, 1, depth);
  EXPECT_EQ(error_of([&] { heed::attention(q.view().slice(1, 0, 4), store, out.view()); }),
            "out: head count 6 differs from q's 4");
  EXPECT_EQ(
      error_of([&] { heed::attention(q.view().slice(1, 0, 4), store, out.view().slice(1, 0, 4)); }),
      "k: head count 3 does not divide query head count 4");
  EXPECT_EQ(error_of([&] { heed::attention(q.view().slice(3, 0, 8), store, out.view()); }),
            "k: depth 24 differs from q's 8");
  const auto refuse = [&](std::vector<index_t> slots) {
    cache::kept_tokens tokens(1, key_heads);
    tokens.at(0, 1) = std::move(slots);
    const std::string by_subset = error_of([&] { cache::subset(store, tokens); });
    EXPECT_EQ(error_of([&] { store.keep(tokens); }), by_subset);
    return by_subset;
  };
  EXPECT_EQ(refuse({3, 2}),
            "kept tokens: slot 2 of batch 0, head 1 follows slot 3, they must ascend");
  EXPECT_EQ(refuse({3, 3}),
            "kept tokens: slot 3 of batch 0, head 1 follows slot 3, they must ascend");
  EXPECT_EQ(refuse({4, 10}), "kept tokens: slot 10 of batch 0, head 1 is outside [0, 10)");
  EXPECT_EQ(refuse({-1}), "kept tokens: slot -1 of batch 0, head 1 is outside [0, 10)");
  EXPECT_EQ(error_of([&] { store.keep(cache::kept_tokens(2, key_heads)); }),
            "kept tokens: batch count 2 is not the cache's 1");
  EXPECT_EQ(error_of([&] { store.keep(cache::kept_tokens(1, 2)); }),
            "kept tokens: KV head count 2 is not the cache's 3");
  EXPECT_EQ(store.size(), 10);
  for (index_t i = 0; i < 10; ++i) EXPECT_EQ(store.keys()(0, 1, i, 0), k.read()(0, 1, i, 0));
}

}  // namespace
