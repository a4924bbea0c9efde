// The plain backend: the tile contract (docs/kernel-contract.md) in loops over single numbers. It
// is the one to read, and the one that the others are compared with.
#pragma once

#include <cmath>
#include <string_view>

#include "../core/pack.hpp"
#include "../core/quantized.hpp"
#include "detail/block_session.hpp"

HEED_NAMESPACE_BEGIN
namespace backend {

struct scalar {
  static constexpr std::string_view name = "scalar";

  template <class Real>
  struct plain_tiles {
    using real = Real;
    using packed = Real;
    using weight = Real;
    using session = detail::block_session<plain_tiles>;
    struct prepared_queries {  // nothing: products need the queries as they are
      void forget() {}
    };
    static constexpr int lanes = 1;
    static constexpr int strip_rows = 4;
    static constexpr int step_keys = 64;
    static constexpr int weights_together = 1;
    static constexpr index_t most_rows_in_place = 2 * strip_rows;
    static constexpr index_t most_block_keys = 512;
    static constexpr Real weight_rounding = 0;

    static constexpr index_t padded(index_t depth) { return depth; }
    static constexpr index_t query_strip_size(index_t depth) { return strip_rows * depth; }
    static constexpr index_t key_step_size(index_t depth) { return step_keys * depth; }
    static constexpr index_t value_step_size(index_t depth) { return step_keys * depth; }

    // strip[row][d] = sign·q[row][d]
    template <class T>
    static void pack_queries(const T* const* query_rows, int rows, int, index_t depth, Real sign,
                             Real* strip) {
      for (int row = 0; row < rows; ++row) {
        for (index_t d = 0; d < depth; ++d) {
          strip[row * depth + d] = sign * widen<Real>(query_rows[row][d]);
        }
      }
    }

    template <class T>
    static void pack_queries_in_place(const T* const* query_rows, int rows, index_t depth,
                                      Real sign, Real* strip) {
      pack_queries(query_rows, rows, rows, depth, sign, strip);
    }

    // step[key][d]
    template <class Rows>
    static void pack_keys(const Rows& keys, int count, index_t depth, Real* step) {
      for (int key = 0; key < step_keys; ++key) {
        for (index_t d = 0; d < depth; ++d) {
          step[key * depth + d] = key < count ? read_at<Real>(keys[key] + d) : Real(0);
        }
      }
    }

    // to[d·stride + row]
    template <class Rows>
    static void transpose_rows(const Rows& from, int count, index_t depth, Real* to,
                               index_t stride) {
      for (int row = 0; row < count; ++row) {
        for (index_t d = 0; d < depth; ++d) to[d * stride + row] = read_at<Real>(from[row] + d);
      }
    }

    // step[key][dv]; returns whether all values are finite
    template <class Rows>
    static bool pack_values(const Rows& values, int count, index_t depth, Real* step) {
      pack_keys(values, count, depth, step);
      return all_finite(values, count, depth);
    }
    template <class Rows>
    static bool all_finite(const Rows& values, int count, index_t depth) {
      bool finite = true;
      for (int key = 0; key < count; ++key) {
        for (index_t d = 0; d < depth; ++d) {
          finite = finite && is_finite(read_at<Real>(values[key] + d));
        }
      }
      return finite;
    }

    // s[row][key] = Σ_d q[row][d]·k[key][d]
    static void score(const Real* strip, int rows, const Real* step, index_t depth, int keys,
                      Real* s, index_t s_stride) {
      prepared_queries none;
      score_rows(strip, rows, none, strided_rows<Real>{step, depth}, keys, depth, s, s_stride);
    }
    template <class Rows>
    static void score_rows(const Real* strip, int rows, prepared_queries&, const Rows& keys,
                           int count, index_t depth, Real* s, index_t s_stride) {
      for (int row = 0; row < rows; ++row) {
        for (int key = 0; key < count; ++key) {
          Real sum = 0;
          for (index_t d = 0; d < depth; ++d) {
            sum += strip[row * depth + d] * read_at<Real>(keys[key] + d);
          }
          s[row * s_stride + key] = sum;
        }
      }
    }

    // m' = max(m, factor·max s), w = 2^(factor·s − m'), l' = l·2^(m − m') + Σ w
    static void softmax(Real* s, index_t s_stride, int rows, int count, Real factor, Real* maximum,
                        Real* sum, Real* shrink) {
      for (int row = 0; row < rows; ++row) {
        Real* scores = s + row * s_stride;
        // The products first: rounded like their maximum, so that the largest exponent is 0
        // exactly.
        Real top = masked_score<Real>;
        Real poison = 0;  // a NaN among the scores must reach the result
        for (int key = 0; key < count; ++key) {
          if (scores[key] > masked_score<Real>) {
            scores[key] *= factor;
            if (scores[key] > top) top = scores[key];
          }
          if (scores[key] != scores[key]) poison = scores[key];
        }
        if (!(top > masked_score<Real>)) {
          for (int key = 0; key < count; ++key) scores[key] = 0;
          sum[row] += poison;
          shrink[row] = 1;
          continue;
        }
        const Real former = maximum[row];
        maximum[row] = former > top ? former : top;
        shrink[row] = power_of_two(former - maximum[row]);
        Real total = 0;
        for (int key = 0; key < count; ++key) {
          scores[key] = power_of_two(scores[key] - maximum[row]);
          total += scores[key];
        }
        sum[row] = sum[row] * shrink[row] + total;
      }
    }

    static Real weight_at(const Real* weights, index_t column) { return weights[column]; }

    // o[row][d] = o[row][d]·shrink[row] + Σ_key p[row][key]·v[key][d]
    static void accumulate(const Real* p, index_t p_stride, int rows, int count,
                           const listed_steps<Real, step_keys>& values, index_t depth, Real* o,
                           index_t o_stride, const Real* shrink) {
      accumulate_rows(p, p_stride, rows, count, values, depth, o, o_stride, shrink);
    }
    template <class Rows>
    static void accumulate_rows(const Real* p, index_t p_stride, int rows, int count,
                                const Rows& values, index_t depth, Real* o, index_t o_stride,
                                const Real* shrink) {
      for (int row = 0; row < rows; ++row) {
        for (index_t d = 0; d < depth; ++d) {
          if (shrink != nullptr) o[row * o_stride + d] *= shrink[row];
        }
        for (int key = 0; key < count; ++key) {
          for (index_t d = 0; d < depth; ++d) {
            o[row * o_stride + d] += p[row * p_stride + key] * read_at<Real>(values[key] + d);
          }
        }
      }
    }

    // out[d] = o[d]·factor
    template <class T>
    static void store(const Real* o, index_t depth, Real factor, T* out) {
      for (index_t d = 0; d < depth; ++d) out[d] = narrow<T>(o[d] * factor);
    }

   private:
    static bool is_finite(Real value) { return (bits(value) & exponent_bits) != exponent_bits; }
    static integer_of<Real> bits(Real value) { return std::bit_cast<integer_of<Real>>(value); }
    static constexpr integer_of<Real> exponent_bits =
        sizeof(Real) == 4 ? static_cast<integer_of<Real>>(0x7f800000)
                          : static_cast<integer_of<Real>>(0x7ff0000000000000ll);

    // Exactly 0 for the difference to a masked score, also where infinities are assumed away.
    static Real power_of_two(Real x) {
      return x < Real(sizeof(Real) == 4 ? -126 : -1022) ? Real(0) : std::exp2(x);
    }
  };

  template <class Real, class... Operands>
  using tiles = plain_tiles<Real>;
};

}  // namespace backend
HEED_NAMESPACE_END
