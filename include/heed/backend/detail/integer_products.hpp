// Products with integer codes by AVX512-VNNI, for few query rows. One instruction adds 64 products
// of bytes; turning codes into floats first would keep decode from reading as fast as memory
// delivers.
//
//   scores:  s[r][j]  = scale_j · Σ_d q[r][d] · (code[j][d] − zero_j)
//   values:  o[r][d] += Σ_j p[r][j] · scale_j · (code[j][d] − zero_j)
//
// Where tokens share scales per channel, the scales go into q and into o instead. Queries, and
// weights with their scales, become integers of 16 bits relative to the largest of a row, in two
// limbs of 8 bits; sums of their products are exact. The rounding is 2^-16 of the largest: a
// hundredth of what rounding to codes has cost.
#pragma once

#include "integer_scores.hpp"
#include "integer_values.hpp"

#if defined(HEED_HAS_AVX512) && defined(__AVX512VNNI__)

HEED_NAMESPACE_BEGIN
namespace backend::detail {

struct integer_products : integer_scores, integer_values {};

}  // namespace backend::detail
HEED_NAMESPACE_END

#endif
