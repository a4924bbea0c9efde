// A learned bias per distance: s + table[h, clamp(k - aligned_q, -R, R) + R].
//
// The table is [H|1, 2R+1], or [2R+1] for all heads, of any element type, in natural units: entry R
// is for the key at the query's own position, entry 2R for all keys that lie R or more ahead. The
// distance is taken on the axis of the keys, the last query at the last key. Clipping is that of
// Shaw, Uszkoreit and Vaswani, "Self-Attention with Relative Position Representations", NAACL 2018;
// the scalar per distance and head is that of many later models.
#pragma once

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/pack.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"
#include "detail/table.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class relative_table : public additive_score {
 public:
  template <class U, int Rank>
  relative_table(tensor_view<U, Rank> table, index_t radius) : radius_(radius) {
    static_assert(Rank <= 2, "heed: a relative table has 1 or 2 axes");
    static_assert(std::is_same_v<std::remove_const_t<U>, T>);
    const auto lifted = table.template lifted<2>();
    if (radius < 0) raise(message("relative_table: radius ") << radius << " is negative");
    // Halved instead of doubled: 2R+1 could overflow. Distances in a pack of floats have 32 bits.
    if (lifted.extent(1) % 2 == 0 || lifted.extent(1) / 2 != radius || radius > 0x3fffffff) {
      raise(message("relative_table: table has ") << lifted.extent(1) << " distances, radius "
                                                  << radius << " needs 2·" << radius << " + 1");
    }
    table_ = lifted.data();
    heads_ = lifted.extent(0);
    head_stride_ = heads_ == 1 ? 0 : lifted.stride(0);
  }

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    const T* row = table_ + p.head * head_stride_;
    if constexpr (is_pack<S>) {
      // Keys are consecutive: within the radius so are the entries, and far away all are the same.
      const index_t first = p.first_key - p.aligned_q(), last = first + p.valid - 1;
      if (first >= radius_ || last <= -radius_) {
        return s + S(widen<detail::score_real<S>>(row[first < 0 ? 0 : 2 * radius_]));
      }
      if (first >= -radius_ && last <= radius_) {
        return s + detail::consecutive<S>(row + (first + radius_), p);
      }
    }
    const auto distance = p.k - p.aligned_q();
    const decltype(p.k) radius(radius_);
    return s + detail::gather<S>(row, 1, max(min(distance, radius), -radius) + radius);
  }

  void check(const call_shape& shape) const {
    if (heads_ != 1 && heads_ != shape.heads) {
      raise(message("relative_table: head axis has extent ")
            << heads_ << ", call has " << shape.heads << " heads");
    }
  }

 private:
  const T* table_ = nullptr;
  index_t radius_;
  index_t heads_ = 0;
  index_t head_stride_ = 0;
};

template <class U, int Rank>
relative_table(tensor_view<U, Rank>, index_t) -> relative_table<std::remove_const_t<U>>;

HEED_NAMESPACE_END
