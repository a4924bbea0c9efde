// Sizes of a store of keys and values, and the checks that all stores share.
#pragma once

#include <type_traits>

#include "../../core/check_data.hpp"
#include "../../core/element.hpp"

HEED_NAMESPACE_BEGIN
namespace cache::detail {

struct store_shape {
  index_t batches, key_heads, capacity, depth, value_depth;

  // Raises where a size is negative or their product is too large; element_bytes of one key or
  // value.
  const store_shape& checked(index_t element_bytes) const {
    check_sign("batch count", batches);
    check_sign("key head count", key_heads);
    check_sign("capacity", capacity);
    check_sign("depth", depth);
    check_sign("value depth", value_depth);
    check_size("key", depth, element_bytes);
    check_size("value", value_depth, element_bytes);
    return *this;
  }
  static void check_sign(const char* what, index_t value) {
    if (value < 0) raise(message("cache: ") << what << " " << value << " is negative");
  }
  // Room for a whole tensor must have a size in bytes; half of the range is left for the other one.
  void check_size(const char* what, index_t row, index_t size) const {
    for (index_t extent : {batches, key_heads, capacity, row}) {
      if (__builtin_mul_overflow(size, extent, &size) || size > (index_t{1} << 60)) {
        raise(message("cache: ") << what << "s of shape [" << batches << ", " << key_heads << ", "
                                 << capacity << ", " << row << "] are too large");
      }
    }
  }

  // New tokens for a store that holds `size` of them; returns how many they are.
  template <class K, class V>
  index_t check_append(const tensor_view<K, 4>& k, const tensor_view<V, 4>& v, index_t size) const {
    check_operand("k", k, depth);
    check_operand("v", v, value_depth);
    const index_t count = k.extent(2);
    if (v.extent(2) != count) {
      raise(message("v: length ") << v.extent(2) << " is not k's length " << count);
    }
    if (count > capacity - size) {
      raise(message("cache: appending ")
            << count << " tokens to " << size << " of capacity " << capacity);
    }
    return count;
  }

  // Rows lie by batch entry, KV head and slot, with room for the capacity.
  index_t rows() const { return batches * key_heads * capacity; }
  index_t row(index_t batch, index_t key_head, index_t slot) const {
    return (batch * key_heads + key_head) * capacity + slot;
  }
  // The first `size` slots of rows of `width` elements.
  template <class T>
  tensor_view<const T, 4> view(const T* data, index_t size, index_t width) const {
    const index_t head = capacity * width;
    return tensor_view<const T, 4>(data, {batches, key_heads, size, width},
                                   {key_heads * head, head, width, 1});
  }

 private:
  template <class T>
  void check_operand(const char* name, const tensor_view<T, 4>& x, index_t row) const {
    check_extent(name, "batch count", x.extent(0), batches);
    check_extent(name, "head count", x.extent(1), key_heads);
    check_extent(name, "depth", x.extent(3), row);
    heed::detail::check_data(name, x);
  }
  static void check_extent(const char* name, const char* what, index_t value, index_t expected) {
    if (value != expected) {
      raise(message(name) << ": " << what << " " << value << " is not the cache's " << expected);
    }
  }
};

// to[d] = from[d], rounded; bits are kept where the types are the same.
template <class From, class T>
void copy_row(const From* from, T* to, index_t depth) {
  for (index_t d = 0; d < depth; ++d) {
    if constexpr (std::is_same_v<From, T>) {
      to[d] = from[d];
    } else {
      to[d] = narrow<T>(widen<accumulator<From, T>>(from[d]));
    }
  }
}

}  // namespace cache::detail
HEED_NAMESPACE_END
