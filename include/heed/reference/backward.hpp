// Gradients of exact attention from the formulas, in double precision: the oracle that
// heed::attention_backward is tested against. With weights w_ij, outputs o_i and lse_i as in
// reference/dense.hpp, and a loss that depends on o and lse,
//
//   δ_i    = Σ_d do_id o_id − dlse_i
//   dv_j   = Σ_i w_ij do_i
//   t_ij   = w_ij (Σ_d do_id v_jd − δ_i)            gradient of the last score
//   ds_ij  = t_ij · Π_n f_n'(s^(n-1)_ij)            gradient of scale·q·k
//   dq_i   = scale · Σ_j ds_ij k_j      dk_j = scale · Σ_i ds_ij q_i
//   dsink_h = −Σ_i e^(sink_h − lse_i) δ_i
//
// in loops over single numbers; the sums over i run over all query heads of a KV head.
#pragma once

#include "dense.hpp"

HEED_NAMESPACE_BEGIN

namespace reference {

// What a backward pass gets in addition to reference::options (of which lse and weights are
// unused).
struct backward_options {
  std::vector<score_map> derivatives = {};  // of options::scores, one by one
  std::vector<double> lse_gradient = {};    // [B, Hq, Lq]; empty: 0
  // A ragged batch: sequences one after the other, as in ragged_attention.
  std::vector<index_t> cu_q = {}, cu_k = {};
};

// Dense and row-major, shaped like q, k, v; scores [B, Hq, Lq, Lk] is t, sinks [Hq].
struct gradients {
  std::vector<double> q, k, v, scores, sinks;
};

namespace detail {

inline std::vector<sequence> backward_sequences(const operand& q, const operand& k,
                                                const operand& v, const options& how,
                                                const backward_options& more) {
  if (more.cu_q.empty()) return padded_sequences(q, one_source(k, v, how), how);
  return ragged_sequences(q, k, more.cu_q, more.cu_k, how);
}

}  // namespace detail

inline gradients attention_backward(const operand& q, const operand& k, const operand& v,
                                    const operand& d_out, const options& how = {},
                                    const backward_options& more = {}) {
  detail::require_equal("d_out", "length", d_out.length(), "q", q.length());
  detail::require_equal("d_out", "depth", d_out.depth(), "v", v.depth());
  if (more.derivatives.size() != how.scores.size()) {
    raise("derivatives: " + std::to_string(more.derivatives.size()) + " for " +
          std::to_string(how.scores.size()) + " scores");
  }
  const index_t depth = q.depth(), value_depth = v.depth(), heads = q.heads();
  const double scale =
      how.scale.value_or(depth > 0 ? 1 / std::sqrt(static_cast<double>(depth)) : 1.0);
  const auto size = [](const operand& x, index_t columns) {
    return static_cast<std::size_t>(x.batches() * x.heads() * x.length() * columns);
  };
  gradients result;
  result.q.assign(size(q, depth), 0.0);
  result.k.assign(size(k, depth), 0.0);
  result.v.assign(size(v, value_depth), 0.0);
  result.scores.assign(size(q, k.length()), 0.0);
  result.sinks.assign(static_cast<std::size_t>(heads), 0.0);

  struct term {  // a key that the query attends to
    index_t row;
    double score, slope;
  };
  std::vector<term> terms;
  std::vector<double> query(static_cast<std::size_t>(depth));
  std::vector<double> d_o(static_cast<std::size_t>(value_depth)), o(d_o.size());

  for (const detail::sequence& s : detail::backward_sequences(q, k, v, how, more)) {
    for (index_t h = 0; h < heads; ++h) {
      const index_t key_head = h / (heads / k.heads());
      detail::lazy_rows keys(k, s.batch, key_head), values(v, s.batch, key_head);
      for (index_t i = 0; i < s.queries.count; ++i) {
        const index_t row = s.queries.begin + i;
        const index_t flat = (s.batch * heads + h) * q.length() + row;
        q.read_row(s.batch, h, row, query.data());
        d_out.read_row(s.batch, h, row, d_o.data());

        // Scores and their derivatives.
        terms.clear();
        for (index_t j = 0; j < s.keys[0].count; ++j) {
          const position p{s.number, h, i, j, s.queries.count, s.keys[0].count};
          if (how.visible && !how.visible(p)) continue;
          const index_t at = s.keys[0].begin + j;
          const double* key = keys[at];
          term t{at, 0, 1};
          for (index_t d = 0; d < depth; ++d)
            t.score += query[static_cast<std::size_t>(d)] * key[d];
          t.score *= scale;
          for (std::size_t n = 0; n < how.scores.size(); ++n) {
            t.slope *= more.derivatives[n](t.score, p);
            t.score = how.scores[n](t.score, p);
          }
          if (!is_minus_infinity(t.score)) terms.push_back(t);
        }
        const bool has_sink = !how.sinks.empty();
        if (terms.empty() && !has_sink) continue;

        // Log-sum-exp and output.
        double highest = has_sink ? how.sinks[static_cast<std::size_t>(h)] : terms.front().score;
        for (const term& t : terms) highest = std::max(highest, t.score);
        double total = has_sink ? std::exp(how.sinks[static_cast<std::size_t>(h)] - highest) : 0.0;
        for (const term& t : terms) total += std::exp(t.score - highest);
        const double lse = highest + std::log(total);
        std::fill(o.begin(), o.end(), 0.0);
        for (const term& t : terms) {
          const double* value = values[t.row];
          for (std::size_t d = 0; d < o.size(); ++d) o[d] += std::exp(t.score - lse) * value[d];
        }

        // Gradients.
        double delta =
            more.lse_gradient.empty() ? 0.0 : -more.lse_gradient[static_cast<std::size_t>(flat)];
        for (std::size_t d = 0; d < o.size(); ++d) delta += d_o[d] * o[d];
        if (has_sink) {
          result.sinks[static_cast<std::size_t>(h)] -=
              std::exp(how.sinks[static_cast<std::size_t>(h)] - lse) * delta;
        }
        for (const term& t : terms) {
          const double weight = std::exp(t.score - lse);
          const double* key = keys[t.row];
          const double* value = values[t.row];
          const index_t flat_key = (s.batch * k.heads() + key_head) * k.length() + t.row;
          double change = 0;
          for (index_t d = 0; d < value_depth; ++d) {
            const double of_out = d_o[static_cast<std::size_t>(d)];
            change += of_out * value[d];
            result.v[static_cast<std::size_t>(flat_key * value_depth + d)] += weight * of_out;
          }
          const double of_score = weight * (change - delta);
          result.scores[static_cast<std::size_t>(flat * k.length() + t.row)] = of_score;
          const double of_product = scale * of_score * t.slope;
          for (index_t d = 0; d < depth; ++d) {
            result.q[static_cast<std::size_t>(flat * depth + d)] += of_product * key[d];
            result.k[static_cast<std::size_t>(flat_key * depth + d)] +=
                of_product * query[static_cast<std::size_t>(d)];
          }
        }
      }
    }
  }
  return result;
}

}  // namespace reference

HEED_NAMESPACE_END
