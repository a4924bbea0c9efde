// Applies masks and score functors to rows of a score tile, a pack of keys at a time where the
// functor can take packs, else key by key.
#pragma once

#include <tuple>

#include "../core/position.hpp"
#include "problem.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Bit c of the result: the mask lets key first.k + c through, for c < count ≤ 64.
template <class Real, int N, class Mask>
HEED_INLINE std::uint64_t visible_bits(const Mask& mask, position first, int count) {
  std::uint64_t bits = 0;
  if constexpr (interval_mask<Mask>) {
    const key_interval seen = mask.interval(first);
    const auto below = [&](index_t end) {
      const index_t keys = end - first.k < count ? end - first.k : count;
      return keys <= 0 ? std::uint64_t{0} : ~std::uint64_t{0} >> (64 - keys);
    };
    bits = below(seen.end) & ~below(seen.begin);
  } else if constexpr (bit_mask<Mask>) {
    bits = mask.bits(first, count) & ~std::uint64_t{0} >> (64 - count);
  } else if constexpr (N > 1 && requires(const pack_position<Real, N>& p) {
                         static_cast<typename pack<Real, N>::mask>(mask(p));
                       }) {
    const index_t end = first.k + count;
    for (int c = 0; c < count; c += N, first.k += N) {
      const typename pack<Real, N>::mask seen = mask(pack_at<Real, N>(first, end));
      bits |= to_bits(seen) << c;
    }
    if (count < 64) bits &= (std::uint64_t{1} << count) - 1;
  } else {
    for (int c = 0; c < count; ++c, ++first.k) {
      if (mask(static_cast<const position&>(first))) bits |= std::uint64_t{1} << c;
    }
  }
  return bits;
}

// One score functor on one value, scalar or pack.
template <class S, class Score, class P>
HEED_INLINE S apply_score(const Score& score, S s, const P& p) {
  if constexpr (!is_pack<S>) {
    return static_cast<S>(score(s, p));
  } else if constexpr (requires { static_cast<S>(score(s, p)); }) {
    return static_cast<S>(score(s, p));
  } else {
    using Real = typename S::value_type;
    position at{p.batch, p.head, p.q, p.first_key, p.queries, p.keys};
    for (int lane = 0; lane < p.valid; ++lane, ++at.k) {
      s.v[lane] =
          static_cast<Real>(score(static_cast<Real>(s.v[lane]), static_cast<const position&>(at)));
    }
    return s;
  }
}

// s[c] ← scores(scale·s[c]) for c < count, first key at first.k; lanes behind count are arbitrary.
template <class Real, int N, class Scores>
HEED_INLINE void apply_scores(const Scores& scores, Real* s, Real scale, position first,
                              int count) {
  std::apply(
      [&](const auto&... score) HEED_LAMBDA_INLINE {
        if constexpr (N > 1) {
          const index_t end = first.k + count;
          for (int c = 0; c < count; c += N, first.k += N) {
            [[maybe_unused]] const pack_position<Real, N> p = pack_at<Real, N>(first, end);
            pack<Real, N> value = load_pack<pack<Real, N>>(s + c) * scale;
            ((value = apply_score(score, value, p)), ...);
            store_pack(s + c, value);
          }
        } else {
          for (int c = 0; c < count; ++c, ++first.k) {
            Real value = s[c] * scale;
            ((value = apply_score(score, value, static_cast<const position&>(first))), ...);
            s[c] = value;
          }
        }
      },
      scores);
}

// Scores whose bit is clear become masked; s has 64 columns.
template <class Real, int N>
HEED_INLINE void mask_scores(Real* s, std::uint64_t bits) {
  for (int c = 0; c < 64; c += N) {
    if constexpr (N > 1) {
      const auto seen = from_bits<Real, N>(bits >> c);
      store_pack(s + c,
                 select(seen, load_pack<pack<Real, N>>(s + c), pack<Real, N>(masked_score<Real>)));
    } else {
      if ((bits >> c & 1) == 0) s[c] = masked_score<Real>;
    }
  }
}

}  // namespace engine
HEED_NAMESPACE_END
