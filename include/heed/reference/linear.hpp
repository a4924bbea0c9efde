// Linear attention, plainly: the recurrence of one head after the other in double precision.
//
//   S ← diag(e^g_t)·S + β_t·k_t·x_tᵀ,  x_t = v_t or, under the delta rule, v_t − (decayed S)ᵀk_t
//   z ← diag(e^g_t)·z + β_t·k_t
//   out_t = Sᵀ·(scale·q_t) · f(z·(scale·q_t))
//
// q [B, H, L, D], k [B, H, L, D], v [B, H, L, Dv], all with the same heads and after their feature
// map.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace reference {

struct linear_rule {
  // g and β of (batch, head, token, channel) and (batch, head, token); none: 0 and 1
  std::function<double(index_t, index_t, index_t, index_t)> log_decay;
  std::function<double(index_t, index_t, index_t)> strength;
  bool delta = false;
  // u of (head, channel): reads see the state before their token, and the token through u
  std::function<double(index_t, index_t)> bonus;
  // factor of an output by its denominator
  std::function<double(double)> normalizer;
  bool bidirectional = false;
  double scale = 1;
};

// state [B, H, D, Dv] and key_sum [B, H, D] are read first and hold the last values afterwards.
inline void linear_attention(const tensor_view<const double, 4>& q,
                             const tensor_view<const double, 4>& k,
                             const tensor_view<const double, 4>& v,
                             const tensor_view<double, 4>& out, const linear_rule& rule,
                             const tensor_view<double, 4>& state,
                             const tensor_view<double, 3>& key_sum) {
  const index_t depth = k.extent(3), values = v.extent(3);
  for (index_t b = 0; b < k.extent(0); ++b) {
    for (index_t h = 0; h < k.extent(1); ++h) {
      const auto write = [&](index_t t) {
        for (index_t c = 0; c < depth; ++c) {
          const double decay = rule.log_decay ? std::exp(rule.log_decay(b, h, t, c)) : 1;
          for (index_t d = 0; d < values; ++d) state(b, h, c, d) *= decay;
          key_sum(b, h, c) *= decay;
        }
        const double beta = rule.strength ? rule.strength(b, h, t) : 1;
        for (index_t d = 0; d < values; ++d) {
          double x = v(b, h, t, d);
          for (index_t c = 0; rule.delta && c < depth; ++c) {
            x -= state(b, h, c, d) * k(b, h, t, c);
          }
          for (index_t c = 0; c < depth; ++c) state(b, h, c, d) += beta * k(b, h, t, c) * x;
        }
        for (index_t c = 0; c < depth; ++c) key_sum(b, h, c) += beta * k(b, h, t, c);
      };
      const auto read = [&](index_t t) {
        double denominator = 0, own = 0;
        for (index_t c = 0; c < depth; ++c) {
          denominator += rule.scale * q(b, h, t, c) * key_sum(b, h, c);
          if (rule.bonus) own += rule.scale * q(b, h, t, c) * rule.bonus(h, c) * k(b, h, t, c);
        }
        const double factor = rule.normalizer ? rule.normalizer(denominator + own) : 1;
        for (index_t d = 0; d < values; ++d) {
          double sum = own != 0 ? own * v(b, h, t, d) : 0;
          for (index_t c = 0; c < depth; ++c) {
            sum += rule.scale * q(b, h, t, c) * state(b, h, c, d);
          }
          out(b, h, t, d) = factor * sum;
        }
      };
      if (rule.bidirectional) {
        for (index_t t = 0; t < k.extent(2); ++t) write(t);
        for (index_t t = 0; t < q.extent(2); ++t) read(t);
        continue;
      }
      for (index_t t = 0; t < k.extent(2); ++t) {
        if (rule.bonus) read(t);
        write(t);
        if (!rule.bonus) read(t);
      }
    }
  }
}

// Causal depthwise convolution with the W − 1 inputs before the first token as its state:
//   out[b, t, c] = bias[c] + Σ_w weight[c, w]·x[b, t − (W − 1) + w, c]
// x [B, L, C], weight [C, W], bias [C] or without data, before [B, W − 1, C] or without data (0).
inline void causal_convolution(const tensor_view<const double, 3>& x,
                               const tensor_view<const double, 2>& weight,
                               const tensor_view<const double, 1>& bias,
                               const tensor_view<const double, 3>& before,
                               const tensor_view<double, 3>& out) {
  const index_t width = weight.extent(1);
  for (index_t b = 0; b < x.extent(0); ++b) {
    for (index_t t = 0; t < x.extent(1); ++t) {
      for (index_t c = 0; c < x.extent(2); ++c) {
        double sum = bias.data() != nullptr ? bias(c) : 0;
        for (index_t w = 0; w < width; ++w) {
          const index_t from = t - (width - 1) + w;
          const double input = from >= 0                  ? x(b, from, c)
                               : before.data() != nullptr ? before(b, from + width - 1, c)
                                                          : 0;
          sum += weight(c, w) * input;
        }
        out(b, t, c) = sum;
      }
    }
  }
}

}  // namespace reference
HEED_NAMESPACE_END
