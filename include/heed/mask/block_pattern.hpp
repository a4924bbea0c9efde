// A pattern of blocks: a query attends to the keys of the blocks that its own block lists,
//
//   layout[b, h, q / block_q, k / block_k] ≠ 0
//
// layout is [batch, head, query blocks, key blocks], bool or any integer type; rank 2 and 3 are
// lifted by leading axes of extent 1, and an axis of extent 1 serves all. There are
// ⌈queries / block_q⌉ × ⌈keys / block_k⌉ blocks, the last ones may be cut short. q and k are
// counted from the beginning of their own sequence, without alignment.
//
// The layouts of OpenAI's block-sparse kernels (Child et al., 2019), BigBird (Zaheer et al., 2020)
// and DeepSpeed's sparse attention, and what block selectors produce.
//
// Tiles are exact, keys too up to the number of ranges that key_ranges holds; both read the blocks
// that the tile touches.
#pragma once

#include <string>
#include <type_traits>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"
#include "detail/arrays.hpp"

HEED_NAMESPACE_BEGIN

template <class T>
class block_pattern {
  static_assert(std::is_integral_v<T>, "heed: block_pattern is made of bool or integers");

 public:
  template <class U, int Rank>
  block_pattern(const tensor_view<U, Rank>& layout, index_t block_q, index_t block_k)
      : layout_(layout.template lifted<4>()),
        batch_step_(mask_detail::step_of(layout_, 0)),
        head_step_(mask_detail::step_of(layout_, 1)),
        query_step_(mask_detail::step_of(layout_, 2)),
        key_step_(mask_detail::step_of(layout_, 3)),
        block_q_(block_q),
        block_k_(block_k) {
    static_assert(Rank >= 2 && Rank <= 4, "heed: the layout of block_pattern has rank 2, 3 or 4");
    check_block("query", block_q);
    check_block("key", block_k);
  }

  HEED_INLINE bool operator()(const position& p) const {
    return row(p.batch, p.head, p.q / block_q_)[p.k / block_k_ * key_step_] != T(0);
  }
  template <class Real, int N>
  HEED_INLINE typename pack<Real, N>::mask operator()(const pack_position<Real, N>& p) const {
    using mask = typename pack<Real, N>::mask;
    const T* blocks = row(p.batch, p.head, p.q / block_q_);
    index_t block = p.first_key / block_k_;
    mask result(blocks[block * key_step_] != T(0));
    // Most often all keys lie in one block; else each further block takes over from its first key.
    const index_t end = p.first_key + p.valid;
    for (index_t begin = (block + 1) * block_k_; begin < end; begin += block_k_) {
      ++block;
      const mask behind = mask_detail::key_at_least(p, begin);
      result = (result & !behind) | (behind & mask(blocks[block * key_step_] != T(0)));
    }
    return result;
  }

  visibility tile(const tile_extent& t) const {
    if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) return visibility::none;
    mask_detail::tally seen;
    for (index_t i = t.q_begin / block_q_; i <= (t.q_end - 1) / block_q_; ++i) {
      mask_detail::count_set(row(t.batch, t.head, i), key_step_, t.k_begin / block_k_,
                             (t.k_end - 1) / block_k_ + 1, seen);
      if (seen.any && !seen.every) break;
    }
    return seen.as_visibility();
  }
  key_ranges visible_keys(const tile_extent& t) const {
    key_ranges result;
    if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) return result;
    const index_t first = t.q_begin / block_q_, last = (t.q_end - 1) / block_q_;
    for (index_t block = t.k_begin / block_k_; block <= (t.k_end - 1) / block_k_; ++block) {
      bool any = false;
      for (index_t i = first; i <= last && !any; ++i) {
        any = row(t.batch, t.head, i)[block * key_step_] != T(0);
      }
      if (any) {
        result.add(max(t.k_begin, block * block_k_), min(t.k_end, (block + 1) * block_k_));
      }
    }
    return result;
  }

  void check(const call_shape& shape) const {
    const char* const name = "block_pattern";
    mask_detail::check_axis(name, "batch", nullptr, layout_.extent(0), shape.batches, "batches");
    mask_detail::check_axis(name, "head", nullptr, layout_.extent(1), shape.heads, "heads");
    mask_detail::check_axis(name, "query block", nullptr, layout_.extent(2),
                            blocks(shape.queries, block_q_), "query blocks");
    mask_detail::check_axis(name, "key block", nullptr, layout_.extent(3),
                            blocks(shape.keys, block_k_), "key blocks");
  }

 private:
  static index_t blocks(index_t length, index_t block) {
    return length / block + (length % block != 0);
  }
  static void check_block(const char* axis, index_t size) {
    if (size < 1) {
      raise(std::string("block_pattern: ") + axis + " block size " + std::to_string(size) +
            " is not positive");
    }
  }
  HEED_INLINE const T* row(index_t batch, index_t head, index_t query_block) const {
    return layout_.data() + batch * batch_step_ + head * head_step_ + query_block * query_step_;
  }

  tensor_view<const T, 4> layout_;
  index_t batch_step_, head_step_, query_step_, key_step_;
  index_t block_q_, block_k_;
};
template <class U, int Rank>
block_pattern(const tensor_view<U, Rank>&, index_t, index_t)
    -> block_pattern<std::remove_const_t<U>>;

HEED_NAMESPACE_END
