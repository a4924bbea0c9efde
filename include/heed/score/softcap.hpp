// Soft capping of scores: cap·tanh(s / cap), which bounds scores to (-cap, cap) and leaves small
// ones nearly as they are. The cap is in natural units, as the scaled score is.
//
// Used by Gemma 2 (Riviere et al., "Gemma 2: Improving Open Language Models at a Practical Size",
// 2024, section 2) after Bello et al., "Neural Combinatorial Optimization with Reinforcement
// Learning", 2016.
#pragma once

#include "../core/error.hpp"
#include "../core/pack.hpp"
#include "detail/table.hpp"

HEED_NAMESPACE_BEGIN

class softcap {
 public:
  explicit softcap(double cap) : cap_(cap) {
    // The bounds keep the cap and its inverse normal numbers in float.
    if (is_nan(cap) || cap < 1e-30 || cap > 1e30) {
      raise(message("softcap: cap ") << cap << " is not in [1e-30, 1e30]");
    }
    inverse_ = 1 / cap;
  }

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P&) const {
    using real = detail::score_real<S>;
    return S(static_cast<real>(cap_)) * tanh(s * S(static_cast<real>(inverse_)));
  }

  // 1 - tanh²(s / cap)
  template <class S, class P>
  HEED_INLINE S derivative(S s, const P&) const {
    using real = detail::score_real<S>;
    const S bent = tanh(s * S(static_cast<real>(inverse_)));
    return S(real(1)) - bent * bent;
  }

 private:
  // By its bits, so that it also holds under -ffast-math.
  static bool is_nan(double value) {
    return (std::bit_cast<std::uint64_t>(value) & 0x7fffffffffffffffull) > 0x7ff0000000000000ull;
  }

  double cap_;
  double inverse_ = 1;
};

HEED_NAMESPACE_END
