// quantize(x, codes, scales, groups): the codes and scales (quantized.hpp) that are nearest to x.
//
//   without zeros:  scale = max |x| / 127,            code = round(x / scale)
//   with zeros:     scale = (max x − min x) / 255,    zero = −128 − min x / scale,
//                   code = round(x / scale + zero)
//
// over each group; with 7 and 15 and −8 for four bits. x̂ is at most scale / 2 away from x.
#pragma once

#include <cmath>

#include "view_of.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class Code>
void write_code(Code* row, index_t channel, int value) {
  if constexpr (std::is_same_v<Code, int4_pair>) {
    const int shift = static_cast<int>(channel % 2 * 4),
              kept = row[channel / 2].bits & 0xf0 >> shift;
    row[channel / 2].bits = static_cast<std::uint8_t>(kept | (value + 8) << shift);
  } else {
    row[channel] = static_cast<Code>(value);
  }
}

template <class T, class Code>
void quantize(const tensor_view<const T, 4>& x, const tensor_view<Code, 4>& codes,
              const tensor_view<float, 4>& scales, const tensor_view<float, 4>* zeros,
              const scale_groups& groups) {
  constexpr bool four_bits = std::is_same_v<Code, int4_pair>;
  constexpr double most = four_bits ? 7 : 127;
  const quantized_view<Code, 4> shape = zeros != nullptr
                                            ? quantized_view<Code, 4>(codes, scales, *zeros, groups)
                                            : quantized_view<Code, 4>(codes, scales, groups);
  for (int axis = 0; axis < 4; ++axis) {
    if (x.extent(axis) != shape.extent(axis)) {
      raise(message("quantize: axis ") << axis << " of the codes stands for " << shape.extent(axis)
                                       << " elements, x has " << x.extent(axis));
    }
  }
  if (!x.empty() && (x.data() == nullptr || codes.data() == nullptr)) {
    raise(message("quantize: data of ") << (x.data() == nullptr ? "x" : "codes") << " is null");
  }
  const auto for_each = [](index_t begin, index_t end, const auto& use) {
    for (index_t i = begin; i < end; ++i) use(i);
  };
  const index_t length = x.extent(2), depth = x.extent(3);
  const auto at = [&](index_t b, index_t h, index_t i, index_t d) {
    return widen<double>(x(b, h, i, d));
  };
  for (int pass = 0; pass < 2; ++pass) {  // nothing is written before everything was looked at
    for (index_t b = 0; b < x.extent(0); ++b) {
      for (index_t h = 0; h < x.extent(1); ++h) {
        for (index_t t = 0; t < scales.extent(2); ++t) {
          for (index_t c = 0; c < scales.extent(3); ++c) {
            const index_t i0 = t * groups.tokens, d0 = c * groups.channels;
            const index_t i1 = length - i0 < groups.tokens ? length : i0 + groups.tokens;
            const index_t d1 = depth - d0 < groups.channels ? depth : d0 + groups.channels;
            double low = at(b, h, i0, d0), high = low;
            for_each(i0, i1, [&](index_t i) {
              for_each(d0, d1, [&](index_t d) {
                const double value = at(b, h, i, d);
                if (!(std::abs(value) <= 3.4e38)) {
                  raise(message("quantize: x[")
                        << b << ", " << h << ", " << i << ", " << d << "] is not a finite float");
                }
                low = value < low ? value : low;
                high = value > high ? value : high;
              });
            });
            if (pass == 0) continue;
            double scale = (-low > high ? -low : high) / most, zero = 0;
            if (zeros != nullptr && low < high) {
              scale = (high - low) / (2 * most + 1);
              zero = static_cast<double>(static_cast<float>(-most - 1 - low / scale));
            }
            scale = static_cast<double>(static_cast<float>(scale));
            scales(b, h, t, c) = static_cast<float>(scale);
            if (zeros != nullptr) (*zeros)(b, h, t, c) = static_cast<float>(zero);
            for_each(i0, i1, [&](index_t i) {
              for_each(d0, d1, [&](index_t d) {
                double code = scale > 0 ? std::nearbyint(at(b, h, i, d) / scale + zero) : 0;
                code = code < -most - 1 ? -most - 1 : code > most ? most : code;
                write_code(codes.row(b, h, i), d, static_cast<int>(code));
              });
            });
          }
        }
      }
    }
  }
}

}  // namespace detail

// x [B, H, L, D] of any element type (rank 2 and 3 likewise) into codes [B, H, L, D], or
// [B, H, L, D/2] for int4_pair, and scales [B, H, ⌈L / tokens⌉, ⌈D / channels⌉], and zeros if there
// are any. Raises invalid_argument, before anything is written, where the shapes do not fit or an
// element is not a finite float.
template <viewable X, code Code, int Rank>
void quantize(const X& x, const tensor_view<Code, Rank>& codes,
              const tensor_view<float, Rank>& scales, const scale_groups& groups = per_token) {
  const auto view = read_view_of(x);
  static_assert(view_rank<X> == Rank, "heed::quantize: codes have as many axes as x");
  detail::quantize(view.template lifted<4>(), codes.template lifted<4>(),
                   scales.template lifted<4>(), nullptr, groups);
}
template <viewable X, code Code, int Rank>
void quantize(const X& x, const tensor_view<Code, Rank>& codes,
              const tensor_view<float, Rank>& scales, const tensor_view<float, Rank>& zeros,
              const scale_groups& groups = per_token) {
  const auto view = read_view_of(x);
  static_assert(view_rank<X> == Rank, "heed::quantize: codes have as many axes as x");
  const auto lifted_zeros = zeros.template lifted<4>();
  detail::quantize(view.template lifted<4>(), codes.template lifted<4>(),
                   scales.template lifted<4>(), &lifted_zeros, groups);
}

HEED_NAMESPACE_END
