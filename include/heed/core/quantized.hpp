// Keys or values as integer codes with scales:
//
//   x[b, h, j, d] = scale·(code[b, h, j, d] − zero)
//
//   codes   int8_t [B, H, L, D], from −128 to 127; or int4_pair [B, H, L, D/2], D even
//   scales  float [B, H, ⌈L / tokens⌉, ⌈D / channels⌉], one for every tokens × channels codes
//   zeros   float, like scales; may be left out (0)
//
// heed::per_token has a scale per token, heed::per_channel one per channel, and
// scale_groups{32, 1} one per channel for every 32 tokens (Liu et al., "KIVI: A Tuning-Free
// Asymmetric 2bit Quantization for KV Cache", 2024, keeps keys so, and values per token).
#pragma once

#include <limits>

#include "rows.hpp"

HEED_NAMESPACE_BEGIN

// Two codes from −8 to 7 in one byte, each plus 8: the even channel's in the low four bits.
struct int4_pair {
  std::uint8_t bits;
};

template <class T>
concept code = std::is_same_v<T, std::int8_t> || std::is_same_v<T, int4_pair>;

template <code Code>
inline constexpr index_t codes_per_element = std::is_same_v<Code, int4_pair> ? 2 : 1;

// Tokens and channels that share a scale.
struct scale_groups {
  static constexpr index_t whole = std::numeric_limits<std::int32_t>::max();
  index_t tokens = 1;
  index_t channels = whole;
};
inline constexpr scale_groups per_token{1, scale_groups::whole};
inline constexpr scale_groups per_channel{scale_groups::whole, 1};

namespace detail {

// The code of a channel of a row.
HEED_INLINE int read_code(const std::int8_t* row, index_t channel) { return row[channel]; }
HEED_INLINE int read_code(const int4_pair* row, index_t channel) {
  return (row[channel / 2].bits >> channel % 2 * 4 & 15) - 8;
}

// What the arrays of scales and of zeros must look like.
HEED_NOINLINE inline void check_scales(const char* name, const void* data, const index_t* extents,
                                       const index_t* wanted, int rank) {
  constexpr const char* axes[] = {"batch", "head count", "token groups", "channel groups"};
  bool empty = false;
  for (int axis = 0; axis < rank; ++axis) {
    if (extents[axis] != wanted[axis]) {
      raise(message("quantized: ") << name << " have " << axes[4 - rank + axis] << " "
                                   << extents[axis] << ", the codes need " << wanted[axis]);
    }
    empty = empty || extents[axis] == 0;
  }
  if (data == nullptr && !empty) raise(message("quantized: data of ") << name << " is null");
}

}  // namespace detail

// Codes with their scales, without owning them. Raises invalid_argument where the groups are not
// positive or the scales do not fit the codes.
template <code Code, int Rank>
class quantized_view {
  static_assert(Rank >= 2 && Rank <= 4, "heed: codes have two to four axes");

 public:
  using value_type = Code;
  static constexpr int rank = Rank;
  using code_view = tensor_view<const Code, Rank>;
  using scale_view = tensor_view<const float, Rank>;

  quantized_view() = default;
  quantized_view(const code_view& codes, const scale_view& scales,
                 const scale_groups& groups = per_token)
      : codes_(codes), scales_(scales), groups_(groups) {
    if (groups.tokens < 1 || groups.channels < 1) {
      raise(message("quantized: groups of ")
            << groups.tokens << " tokens and " << groups.channels << " channels, each must be at "
            << "least 1");
    }
    check("scales", scales);
  }
  quantized_view(const code_view& codes, const scale_view& scales, const scale_view& zeros,
                 const scale_groups& groups = per_token)
      : quantized_view(codes, scales, groups) {
    check("zeros", zeros);
    zeros_ = zeros;
    has_zeros_ = true;
  }

  const code_view& codes() const { return codes_; }
  const scale_view& scales() const { return scales_; }
  const scale_view& zeros() const { return zeros_; }  // data() is null where there are none
  const scale_groups& groups() const { return groups_; }
  bool has_zeros() const { return has_zeros_; }

  index_t extent(int axis) const {
    return axis == Rank - 1 ? codes_.extent(axis) * codes_per_element<Code> : codes_.extent(axis);
  }
  // What one code stands for, exactly.
  double value(index_t batch, index_t head, index_t token, index_t channel) const
      requires(Rank == 4) {
    const index_t t = token / groups_.tokens, c = channel / groups_.channels;
    const double zero = has_zeros_ ? static_cast<double>(zeros_(batch, head, t, c)) : 0.0;
    const double scale = static_cast<double>(scales_(batch, head, t, c));
    return scale * (detail::read_code(codes_.row(batch, head, token), channel) - zero);
  }

  // The same with leading axes of extent 1.
  template <int NewRank>
  quantized_view<Code, NewRank> lifted() const {
    const auto codes = codes_.template lifted<NewRank>();
    const auto scales = scales_.template lifted<NewRank>();
    return has_zeros_ ? quantized_view<Code, NewRank>(codes, scales,
                                                      zeros_.template lifted<NewRank>(), groups_)
                      : quantized_view<Code, NewRank>(codes, scales, groups_);
  }

 private:
  void check(const char* name, const scale_view& scales) const {
    index_t wanted[Rank];
    for (int axis = 0; axis < Rank; ++axis) wanted[axis] = extent(axis);
    wanted[Rank - 2] = groups_of(extent(Rank - 2), groups_.tokens);
    wanted[Rank - 1] = groups_of(extent(Rank - 1), groups_.channels);
    detail::check_scales(name, scales.data(), scales.extents().data(), wanted, Rank);
  }
  static index_t groups_of(index_t extent, index_t size) {
    return extent == 0 ? 0 : (extent - 1) / size + 1;
  }

  code_view codes_;
  scale_view scales_, zeros_;
  scale_groups groups_;
  bool has_zeros_ = false;
};

template <class T>
inline constexpr bool is_quantized = false;
template <class Code, int Rank>
inline constexpr bool is_quantized<quantized_view<Code, Rank>> = true;

// One row's codes from a channel on.
template <code Code>
struct quantized_cursor {
  const Code* codes;    // of the whole row
  const float* scales;  // of the row's tokens, one per channel group
  const float* zeros;   // likewise, or null
  index_t channels;     // per group
  index_t channel = 0;

  HEED_INLINE quantized_cursor operator+(index_t d) const {
    quantized_cursor moved = *this;
    moved.channel += d;
    return moved;
  }
  // Group of the channel `ahead` of this one. Depths fit 32 bits, whose division is faster.
  HEED_INLINE index_t group(index_t ahead = 0) const {
    return static_cast<std::uint32_t>(channel + ahead) / static_cast<std::uint32_t>(channels);
  }
};

// Rows of one batch and head.
template <code Code>
struct quantized_rows {
  using cursor = quantized_cursor<Code>;

  const Code* first = nullptr;
  index_t stride = 0;
  index_t token = 0;  // that of row 0
  const float *scales = nullptr, *zeros = nullptr;
  index_t scale_stride = 0, zero_stride = 0;
  scale_groups groups;

  HEED_INLINE cursor operator[](index_t row) const {
    const index_t group = groups.tokens == 1 ? token + row : (token + row) / groups.tokens;
    return {first + row * stride, scales + group * scale_stride,
            zeros != nullptr ? zeros + group * zero_stride : nullptr, groups.channels};
  }
  quantized_rows from(index_t row) const {
    quantized_rows moved = *this;
    moved.first += row * stride;
    moved.token += row;
    return moved;
  }
  static constexpr index_t row_bytes(index_t depth) { return depth / codes_per_element<Code>; }
  index_t stride_bytes() const { return stride; }
};

template <class T>
inline constexpr bool is_quantized_rows = false;
template <class Code>
inline constexpr bool is_quantized_rows<quantized_rows<Code>> = true;

template <class Code>
quantized_rows<Code> rows_at(const quantized_view<Code, 4>& x, index_t batch, index_t head,
                             index_t row) {
  quantized_rows<Code> rows;
  rows.first = x.codes().row(batch, head, row);
  rows.stride = x.codes().stride(2);
  rows.token = row;
  rows.scales = x.scales().row(batch, head, 0);
  rows.scale_stride = x.scales().stride(2);
  if (x.has_zeros()) {
    rows.zeros = x.zeros().row(batch, head, 0);
    rows.zero_stride = x.zeros().stride(2);
  }
  rows.groups = x.groups();
  return rows;
}

template <class Real, class Code>
HEED_INLINE Real read_at(const quantized_cursor<Code>& cursor) {
  const index_t group = cursor.group();
  const Real zero = cursor.zeros != nullptr ? static_cast<Real>(cursor.zeros[group]) : Real(0);
  const int code = detail::read_code(cursor.codes, cursor.channel);
  return static_cast<Real>(cursor.scales[group]) * (static_cast<Real>(code) - zero);
}
template <class Code>
HEED_INLINE const void* address_at(const quantized_cursor<Code>& cursor) {
  return cursor.codes + cursor.channel / codes_per_element<Code>;
}

HEED_NAMESPACE_END
