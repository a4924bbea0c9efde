// A mask given element by element: a query attends to the keys whose element is set,
//
//   array[b, h, q, k] ≠ 0
//
// array is [batch, head, query, key], bool or any integer type; rank 2 [query, key] and 3 [head,
// query, key] are lifted by leading axes of extent 1, and an axis of extent 1 serves all: [B, 1, 1,
// keys] is a padding mask. h is the query head. q and k are counted from the beginning of their own
// sequence, without alignment.
//
// The boolean `attn_mask` of PyTorch and of ONNX Attention. A float mask that is added to the
// scores is not a mask but a score bias.
//
// Tiles are exact, at the cost of reading the elements of the tile; keys are their hull, tight at
// both ends.
#pragma once

#include <type_traits>

#include "../core/tensor_view.hpp"
#include "algebra.hpp"
#include "detail/answer.hpp"
#include "detail/arrays.hpp"

HEED_NAMESPACE_BEGIN

template <class T>
class array_mask {
  static_assert(std::is_integral_v<T>, "heed: array_mask is made of bool or integers");

 public:
  template <class U, int Rank>
  explicit array_mask(const tensor_view<U, Rank>& array)
      : array_(array.template lifted<4>()),
        batch_step_(mask_detail::step_of(array_, 0)),
        head_step_(mask_detail::step_of(array_, 1)),
        query_step_(mask_detail::step_of(array_, 2)),
        key_step_(mask_detail::step_of(array_, 3)) {
    static_assert(Rank >= 2 && Rank <= 4, "heed: array_mask has rank 2, 3 or 4");
  }

  template <class P>
  HEED_INLINE mask_detail::answer<P> operator()(const P& p) const {
    return !mask_detail::key_equals(row(p.batch, p.head, p.q), key_step_, T(0), p);
  }

  visibility tile(const tile_extent& t) const {
    mask_detail::tally seen;
    for (index_t q = t.q_begin; q < last_row(t) && !(seen.any && !seen.every); ++q) {
      mask_detail::count_set(row(t.batch, t.head, q), key_step_, t.k_begin, t.k_end, seen);
    }
    return seen.as_visibility();
  }
  key_ranges visible_keys(const tile_extent& t) const {
    index_t begin = t.k_end, end = t.k_begin;
    for (index_t q = t.q_begin; q < last_row(t); ++q) {
      const T* elements = row(t.batch, t.head, q);
      const auto set = [&](index_t k) { return elements[k * key_step_] != T(0); };
      // Only outside of what the rows above have shown to be needed.
      begin = mask_detail::first_where(t.k_begin, begin, set);
      end = mask_detail::behind_last_where(end, t.k_end, set);
    }
    return {begin, end};
  }

  void check(const call_shape& shape) const {
    const char* const name = "array_mask";
    mask_detail::check_axis(name, "batch", nullptr, array_.extent(0), shape.batches, "batches");
    mask_detail::check_axis(name, "head", nullptr, array_.extent(1), shape.heads, "heads");
    mask_detail::check_axis(name, "query", nullptr, array_.extent(2), shape.queries, "queries");
    mask_detail::check_axis(name, "key", nullptr, array_.extent(3), shape.keys, "keys");
  }

 private:
  HEED_INLINE const T* row(index_t batch, index_t head, index_t q) const {
    return array_.data() + batch * batch_step_ + head * head_step_ + q * query_step_;
  }
  // Behind the last row of a tile that has to be looked at.
  index_t last_row(const tile_extent& t) const {
    return query_step_ == 0 ? min(t.q_end, t.q_begin + 1) : t.q_end;
  }

  tensor_view<const T, 4> array_;
  index_t batch_step_, head_step_, query_step_, key_step_;
};
template <class U, int Rank>
array_mask(const tensor_view<U, Rank>&) -> array_mask<std::remove_const_t<U>>;

HEED_NAMESPACE_END
