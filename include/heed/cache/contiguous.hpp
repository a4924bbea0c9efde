// cache::contiguous<T>: the keys and values of the tokens so far, in one piece of fixed capacity.
//
//   keys [B, Hkv, size, D], values [B, Hkv, size, Dv], with strides of the capacity, so that
//   appending moves nothing and the views go straight into attention.
//
// keep() evicts tokens: the rows that stay move together, each KV head for itself, and remember
// where in the sequence they came from (attention.hpp lets masks and scores see those positions).
//
// The store for short contexts and for batches whose sequences grow together. Memory is taken when
// the first token arrives, and is never cleared: what was not appended is not in the views.
#pragma once

#include "../core/view_of.hpp"
#include "detail/ledger.hpp"
#include "detail/rows_memory.hpp"
#include "detail/store_shape.hpp"

HEED_NAMESPACE_BEGIN

namespace cache {

template <element T>
class contiguous {
 public:
  // Room for `capacity` tokens of each of `batches` sequences. Values are as deep as keys unless
  // said otherwise.
  contiguous(index_t batches, index_t key_heads, index_t capacity, index_t depth,
             index_t value_depth)
      : shape_(detail::store_shape{batches, key_heads, capacity, depth, value_depth}.checked(
            sizeof(T))),
        ledger_(batches, key_heads) {}
  contiguous(index_t batches, index_t key_heads, index_t capacity, index_t depth)
      : contiguous(batches, key_heads, capacity, depth, depth) {}

  // Adds n tokens: k [B, Hkv, n, D], v [B, Hkv, n, Dv], of any element type and strides; rank 2 and
  // 3 are lifted. What does not fit is refused, and then nothing is written.
  template <viewable K, viewable V>
  void append(const K& k, const V& v) {
    const auto new_keys = view_of(k).template lifted<4>();
    const auto new_values = view_of(v).template lifted<4>();
    const index_t count = shape_.check_append(new_keys, new_values, size());
    if (count == 0) return;
    rows_.allocate(shape_.rows(), shape_.depth, shape_.value_depth);
    for (index_t b = 0; b < shape_.batches; ++b) {
      for (index_t h = 0; h < shape_.key_heads; ++h) {
        const index_t slot = ledger_.count(b, h);
        for (index_t i = 0; i < count; ++i) {
          detail::copy_row(new_keys.row(b, h, i), key(b, h, slot + i), shape_.depth);
          detail::copy_row(new_values.row(b, h, i), value(b, h, slot + i), shape_.value_depth);
        }
      }
    }
    ledger_.append(count);
  }

  // The tokens so far. Appending moves nothing: a view goes on showing the tokens that it was taken
  // with until they are truncated or evicted. A head with fewer tokens than others has rows without
  // meaning behind them.
  tensor_view<const T, 4> keys() const { return view(rows_.template get<0>(), shape_.depth); }
  tensor_view<const T, 4> values() const {
    return view(rows_.template get<1>(), shape_.value_depth);
  }
  // Where in the sequence they came from; valid until the store changes.
  kept_view<true> kept() const { return ledger_.kept(); }

  // Tokens that are kept, of the head that has most.
  index_t size() const { return ledger_.size(); }
  // Tokens appended so far, those included that were evicted since.
  index_t seen() const { return ledger_.seen(); }
  index_t capacity() const { return shape_.capacity; }

  // Evicts all tokens that are not listed.
  void keep(const kept_tokens& tokens) {
    ledger_.keep(tokens, [this](index_t b, index_t h, index_t from, index_t to) {
      detail::copy_row(key(b, h, from), key(b, h, to), shape_.depth);
      detail::copy_row(value(b, h, from), value(b, h, to), shape_.value_depth);
    });
  }
  // Forgets all tokens but the first `size`, as if they had never been appended.
  void truncate(index_t size) { ledger_.truncate(size); }
  // Forgets all tokens and keeps the memory.
  void clear() { ledger_.clear(); }

  // Memory that is held: 0 before the first token, then that of the capacity, and of positions.
  index_t bytes() const { return rows_.bytes() + ledger_.bytes(); }

 private:
  T* key(index_t b, index_t h, index_t slot) {
    return rows_.template get<0>() + shape_.row(b, h, slot) * shape_.depth;
  }
  T* value(index_t b, index_t h, index_t slot) {
    return rows_.template get<1>() + shape_.row(b, h, slot) * shape_.value_depth;
  }
  tensor_view<const T, 4> view(const T* data, index_t depth) const {
    return shape_.view(data, size(), depth);
  }

  detail::store_shape shape_;
  detail::ledger ledger_;
  detail::rows_memory<T, T> rows_;
};

}  // namespace cache

HEED_NAMESPACE_END
