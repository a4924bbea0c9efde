// cache::contiguous<T>: the keys and values of the tokens so far, in one piece of fixed capacity.
//
//   keys [B, Hkv, size, D], values [B, Hkv, size, Dv], with strides of the capacity, so that
//   appending moves nothing and the views go straight into attention.
//
// The store for short contexts and for batches whose sequences grow together. Memory is taken when
// the first token arrives, and is never cleared: what was not appended is not in the views.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "../config.hpp"
#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "../core/view_of.hpp"
#include "../core/workspace.hpp"

HEED_NAMESPACE_BEGIN

namespace cache {

template <element T>
class contiguous {
 public:
  // Room for `capacity` tokens of each of `batches` sequences. Values are as deep as keys unless
  // said otherwise.
  contiguous(index_t batches, index_t key_heads, index_t capacity, index_t depth,
             index_t value_depth)
      : batches_(batches),
        key_heads_(key_heads),
        capacity_(capacity),
        depth_(depth),
        value_depth_(value_depth) {
    check("batch count", batches);
    check("key head count", key_heads);
    check("capacity", capacity);
    check("depth", depth);
    check("value depth", value_depth);
    check_size("key", depth);
    check_size("value", value_depth);
  }
  contiguous(index_t batches, index_t key_heads, index_t capacity, index_t depth)
      : contiguous(batches, key_heads, capacity, depth, depth) {}

  contiguous(contiguous&& other) noexcept
      : batches_(other.batches_),
        key_heads_(other.key_heads_),
        capacity_(other.capacity_),
        depth_(other.depth_),
        value_depth_(other.value_depth_),
        size_(std::exchange(other.size_, 0)),
        keys_(std::exchange(other.keys_, nullptr)),
        values_(std::exchange(other.values_, nullptr)),
        memory_(std::move(other.memory_)) {}
  contiguous& operator=(contiguous&& other) noexcept {
    std::swap(batches_, other.batches_);
    std::swap(key_heads_, other.key_heads_);
    std::swap(capacity_, other.capacity_);
    std::swap(depth_, other.depth_);
    std::swap(value_depth_, other.value_depth_);
    std::swap(size_, other.size_);
    std::swap(keys_, other.keys_);
    std::swap(values_, other.values_);
    std::swap(memory_, other.memory_);
    return *this;
  }

  // Adds n tokens: k [B, Hkv, n, D], v [B, Hkv, n, Dv], of any element type and strides; rank 2 and
  // 3 are lifted. What does not fit is refused, and then nothing is written.
  template <viewable K, viewable V>
  void append(const K& k, const V& v) {
    const auto new_keys = view_of(k).template lifted<4>();
    const auto new_values = view_of(v).template lifted<4>();
    check_operand("k", new_keys.extents(), depth_);
    check_operand("v", new_values.extents(), value_depth_);
    const index_t count = new_keys.extent(2);
    if (new_values.extent(2) != count) {
      raise(message("v: length ") << new_values.extent(2) << " is not k's length " << count);
    }
    if (count > capacity_ - size_) {
      raise(message("cache: appending ")
            << count << " tokens to " << size_ << " of capacity " << capacity_);
    }
    if (count == 0) return;
    allocate();
    copy(new_keys, view(keys_, size_ + count, depth_).slice(2, size_, count));
    copy(new_values, view(values_, size_ + count, value_depth_).slice(2, size_, count));
    size_ += count;
  }

  // The tokens so far. Appending moves nothing: a view goes on showing the tokens that it was taken
  // with until they are truncated.
  tensor_view<const T, 4> keys() const { return view(keys_, size_, depth_); }
  tensor_view<const T, 4> values() const { return view(values_, size_, value_depth_); }

  index_t size() const { return size_; }
  index_t capacity() const { return capacity_; }

  // Forgets all tokens but the first `size`.
  void truncate(index_t size) {
    if (size < 0 || size > size_) {
      raise(message("cache: truncating ") << size_ << " tokens to " << size);
    }
    size_ = size;
  }
  // Forgets all tokens and keeps the memory.
  void clear() { size_ = 0; }

  // Memory that is held: 0 before the first token, then that of the capacity.
  index_t bytes() const { return memory_.size(); }

 private:
  static void check(const char* what, index_t value) {
    if (value < 0) raise(message("cache: ") << what << " " << value << " is negative");
  }

  // Room for a whole tensor must have a size in bytes; half of the range is left for the other one.
  void check_size(const char* what, index_t depth) const {
    index_t size = sizeof(T);
    for (index_t extent : {batches_, key_heads_, capacity_, depth}) {
      if (__builtin_mul_overflow(size, extent, &size) || size > (index_t{1} << 60)) {
        raise(message("cache: ") << what << "s of shape [" << batches_ << ", " << key_heads_ << ", "
                                 << capacity_ << ", " << depth << "] are too large");
      }
    }
  }

  void check_operand(const char* name, const std::array<index_t, 4>& extents, index_t depth) const {
    check_extent(name, "batch count", extents[0], batches_);
    check_extent(name, "head count", extents[1], key_heads_);
    check_extent(name, "depth", extents[3], depth);
  }
  static void check_extent(const char* name, const char* what, index_t value, index_t expected) {
    if (value != expected) {
      raise(message(name) << ": " << what << " " << value << " is not the cache's " << expected);
    }
  }

  void allocate() {
    if (keys_ != nullptr) return;
    const auto lay_out = [&](detail::bump& memory) {
      keys_ = memory.take<T>(batches_ * key_heads_ * capacity_ * depth_);
      values_ = memory.take<T>(batches_ * key_heads_ * capacity_ * value_depth_);
    };
    detail::bump counted;
    lay_out(counted);
    detail::bump taken(memory_.reserve(counted.bytes()));
    lay_out(taken);
  }

  tensor_view<T, 4> view(T* data, index_t size, index_t depth) const {
    return tensor_view<T, 4>(data, {batches_, key_heads_, size, depth},
                             {key_heads_ * capacity_ * depth, capacity_ * depth, depth, 1});
  }

  template <class From>
  static void copy(tensor_view<From, 4> from, tensor_view<T, 4> to) {
    using real = accumulator<From, T>;
    for (index_t b = 0; b < to.extent(0); ++b) {
      for (index_t h = 0; h < to.extent(1); ++h) {
        for (index_t i = 0; i < to.extent(2); ++i) {
          const From* source = from.row(b, h, i);
          T* target = to.row(b, h, i);
          for (index_t d = 0; d < to.extent(3); ++d) {
            if constexpr (std::is_same_v<std::remove_cv_t<From>, T>) {
              target[d] = source[d];
            } else {
              target[d] = narrow<T>(widen<real>(source[d]));
            }
          }
        }
      }
    }
  }

  index_t batches_, key_heads_, capacity_, depth_, value_depth_;
  index_t size_ = 0;
  T* keys_ = nullptr;
  T* values_ = nullptr;
  workspace memory_;
};

}  // namespace cache

HEED_NAMESPACE_END
