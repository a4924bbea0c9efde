// Scores of cache policies against the oracle, over whole sequences and over what random evictions
// left of them; wrappers, budgets and what is refused.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <limits>

#include "heed/cache/contiguous.hpp"
#include "heed/cache/policies/h2o.hpp"
#include "heed/cache/policies/keydiff.hpp"
#include "heed/cache/policies/l2_norm.hpp"
#include "heed/cache/policies/lagkv.hpp"
#include "heed/cache/policies/quest.hpp"
#include "heed/cache/policies/snapkv.hpp"
#include "heed/cache/policies/streaming_llm.hpp"
#include "heed/cache/policies/tova.hpp"
#include "heed/reference/cache.hpp"
#include "support/cache_checks.hpp"

namespace {

namespace cache = heed::cache;
namespace reference = heed::reference;
using heed::index_t;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::layout;
using heed_test::tensor;

// A store of 2 sequences with 3 KV heads and 6 query heads, some of whose tokens were evicted.
struct fixture {
  static constexpr index_t batches = 2, heads = 6, key_heads = 3, depth = 20, value_depth = 12;
  index_t length;
  tensor<float> q, k, v;
  cache::contiguous<float> store;
  std::vector<std::vector<index_t>> positions;
  reference::kept_positions kept;

  explicit fixture(index_t tokens, unsigned percent, bool same_for_all_heads = false,
                   index_t queries = 9)
      : length(tokens),
        q(batches, heads, queries, depth, layout::by_token),
        k(batches, key_heads, tokens, depth, layout::padded),
        v(batches, key_heads, tokens, value_depth),
        store(batches, key_heads, tokens, depth, value_depth) {
    q.fill(1, 1.5), k.fill(2, 1.5), v.fill(3);
    store.append(k.view(), v.view());
    std::mt19937 random(static_cast<unsigned>(tokens));
    auto chosen = heed_test::random_choice(store.kept(), random, percent);
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < key_heads; ++h) {
        auto& list = chosen.at(b, h);
        if (list.empty() || list.back() != tokens - 1) list.push_back(tokens - 1);
        if (same_for_all_heads) list = chosen.at(b, 0);
        positions.push_back(list);
      }
    }
    store.keep(chosen);
    kept = [this](index_t b, index_t h) -> const std::vector<index_t>& {
      return positions[static_cast<std::size_t>(b * key_heads + h)];
    };
  }
  fixture(const fixture&) = delete;

  template <class Policy>
  void expect_scores(const Policy& policy, const reference::token_scores& wanted) {
    const auto e = cache::detail::evidence_of(q.view(), store.keys(), store.values(), store.kept());
    std::vector<double> memory(static_cast<std::size_t>(batches * key_heads * store.size()));
    const tensor_view<double, 3> scores(memory.data(), {batches, key_heads, store.size()});
    policy.score(e, scores);
    double largest = 0;
    for (const double w : wanted) largest = std::max(largest, w == HUGE_VAL ? 0 : std::abs(w));
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < key_heads; ++h) {
        const auto& list = kept(b, h);
        for (std::size_t i = 0; i < list.size(); ++i) {
          const double want =
              wanted[static_cast<std::size_t>((b * key_heads + h) * length + list[i])];
          const double got = scores(b, h, static_cast<index_t>(i));
          if (want == HUGE_VAL) {
            ASSERT_EQ(got, cache::highest_score);
          } else {
            ASSERT_NEAR(got, want, 3e-6 * largest) << b << ' ' << h << ' ' << i;
          }
        }
      }
    }
  }
};

TEST(policies, scores_are_the_formulas) {
  for (const index_t length : {11, 70, 203}) {
    for (const unsigned percent : {100u, 60u}) {
      SCOPED_TRACE(testing::Message() << length << " tokens, " << percent << " %");
      fixture f(length, percent);
      f.expect_scores(cache::attention_received<>{},
                      reference::snapkv_scores(f.q.view(), f.k.view(), f.kept, 9, 0, 1, false));
      f.expect_scores(cache::snapkv(4, 5),
                      reference::snapkv_scores(f.q.view(), f.k.view(), f.kept, 4, 4, 5, false));
      f.expect_scores(cache::snapkv(8, 7, cache::pooling::largest),
                      reference::snapkv_scores(f.q.view(), f.k.view(), f.kept, 8, 8, 7, true));
      f.expect_scores(cache::l2_norm{}, reference::l2_norm_scores(f.k.view(), f.kept));
      f.expect_scores(cache::keydiff{}, reference::keydiff_scores(f.k.view(), f.kept));
      f.expect_scores(cache::lagkv(3, 8),
                      reference::lagkv_scores(f.k.view(), f.v.view(), f.kept, 3, 8));
      fixture same(length, percent, true);
      same.expect_scores(cache::tova{},
                         reference::tova_scores(same.q.view(), same.k.view(), same.kept));
    }
  }
}

TEST(policies, take_sixteen_bits) {
  const auto q = tensor<Eigen::half>(1, 4, 5, 24).fill(1);
  const auto k = tensor<Eigen::bfloat16>(1, 2, 37, 24).fill(2);
  std::vector<index_t> all(37);
  std::iota(all.begin(), all.end(), index_t{0});
  const auto wanted = reference::snapkv_scores(
      q.view(), k.view(), [&](index_t, index_t) -> const std::vector<index_t>& { return all; }, 5,
      0, 1, false);
  std::vector<double> scores(wanted.size());
  cache::score(cache::attention_received<>{}, q.view(), k.view(), k.view(),
               tensor_view<double, 3>(scores.data(), {1, 2, 37}));
  for (std::size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(scores[i], wanted[i], 1e-2) << i;
}

TEST(policies, streaming_llm_keeps_what_the_ring_keeps) {
  fixture f(60, 100);
  cache::compress(cache::streaming_llm(3), f.q.view(), f.store, 20);
  for (index_t b = 0; b < f.batches; ++b) {
    for (index_t h = 0; h < f.key_heads; ++h) {
      const auto list = f.store.kept().at(b, h);
      ASSERT_EQ(list.size(), 20u);
      for (index_t i = 0; i < 20; ++i) {
        EXPECT_EQ(list[static_cast<std::size_t>(i)], i < 3 ? i : 40 + i);
      }
    }
  }
}

// Heavy hitters token by token: the sums of what each query paid while a token was kept.
// With some slack, evictions come rarely, but every query is seen.
void check_h2o_accumulates_over_calls(std::size_t slack) {
  const auto q = tensor<float>(1, 4, 50, 16).fill(1, 2);
  const auto k = tensor<float>(1, 2, 50, 16).fill(2, 2);
  cache::contiguous<float> store(1, 2, 50, 16);
  auto policy = cache::h2o(4);
  std::vector<std::vector<index_t>> kept(2);
  std::vector<std::vector<double>> sums(2, std::vector<double>(50));
  for (index_t token = 0; token < 50; ++token) {
    const auto query = q.view().slice(2, token, 1), key = k.view().slice(2, token, 1);
    store.append(key, key);
    for (auto& list : kept) list.push_back(token);
    const auto received = reference::received_attention(
        query, k.view().slice(2, 0, token + 1),
        [&](index_t, index_t h) -> const std::vector<index_t>& {
          return kept[static_cast<std::size_t>(h)];
        },
        1);
    for (std::size_t h = 0; h < 2; ++h) {
      auto& list = kept[h];
      for (const index_t p : list) {
        const auto at = static_cast<std::size_t>(p), width = static_cast<std::size_t>(token) + 1;
        sums[h][at] += (received[2 * h * width + at] + received[(2 * h + 1) * width + at]) / 2;
      }
      // The least hit of all but the newest four leave.
      for (bool due = list.size() > 12 + slack; due && list.size() > 12;) {
        const auto least =
            std::min_element(list.begin(), list.end() - 4, [&](index_t a, index_t b) {
              return sums[h][static_cast<std::size_t>(a)] < sums[h][static_cast<std::size_t>(b)];
            });
        list.erase(least);
      }
    }
    cache::compress(policy, query, store,
                    cache::budget(12).with_slack(static_cast<index_t>(slack)));
    for (std::size_t h = 0; h < 2; ++h) {
      const auto list = store.kept().at(0, static_cast<index_t>(h));
      ASSERT_EQ(std::vector<index_t>(list.begin(), list.end()), kept[h]) << token << ' ' << h;
    }
  }
}
TEST(policies, h2o_accumulates_over_calls) { check_h2o_accumulates_over_calls(0); }
TEST(policies, h2o_accumulates_between_evictions) { check_h2o_accumulates_over_calls(7); }

TEST(policies, h2o_begins_anew_with_a_cleared_store) {
  const auto q = tensor<float>(1, 4, 30, 16).fill(1, 2), k = tensor<float>(1, 2, 30, 16).fill(2, 2);
  cache::contiguous<float> store(1, 2, 30, 16), fresh(1, 2, 30, 16);
  auto policy = cache::h2o(2), other = cache::h2o(2);
  const auto feed = [&](auto& own, auto& to, index_t first, index_t count) {
    const auto keys = k.view().slice(2, first, count);
    to.append(keys, keys);
    cache::compress(own, q.view().slice(2, first, count), to, 8);
  };
  feed(policy, store, 0, 20);
  store.clear();
  for (const index_t first : {20, 25}) {
    feed(policy, store, first, 5), feed(other, fresh, first, 5);
    for (index_t h = 0; h < 2; ++h) {
      const auto got = store.kept().at(0, h), wanted = fresh.kept().at(0, h);
      EXPECT_EQ(std::vector<index_t>(got.begin(), got.end()),
                std::vector<index_t>(wanted.begin(), wanted.end()));
    }
  }
  // Tokens that somebody else evicted are missed.
  cache::compress(cache::l2_norm{}, q.view().slice(2, 29, 1), store, 4);
  EXPECT_EQ(error_of([&] { cache::compress(policy, q.view().slice(2, 29, 1), store, 4); }),
            "accumulated: 8 tokens of batch 0, head 0 are remembered, the cache has 4: some left "
            "without keep()");
}

TEST(policies, slack_puts_evictions_off) {
  for (const bool shared : {false, true}) {
    SCOPED_TRACE(shared);
    fixture f(50, 100);
    cache::contiguous<float> store(2, 3, 50, f.depth, f.value_depth);
    const cache::budget exact = shared ? cache::budget::shared(8, 0.5) : cache::budget(8);
    for (index_t token = 0; token < 50; ++token) {
      store.append(f.k.view().slice(2, token, 1), f.v.view().slice(2, token, 1));
      const auto before = static_cast<index_t>(store.kept().at(1, 2).size());
      cache::compress(cache::l2_norm{}, f.q.view().slice(2, 0, 1), store, exact.with_slack(4));
      index_t held = 0;
      for (index_t h = 0; h < 3; ++h) held += static_cast<index_t>(store.kept().at(1, h).size());
      // Up to 12 tokens a head, then 8, and so on: 13 tokens are there after 13, 18, 23, …
      ASSERT_EQ(held, 3 * (token < 12 ? token + 1 : 8 + (token - 12) % 5)) << token;
      if (!shared) {
        ASSERT_EQ(before,
                  token < 12 ? token + 1 : 8 + ((token - 12) % 5 == 0 ? 5 : (token - 12) % 5));
      }
    }
  }
  // What is not exceeded is left alone, whatever its size.
  fixture f(20, 100);
  const index_t most = std::numeric_limits<index_t>::max();
  cache::compress(cache::l2_norm{}, f.q.view(), f.store,
                  cache::budget::shared(most).with_slack(most));
  EXPECT_EQ(f.store.size(), 20);
  const auto all =
      cache::choose(cache::l2_norm{}, f.q.view(), f.store, cache::budget::shared(most / 2, 0.0));
  for (index_t h = 0; h < 3; ++h) EXPECT_EQ(all.at(1, h).size(), 20u);
  EXPECT_EQ(error_of([&] { cache::budget(8).with_slack(-1); }),
            "budget: slack -1, must not be negative");
}

TEST(policies, wrappers_fit_every_policy) {
  fixture f(80, 70);
  const auto kept = [&](const auto& policy, index_t budget) {
    return cache::choose(policy, f.q.view(), f.store, budget);
  };
  // Protected tokens stay, the others are the policy's best.
  const auto chosen = kept(cache::always_keep{cache::l2_norm{}, 5, 7}, 25);
  const auto wanted = reference::l2_norm_scores(f.k.view(), f.kept);
  for (index_t b = 0; b < f.batches; ++b) {
    for (index_t h = 0; h < f.key_heads; ++h) {
      const auto& list = f.kept(b, h);
      auto order = list;
      const auto score = [&](index_t p) {
        return p < 5 || p >= 73 ? HUGE_VAL
                                : wanted[static_cast<std::size_t>((b * f.key_heads + h) * 80 + p)];
      };
      std::sort(order.begin(), order.end(),
                [&](index_t x, index_t y) { return score(x) > score(y); });
      order.resize(25);
      std::sort(order.begin(), order.end());
      std::vector<index_t> got;
      for (const index_t slot : chosen.at(b, h))
        got.push_back(list[static_cast<std::size_t>(slot)]);
      EXPECT_EQ(got, order);
    }
  }
  // Pooling of one token changes nothing; of more it is the mean of neighbours.
  EXPECT_EQ(kept(cache::pooled{cache::keydiff{}, 1}, 9).at(1, 2),
            kept(cache::keydiff{}, 9).at(1, 2));
  std::vector<double> raw = {1, 5, 0, 2, -1}, to(5);
  cache::detail::pool_tokens(raw, 3, cache::pooling::mean, to.data());
  EXPECT_EQ(to, (std::vector<double>{2, 2, 7 / 3.0, 1 / 3.0, 1 / 3.0}));
  cache::detail::pool_tokens(raw, 3, cache::pooling::largest, to.data());
  EXPECT_EQ(to, (std::vector<double>{5, 5, 5, 2, 2}));
}

TEST(policies, budgets) {
  fixture f(50, 100);
  const auto sizes = [&](const cache::budget& budget) {
    const auto chosen = cache::choose(cache::l2_norm{}, f.q.view(), f.store, budget);
    std::vector<std::size_t> result;
    for (index_t b = 0; b < f.batches; ++b) {
      for (index_t h = 0; h < f.key_heads; ++h) result.push_back(chosen.at(b, h).size());
    }
    return result;
  };
  EXPECT_EQ(sizes(7), std::vector<std::size_t>(6, 7));
  EXPECT_EQ(sizes(1000), std::vector<std::size_t>(6, 50));
  const std::vector<index_t> counts = {3, 50, 11};
  EXPECT_EQ(sizes(cache::budget::per_head(counts)),
            (std::vector<std::size_t>{3, 50, 11, 3, 50, 11}));
  const auto shared = sizes(cache::budget::shared(20, 0.5));
  for (std::size_t b = 0; b < 2; ++b) {
    EXPECT_EQ(shared[3 * b] + shared[3 * b + 1] + shared[3 * b + 2], 60u);
    for (std::size_t h = 0; h < 3; ++h) EXPECT_GE(shared[3 * b + h], 10u);
  }
  // All of it competes where the floor is 0: the best 60 tokens of the sequence.
  const auto chosen =
      cache::choose(cache::l2_norm{}, f.q.view(), f.store, cache::budget::shared(20, 0.0));
  const auto scores = reference::l2_norm_scores(f.k.view(), f.kept);
  std::vector<double> best(scores.begin(), scores.begin() + 150), got;
  std::sort(best.rbegin(), best.rend());
  best.resize(60);
  for (index_t h = 0; h < 3; ++h) {
    for (const index_t i : chosen.at(0, h))
      got.push_back(scores[static_cast<std::size_t>(h * 50 + i)]);
  }
  std::sort(got.rbegin(), got.rend());
  EXPECT_EQ(got, best);

  EXPECT_EQ(cache::pyramid_budgets(4, 40, 8, 120), (std::vector<index_t>{71, 51, 31, 11}));
  EXPECT_EQ(cache::pyramid_budgets(3, 40, 8, 48), (std::vector<index_t>{48, 40, 32}));
  EXPECT_EQ(cache::pyramid_budgets(1, 40, 8, 120), (std::vector<index_t>{40}));
  // Never more than there is, in sequences that are shorter than the mean, or than the window.
  EXPECT_EQ(cache::pyramid_budgets(4, 108, 8, 60), (std::vector<index_t>{60, 60, 60, 60}));
  EXPECT_EQ(cache::pyramid_budgets(1, 108, 8, 60), (std::vector<index_t>{60}));
  EXPECT_EQ(cache::pyramid_budgets(2, 108, 8, 5), (std::vector<index_t>{5, 5}));
}

TEST(policies, equal_scores_keep_the_newer_token) {
  cache::detail::ledger ledger(1, 1);
  ledger.append(6);
  const std::vector<double> scores = {1, 2, 2, 2, 0, 2};
  const auto chosen =
      cache::top_tokens(tensor_view<const double, 3>(scores.data(), {1, 1, 6}), ledger.kept(), 3);
  EXPECT_EQ(chosen.at(0, 0), (std::vector<index_t>{2, 3, 5}));
}

TEST(policies, quest_bounds_and_pages) {
  for (const index_t length : {1, 16, 90}) {
    const auto q = tensor<float>(2, 6, 2, 20).fill(1);
    const auto k = tensor<float>(2, 3, length, 20).fill(2);
    cache::page_bounds bounds(2, 3, 16, 20);
    for (index_t at = 0; at < length; at += 7) {
      bounds.append(k.view().slice(2, at, std::min<index_t>(7, length - at)));
    }
    const auto wanted = reference::quest_bounds(q.view(), k.view(), 16);
    ASSERT_EQ(bounds.pages(), (length + 15) / 16);
    std::vector<double> scores(wanted.size());
    bounds.score(q.view(), tensor_view<double, 3>(scores.data(), {2, 3, bounds.pages()}));
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_NEAR(scores[i], wanted[i], 1e-5 * std::abs(wanted[i])) << i;
    }
    const auto chosen = bounds.choose(q.view(), 2);
    for (index_t b = 0; b < 2; ++b) {
      for (index_t h = 0; h < 3; ++h) {
        const double* row = wanted.data() + (b * 3 + h) * bounds.pages();
        std::vector<index_t> order(static_cast<std::size_t>(bounds.pages())), tokens;
        std::iota(order.begin(), order.end(), index_t{0});
        std::sort(order.begin(), order.end(),
                  [&](index_t x, index_t y) { return row[x] > row[y]; });
        order.resize(std::min<std::size_t>(2, order.size()));
        std::sort(order.begin(), order.end());
        for (const index_t page : order) {
          for (index_t i = page * 16; i < std::min(length, page * 16 + 16); ++i)
            tokens.push_back(i);
        }
        EXPECT_EQ(chosen.at(b, h), tokens);
      }
    }
  }
}

TEST(policies, refuse_what_does_not_fit) {
  fixture f(20, 100);
  const auto with = [&](const auto& policy, const cache::budget& tokens) {
    return error_of([&] { cache::compress(policy, f.q.view(), f.store, tokens); });
  };
  EXPECT_EQ(error_of([] { cache::budget(0); }), "budget: 0 tokens, must be at least 1");
  EXPECT_EQ(error_of([] { cache::budget(-3); }), "budget: -3 tokens, must be at least 1");
  EXPECT_EQ(error_of([] { cache::budget::shared(4, 1.5); }), "budget: floor 1.5 is outside [0, 1]");
  const std::vector<index_t> two = {1, 2}, none = {1, 0, 2};
  EXPECT_EQ(with(cache::l2_norm{}, cache::budget::per_head(two)),
            "budget: 2 numbers for 3 KV heads");
  EXPECT_EQ(with(cache::l2_norm{}, cache::budget::per_head({})),
            "budget: 0 numbers for 3 KV heads");
  cache::accumulated remembers{cache::l2_norm{}};
  EXPECT_EQ(error_of([&] {
              cache::compress(remembers, f.q.view(), f.store, cache::budget::per_head(two));
            }),
            "budget: 2 numbers for 3 KV heads");
  EXPECT_EQ(error_of([&] { cache::choose(remembers, f.q.view(), f.store, 3); }),
            "accumulated: the tokens are not those of the last observe()");
  EXPECT_EQ(error_of([&] { cache::budget::per_head(none); }),
            "budget: 0 tokens, must be at least 1");
  EXPECT_EQ(error_of([] { cache::snapkv(0); }), "snapkv: window 0, must be at least 1");
  EXPECT_EQ(error_of([] { cache::snapkv(8, 4); }), "pooling: width 4, must be odd and positive");
  EXPECT_EQ(error_of([] {
              cache::pooled{cache::l2_norm{}, -1};
            }),
            "pooling: width -1, must be odd and positive");
  EXPECT_EQ(error_of([] {
              cache::always_keep{cache::l2_norm{}, -1, 2};
            }),
            "always_keep: -1 sinks, must not be negative");
  EXPECT_EQ(error_of([] {
              cache::always_keep{cache::l2_norm{}, 1, -2};
            }),
            "always_keep: -2 recent tokens, must not be negative");
  EXPECT_EQ(error_of([] { cache::streaming_llm(-1); }),
            "streaming_llm: -1 sinks, must not be negative");
  EXPECT_EQ(error_of([] { cache::lagkv(-1, 4); }), "lagkv: -1 sinks, must not be negative");
  EXPECT_EQ(error_of([] { cache::lagkv(1, 0); }), "lagkv: lag 0, must be at least 1");
  EXPECT_EQ(error_of([&] { cache::all_but(f.store, 5, 4); }),
            "all_but: [5, 4) is no range of slots");
  EXPECT_EQ(error_of([] { cache::pyramid_budgets(0, 40, 8, 120); }),
            "pyramid_budgets: 0 layers, must be at least 1");
  EXPECT_EQ(error_of([] { cache::pyramid_budgets(4, 8, 8, 120); }),
            "pyramid_budgets: 8 tokens leave none beside a window of 8");
  EXPECT_EQ(error_of([] { cache::pyramid_budgets(4, 40, 8, 120, 0); }),
            "pyramid_budgets: steepness 0, must be at least 1");
  // A policy that remembers is one that can change.
  EXPECT_EQ(with(cache::accumulated{cache::l2_norm{}}, 3),
            "accumulated: the tokens are not those of the last observe()");
  fixture ragged(20, 60);
  EXPECT_EQ(error_of([&] { cache::compress(cache::tova{}, ragged.q.view(), ragged.store, 3); }),
            "tova: head 1 of batch 0 holds other tokens than head 0");
  const auto q = tensor<float>(2, 6, 3, 20).fill(1), k = tensor<float>(2, 3, 2, 20).fill(2);
  const auto refuses = [&](const auto& queries, const auto& keys, const auto& values) {
    return error_of([&] { cache::choose(cache::l2_norm{}, queries, keys, values, 3); });
  };
  EXPECT_EQ(refuses(q.view(), k.view(), k.view()),
            "q: length 3 exceeds the 2 tokens that batch 0 has seen");
  EXPECT_EQ(refuses(q.view().slice(1, 0, 4), k.view(), k.view()),
            "k: head count 3 does not divide query head count 4");
  EXPECT_EQ(refuses(q.view().slice(0, 0, 1), k.view(), k.view()), "q: batch 1 differs from k's 2");
  EXPECT_EQ(refuses(q.view().slice(3, 0, 8), k.view(), k.view()), "q: depth 8 differs from k's 20");
  EXPECT_EQ(refuses(q.view(), k.view(), k.view().slice(2, 0, 1)), "v: length 1 differs from k's 2");
  EXPECT_EQ(refuses(q.view(), k.view(), k.view().slice(1, 0, 1)),
            "v: head count 1 differs from k's 3");
  EXPECT_EQ(refuses(q.view(), k.view(), k.view().slice(0, 0, 1)), "v: batch 1 differs from k's 2");
  std::vector<double> few(6);
  EXPECT_EQ(error_of([&] {
              cache::score(cache::l2_norm{}, q.view().slice(2, 0, 1), k.view(), k.view(),
                           tensor_view<double, 3>(few.data(), {2, 3, 1}));
            }),
            "scores: shape [2, 3, 1] is not [2, 3, 2]");

  EXPECT_EQ(error_of([] { cache::page_bounds(1, 1, 0, 8); }),
            "page_bounds: page size 0, must be at least 1");
  EXPECT_EQ(error_of([] { cache::page_bounds(1, -1, 4, 8); }),
            "page_bounds: a size is negative: [1, -1, 8]");
  cache::page_bounds bounds(2, 3, 4, 20);
  bounds.append(k.view());
  EXPECT_EQ(error_of([&] { bounds.choose(q.view(), 0); }),
            "quest: top 0 pages, must be at least 1");
  EXPECT_EQ(error_of([&] { bounds.choose(q.view().slice(1, 0, 5), 1); }),
            "page_bounds: queries [2, 5, 3, 20] do not fit keys of batch 2, 3 heads, depth 20");
  EXPECT_EQ(error_of([&] { bounds.append(k.view().slice(1, 0, 1)); }),
            "k: head count 1 is not the page bounds' 3");
  EXPECT_EQ(error_of([&] {
              bounds.score(q.view(), tensor_view<double, 3>(few.data(), {2, 3, 0}));
            }),
            "page_bounds: scores hold 0 pages, there are 1");
}

}  // namespace
