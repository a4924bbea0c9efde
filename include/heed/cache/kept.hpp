// What a cache keeps: kept_view tells attention which tokens the rows of a store are, kept_tokens
// tells a store which of its rows to keep.
//
// A *slot* is a row of a store; its *position* is the place in the sequence that the token came
// from, however often the store was compacted since. Each KV head of each sequence has its own
// slots, and may have its own number of them.
#pragma once

#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// A place in a sequence. A cache holds fewer than 2³¹ tokens, but a stream through it may have seen
// more.
using token_position = index_t;

// The positions of a store's slots. Ordered: they ascend along the slots of every head.
template <bool Ordered>
struct kept_view {
  static constexpr bool ordered = Ordered;

  const std::span<const token_position>* lists = nullptr;
  index_t step = 1;  // 0: one list for all
  index_t key_heads = 0;
  std::span<const index_t> lengths;  // [B] slots of the head that has most
  std::span<const index_t> seen;     // [B] tokens appended so far, evicted ones included

  // One entry per slot.
  std::span<const token_position> at(index_t batch, index_t key_head) const {
    return lists[(batch * key_heads + key_head) * step];
  }
};

// For every batch entry and KV head the slots to keep, in ascending order.
class kept_tokens {
 public:
  kept_tokens(index_t batches, index_t key_heads)
      : batches_(batches),
        key_heads_(key_heads),
        lists_(static_cast<std::size_t>(batches * key_heads)) {}
  // As many for every head: slots [B, Hkv, n].
  explicit kept_tokens(const tensor_view<const index_t, 3>& slots)
      : kept_tokens(slots.extent(0), slots.extent(1)) {
    for (index_t b = 0; b < batches_; ++b) {
      for (index_t h = 0; h < key_heads_; ++h) {
        at(b, h).assign(slots.row(b, h), slots.row(b, h) + slots.extent(2));
      }
    }
  }

  index_t batches() const { return batches_; }
  index_t key_heads() const { return key_heads_; }
  std::vector<index_t>& at(index_t batch, index_t key_head) {
    return lists_[static_cast<std::size_t>(batch * key_heads_ + key_head)];
  }
  const std::vector<index_t>& at(index_t batch, index_t key_head) const {
    return lists_[static_cast<std::size_t>(batch * key_heads_ + key_head)];
  }
  // Of the longest list.
  index_t longest() const {
    std::size_t most = 0;
    for (const auto& list : lists_) most = list.size() > most ? list.size() : most;
    return static_cast<index_t>(most);
  }

  // Raises unless the lists are those of such a store, in ascending order and within its slots.
  template <bool Ordered>
  void check(const kept_view<Ordered>& kept) const {
    check_heads("batch count", batches_, static_cast<index_t>(kept.seen.size()));
    check_heads("KV head count", key_heads_, kept.key_heads);
    for (index_t b = 0; b < batches_; ++b) {
      for (index_t h = 0; h < key_heads_; ++h) {
        const auto slots = static_cast<index_t>(kept.at(b, h).size());
        index_t least = 0;
        for (const index_t slot : at(b, h)) {
          if (slot < 0 || slot >= slots) {
            raise(message("kept tokens: slot ") << slot << " of batch " << b << ", head " << h
                                                << " is outside [0, " << slots << ")");
          }
          if (slot < least) {
            raise(message("kept tokens: slot ")
                  << slot << " of batch " << b << ", head " << h << " follows slot " << least - 1
                  << ", they must ascend");
          }
          least = slot + 1;
        }
      }
    }
  }

 private:
  static void check_heads(const char* what, index_t value, index_t wanted) {
    if (value != wanted) {
      raise(message("kept tokens: ") << what << " " << value << " is not the cache's " << wanted);
    }
  }

  index_t batches_, key_heads_;
  std::vector<std::vector<index_t>> lists_;
};

}  // namespace cache
HEED_NAMESPACE_END
