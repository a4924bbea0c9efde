// Cache policies against what other projects' code keeps (tests/vectors/kv_cache).
//
// Upstream lists kept tokens in order of their scores; ours ascend, so both are compared sorted.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "heed/cache/contiguous.hpp"
#include "heed/cache/policies/h2o.hpp"
#include "heed/cache/policies/keydiff.hpp"
#include "heed/cache/policies/l2_norm.hpp"
#include "heed/cache/policies/lagkv.hpp"
#include "heed/cache/policies/quest.hpp"
#include "heed/cache/policies/snapkv.hpp"
#include "heed/cache/policies/streaming_llm.hpp"
#include "heed/cache/policies/tova.hpp"
#include "support/vector_case.hpp"

namespace {

namespace cache = heed::cache;
using heed::index_t;
using heed::tensor_view;
using heed_test::vector_case;

// An array of a case as doubles: the cases were computed in double, and a tie within the rounding
// of float would decide which token stays.
struct array {
  std::vector<double> numbers;
  std::array<index_t, 4> shape{1, 1, 1, 1};

  explicit array(const heed_test::npy_array& from) {
    const auto floats = from.as<float>();
    numbers.assign(floats.begin(), floats.end());
    std::copy(from.shape.begin(), from.shape.end(), shape.begin());
  }
  tensor_view<const double, 4> view() const { return {numbers.data(), shape}; }
};

// Rows of the last axis, in ascending order.
using lists = std::vector<std::vector<index_t>>;
lists lists_of(const heed_test::npy_array& kept) {
  const auto numbers = kept.as<std::int64_t>();
  const auto width = static_cast<std::size_t>(kept.shape.back());
  lists result;
  for (std::size_t i = 0; i < numbers.size(); i += width) {
    result.emplace_back(numbers.begin() + static_cast<std::ptrdiff_t>(i),
                        numbers.begin() + static_cast<std::ptrdiff_t>(i + width));
    std::sort(result.back().begin(), result.back().end());
  }
  return result;
}
lists lists_of(const cache::kept_tokens& kept) {
  lists result;
  for (index_t b = 0; b < kept.batches(); ++b) {
    for (index_t h = 0; h < kept.key_heads(); ++h) result.push_back(kept.at(b, h));
  }
  return result;
}
// The positions of what a store holds.
template <class Store>
lists positions_of(const Store& store) {
  lists result;
  const auto kept = store.kept();
  for (index_t b = 0; b < static_cast<index_t>(kept.seen.size()); ++b) {
    for (index_t h = 0; h < kept.key_heads; ++h) {
      result.emplace_back(kept.at(b, h).begin(), kept.at(b, h).end());
    }
  }
  return result;
}

cache::contiguous<double> store_of(const array& k, const array& v, index_t tokens) {
  cache::contiguous<double> store(k.shape[0], k.shape[1], k.shape[2], k.shape[3], v.shape[3]);
  store.append(k.view().slice(2, 0, tokens), v.view().slice(2, 0, tokens));
  return store;
}

// Where scores are equal, upstream keeps whichever torch.topk happens to choose: that is
// std::nth_element over (score, index), by the score alone. Its choice from our scores must be
// upstream's, and ours must have the same scores.
template <class Policy>
void check_with_ties(const vector_case& c, const Policy& policy, index_t budget, index_t window,
                     const char* output) {
  const array q(c.input("q")), k(c.input("k")), v(c.input("v"));
  const lists theirs = lists_of(c.output(output));
  const auto ours = cache::choose(policy, q.view(), k.view(), v.view(), budget);
  const index_t size = k.shape[2], heads = k.shape[1];
  std::vector<double> memory(static_cast<std::size_t>(k.shape[0] * heads * size));
  const tensor_view<double, 3> scores(memory.data(), {k.shape[0], heads, size});
  cache::score(policy, q.view(), k.view(), v.view(), scores);
  for (index_t b = 0; b < k.shape[0]; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      using entry = std::pair<double, index_t>;
      std::vector<entry> order;
      for (index_t i = 0; i < size - window; ++i) order.emplace_back(scores(b, h, i), i);
      const index_t count = budget - window;
      std::nth_element(order.begin(), order.begin() + count - 1, order.end(),
                       [](const entry& x, const entry& y) { return x.first > y.first; });
      std::vector<index_t> chosen;
      for (index_t i = 0; i < count; ++i) {
        chosen.push_back(order[static_cast<std::size_t>(i)].second);
      }
      for (index_t i = size - window; i < size; ++i) chosen.push_back(i);
      std::sort(chosen.begin(), chosen.end());
      const auto& wanted = theirs[static_cast<std::size_t>(b * heads + h)];
      EXPECT_EQ(chosen, wanted) << b << ' ' << h;
      const auto sorted_scores = [&](const std::vector<index_t>& slots) {
        std::vector<double> result;
        for (const index_t slot : slots) result.push_back(scores(b, h, slot));
        std::sort(result.begin(), result.end());
        return result;
      };
      EXPECT_EQ(sorted_scores(ours.at(b, h)), sorted_scores(wanted)) << b << ' ' << h;
    }
  }
}

// A policy of kvpress: its scores, and the tokens of highest score.
template <class Policy>
void check_scores(const vector_case& c, const Policy& policy) {
  const array q(c.input("q")), k(c.input("k")), v(c.input("v"));
  const auto wanted = c.output("scores").as<double>();
  std::vector<double> scores(wanted.size());
  cache::score(policy, q.view(), k.view(), v.view(),
               tensor_view<double, 3>(scores.data(), {k.shape[0], k.shape[1], k.shape[2]}));
  std::size_t compared = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (scores[i] == cache::highest_score) continue;  // upstream writes the largest of the others
    EXPECT_NEAR(scores[i], wanted[i], 1e-9 * std::max(1.0, std::abs(wanted[i]))) << i;
    ++compared;
  }
  EXPECT_GT(compared, wanted.size() / 2);
}
template <class Policy>
void check_kvpress(const vector_case& c, const Policy& policy) {
  const array q(c.input("q")), k(c.input("k")), v(c.input("v"));
  const double ratio = c.meta.at("attrs").at("compression_ratio").get<double>();
  const auto budget = static_cast<index_t>(static_cast<double>(k.shape[2]) * (1 - ratio) + 1e-9);
  EXPECT_EQ(lists_of(cache::choose(policy, q.view(), k.view(), v.view(), budget)),
            lists_of(c.output("kept_sorted")));
}

// kvpress averages over the queries of SnapKV's window where the paper sums.
struct averaged : cache::snapkv {
  using cache::snapkv::snapkv;
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    cache::snapkv::score(e, scores);
    e.for_each_head([&](index_t b, index_t h) {
      for (index_t j = 0; j < e.slots(b, h); ++j) {
        double& s = scores(b, h, j);
        if (s != cache::highest_score) s /= static_cast<double>(window);
      }
    });
  }
};

// KVCache-Factory and SnapKV: one choice after a prompt.
template <class Policy>
void check_prompt(const vector_case& c, const Policy& policy, index_t budget) {
  const array q(c.input("q")), k(c.input("k")), v(c.input("v"));
  EXPECT_EQ(lists_of(cache::choose(policy, q.view(), k.view(), v.view(), budget)),
            lists_of(c.output("kept")));
}

// A policy that evicts at every generated token; attention runs over what is kept.
template <class Policy>
void check_decode(const vector_case& c, Policy policy, index_t budget) {
  const array q(c.input("q")), k(c.input("k")), v(c.input("v"));
  const auto& attributes = c.meta.at("attrs");
  const auto prefill = attributes.at("prefill").get<index_t>();
  const auto steps = attributes.at("decode_steps").get<index_t>();
  auto store = store_of(k, v, prefill);
  cache::compress(policy, q.view().slice(2, 0, prefill), store, budget);
  lists all = positions_of(store);
  for (index_t step = 0; step < steps; ++step) {
    const index_t token = prefill + step;
    store.append(k.view().slice(2, token, 1), v.view().slice(2, token, 1));
    cache::compress(policy, q.view().slice(2, token, 1), store, budget);
    const lists now = positions_of(store);
    all.insert(all.end(), now.begin(), now.end());
  }
  EXPECT_EQ(all, lists_of(c.output("kept_steps")));
}

void check_streaming_llm(const vector_case& c) {
  const array k(c.input("k"));
  const auto sinks = c.meta.at("attrs").at("start_size").get<index_t>();
  const auto recent = c.meta.at("attrs").at("recent_size").get<index_t>();
  const auto query = k.view().slice(2, 0, 1);
  const cache::streaming_llm policy(sinks);
  auto full = store_of(k, k, k.shape[2]);
  const auto kept = cache::all_but(full, 10, 30);
  EXPECT_EQ(lists_of(kept), lists_of(c.output("kept_evict_range_10_30")));
  cache::compress(policy, query, full, sinks + recent);
  EXPECT_EQ(positions_of(full), lists_of(c.output("kept_call")));
  auto part = store_of(k, k, 24);
  cache::compress(policy, query, part, sinks + recent - 3);  // room for three tokens
  EXPECT_EQ(positions_of(part), lists_of(c.output("kept_evict_for_space3")));
}

void check_quest(const vector_case& c) {
  const auto weights = c.input("weights");
  const auto numbers = weights.as<float>();
  const index_t batches = weights.shape[0], heads = weights.shape[1], size = weights.shape[3];
  const auto page = c.meta.at("attrs").at("chunk_size").get<index_t>();
  const auto tokens = c.meta.at("attrs").at("token_budget").get<index_t>();
  const index_t pages = (size + page - 1) / page;
  std::vector<double> scores(static_cast<std::size_t>(batches * heads * pages), -HUGE_VAL);
  for (index_t i = 0; i < batches * heads * size; ++i) {
    double& score = scores[static_cast<std::size_t>(i / size * pages + i % size / page)];
    score = std::max(score, static_cast<double>(numbers[static_cast<std::size_t>(i)]));
  }
  // Upstream reads at least three pages.
  const auto chosen = cache::page_bounds::tokens_of_pages(
      tensor_view<const double, 3>(scores.data(), {batches, heads, pages}),
      std::max<index_t>(3, tokens / page), page, size);
  const auto mask = c.output("mask").as<std::uint8_t>();
  std::vector<std::uint8_t> ours(mask.size(), 0);
  for (index_t h = 0; h < heads; ++h) {
    for (const index_t token : chosen.at(0, h))
      ours[static_cast<std::size_t>(h * size + token)] = 1;
  }
  EXPECT_EQ(ours, mask);
}

TEST(upstream_policies, keep_the_same_tokens) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("kv_cache")) {
    const vector_case c(folder);
    SCOPED_TRACE(c.name);
    const auto& attributes = c.meta.at("attrs");
    const auto number = [&](const char* name) { return attributes.at(name).get<index_t>(); };
    if (c.name == "kvpress_knorm") {
      check_kvpress(c, cache::l2_norm{});
      check_scores(c, cache::l2_norm{});
    } else if (c.name == "kvpress_keydiff") {
      check_kvpress(c, cache::keydiff{});
      check_scores(c, cache::keydiff{});
    } else if (c.name == "kvpress_lagkv") {
      const cache::lagkv policy(number("n_sink"), number("lag_size"));
      check_with_ties(c, policy, 45, 0, "kept_sorted");
      check_scores(c, policy);
    } else if (c.name == "kvpress_streaming_llm") {
      // Upstream's scores are 1 and 0 for kept and evicted tokens.
      check_kvpress(c, cache::streaming_llm(number("n_sink")));
    } else if (c.name == "kvpress_snapkv") {
      const averaged policy(number("window_size"), number("kernel_size"));
      check_kvpress(c, policy);
      check_scores(c, policy);
    } else if (c.name == "factory_snapkv_avg") {
      check_prompt(c, cache::snapkv(number("window_size"), number("kernel_size")),
                   number("max_capacity_prompt"));
    } else if (c.name == "snapkv_official_maxpool") {
      check_with_ties(
          c, cache::snapkv(number("window_size"), number("kernel_size"), cache::pooling::largest),
          number("max_capacity_prompt"), number("window_size"), "kept");
    } else if (c.name == "factory_pyramidkv_l1") {
      const auto budgets =
          cache::pyramid_budgets(number("num_hidden_layers"), number("max_capacity_prompt"),
                                 number("window_size"), 120, number("beta"));
      check_prompt(c, cache::snapkv(number("window_size"), number("kernel_size")),
                   budgets[static_cast<std::size_t>(number("layer_idx"))]);
    } else if (c.name == "factory_h2o") {
      const cache::attention_received<> received;
      check_prompt(c, cache::always_keep{received, 0, number("window_size")},
                   number("max_capacity_prompt"));
    } else if (c.name == "h2o_official_decode") {
      check_decode(c, cache::h2o(number("recent_size")), number("hh_size") + number("recent_size"));
    } else if (c.name == "tova_official_decode") {
      check_decode(c, cache::tova{}, number("cache_size"));
    } else if (c.name == "streaming_llm_official") {
      check_streaming_llm(c);
    } else {
      check_quest(c);
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 14u);
}

}  // namespace
