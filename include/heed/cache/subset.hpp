// subset(store, tokens): some tokens of a store as a store, for retrieval: nothing is evicted,
// nothing is copied, attention reads the chosen rows where they lie.
//
//   const kept_tokens chosen = …;                       // per batch entry and KV head, ascending
//   heed::attention(q, cache::subset(store, chosen), out, heed::causal{});
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// Valid as long as the store is not changed.
template <class T>
class subset_of_store {
 public:
  // Its spans point into its own positions: it moves, it is not copied.
  subset_of_store(subset_of_store&&) = default;
  subset_of_store& operator=(subset_of_store&&) = default;

  gathered_view<const T> keys() const { return {keys_, rows()}; }
  gathered_view<const T> values() const { return {values_, rows()}; }
  kept_view<true> kept() const {
    kept_view<true> view;
    view.lists = spans_.data();
    view.key_heads = key_heads_;
    view.lengths = lengths_;
    view.seen = seen_;
    return view;
  }
  tensor_view<const index_t, 3> rows() const {
    return {numbers_.data(), {static_cast<index_t>(seen_.size()), key_heads_, longest_}};
  }

 private:
  subset_of_store() = default;
  template <store Store>
  friend auto subset(const Store&, const kept_tokens&);
  tensor_view<const T, 4> keys_, values_;
  index_t key_heads_ = 0, longest_ = 0;
  std::vector<index_t> numbers_, lengths_, seen_;
  std::vector<token_position> positions_;
  std::vector<std::span<const token_position>> spans_;
};

// Of stores whose rows are tensors or gathered (contiguous, paged); raises where the tokens are not
// the store's.
template <store Store>
auto subset(const Store& store, const kept_tokens& tokens) {
  const auto keys = store.keys();
  const auto values = store.values();
  using keys_view = std::remove_const_t<decltype(keys)>;
  static_assert(!is_quantized<keys_view>, "heed: a subset of quantised rows cannot be read");
  using T = typename keys_view::value_type;
  const auto kept = store.kept();
  static_assert(decltype(kept)::ordered, "heed: a subset needs rows in the order of their tokens");
  tokens.check(kept);
  subset_of_store<T> result;
  const index_t batches = tokens.batches();
  result.key_heads_ = tokens.key_heads();
  result.longest_ = tokens.longest();
  result.seen_.assign(kept.seen.begin(), kept.seen.end());
  const index_t lists = batches * result.key_heads_;
  result.numbers_.assign(static_cast<std::size_t>(lists * result.longest_), 0);
  result.positions_.resize(result.numbers_.size());
  index_t* numbers = result.numbers_.data();
  token_position* positions = result.positions_.data();
  for (index_t b = 0; b < batches; ++b) {
    index_t most = 0;
    for (index_t h = 0; h < result.key_heads_; ++h) {
      const auto& list = tokens.at(b, h);
      const auto original = kept.at(b, h);
      const index_t* base = nullptr;
      if constexpr (is_gathered<keys_view>) base = keys.list(b, h);
      for (std::size_t i = 0; i < list.size(); ++i) {
        numbers[i] = base != nullptr ? base[list[i]] : list[i];
        positions[i] = original[static_cast<std::size_t>(list[i])];
      }
      result.spans_.emplace_back(positions, list.size());
      most = std::max(most, static_cast<index_t>(list.size()));
      numbers += result.longest_;
      positions += result.longest_;
    }
    result.lengths_.push_back(most);
  }
  if constexpr (is_gathered<keys_view>) {
    result.keys_ = keys.base();
    result.values_ = values.base();
  } else {
    result.keys_ = keys;
    result.values_ = values;
  }
  return result;
}

}  // namespace cache
HEED_NAMESPACE_END
