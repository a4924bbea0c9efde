// subset(store, tokens): some tokens of a store as a store, for retrieval: nothing is evicted,
// nothing is copied, attention reads the chosen rows where they lie.
//
//   const kept_tokens chosen = …;                       // per batch entry and KV head, ascending
//   heed::attention(q, cache::subset(store, chosen), out, heed::causal{});
#pragma once

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

namespace detail {

template <class T>
gathered_view<const T> gathered(const tensor_view<const T, 4>& base,
                                const tensor_view<const index_t, 3>& rows) {
  return {base, rows};
}
template <class Code>
gathered_quantized_view<Code> gathered(const quantized_view<Code, 4>& base,
                                       const tensor_view<const index_t, 3>& rows) {
  return {base, rows};
}

}  // namespace detail

// Valid as long as the store is not changed. View: of all rows, a tensor_view or quantized_view.
template <class View>
class subset_of_store {
 public:
  // Its spans point into its own positions: it moves, it is not copied.
  subset_of_store(subset_of_store&&) = default;
  subset_of_store& operator=(subset_of_store&&) = default;

  auto keys() const { return detail::gathered(keys_, rows()); }
  auto values() const { return detail::gathered(values_, rows()); }
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
  View keys_, values_;
  index_t key_heads_ = 0, longest_ = 0;
  std::vector<index_t> numbers_, lengths_, seen_;
  std::vector<token_position> positions_;
  std::vector<std::span<const token_position>> spans_;
};

// Of stores whose rows are in the order of their tokens (all but the ring); raises where the tokens
// are not the store's.
template <store Store>
auto subset(const Store& store, const kept_tokens& tokens) {
  const auto keys = store.keys();
  const auto values = store.values();
  // As those of pages are already.
  constexpr bool listed = listed_rows<std::remove_const_t<decltype(keys)>>;
  const auto all_rows = [](const auto& x) {
    if constexpr (listed) {
      return x.base();
    } else {
      return x;
    }
  };
  const auto kept = store.kept();
  static_assert(decltype(kept)::ordered, "heed: a subset needs rows in the order of their tokens");
  tokens.check(kept);
  subset_of_store<decltype(all_rows(keys))> result;
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
      if constexpr (listed) base = keys.list(b, h);
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
  result.keys_ = all_rows(keys);
  result.values_ = all_rows(values);
  return result;
}

}  // namespace cache
HEED_NAMESPACE_END
