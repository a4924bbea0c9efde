// How a rotary embedding turns: pairing, positions, frequencies or caches. position/rope.hpp has
// the formula and the functions that take these options.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

enum class rope_pairing { rotate_half, interleaved };

namespace detail {

template <class I>
concept position_id = std::is_same_v<std::remove_const_t<I>, std::int32_t> ||
    std::is_same_v<std::remove_const_t<I>, std::int64_t>;

}  // namespace detail

// Position ids [L], or [B|1, L]. Any integers: gaps, repeats, and negative ones.
class rope_positions {
 public:
  rope_positions() = default;
  template <detail::position_id I, int Rank>
  rope_positions(tensor_view<I, Rank> ids) : given_(true) {
    static_assert(Rank <= 2, "heed: position ids have 1 or 2 axes");
    const auto lifted = ids.template lifted<2>();
    batches_ = lifted.extent(0);
    length_ = lifted.extent(1);
    batch_stride_ = batches_ == 1 ? 0 : lifted.stride(0);
    if constexpr (sizeof(I) == 4) {
      narrow_ = lifted.data();
    } else {
      wide_ = lifted.data();
    }
  }

  bool given() const { return given_; }
  index_t batches() const { return batches_; }
  index_t length() const { return length_; }
  index_t operator()(index_t batch, index_t row) const {
    const index_t at = batch * batch_stride_ + row;
    return narrow_ != nullptr ? index_t{narrow_[at]} : index_t{wide_[at]};
  }

 private:
  bool given_ = false;
  index_t batches_ = 0;
  index_t length_ = 0;
  index_t batch_stride_ = 0;
  const std::int32_t* narrow_ = nullptr;
  const std::int64_t* wide_ = nullptr;
};

// Cosines and sines that were computed before: [positions, d/2], or [B|1, L, d/2], any element
// type.
class rope_cache {
 public:
  rope_cache() = default;
  template <element T, element U, int Rank>
  rope_cache(tensor_view<T, Rank> cosines, tensor_view<U, Rank> sines) {
    static_assert(Rank == 2 || Rank == 3, "heed: cosines and sines have 2 or 3 axes");
    static_assert(std::is_same_v<std::remove_const_t<T>, std::remove_const_t<U>>,
                  "heed: cosines and sines are of one element type");
    for (int axis = 0; axis < Rank; ++axis) {
      if (cosines.extent(axis) != sines.extent(axis)) {
        raise(message("sines: extent ") << sines.extent(axis) << " of axis " << axis
                                        << ", cosines have " << cosines.extent(axis));
      }
    }
    const auto lifted = cosines.template lifted<3>();
    batches_ = lifted.extent(0);
    rows_ = lifted.extent(1);
    columns_ = lifted.extent(2);
    rank_ = Rank;
    cosines_ = describe_array(lifted);
    sines_ = describe_array(sines.template lifted<3>());
    read_ = [](const void* data, index_t offset, index_t count, double* values) {
      const auto* first = static_cast<const std::remove_const_t<T>*>(data) + offset;
      for (index_t i = 0; i < count; ++i) values[i] = widen<double>(first[i]);
    };
  }

  bool given() const { return rank_ != 0; }
  // Indexed by row of the operand, else by position.
  bool by_row() const { return rank_ == 3; }
  index_t batches() const { return batches_; }
  index_t rows() const { return rows_; }
  index_t columns() const { return columns_; }
  void read(index_t batch, index_t row, double* cosines, double* sines) const {
    read_(cosines_.data, batch * cosines_.batch_stride + row * cosines_.row_stride, columns_,
          cosines);
    read_(sines_.data, batch * sines_.batch_stride + row * sines_.row_stride, columns_, sines);
  }

 private:
  struct array {
    const void* data = nullptr;
    index_t batch_stride = 0;
    index_t row_stride = 0;
  };
  template <class T>
  static array describe_array(const tensor_view<T, 3>& view) {
    return {view.data(), view.extent(0) == 1 ? 0 : view.stride(0), view.stride(1)};
  }

  array cosines_, sines_;
  index_t batches_ = 0;
  index_t rows_ = 0;
  index_t columns_ = 0;
  int rank_ = 0;
  void (*read_)(const void*, index_t, index_t, double*) = nullptr;
};

struct rope_options {
  rope_pairing pairing = rope_pairing::rotate_half;
  index_t dimension = 0;          // d, even; 0: all of D
  double theta = 10000;           // frequency base
  double linear_factor = 1;       // positions are divided by it
  double ntk_factor = 1;          // see theta'
  index_t offset = 0;             // position of the first row
  rope_positions positions = {};  // instead of offset, offset + 1, …
  rope_cache cache = {};          // instead of theta and the factors
  bool inverse = false;           // turns back
};

HEED_NAMESPACE_END
