// Backend for AMX: where q, k, v and out are all bfloat16, both products run on the matrix unit,
// with sums in float; on AMX-FP16 also where all are half. Integer codes of k and v are rounded to
// the type of q and out. Everything else runs as on avx512, so an output in float keeps its
// accuracy.
//
// Few query rows per KV head (decode) are read in place by the vector units, which keep up with
// memory; nothing is packed for a single pass, and weights stay float.
//
// Weights are rounded to the elements' type and summed after rounding, so that the output is an
// average under exactly the weights that it is divided by. 2^x is a polynomial of degree 3,
// relative error 7.5e-5: a fiftieth of the rounding to bfloat16 that follows, a sixth of that to
// half.
// The matrix unit takes subnormal bfloat16 numbers for zero, but computes with subnormal halves.
#pragma once

#include <string_view>

#include "avx512.hpp"

// g++ and clang spell these differently.
#if defined(HEED_HAS_AVX512) && defined(__AVX512BF16__) && defined(HEED_TARGET_AMX) && \
    defined(__linux__)
#define HEED_HAS_AMX 1
// A build for a CPU that executes the instruction, by a compiler that does not know it, says so.
#if defined(__AMX_FP16__) || defined(HEED_AMX_FP16)
#define HEED_HAS_AMX_FP16 1
#endif
#include "detail/matrix_session.hpp"
#endif

HEED_NAMESPACE_BEGIN
namespace backend {

#if defined(HEED_HAS_AMX)

namespace detail {
// Integer codes are rounded to the type of the other operands.
template <class Real, class... Operands>
inline constexpr bool bfloat16_products =
    std::is_same_v<Real, float> &&
    (... || is_bfloat16<Operands>)&&(... && (is_bfloat16<Operands> || code<Operands>));
template <class Real, class... Operands>
inline constexpr bool half_products = half_words::multiplied&& std::is_same_v<Real, float> &&
                                      (... || is_half<Operands>)&&(... && (is_half<Operands> ||
                                                                           code<Operands>));
}  // namespace detail

struct amx {
  static constexpr std::string_view name = "amx";

  template <class Real, class... Operands>
  using tiles = std::conditional_t<detail::bfloat16_products<Real, Operands...>,
                                   detail::matrix_tiles<detail::bfloat16_words>,
                                   std::conditional_t<detail::half_products<Real, Operands...>,
                                                      detail::matrix_tiles<detail::half_words>,
                                                      avx512::tiles<Real, Operands...>>>;
};

#else

struct amx;

#endif

}  // namespace backend
HEED_NAMESPACE_END
