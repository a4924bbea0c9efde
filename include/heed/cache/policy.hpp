// Policies: which tokens of a cache survive. All that a policy has to give is a score,
//
//   struct my_policy {
//     template <class Evidence>
//     void score(const Evidence& e, const tensor_view<double, 3>& scores) const;  // [B, Hkv, n]
//   };
//
// the higher the longer the token stays. It may look at the keys and values that are kept, at their
// original positions, and at the newest queries. A policy that remembers something has
// observe(evidence), called once for every batch of new queries, and keep(kept_tokens), called when
// tokens leave.
//
//   compress(policy, q, store, budget);              // scores, chooses, evicts
//   const kept_tokens t = choose(policy, q, k, v, budget);   // for keys and values of any other
//   kind
//
// Wrappers are policies themselves and fit every policy:
//
//   always_keep{policy, sinks, recent}   the first `sinks` tokens of a sequence and its newest stay
//   pooled{policy, width, pooling}       a score is the mean, or the largest, of its neighbours'
//   accumulated{policy}                  scores add up over the calls, and begin anew where a
//                                        sequence has seen fewer tokens than in the last call
#pragma once

#include <limits>

#include "attention.hpp"
#include "budget.hpp"
#include "detail/ledger.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// What a policy may look at: queries [B, Hq, Lq, D], the last of which is the newest token's; keys
// [B, Hkv, n, D] and values [B, Hkv, n, Dv] of the tokens that are kept.
template <class Q, class K, class V, bool Ordered>
struct evidence {
  static constexpr bool ordered = Ordered;
  Q q;
  K k;
  V v;
  kept_view<Ordered> kept;

  index_t batches() const { return k.extent(0); }
  index_t key_heads() const { return k.extent(1); }
  index_t heads() const { return q.extent(1); }
  index_t group() const { return key_heads() > 0 ? heads() / key_heads() : 1; }
  index_t size() const { return k.extent(2); }
  index_t slots(index_t batch, index_t key_head) const {
    return static_cast<index_t>(kept.at(batch, key_head).size());
  }
  index_t seen(index_t batch) const { return kept.seen[static_cast<std::size_t>(batch)]; }

  // Calls use(batch, key head) for every KV head.
  template <class Use>
  void for_each_head(const Use& use) const {
    for (index_t b = 0; b < batches(); ++b) {
      for (index_t h = 0; h < key_heads(); ++h) use(b, h);
    }
  }
  // Channel d of a key or value, as a number.
  double key(index_t b, index_t h, index_t slot, index_t d) const {
    return read_at<double>(rows_at(k, b, h, 0)[slot] + d);
  }
  double value(index_t b, index_t h, index_t slot, index_t d) const {
    return read_at<double>(rows_at(v, b, h, 0)[slot] + d);
  }
};

// A score that no other one exceeds.
inline constexpr double highest_score = std::numeric_limits<double>::max();

enum class pooling { mean, largest };

namespace detail {

// to[i] = mean or largest of from[i − width/2 … i + width/2]; what lies outside counts as 0 in the
// mean, and not at all in the largest.
inline void pool_tokens(std::span<const double> from, index_t width, pooling how, double* to) {
  const auto count = static_cast<index_t>(from.size());
  for (index_t i = 0; i < count; ++i) {
    const index_t begin = std::max<index_t>(0, i - width / 2);
    const index_t end = std::min(count, i + width / 2 + 1);
    double sum = 0, most = std::numeric_limits<double>::lowest();
    for (index_t j = begin; j < end; ++j) {
      sum += from[static_cast<std::size_t>(j)];
      most = std::max(most, from[static_cast<std::size_t>(j)]);
    }
    to[i] = how == pooling::mean ? sum / static_cast<double>(width) : most;
  }
}
inline index_t checked_width(index_t width) {
  if (width < 1 || width % 2 == 0) {
    raise(message("pooling: width ") << width << ", must be odd and positive");
  }
  return width;
}

template <class Q, class K, class V, bool Ordered>
auto evidence_of(const Q& q, const K& k, const V& v, const kept_view<Ordered>& kept) {
  const auto queries = read_view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  const auto values = read_view_of(v).template lifted<4>();
  const index_t heads = queries.extent(1), key_heads = keys.extent(1);
  if (heads != 0 && (key_heads == 0 || heads % key_heads != 0)) {
    raise(message("k: head count ") << key_heads << " does not divide query head count " << heads);
  }
  const auto require = [](const char* name, const char* what, index_t value, index_t wanted) {
    if (value != wanted) {
      raise(message(name) << ": " << what << " " << value << " differs from k's " << wanted);
    }
  };
  require("q", "batch", queries.extent(0), keys.extent(0));
  require("q", "depth", queries.extent(3), keys.extent(3));
  require("v", "batch", values.extent(0), keys.extent(0));
  require("v", "head count", values.extent(1), keys.extent(1));
  require("v", "length", values.extent(2), keys.extent(2));
  for (index_t b = 0; b < keys.extent(0); ++b) {
    const index_t seen = kept.seen[static_cast<std::size_t>(b)];
    if (queries.extent(2) > seen) {
      raise(message("q: length ") << queries.extent(2) << " exceeds the " << seen
                                  << " tokens that batch " << b << " has seen");
    }
  }
  return evidence<std::remove_const_t<decltype(queries)>, std::remove_const_t<decltype(keys)>,
                  std::remove_const_t<decltype(values)>, Ordered>{queries, keys, values, kept};
}

template <class Policy, class Evidence>
kept_tokens choose_from(const Policy& policy, const Evidence& e, const budget& tokens) {
  tokens.check(e.key_heads());
  std::vector<double> scores(static_cast<std::size_t>(e.batches() * e.key_heads() * e.size()));
  const tensor_view<double, 3> view(scores.data(), {e.batches(), e.key_heads(), e.size()});
  policy.score(e, view);
  return top_tokens<Evidence::ordered>(view, e.kept, tokens);
}

}  // namespace detail

// Evidence of tensors, which hold every token of their sequences, for one use.
template <class Use, class Q, readable K, readable V>
auto with_evidence(const Q& q, const K& k, const V& v, const Use& use) {
  const auto keys = read_view_of(k).template lifted<4>();
  detail::ledger all(keys.extent(0), keys.extent(1));
  all.append(keys.extent(2));
  return use(detail::evidence_of(q, k, v, all.kept()));
}

// Scores of all tokens, into [B, Hkv, n].
template <class Policy, rows_of_tensor Q, readable K, readable V>
void score(const Policy& policy, const Q& q, const K& k, const V& v,
           const tensor_view<double, 3>& scores) {
  with_evidence(q, k, v, [&](const auto& e) {
    if (scores.extents() != std::array<index_t, 3>{e.batches(), e.key_heads(), e.size()}) {
      raise(message("scores: shape [")
            << scores.extent(0) << ", " << scores.extent(1) << ", " << scores.extent(2)
            << "] is not [" << e.batches() << ", " << e.key_heads() << ", " << e.size() << "]");
    }
    policy.score(e, scores);
  });
}

// The tokens that survive: of keys and values that hold a whole sequence, and of a store.
template <class Policy, rows_of_tensor Q, readable K, readable V>
kept_tokens choose(const Policy& policy, const Q& q, const K& k, const V& v, const budget& tokens) {
  return with_evidence(q, k, v,
                       [&](const auto& e) { return detail::choose_from(policy, e, tokens); });
}
template <class Policy, rows_of_tensor Q, store Store>
kept_tokens choose(const Policy& policy, const Q& q, const Store& store, const budget& tokens) {
  return detail::choose_from(
      policy, detail::evidence_of(q, store.keys(), store.values(), store.kept()), tokens);
}

// Shows the policy the newest queries and evicts from the store what exceeds the budget; where it
// is not exceeded (budget::with_slack), nothing is scored or moved.
template <class Policy, rows_of_tensor Q, store Store>
void compress(Policy&& policy, const Q& q, Store& store, const budget& tokens) {
  const auto e = detail::evidence_of(q, store.keys(), store.values(), store.kept());
  tokens.check(e.key_heads());  // before the policy remembers anything
  if constexpr (requires { policy.observe(e); }) policy.observe(e);
  if (!tokens.is_exceeded(store.kept())) return;
  const kept_tokens survivors = detail::choose_from(policy, e, tokens);
  store.keep(survivors);
  if constexpr (requires { policy.keep(survivors); }) policy.keep(survivors);
}

// ---- wrappers ----------------------------------------------------------------------------------

namespace detail {

// Lets a wrapper pass on what its policy remembers.
template <class Policy>
struct wrapper {
  Policy policy;
  template <class Evidence>
  void observe(const Evidence& e) {
    if constexpr (requires { policy.observe(e); }) policy.observe(e);
  }
  void keep(const kept_tokens& tokens) {
    if constexpr (requires { policy.keep(tokens); }) policy.keep(tokens);
  }
};

}  // namespace detail

template <class Policy>
struct always_keep : detail::wrapper<Policy> {
  index_t sinks, recent;

  explicit always_keep(const Policy& inner, index_t first, index_t newest)
      : detail::wrapper<Policy>{inner}, sinks(first), recent(newest) {
    if (first < 0 || newest < 0) {
      raise(message("always_keep: ")
            << (first < 0 ? first : newest) << (first < 0 ? " sinks" : " recent tokens")
            << ", must not be negative");
    }
  }
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    this->policy.score(e, scores);
    e.for_each_head([&](index_t b, index_t h) {
      const auto tokens = e.kept.at(b, h);
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] < sinks || tokens[i] >= e.seen(b) - recent) {
          scores(b, h, static_cast<index_t>(i)) = highest_score;
        }
      }
    });
  }
};
template <class Policy>
always_keep(const Policy&, index_t, index_t) -> always_keep<Policy>;

template <class Policy>
struct pooled : detail::wrapper<Policy> {
  index_t width;
  pooling how;

  explicit pooled(const Policy& inner, index_t tokens, pooling kind = pooling::mean)
      : detail::wrapper<Policy>{inner}, width(detail::checked_width(tokens)), how(kind) {}
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    static_assert(Evidence::ordered, "heed: pooling needs rows in the order of their tokens");
    this->policy.score(e, scores);
    e.for_each_head([&](index_t b, index_t h) {
      double* const row = scores.row(b, h);
      const std::vector<double> raw(row, row + e.slots(b, h));
      detail::pool_tokens(raw, width, how, row);
    });
  }
};
template <class Policy>
pooled(const Policy&, index_t, pooling) -> pooled<Policy>;
template <class Policy>
pooled(const Policy&, index_t) -> pooled<Policy>;

template <class Policy>
class accumulated {
 public:
  explicit accumulated(const Policy& policy) : policy_(policy) {}

  // Adds the scores that the policy gives for these queries.
  template <class Evidence>
  void observe(const Evidence& e) {
    std::vector<double> latest(static_cast<std::size_t>(e.batches() * e.key_heads() * e.size()));
    const tensor_view<double, 3> view(latest.data(), {e.batches(), e.key_heads(), e.size()});
    policy_.score(e, view);
    sums_.resize(static_cast<std::size_t>(e.batches() * e.key_heads()));
    seen_.resize(static_cast<std::size_t>(e.batches()), 0);
    key_heads_ = e.key_heads();
    e.for_each_head([&](index_t b, index_t h) {
      auto& sums = of(b, h);
      // A sequence that has seen less than before has begun anew.
      if (e.seen(b) < seen_[static_cast<std::size_t>(b)]) sums.clear();
      const auto slots = static_cast<std::size_t>(e.slots(b, h));
      if (sums.size() > slots) {
        raise(message("accumulated: ")
              << sums.size() << " tokens of batch " << b << ", head " << h
              << " are remembered, the cache has " << slots << ": some left without keep()");
      }
    });
    e.for_each_head([&](index_t b, index_t h) {
      auto& sums = of(b, h);
      sums.resize(static_cast<std::size_t>(e.slots(b, h)), 0);
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += view(b, h, static_cast<index_t>(i));
    });
    for (index_t b = 0; b < e.batches(); ++b) seen_[static_cast<std::size_t>(b)] = e.seen(b);
  }
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    e.for_each_head([&](index_t b, index_t h) {
      const auto at = static_cast<std::size_t>(b * e.key_heads() + h);
      if (at >= sums_.size() || static_cast<index_t>(sums_[at].size()) != e.slots(b, h)) {
        raise("accumulated: the tokens are not those of the last observe()");
      }
      std::copy(sums_[at].begin(), sums_[at].end(), scores.row(b, h));
    });
  }
  void keep(const kept_tokens& tokens) {
    for (index_t b = 0; b < tokens.batches(); ++b) {
      for (index_t h = 0; h < tokens.key_heads(); ++h) {
        auto& sums = of(b, h);
        std::size_t to = 0;
        for (const index_t from : tokens.at(b, h)) {
          sums[to++] = sums[static_cast<std::size_t>(from)];
        }
        sums.resize(to);
      }
    }
  }

 private:
  std::vector<double>& of(index_t b, index_t h) {
    return sums_[static_cast<std::size_t>(b * key_heads_ + h)];
  }
  Policy policy_;
  index_t key_heads_ = 0;
  std::vector<std::vector<double>> sums_;  // [B·Hkv], one per slot
  std::vector<index_t> seen_;              // [B], tokens at the last observe()
};

}  // namespace cache
HEED_NAMESPACE_END
