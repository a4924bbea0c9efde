// cache::ring<T>: the first tokens of every sequence and the last ones, in a fixed number of rows.
//
//   token t  →  row t                          t < sinks
//               row sinks + (t − sinks) mod r  else, with r = window + longest_append − 1
//
// A query attends to the sinks and to the last `window` tokens, its own included (causal{} hides
// what came after it, where several queries attend together): attention over the ring equals
// attention over the whole sequence under that mask (Xiao et al., "Efficient Streaming Language
// Models with Attention Sinks", 2023; without sinks, a sliding window as in Jiang et al., "Mistral
// 7B", 2023). Where several tokens are appended before their queries attend, longest_append of them
// at most, the first one's window must still be there: hence the rows more. Once tokens were
// overwritten, calls with more queries than that are refused.
#pragma once

#include <limits>

#include "../core/view_of.hpp"
#include "../mask/algebra.hpp"
#include "detail/ledger.hpp"
#include "detail/rows_memory.hpp"
#include "detail/store_shape.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// Keys k < sinks, and k > i − window, i = q + keys − queries. Of queries before the last `queries`
// the window is not there any more.
struct sinks_and_window {
  index_t sinks, window, queries;

  bool operator()(const position& p) const { return p.k < sinks || p.k > p.aligned_q() - window; }
  visibility tile(const tile_extent& t) const {
    if (t.k_end <= sinks || t.k_begin > t.q_end - 1 + t.alignment() - window) {
      return visibility::all;
    }
    return t.k_begin >= sinks && t.k_end - 1 <= t.q_begin + t.alignment() - window
               ? visibility::none
               : visibility::some;
  }
  void check(const call_shape& shape) const {
    if (shape.queries > queries) {
      raise(message("q: length ") << shape.queries << ", the ring has the windows of the last "
                                  << queries << " tokens");
    }
  }
};

template <element T>
class ring {
 public:
  // Raises when a size is negative or window or longest_append is less than 1.
  ring(index_t batches, index_t key_heads, index_t sinks, index_t window, index_t depth,
       index_t value_depth, index_t longest_append = 1)
      : sinks_(sinks),
        window_(window),
        longest_append_(longest_append),
        shape_(shape(batches, key_heads, sinks, window, longest_append, depth, value_depth)),
        ledger_(batches, key_heads) {}
  ring(index_t batches, index_t key_heads, index_t sinks, index_t window, index_t depth)
      : ring(batches, key_heads, sinks, window, depth, depth) {}

  // Adds n ≤ longest_append tokens: k [B, Hkv, n, D], v [B, Hkv, n, Dv].
  template <viewable K, viewable V>
  void append(const K& k, const V& v) {
    const auto new_keys = view_of(k).template lifted<4>();
    const auto new_values = view_of(v).template lifted<4>();
    const index_t count = shape_.check_append(new_keys, new_values, 0);
    if (count > longest_append_) {
      raise(message("cache: appending ")
            << count << " tokens at once to a ring that takes " << longest_append_);
    }
    if (count == 0) return;
    rows_.allocate(shape_.rows(), shape_.depth, shape_.value_depth);
    for (index_t i = 0; i < count; ++i) {
      const index_t token = ledger_.seen();
      const index_t slot =
          token < sinks_ ? token : sinks_ + (token - sinks_) % (shape_.capacity - sinks_);
      for (index_t b = 0; b < shape_.batches; ++b) {
        for (index_t h = 0; h < shape_.key_heads; ++h) {
          const index_t at = shape_.row(b, h, slot);
          detail::copy_row(new_keys.row(b, h, i), rows_.template get<0>() + at * shape_.depth,
                           shape_.depth);
          detail::copy_row(new_values.row(b, h, i),
                           rows_.template get<1>() + at * shape_.value_depth, shape_.value_depth);
        }
      }
      ledger_.put(slot, token);
    }
    ledger_.publish();
  }

  // Rows in the order of the ring; kept() says which tokens they are.
  tensor_view<const T, 4> keys() const { return view(rows_.template get<0>(), shape_.depth); }
  tensor_view<const T, 4> values() const {
    return view(rows_.template get<1>(), shape_.value_depth);
  }
  kept_view<false> kept() const { return ledger_.template kept<false>(); }
  sinks_and_window mask() const {
    const bool has_all = seen() <= capacity();
    return {sinks_, window_, has_all ? std::numeric_limits<index_t>::max() : longest_append_};
  }

  index_t size() const { return ledger_.size(); }
  index_t seen() const { return ledger_.seen(); }
  index_t capacity() const { return shape_.capacity; }
  void clear() { ledger_.clear(); }
  index_t bytes() const { return rows_.bytes() + ledger_.bytes(); }

 private:
  static detail::store_shape shape(index_t batches, index_t key_heads, index_t sinks,
                                   index_t window, index_t longest_append, index_t depth,
                                   index_t value_depth) {
    constexpr index_t most = index_t{1} << 31;
    if (sinks < 0 || sinks > most) {
      raise(message("ring: ") << sinks << " sinks are outside [0, " << most << "]");
    }
    if (window < 1 || window > most) {
      raise(message("ring: window ") << window << " is outside [1, " << most << "]");
    }
    if (longest_append < 1 || longest_append > most) {
      raise(message("ring: longest_append ")
            << longest_append << " is outside [1, " << most << "]");
    }
    return detail::store_shape{batches, key_heads, sinks + window + longest_append - 1, depth,
                               value_depth}
        .checked(sizeof(T));
  }
  tensor_view<const T, 4> view(const T* data, index_t depth) const {
    return shape_.view(data, size(), depth);
  }

  index_t sinks_, window_, longest_append_;
  detail::store_shape shape_;
  detail::ledger ledger_;
  detail::rows_memory<T, T> rows_;
};

}  // namespace cache
HEED_NAMESPACE_END
