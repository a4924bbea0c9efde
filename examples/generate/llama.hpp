// The Llama architecture on heed's exact attention, with all keys and values in a cache.
#pragma once

#include <cstddef>
#include <heed/backend/select.hpp>
#include <heed/cache/contiguous.hpp>
#include <heed/core/thread_pool.hpp>
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>
#include <vector>

#include "transformer.hpp"

namespace example {

// heed::causal aligns the last query with the last key, so that a few queries against a longer
// cache need no different call. Operand is the type of queries, keys and values, in the cache too.
template <class Backend, class Operand>
class cached_attention {
 public:
  using operand = Operand;

  // The pool must outlive it.
  cached_attention(const llama_config& config, heed::thread_pool& pool, index context)
      : pool_(pool) {
    for (index i = 0; i < config.layers; ++i) {
      caches_.emplace_back(1, config.key_heads, context, config.depth);
    }
  }
  void clear() {
    for (auto& cache : caches_) cache.clear();
  }
  template <class Q, class K, class V, class Out>
  void operator()(index layer, const Q& q, const K& k, const V& v, const Out& out) {
    auto& cache = caches_[static_cast<std::size_t>(layer)];
    cache.append(k, v);
    heed::attention<Backend>(q, cache.keys(), cache.values(), out, heed::causal{}, heed::on{pool_});
  }

 private:
  heed::thread_pool& pool_;
  std::vector<heed::cache::contiguous<Operand>> caches_;  // one per layer
};

template <class Backend = heed::backend::native, class Operand = float>
class llama : public transformer<cached_attention<Backend, Operand>> {
 public:
  // The weights and the pool must outlive the model.
  llama(const llama_weights& weights, heed::thread_pool& pool, index context)
      : transformer<cached_attention<Backend, Operand>>(
            weights, pool, context,
            cached_attention<Backend, Operand>(weights.config, pool, context)) {}
};

}  // namespace example
