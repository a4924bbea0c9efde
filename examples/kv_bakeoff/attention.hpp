// Attention that keeps only some of the keys and values: after every piece of text, or as many
// single tokens, each layer's cache is compressed to its budget by a policy; or everything is kept,
// and each query reads only the pages that Quest retrieves.
#pragma once

#include <algorithm>
#include <heed/cache/attention.hpp>
#include <heed/cache/contiguous.hpp>
#include <heed/cache/policies/h2o.hpp>
#include <heed/cache/policies/keydiff.hpp>
#include <heed/cache/policies/l2_norm.hpp>
#include <heed/cache/policies/lagkv.hpp>
#include <heed/cache/policies/quest.hpp>
#include <heed/cache/policies/snapkv.hpp>
#include <heed/cache/policies/streaming_llm.hpp>
#include <heed/cache/policies/tova.hpp>
#include <heed/mask/causal.hpp>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../generate/transformer.hpp"

namespace bakeoff {

namespace cache = heed::cache;
using example::index;

struct everything {};
struct retrieval {};

using policy =
    std::variant<everything, retrieval, cache::streaming_llm, cache::always_keep<cache::l2_norm>,
                 cache::always_keep<cache::keydiff>, cache::lagkv, cache::snapkv,
                 decltype(cache::h2o(0)), cache::always_keep<cache::tova>>;

inline const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names = {"streaming_llm", "l2_norm", "keydiff",
                                                 "lagkv",         "tova",    "snapkv",
                                                 "pyramidkv",     "h2o",     "quest"};
  return names;
}

// The newest tokens, which most policies keep in any case.
inline constexpr index recent_tokens = 32;

// A policy of its own for every layer, since some remember what they saw.
inline policy make_policy(const std::string& name, index budget) {
  constexpr index sinks = 4, recent = recent_tokens;
  if (name == "streaming_llm") return cache::streaming_llm(sinks);
  if (name == "l2_norm") return cache::always_keep{cache::l2_norm{}, sinks, recent};
  if (name == "keydiff") return cache::always_keep{cache::keydiff{}, sinks, recent};
  if (name == "lagkv") return cache::lagkv(sinks, 32);
  if (name == "tova") return cache::always_keep{cache::tova{}, 0, 1};
  if (name == "snapkv" || name == "pyramidkv") return cache::snapkv(recent, 5);
  if (name == "h2o") return cache::h2o(budget / 2);
  if (name == "quest") return retrieval{};
  return everything{};
}

class evicting_attention {
 public:
  using operand = float;
  static constexpr index page_size = 16;

  // budget: tokens of each KV head, on average over the layers. `piece`: most tokens of one call.
  evicting_attention(const example::llama_config& config, heed::thread_pool& pool, std::string name,
                     index budget, index length, index piece)
      : config_(config), pool_(&pool), name_(std::move(name)), slack_(piece - 1) {
    budgets_.assign(static_cast<std::size_t>(config.layers), budget);
    if (name_ == "pyramidkv") {
      const auto falling = cache::pyramid_budgets(config.layers, budget, recent_tokens, length);
      budgets_.assign(falling.begin(), falling.end());
    }
    const bool all = name_ == "full" || name_ == "quest";
    for (const index tokens : budgets_) {
      stores_.emplace_back(1, config.key_heads,
                           all ? length : std::min(tokens + slack_ + piece, length), config.depth);
    }
    clear();
  }

  void clear() {
    policies_.clear();
    bounds_.clear();
    for (auto& store : stores_) store.clear();
    for (const index tokens : budgets_) {
      policies_.push_back(make_policy(name_, tokens));
      bounds_.emplace_back(1, config_.key_heads, page_size, config_.depth);
    }
  }

  template <class Q, class K, class V, class Out>
  void operator()(index layer, const Q& q, const K& k, const V& v, const Out& out) {
    const auto at = static_cast<std::size_t>(layer);
    auto& store = stores_[at];
    const index budget = budgets_[at];
    store.append(k, v);
    std::visit(
        [&](auto& own) {
          using chosen = std::remove_cvref_t<decltype(own)>;
          if constexpr (std::is_same_v<chosen, retrieval>) {
            bounds_[at].append(k);
            if (store.size() > budget) {
              heed::attention(q, cache::subset(store, bounds_[at].choose(q, budget / page_size)),
                              out, heed::causal{}, heed::on{*pool_});
              return;
            }
          }
          heed::attention(q, store, out, heed::causal{}, heed::on{*pool_});
          if constexpr (!std::is_same_v<chosen, everything> && !std::is_same_v<chosen, retrieval>) {
            cache::compress(own, q, store, cache::budget(budget).with_slack(slack_));
          }
        },
        policies_[at]);
  }

  // Of keys, values, positions and page bounds.
  index bytes() const {
    index sum = 0;
    for (const auto& store : stores_) sum += store.bytes();
    if (name_ == "quest") {
      for (const auto& bounds : bounds_) sum += bounds.bytes();
    }
    return sum;
  }

 private:
  const example::llama_config& config_;
  heed::thread_pool* pool_;
  std::string name_;
  index slack_;                 // tokens over the budget that do not make it evict yet
  std::vector<index> budgets_;  // one per layer, as the next three
  std::vector<cache::contiguous<float>> stores_;
  std::vector<policy> policies_;
  std::vector<cache::page_bounds> bounds_;
};

}  // namespace bakeoff
