// What tests of caches share: random tokens, plain lists of tokens to compare stores with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "heed/cache/kept.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace heed_test {

// A random choice of slots, of its own for every head.
template <bool Ordered>
heed::cache::kept_tokens random_choice(const heed::cache::kept_view<Ordered>& kept,
                                       std::mt19937& random, std::uint_fast32_t percent) {
  heed::cache::kept_tokens result(static_cast<index_t>(kept.seen.size()), kept.key_heads);
  for (index_t b = 0; b < result.batches(); ++b) {
    for (index_t h = 0; h < result.key_heads(); ++h) {
      for (index_t i = 0; i < static_cast<index_t>(kept.at(b, h).size()); ++i) {
        if (random() % 100 < percent) result.at(b, h).push_back(i);
      }
    }
  }
  return result;
}

// One KV head of one sequence: a plain copy of what it should hold.
struct plain_head {
  std::vector<index_t> positions;
  std::vector<std::vector<float>> keys, values;

  void keep(const std::vector<index_t>& slots) {
    plain_head result;
    for (const index_t slot : slots) {
      const auto at = static_cast<std::size_t>(slot);
      result.positions.push_back(positions[at]);
      result.keys.push_back(keys[at]);
      result.values.push_back(values[at]);
    }
    *this = result;
  }
  // `left` grows to what was seen before the first token that is forgotten, or with the last one.
  void truncate(index_t size, bool& forgets, index_t& left) {
    const auto count = std::min(static_cast<std::size_t>(size), positions.size());
    if (count < positions.size()) {
      forgets = true;
      left = std::max(left, positions[count]);
    } else if (count > 0) {
      left = std::max(left, positions.back() + 1);
    }
    positions.resize(count), keys.resize(count), values.resize(count);
  }
};
struct plain_sequence {
  std::vector<plain_head> heads;
  index_t seen = 0;

  explicit plain_sequence(index_t count) : heads(static_cast<std::size_t>(count)) {}
  index_t size() const {
    std::size_t most = 0;
    for (const auto& head : heads) most = std::max(most, head.positions.size());
    return static_cast<index_t>(most);
  }
  template <class K, class V>
  void append(const K& k, const V& v, index_t batch) {
    for (std::size_t h = 0; h < heads.size(); ++h) {
      for (index_t i = 0; i < k.extent(2); ++i) {
        const auto* key = k.row(batch, static_cast<index_t>(h), i);
        const auto* value = v.row(batch, static_cast<index_t>(h), i);
        heads[h].positions.push_back(seen + i);
        heads[h].keys.emplace_back(key, key + k.extent(3));
        heads[h].values.emplace_back(value, value + v.extent(3));
      }
    }
    seen += k.extent(2);
  }
  void truncate(index_t size) {
    bool forgets = false;
    index_t left = 0;
    for (auto& head : heads) head.truncate(size, forgets, left);
    if (forgets) seen = left;
  }
};

// A store whose rows are a tensor or gathered holds exactly these sequences.
template <class Store>
void expect_holds(const Store& store, const std::vector<plain_sequence>& wanted) {
  const auto keys = store.keys();
  const auto values = store.values();
  const auto kept = store.kept();
  ASSERT_EQ(kept.seen.size(), wanted.size());
  for (std::size_t b = 0; b < wanted.size(); ++b) {
    const auto batch = static_cast<index_t>(b);
    ASSERT_EQ(kept.seen[b], wanted[b].seen);
    ASSERT_EQ(kept.lengths[b], wanted[b].size());
    for (std::size_t h = 0; h < wanted[b].heads.size(); ++h) {
      const auto head = static_cast<index_t>(h);
      const plain_head& plain = wanted[b].heads[h];
      const auto list = kept.at(batch, head);
      ASSERT_EQ(std::vector<index_t>(list.begin(), list.end()), plain.positions);
      for (std::size_t i = 0; i < plain.keys.size(); ++i) {
        const auto* key = keys.row(batch, head, static_cast<index_t>(i));
        const auto* value = values.row(batch, head, static_cast<index_t>(i));
        ASSERT_EQ(std::vector<float>(key, key + keys.extent(3)), plain.keys[i]);
        ASSERT_EQ(std::vector<float>(value, value + values.extent(3)), plain.values[i]);
      }
    }
  }
}

}  // namespace heed_test
