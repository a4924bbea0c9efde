// gathered_quantized_view: rows of codes with scales (quantized.hpp) in an order that lists of row
// numbers give, read in place. Lists, sequences and folded heads as in gathered.hpp; a token keeps
// the scales that its row number has in the tensor of codes.
//
//   heed::attention(q, heed::gathered_quantized_view(codes_of_keys, rows),
//                   heed::gathered_quantized_view(codes_of_values, rows), out);
#pragma once

#include "gathered.hpp"
#include "quantized.hpp"

HEED_NAMESPACE_BEGIN

// Rows of one sequence and head.
template <code Code>
struct gathered_quantized_rows {
  using cursor = quantized_cursor<Code>;

  quantized_rows<Code> base;  // from row 0 of the tensor
  const index_t* numbers = nullptr;
  index_t last = 0;  // entry of the list

  HEED_INLINE cursor operator[](index_t row) const { return base[numbers[row]]; }
  gathered_quantized_rows from(index_t row) const { return {base, numbers + row, last - row}; }
  // From a row's codes to those of the one `count` entries behind it, or of the last one.
  HEED_INLINE std::uintptr_t bytes_to(index_t row, index_t count) const {
    const index_t to = row + count < last ? row + count : last;
    // Modulo 2⁶⁴: behind a list's length a number may be anything.
    return (static_cast<std::uintptr_t>(numbers[to]) - static_cast<std::uintptr_t>(numbers[row])) *
           static_cast<std::uintptr_t>(stride_bytes());
  }
  static constexpr index_t row_bytes(index_t depth) {
    return quantized_rows<Code>::row_bytes(depth);
  }
  index_t stride_bytes() const { return base.stride_bytes(); }
};

template <code Code>
class gathered_quantized_view {
 public:
  using element_type = const Code;
  using value_type = Code;
  using row_numbers = tensor_view<const index_t, 3>;
  static constexpr int rank = 4;

  // Raises as gathered_view does.
  gathered_quantized_view(const quantized_view<Code, 4>& base, const row_numbers& rows,
                          index_t folded_heads = 1)
      : base_(base),
        codes_(base.codes(), rows, folded_heads),
        scales_(base.scales(), rows, folded_heads),
        zeros_(base.has_zeros() ? base.zeros() : base.scales(), rows, folded_heads) {}

  const quantized_view<Code, 4>& base() const { return base_; }
  index_t extent(int axis) const { return axis == 3 ? base_.extent(3) : codes_.extent(axis); }
  template <int Rank>
  gathered_quantized_view lifted() const {
    static_assert(Rank == 4, "heed: a gathered_quantized_view has four axes");
    return *this;
  }
  void check(const char* name, const index_t* lengths, bool written) const {
    codes_.check(name, lengths, written);
  }
  const index_t* list(index_t sequence, index_t head) const { return codes_.list(sequence, head); }

  gathered_quantized_rows<Code> rows(index_t sequence, index_t head, index_t row) const {
    quantized_rows<Code> base;
    base.first = codes_.origin(sequence, head);
    base.stride = base_.codes().stride(2);
    base.scales = scales_.origin(sequence, head);
    base.scale_stride = base_.scales().stride(2);
    if (base_.has_zeros()) {
      base.zeros = zeros_.origin(sequence, head);
      base.zero_stride = base_.zeros().stride(2);
    }
    base.groups = base_.groups();
    return {base, list(sequence, head) + row, extent(2) - 1 - row};
  }
  // What one code stands for, exactly.
  double value(index_t sequence, index_t head, index_t i, index_t channel) const {
    return read_at<double>(rows(sequence, head, i)[0] + channel);
  }

 private:
  quantized_view<Code, 4> base_;
  gathered_view<const Code> codes_;  // what the lists say of the codes, the scales and the zeros
  gathered_view<const float> scales_, zeros_;
};

template <class Code>
inline constexpr bool is_quantized<gathered_quantized_view<Code>> = true;

template <class Code>
gathered_quantized_rows<Code> rows_at(const gathered_quantized_view<Code>& x, index_t sequence,
                                      index_t head, index_t row) {
  return x.rows(sequence, head, row);
}

HEED_NAMESPACE_END
