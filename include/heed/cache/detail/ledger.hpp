// ledger: which tokens the slots of a store hold. Every store has one (a paged store one per
// sequence), and moves its rows as the ledger says.
//
// Until the first eviction all heads hold the same tokens: one list serves all of them.
#pragma once

#include <algorithm>
#include <utility>

#include "../kept.hpp"

HEED_NAMESPACE_BEGIN
namespace cache::detail {

class ledger {
 public:
  ledger(index_t batches, index_t key_heads) : batches_(batches), key_heads_(key_heads) {
    publish();
  }
  ledger(const ledger& other)
      : batches_(other.batches_),
        key_heads_(other.key_heads_),
        size_(other.size_),
        seen_(other.seen_),
        lists_(other.lists_) {
    publish();
  }
  ledger& operator=(const ledger& other) { return *this = ledger(other); }
  // Leaves an empty ledger of the same shape.
  ledger(ledger&& other) noexcept : ledger(other.batches_, other.key_heads_) {
    *this = std::move(other);
  }
  ledger& operator=(ledger&& other) noexcept {
    std::swap(batches_, other.batches_);
    std::swap(key_heads_, other.key_heads_);
    std::swap(size_, other.size_);
    std::swap(seen_, other.seen_);
    std::swap(lists_, other.lists_);
    std::swap(spans_, other.spans_);
    std::swap(lengths_, other.lengths_);
    std::swap(seen_of_, other.seen_of_);
    return *this;
  }

  index_t size() const { return size_; }  // slots of the head that has most
  index_t seen() const { return seen_; }  // tokens appended so far
  // Slots of one head; all heads of a sequence have this many until the first eviction.
  index_t count(index_t batch, index_t key_head) const {
    if (lists_.size() <= 1) return size_;
    return static_cast<index_t>(list(batch, key_head).size());
  }
  // The view that attention and policies read; valid until the next change.
  template <bool Ordered = true>
  kept_view<Ordered> kept() const {
    kept_view<Ordered> view;
    view.lists = spans_.data();
    view.step = spans_.size() > 1 ? 1 : 0;
    view.key_heads = key_heads_;
    view.lengths = lengths_;
    view.seen = seen_of_;
    return view;
  }
  index_t bytes() const {
    index_t bytes = 0;
    for (const auto& list : lists_) {
      bytes += static_cast<index_t>(list.capacity() * sizeof(token_position));
    }
    return bytes;
  }

  // Tokens seen, seen + 1, … enter a slot each behind the slots of every head.
  void append(index_t count) {
    if (lists_.empty()) lists_.resize(1);
    for (auto& list : lists_) {
      for (index_t i = 0; i < count; ++i) {
        list.push_back(seen_ + i);
      }
    }
    size_ += count;
    seen_ += count;
    publish();
  }
  // A ring's: the token goes into any slot.
  void put(index_t slot, index_t position) {
    if (lists_.empty()) lists_.resize(1);
    auto& list = lists_[0];
    if (slot >= static_cast<index_t>(list.size())) list.resize(static_cast<std::size_t>(slot) + 1);
    list[static_cast<std::size_t>(slot)] = position;
    size_ = static_cast<index_t>(list.size());
    seen_ = position + 1;
  }

  // Calls move(batch, key head, from, to) for every row that has to move, in an order that
  // overwrites nothing that is still wanted.
  template <class Move>
  void keep(const kept_tokens& tokens, const Move& move) {
    tokens.check(kept());
    if (lists_.size() <= 1 && batches_ * key_heads_ > 1) {
      std::vector<token_position> shared;
      if (!lists_.empty()) shared = lists_[0];
      lists_.assign(static_cast<std::size_t>(batches_ * key_heads_), shared);
    }
    if (lists_.empty()) lists_.resize(1);  // nothing was appended yet
    for (index_t b = 0; b < batches_; ++b) {
      for (index_t h = 0; h < key_heads_; ++h) {
        auto& positions = list(b, h);
        index_t to = 0;
        for (const index_t from : tokens.at(b, h)) {
          if (from != to) {
            move(b, h, from, to);
            positions[static_cast<std::size_t>(to)] = positions[static_cast<std::size_t>(from)];
          }
          ++to;
        }
        positions.resize(static_cast<std::size_t>(to));
      }
    }
    size_ = tokens.longest();
    publish();
  }

  // Forgets all slots but the first `size` of each head, and that their tokens and what came behind
  // them were seen. Tokens that were evicted before the first of them stay seen.
  void truncate(index_t size) {
    if (size < 0 || size > size_) {
      raise(message("cache: truncating ") << size_ << " tokens to " << size);
    }
    bool forgets = false;
    index_t seen = 0;
    for (auto& list : lists_) {
      if (static_cast<index_t>(list.size()) > size) {
        forgets = true;
        seen = std::max(seen, list[static_cast<std::size_t>(size)]);
        list.resize(static_cast<std::size_t>(size));
      } else if (!list.empty()) {
        seen = std::max(seen, list.back() + 1);
      }
    }
    size_ = size;
    if (forgets) seen_ = seen;
    publish();
  }
  void clear() {
    size_ = seen_ = 0;
    if (!lists_.empty()) {
      lists_.resize(1);
      lists_[0].clear();
    }
    publish();
  }

  // The spans follow the lists. Called by put()'s caller, else by what changes the lists.
  void publish() {
    spans_.assign(lists_.empty() ? 1 : lists_.size(), {});
    for (std::size_t i = 0; i < lists_.size(); ++i) spans_[i] = lists_[i];
    seen_of_.assign(static_cast<std::size_t>(batches_), seen_);
    lengths_.assign(static_cast<std::size_t>(batches_), lists_.size() <= 1 ? size_ : 0);
    if (lists_.size() > 1) {
      for (std::size_t i = 0; i < lists_.size(); ++i) {
        index_t& length = lengths_[i / static_cast<std::size_t>(key_heads_)];
        length = std::max(length, static_cast<index_t>(lists_[i].size()));
      }
    }
  }

 private:
  std::vector<token_position>& list(index_t batch, index_t key_head) {
    return lists_[lists_.size() == 1 ? 0 : static_cast<std::size_t>(batch * key_heads_ + key_head)];
  }
  const std::vector<token_position>& list(index_t batch, index_t key_head) const {
    return lists_[lists_.size() == 1 ? 0 : static_cast<std::size_t>(batch * key_heads_ + key_head)];
  }

  index_t batches_, key_heads_;
  index_t size_ = 0, seen_ = 0;
  std::vector<std::vector<token_position>> lists_;  // one for all heads, or [B·Hkv]
  std::vector<std::span<const token_position>> spans_;
  std::vector<index_t> lengths_, seen_of_;
};

}  // namespace cache::detail
HEED_NAMESPACE_END
