// gathered_view: rows of a tensor in an order that lists of row numbers give, read and written in
// place.
//
//   base [B, H, N, D]    the tensor
//   rows [S, h, n]       row numbers in [0, N); h is 1 (one list for all heads) or H / F
//   seen as [S, H / F, n, D], with F = folded_heads and S = B·F·(lists per batch and head group):
//     sequence s, head h, row i  ↦  base[s / (lists·F), s / lists % F·(H / F) + h, rows[s, h, i],
//     :]
//
// So every list becomes a sequence of an attention call: the keys that a block of queries selected,
// a sorted order, the pages of a cache, the halo of a tile of an image. Lists of different lengths
// are padded, and key_lengths (for keys) or query_lengths (for queries and outputs) say how much of
// each counts; what lies behind is not read. F > 1 gives each group of heads lists, and lengths, of
// its own: fold q and out by the number of KV heads, and k and v too.
//
// Masks and scores see positions in the lists, and the list's sequence as the batch.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "error.hpp"
#include "rows.hpp"
#include "tensor_view.hpp"

HEED_NAMESPACE_BEGIN

template <class T>
class gathered_view {
 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using row_numbers = tensor_view<const index_t, 3>;
  static constexpr int rank = 4;

  // Raises when folded_heads does not divide the heads, or the lists' axes do not fit the tensor's.
  // The row numbers are checked by the call that reads them.
  gathered_view(const tensor_view<T, 4>& base, const row_numbers& rows, index_t folded_heads = 1)
      : base_(base), rows_(rows), folded_heads_(folded_heads) {
    if (folded_heads < 1 || base.extent(1) % folded_heads != 0) {
      raise(message("gathered_view: folded_heads ")
            << folded_heads << " does not divide head count " << base.extent(1));
    }
    heads_ = base.extent(1) / folded_heads;
    if (rows.extent(1) != heads_ && rows.extent(1) != 1) {
      raise(message("gathered_view: rows have ")
            << rows.extent(1) << " lists for " << heads_ << " heads, must be 1 or as many");
    }
    const index_t groups = base.extent(0) * folded_heads;
    if (groups == 0 ? rows.extent(0) != 0 : rows.extent(0) % groups != 0) {
      raise(message("gathered_view: rows have ")
            << rows.extent(0) << " sequences, not a multiple of batch " << base.extent(0)
            << " times folded_heads " << folded_heads);
    }
    lists_ = groups == 0 ? 1 : rows.extent(0) / groups;
    if (lists_ == 0) lists_ = 1;
    head_step_ = rows.extent(1) == 1 ? 0 : rows.stride(1);
  }

  // A view that may write is also a view that may read.
  operator gathered_view<const T>() const requires(!std::is_const_v<T>) {
    return gathered_view<const T>(tensor_view<const T, 4>(base_), rows_, folded_heads_);
  }

  T* data() const { return base_.data(); }
  const tensor_view<T, 4>& base() const { return base_; }
  index_t extent(int axis) const {
    return axis == 0   ? rows_.extent(0)
           : axis == 1 ? heads_
           : axis == 2 ? rows_.extent(2)
                       : base_.extent(3);
  }
  bool empty() const {
    return extent(0) == 0 || extent(1) == 0 || extent(2) == 0 || extent(3) == 0;
  }
  template <int Rank>
  gathered_view lifted() const {
    static_assert(Rank == 4, "heed: a gathered_view has four axes");
    return *this;
  }

  // Row numbers of one sequence and head.
  const index_t* list(index_t sequence, index_t head) const {
    return rows_.data() + sequence * rows_.stride(0) + head * head_step_;
  }
  // First element of row 0 of the tensor that a sequence and head read.
  T* origin(index_t sequence, index_t head) const {
    const index_t group = sequence / lists_;
    return base_.data() + group / folded_heads_ * base_.stride(0) +
           (group % folded_heads_ * heads_ + head) * base_.stride(1);
  }
  T* row(index_t sequence, index_t head, index_t i) const {
    return origin(sequence, head) + list(sequence, head)[i] * base_.stride(2);
  }

  // Every row number of the first lengths[s] (all where null) of each list must exist; where rows
  // are written, no two may be the same row.
  HEED_NOINLINE void check(const char* name, const index_t* lengths, bool written) const {
    if (rows_.data() == nullptr && !rows_.empty()) {
      raise(message(name) << ": row numbers are null, extents are [" << rows_.extent(0) << ", "
                          << rows_.extent(1) << ", " << rows_.extent(2) << "]");
    }
    const index_t length = base_.extent(2), lists = rows_.extent(1);
    const index_t rows_of_base = base_.extent(0) * base_.extent(1) * length;
    unsigned char* seen = nullptr;
    if (written && rows_of_base > 0) {
      seen = static_cast<unsigned char*>(std::calloc(static_cast<std::size_t>(rows_of_base), 1));
      if (seen == nullptr)
        raise(message(name) << ": no memory to check " << rows_of_base << " rows");
    }
    index_t bad_sequence = -1, bad_entry = 0, bad_row = 0;
    bool twice = false;
    for (index_t s = 0; s < rows_.extent(0) && bad_sequence < 0; ++s) {
      const index_t count = lengths != nullptr ? lengths[s] : rows_.extent(2);
      for (index_t h = 0; h < (written ? heads_ : lists) && bad_sequence < 0; ++h) {
        const index_t* numbers = list(s, h);
        const index_t head = s / lists_ % folded_heads_ * heads_ + h;
        for (index_t i = 0; i < count; ++i) {
          bool bad = numbers[i] < 0 || numbers[i] >= length;
          if (!bad && seen != nullptr) {
            unsigned char& mark =
                seen[(s / lists_ / folded_heads_ * base_.extent(1) + head) * length + numbers[i]];
            bad = twice = mark != 0;
            mark = 1;
          }
          if (bad) {
            bad_sequence = s, bad_entry = i, bad_row = numbers[i];
            break;
          }
        }
      }
    }
    std::free(seen);
    if (bad_sequence < 0) return;
    if (twice) {
      raise(message(name) << ": entry " << bad_entry << " of sequence " << bad_sequence
                          << " writes row " << bad_row << " a second time");
    }
    raise(message(name) << ": entry " << bad_entry << " of sequence " << bad_sequence << " is row "
                        << bad_row << ", must lie in [0, " << length << ")");
  }

 private:
  tensor_view<T, 4> base_;
  row_numbers rows_;
  index_t folded_heads_ = 1, heads_ = 0, lists_ = 1, head_step_ = 0;
};

template <class T>
inline constexpr bool is_gathered = false;
template <class T>
inline constexpr bool is_gathered<gathered_view<T>> = true;

// A view whose rows are those of its base() by lists of their numbers: gathered_view, or
// gathered_quantized_view.
template <class X>
concept listed_rows = requires(const X& x) {
  x.base();
  x.list(index_t{0}, index_t{0});
};

// Rows of one sequence and head.
template <class T>
struct gathered_rows {
  using cursor = const T*;

  const T* origin = nullptr;
  index_t stride = 0;
  const index_t* numbers = nullptr;
  index_t last = 0;  // entry of the list

  HEED_INLINE cursor operator[](index_t row) const { return origin + numbers[row] * stride; }
  gathered_rows from(index_t row) const { return {origin, stride, numbers + row, last - row}; }
  // From a row to the one `count` entries behind it, or to the last one, to ask for it ahead of its
  // use.
  HEED_INLINE std::uintptr_t bytes_to(index_t row, index_t count) const {
    const index_t to = row + count < last ? row + count : last;
    // Modulo 2⁶⁴: behind a list's length a number may be anything.
    return (static_cast<std::uintptr_t>(numbers[to]) - static_cast<std::uintptr_t>(numbers[row])) *
           static_cast<std::uintptr_t>(stride_bytes());
  }
  static constexpr index_t row_bytes(index_t depth) {
    return depth * static_cast<index_t>(sizeof(T));
  }
  // Rows that follow each other in a list mostly do so in memory.
  index_t stride_bytes() const { return stride * static_cast<index_t>(sizeof(T)); }
};

template <class T>
gathered_rows<T> rows_at(const gathered_view<const T>& x, index_t sequence, index_t head,
                         index_t row) {
  return {x.origin(sequence, head), x.base().stride(2), x.list(sequence, head) + row,
          x.extent(2) - 1 - row};
}

HEED_NAMESPACE_END
