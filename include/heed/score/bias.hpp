// Additive bias: s + bias[b, h, q, k].
//
// The array is [B|1, H|1, Lq|1, Lk|1], or its last two or three axes; an axis of extent 1 is
// broadcast. It is added to the scaled score, in natural units. An entry of -inf hides the key: the
// bias is then also a mask, see visible(), so that such a key stays hidden whatever the scores that
// are applied later do, and whatever its key and value hold.
#pragma once

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/pack.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class bias : public additive_score {
 public:
  template <class U, int Rank>
  explicit bias(tensor_view<U, Rank> view) {
    static_assert(Rank >= 2 && Rank <= 4, "heed: a bias has 2, 3 or 4 axes");
    static_assert(std::is_same_v<std::remove_const_t<U>, T>);
    const auto lifted = view.template lifted<4>();
    data_ = lifted.data();
    for (int axis = 0; axis < 4; ++axis) {
      const auto at = static_cast<std::size_t>(axis);
      extents_[at] = lifted.extent(axis);
      strides_[at] = lifted.extent(axis) == 1 ? 0 : lifted.stride(axis);
    }
  }

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    return s + along_keys<S>(row(p), strides_[3], p);
  }

  // The mask that comes with the array: false where its entry is -inf. A bool for one key, a lane
  // mask for a pack of keys.
  HEED_INLINE bool visible(const position& p) const {
    return !is_minus_infinity(along_keys<accumulator<T>>(row(p), strides_[3], p));
  }
  template <class Real, int N>
  HEED_INLINE auto visible(const pack_position<Real, N>& p) const {
    return !is_minus_infinity(along_keys<pack<Real, N>>(row(p), strides_[3], p));
  }

  void check(const call_shape& shape) const {
    check_axis(0, "batch axis has extent ", shape.batches, " batches");
    check_axis(1, "head axis has extent ", shape.heads, " heads");
    check_axis(2, "query axis has extent ", shape.queries, " queries");
    check_axis(3, "key axis has extent ", shape.keys, " keys");
  }

 private:
  template <class P>
  HEED_INLINE const T* row(const P& p) const {
    return data_ + p.batch * strides_[0] + p.head * strides_[1] + p.q * strides_[2];
  }

  void check_axis(std::size_t axis, const char* what, index_t size, const char* unit) const {
    if (extents_[axis] == 1 || extents_[axis] == size) return;
    raise(message("bias: ") << what << extents_[axis] << ", call has " << size << unit);
  }

  const T* data_ = nullptr;
  std::array<index_t, 4> extents_{};
  std::array<index_t, 4> strides_{};  // 0 along axes that are broadcast
};

template <class U, int Rank>
bias(tensor_view<U, Rank>) -> bias<std::remove_const_t<U>>;

HEED_NAMESPACE_END
