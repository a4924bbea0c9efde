// How kernels read the rows of an operand: rows[i] is a cursor at the first channel of row i, and
// cursor + d is at channel d. For tensors the cursor is a pointer; quantized.hpp has the one for
// codes with scales.
#pragma once

#include "element.hpp"
#include "tensor_view.hpp"

HEED_NAMESPACE_BEGIN

template <class T>
struct strided_rows {
  using cursor = const T*;

  const T* first = nullptr;
  index_t stride = 0;  // elements from one row to the next

  HEED_INLINE cursor operator[](index_t row) const { return first + row * stride; }
  strided_rows from(index_t row) const { return {first + row * stride, stride}; }
  // Of one row, and from one row to the next.
  static constexpr index_t row_bytes(index_t depth) {
    return depth * static_cast<index_t>(sizeof(T));
  }
  index_t stride_bytes() const { return stride * static_cast<index_t>(sizeof(T)); }
};

// Packed rows of the steps whose numbers are listed: row r is row (skipped + r) % StepRows of step
// steps[(skipped + r) / StepRows].
template <class T, index_t StepRows>
struct listed_steps {
  using cursor = const T*;

  const T* first = nullptr;
  const index_t* steps = nullptr;
  index_t stride = 0;
  index_t skipped = 0;

  HEED_INLINE cursor operator[](index_t row) const {
    const index_t at = skipped + row;
    return first + (steps[at / StepRows] * StepRows + at % StepRows) * stride;
  }
  // Rows from `row` on that lie side by side.
  HEED_INLINE int left_in_step(index_t row) const {
    return static_cast<int>(StepRows - (skipped + row) % StepRows);
  }
};

// Rows of one batch and head of a tensor [B, H, L, D], from `row` on.
template <class T>
strided_rows<T> rows_at(const tensor_view<const T, 4>& x, index_t batch, index_t head,
                        index_t row) {
  return {x.row(batch, head, row), x.stride(2)};
}

// The element at a cursor.
template <class Real, class T>
HEED_INLINE Real read_at(const T* cursor) {
  return widen<Real>(*cursor);
}
// The address that a cursor reads from.
template <class T>
HEED_INLINE const void* address_at(const T* cursor) {
  return cursor;
}

HEED_NAMESPACE_END
