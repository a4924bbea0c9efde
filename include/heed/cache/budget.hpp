// How many tokens survive, and which: budgets, and the tokens of highest score within them.
//
//   budget{n}                 n tokens of every KV head
//   budget::per_head(counts)  a number of each KV head's own
//   budget::shared(n, floor)  n tokens per KV head on average: each head keeps ⌊floor·n⌋, and all
//                             heads of a sequence compete for the rest (Feng et al., "Ada-KV",
//                             2024, with floor = 0.2)
//   budget{n}.with_slack(m)   compress() waits until more than m tokens beyond the budget are there
//   pyramid_budgets(…)        one number per layer, falling arithmetically (Cai et al.,
//                             "PyramidKV", 2024)
#pragma once

#include <algorithm>
#include <numeric>

#include "../core/pack.hpp"
#include "kept.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

class budget {
 public:
  budget(index_t tokens) : tokens_(checked(tokens)) {}
  static budget per_head(std::span<const index_t> tokens) {
    budget result(1);
    result.per_head_ = true;
    for (const index_t count : tokens) result.heads_.push_back(checked(count));
    return result;
  }
  static budget shared(index_t tokens, double floor = 0.2) {
    budget result(tokens);
    if (!(floor >= 0 && floor <= 1)) {
      raise(message("budget: floor ") << floor << " is outside [0, 1]");
    }
    result.floor_ = static_cast<index_t>(floor * static_cast<double>(tokens));
    result.shared_ = true;
    return result;
  }

  // Tokens of a KV head (on average, of a shared budget) that compress() lets pass before it evicts
  // down to the budget. What stays is moved when something leaves: done for every new token, that
  // takes longer than attention itself.
  budget with_slack(index_t tokens) const {
    if (tokens < 0) raise(message("budget: slack ") << tokens << ", must not be negative");
    budget result = *this;
    result.slack_ = tokens;
    return result;
  }
  // Whether compress() evicts something: from any KV head, or, of a shared budget, from any
  // sequence.
  template <bool Ordered>
  bool is_exceeded(const kept_view<Ordered>& kept) const {
    for (std::size_t b = 0; b < kept.seen.size(); ++b) {
      double of_sequence = 0;  // real, since budgets may be as large as numbers get
      for (index_t h = 0; h < kept.key_heads; ++h) {
        const auto slots = static_cast<double>(kept.at(static_cast<index_t>(b), h).size());
        const double over = slots - static_cast<double>(of(h)) - static_cast<double>(slack_);
        if (!shared_ && over > 0) return true;
        of_sequence += over;
      }
      if (shared_ && of_sequence > 0) return true;
    }
    return false;
  }

  bool is_shared() const { return shared_; }
  index_t floor() const { return floor_; }
  index_t of(index_t key_head) const {
    return !per_head_ ? tokens_ : heads_[static_cast<std::size_t>(key_head)];
  }
  void check(index_t key_heads) const {
    if (per_head_ && static_cast<index_t>(heads_.size()) != key_heads) {
      raise(message("budget: ") << heads_.size() << " numbers for " << key_heads << " KV heads");
    }
  }

 private:
  static index_t checked(index_t tokens) {
    if (tokens < 1) raise(message("budget: ") << tokens << " tokens, must be at least 1");
    return tokens;
  }
  index_t tokens_, floor_ = 0, slack_ = 0;
  bool shared_ = false, per_head_ = false;
  std::vector<index_t> heads_;
};

// Scores [B, Hkv, n] → the slots of highest score within the budget, ascending. Of equal scores the
// newer token survives. Raises where a head has more slots than scores.
template <bool Ordered>
kept_tokens top_tokens(const tensor_view<const double, 3>& scores, const kept_view<Ordered>& kept,
                       const budget& tokens) {
  const index_t batches = scores.extent(0), key_heads = scores.extent(1);
  tokens.check(key_heads);
  if (batches != static_cast<index_t>(kept.seen.size()) || key_heads != kept.key_heads) {
    raise(message("scores: [") << batches << ", " << key_heads << "] batches and heads are not the "
                               << kept.seen.size() << " and " << kept.key_heads << " of the cache");
  }
  for (index_t b = 0; b < batches; ++b) {
    for (index_t h = 0; h < key_heads; ++h) {
      const auto slots = static_cast<index_t>(kept.at(b, h).size());
      if (slots > scores.extent(2)) {
        raise(message("scores: ") << scores.extent(2) << " for the " << slots << " slots of batch "
                                  << b << ", head " << h);
      }
    }
  }
  kept_tokens result(batches, key_heads);
  struct candidate {
    double score;
    index_t head, slot;
  };
  std::vector<candidate> order;
  const auto better = [](const candidate& a, const candidate& b) {
    return a.score != b.score ? a.score > b.score
           : a.slot != b.slot ? a.slot > b.slot
                              : a.head < b.head;
  };
  // The first `count` candidates become the best.
  const auto rank = [&](index_t from, index_t count) {
    const auto begin = order.begin() + from;
    if (count < order.end() - begin) std::nth_element(begin, begin + count, order.end(), better);
  };
  for (index_t b = 0; b < batches; ++b) {
    index_t all = 0;
    std::vector<candidate> rest;
    for (index_t h = 0; h < key_heads; ++h) {
      const auto slots = static_cast<index_t>(kept.at(b, h).size());
      order.clear();
      for (index_t i = 0; i < slots; ++i) {
        // NaN below all: it compares with nothing, and the order must be strict.
        const double score = scores(b, h, i);
        order.push_back({score == score ? score : minus_infinity<double>(), h, i});
      }
      const index_t wanted = tokens.is_shared() ? tokens.floor() : tokens.of(h);
      const index_t count = std::min(wanted, slots);
      rank(0, count);
      for (index_t i = 0; i < count; ++i) {
        result.at(b, h).push_back(order[static_cast<std::size_t>(i)].slot);
      }
      // No more than there are candidates, or huge budgets would overflow.
      all += std::min(tokens.of(h) - count, key_heads * scores.extent(2));
      if (tokens.is_shared()) rest.insert(rest.end(), order.begin() + count, order.end());
    }
    if (tokens.is_shared()) {
      order = std::move(rest);
      const index_t count = std::min(all, static_cast<index_t>(order.size()));
      rank(0, count);
      for (index_t i = 0; i < count; ++i) {
        const candidate& chosen = order[static_cast<std::size_t>(i)];
        result.at(b, chosen.head).push_back(chosen.slot);
      }
    }
    for (index_t h = 0; h < key_heads; ++h) {
      std::sort(result.at(b, h).begin(), result.at(b, h).end());
    }
  }
  return result;
}

// The budgets of all layers, first layer first, `tokens` on average, `window` of which each layer
// keeps in any case. The excess over the window falls in equal steps from the first layer to the
// last, whose excess is 1/steepness of the mean; no layer gets more than the `length` tokens that
// there are, and all of them get these where the mean is no less.
inline std::vector<index_t> pyramid_budgets(index_t layers, index_t tokens, index_t window,
                                            index_t length, index_t steepness = 20) {
  if (layers < 1) raise(message("pyramid_budgets: ") << layers << " layers, must be at least 1");
  if (window < 0 || tokens <= window) {
    raise(message("pyramid_budgets: ")
          << tokens << " tokens leave none beside a window of " << window);
  }
  if (length < 0) raise(message("pyramid_budgets: length ") << length << " is negative");
  if (steepness < 1) {
    raise(message("pyramid_budgets: steepness ") << steepness << ", must be at least 1");
  }
  const index_t mean = tokens - window;
  index_t least = mean / steepness, most = 2 * mean - least;
  if (most > length - window) {
    most = std::max<index_t>(length - window, 0);
    least = std::min(2 * mean - most, most);
  }
  const index_t step = layers > 1 ? (most - least) / (layers - 1) : 0;
  std::vector<index_t> result;
  for (index_t layer = 0; layer < layers; ++layer) {
    const index_t excess = layers == 1 ? std::min(mean, most) : most - layer * step;
    result.push_back(std::min(window + std::max<index_t>(excess, 0), length));
  }
  return result;
}

}  // namespace cache
HEED_NAMESPACE_END
