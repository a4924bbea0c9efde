// cache::paged<T>: a pool of pages that many sequences of different lengths share.
//
//   row of slot i of a sequence = table[i / page_size]·page_size + i mod page_size
//
// A page holds page_size tokens of all KV heads. Sequences take pages as they grow and give them
// back; a fork shares its parent's pages, and a page is copied when one of those that share it
// writes (Kwon et al., "Efficient Memory Management for Large Language Model Serving with
// PagedAttention", 2023). batch() makes a store of some of the sequences, which attention reads in
// place:
//
//   heed::attention(q, pool.batch(ids), out, heed::causal{});
#pragma once

#include <initializer_list>

#include "../core/view_of.hpp"
#include "detail/ledger.hpp"
#include "detail/rows_memory.hpp"
#include "detail/store_shape.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// Some sequences of a pool, as a store; valid until one of them changes.
template <class T>
class paged_batch {
 public:
  gathered_view<const T> keys() const { return {keys_, rows()}; }
  gathered_view<const T> values() const { return {values_, rows()}; }
  kept_view<true> kept() const {
    kept_view<true> view;
    view.lists = spans_.data();
    view.key_heads = keys_.extent(1);
    view.lengths = lengths_;
    view.seen = seen_;
    return view;
  }
  // Row numbers in the pool [S, 1, longest].
  tensor_view<const index_t, 3> rows() const {
    return {numbers_.data(), {static_cast<index_t>(lengths_.size()), 1, longest_}};
  }

 private:
  template <element>
  friend class paged;
  tensor_view<const T, 4> keys_, values_;
  index_t longest_ = 0;
  std::vector<index_t> numbers_, lengths_, seen_;
  std::vector<std::span<const token_position>> spans_;
};

template <element T>
class paged {
 public:
  // `pages` pages of `page_size` tokens for all sequences together.
  paged(index_t key_heads, index_t pages, index_t page_size, index_t depth, index_t value_depth)
      : pages_(pages),
        page_size_(page_size),
        shape_(shape(key_heads, pages, page_size, depth, value_depth)),
        free_(pages),
        users_(static_cast<std::size_t>(pages), 0) {}
  paged(index_t key_heads, index_t pages, index_t page_size, index_t depth)
      : paged(key_heads, pages, page_size, depth, depth) {}

  // A new sequence without tokens; returns its number.
  index_t add() { return enter(sequence{detail::ledger(1, shape_.key_heads), {}, true}); }
  // A new sequence with the tokens of another one. No page is copied until one of them writes.
  index_t fork(index_t id) {
    const index_t copy = enter(sequence(at(id)));
    for (const index_t page : at(copy).table) ++users(page);
    return copy;
  }
  // Ends a sequence; its number may be given to another one.
  void free(index_t id) {
    release(at(id), 0);
    at(id) = sequence{detail::ledger(1, shape_.key_heads), {}, false};
  }

  // Adds n tokens to a sequence: k [1, Hkv, n, D], v [1, Hkv, n, Dv]. Raises, before anything is
  // written, where they do not fit or there are not enough pages.
  template <viewable K, viewable V>
  void append(index_t id, const K& k, const V& v) {
    sequence& to = at(id);
    const auto new_keys = view_of(k).template lifted<4>();
    const auto new_values = view_of(v).template lifted<4>();
    const index_t count = shape_.check_append(new_keys, new_values, 0);
    if (count == 0) return;
    const index_t size = to.tokens.size();
    index_t least = size;  // the first slot that is written
    for (index_t h = 0; h < shape_.key_heads; ++h) least = std::min(least, to.tokens.count(0, h));
    reserve(to, "appending", count, least, size + count);
    for (index_t h = 0; h < shape_.key_heads; ++h) {
      const index_t slot = to.tokens.count(0, h);
      for (index_t i = 0; i < count; ++i) {
        const index_t row = row_of(to, slot + i);
        detail::copy_row(new_keys.row(0, h, i), key(h, row), shape_.depth);
        detail::copy_row(new_values.row(0, h, i), value(h, row), shape_.value_depth);
      }
    }
    to.tokens.append(count);
  }

  // Evicts all tokens of a sequence that are not listed (batch 0), and gives back the pages that
  // are left over. Pages that it shares are copied where rows move: raises when there are too few.
  void keep(index_t id, const kept_tokens& tokens) {
    sequence& of = at(id);
    tokens.check(of.tokens.kept());
    const index_t size = tokens.longest();
    index_t least = size;  // the first slot that is written
    for (index_t h = 0; h < shape_.key_heads; ++h) {
      const auto& list = tokens.at(0, h);
      index_t same = 0;
      while (same < static_cast<index_t>(list.size()) &&
             list[static_cast<std::size_t>(same)] == same) {
        ++same;
      }
      if (same < static_cast<index_t>(list.size())) least = std::min(least, same);
    }
    // Rows of shared pages are read after the copy: copies hold the same rows.
    if (least < size) reserve(of, "compacting", size, least, size);
    of.tokens.keep(tokens, [&](index_t, index_t h, index_t from, index_t to) {
      from = row_of(of, from), to = row_of(of, to);
      detail::copy_row(key(h, from), key(h, to), shape_.depth);
      detail::copy_row(value(h, from), value(h, to), shape_.value_depth);
    });
    release(of, pages_for(size));
  }
  // Forgets all tokens of a sequence but the first `size`.
  void truncate(index_t id, index_t size) {
    at(id).tokens.truncate(size);
    release(at(id), pages_for(size));
  }

  // Some sequences, in this order.
  paged_batch<T> batch(std::span<const index_t> ids) const {
    paged_batch<T> result;
    for (const index_t id : ids) {
      const sequence& s = at(id);
      result.lengths_.push_back(s.tokens.size());
      result.seen_.push_back(s.tokens.seen());
      result.longest_ = std::max(result.longest_, s.tokens.size());
      for (index_t h = 0; h < shape_.key_heads; ++h) {
        result.spans_.push_back(s.tokens.kept().at(0, h));
      }
    }
    // Row 0 stands behind the end of shorter lists.
    result.numbers_.assign(ids.size() * static_cast<std::size_t>(result.longest_), 0);
    index_t* numbers = result.numbers_.data();
    for (const index_t id : ids) {
      const sequence& s = at(id);
      for (index_t i = 0; i < s.tokens.size(); i += page_size_) {
        const index_t first = row_of(s, i), end = std::min(page_size_, s.tokens.size() - i);
        for (index_t j = 0; j < end; ++j) numbers[i + j] = first + j;
      }
      numbers += result.longest_;
    }
    result.keys_ = pool(rows_.template get<0>(), shape_.depth);
    result.values_ = pool(rows_.template get<1>(), shape_.value_depth);
    return result;
  }
  paged_batch<T> batch(std::initializer_list<index_t> ids) const {
    return batch(std::span<const index_t>(ids.begin(), ids.size()));
  }

  index_t size(index_t id) const { return at(id).tokens.size(); }
  index_t seen(index_t id) const { return at(id).tokens.seen(); }
  // Page numbers of a sequence, in order of its slots.
  std::span<const index_t> table(index_t id) const { return at(id).table; }
  index_t page_size() const { return page_size_; }
  index_t pages() const { return pages_; }
  index_t free_pages() const { return free_; }
  // Memory that is held, and the part of it that pages in use take.
  index_t bytes() const { return rows_.bytes(); }
  index_t bytes_in_use() const {
    return (pages_ - free_pages()) * page_size_ * shape_.key_heads *
           (shape_.depth + shape_.value_depth) * static_cast<index_t>(sizeof(T));
  }

 private:
  struct sequence {
    detail::ledger tokens;
    std::vector<index_t> table;
    bool exists = false;
  };

  static detail::store_shape shape(index_t key_heads, index_t pages, index_t page_size,
                                   index_t depth, index_t value_depth) {
    if (page_size < 1) raise(message("paged: page size ") << page_size << " is less than 1");
    detail::store_shape::check_sign("page count", pages);
    if (pages > (index_t{1} << 60) / page_size) {
      raise(message("paged: ") << pages << " pages of " << page_size << " tokens are too large");
    }
    return detail::store_shape{1, key_heads, pages * page_size, depth, value_depth}.checked(
        sizeof(T));
  }

  const sequence& at(index_t id) const {
    if (id < 0 || id >= static_cast<index_t>(sequences_.size()) ||
        !sequences_[static_cast<std::size_t>(id)].exists) {
      raise(message("paged: sequence ") << id << " does not exist");
    }
    return sequences_[static_cast<std::size_t>(id)];
  }
  sequence& at(index_t id) { return const_cast<sequence&>(std::as_const(*this).at(id)); }
  index_t enter(sequence&& s) {
    for (std::size_t id = 0; id < sequences_.size(); ++id) {
      if (!sequences_[id].exists) {
        sequences_[id] = std::move(s);
        return static_cast<index_t>(id);
      }
    }
    sequences_.push_back(std::move(s));
    return static_cast<index_t>(sequences_.size()) - 1;
  }

  index_t& users(index_t page) { return users_[static_cast<std::size_t>(page)]; }
  index_t pages_for(index_t size) const { return (size + page_size_ - 1) / page_size_; }
  // A page for slot number i of a table: the neighbour of the page before where it is free, since a
  // processor reads ahead past the end of a page; else one with room to grow, in the middle of the
  // largest gap.
  index_t take_page(const std::vector<index_t>& table, index_t i) {
    index_t page = i > 0 ? table[static_cast<std::size_t>(i - 1)] + 1 : pages_;
    if (page == pages_ || users(page) > 0) {
      index_t size = 0;
      for (index_t begin = 0, end; begin < pages_; begin = end + 1) {
        for (end = begin; end < pages_ && users(end) == 0;) ++end;
        if (end - begin > size) {
          size = end - begin;
          page = begin == 0 ? begin : begin + size / 2;
        }
      }
    }
    users(page) = 1;
    --free_;
    return page;
  }
  // Pages of a table from `first` on go back.
  void release(sequence& s, index_t first) {
    while (static_cast<index_t>(s.table.size()) > first) {
      const index_t page = s.table.back();
      s.table.pop_back();
      if (--users(page) == 0) ++free_;
    }
  }
  // Slots [begin, end) can be written: their pages exist and belong to nobody else.
  void reserve(sequence& s, const char* what, index_t count, index_t begin, index_t end) {
    const index_t first = begin / page_size_, last = pages_for(end);
    const auto held = static_cast<index_t>(s.table.size());
    index_t wanted = last > held ? last - held : 0;
    for (index_t i = first; i < last && i < held; ++i) {
      if (users(s.table[static_cast<std::size_t>(i)]) > 1) ++wanted;
    }
    if (wanted > free_pages()) {
      raise(message("paged: ") << what << " " << count << " tokens needs " << wanted << " pages, "
                               << free_pages() << " of " << pages_ << " are free");
    }
    rows_.allocate(shape_.key_heads * shape_.capacity, shape_.depth, shape_.value_depth);
    for (index_t i = first; i < last; ++i) {
      if (i >= held) {
        s.table.push_back(take_page(s.table, i));
        continue;
      }
      index_t& page = s.table[static_cast<std::size_t>(i)];
      if (users(page) == 1) continue;
      --users(page);
      const index_t shared = page;
      page = take_page(s.table, i);
      for (index_t h = 0; h < shape_.key_heads; ++h) {
        detail::copy_row(key(h, shared * page_size_), key(h, page * page_size_),
                         page_size_ * shape_.depth);
        detail::copy_row(value(h, shared * page_size_), value(h, page * page_size_),
                         page_size_ * shape_.value_depth);
      }
    }
  }

  index_t row_of(const sequence& s, index_t slot) const {
    return s.table[static_cast<std::size_t>(slot / page_size_)] * page_size_ + slot % page_size_;
  }
  T* key(index_t h, index_t row) const {
    return rows_.template get<0>() + (h * shape_.capacity + row) * shape_.depth;
  }
  T* value(index_t h, index_t row) const {
    return rows_.template get<1>() + (h * shape_.capacity + row) * shape_.value_depth;
  }
  tensor_view<const T, 4> pool(const T* data, index_t depth) const {
    return {data, {1, shape_.key_heads, shape_.capacity, depth}};
  }

  index_t pages_, page_size_;
  detail::store_shape shape_;
  detail::rows_memory<T, T> rows_;
  std::vector<sequence> sequences_;
  index_t free_;                // pages without users
  std::vector<index_t> users_;  // sequences that share a page
};

}  // namespace cache
HEED_NAMESPACE_END
