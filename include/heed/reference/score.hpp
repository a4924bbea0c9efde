// Scores that need the vectors of query and key, from their formulas, in double precision: maps to
// put into options::scores of the oracle of attention (reference/dense.hpp). They get the scaled
// score and add to it, or replace it; positions are those of a batch without padding.
//
//   relative_embedding  s + scale · (q_i + v_h) · e_h[clamp(j − i − first, 0, N − 1)]
//   content_bias        s + scale · u_h · k_j
//   pairwise            scale · Σ_d w_h[d] · f(q_i[d] + k_j[d])
//
// i counts on the axis of the keys. Tables are [H|1, N, D], vectors per head [H|1, D].
#pragma once

#include "dense.hpp"

HEED_NAMESPACE_BEGIN

namespace reference {

namespace detail {

// Row of a table's head, and of vectors per head, which operands see as [1, 1, H, D].
inline std::vector<double> table_row(const operand& table, index_t head, index_t entry) {
  return table.row(0, table.heads() == 1 ? 0 : head, entry);
}
inline std::vector<double> head_row(const operand& rows, index_t head) {
  return rows.row(0, 0, rows.length() == 1 ? 0 : head);
}
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}
inline index_t entry_of(const position& p, index_t first, index_t entries) {
  return std::clamp<index_t>(p.k - p.aligned_q() - first, 0, entries - 1);
}

}  // namespace detail

// `bias` may be an operand without elements.
inline score_map relative_embedding(const operand& q, const operand& table, index_t first,
                                    const operand& bias, double scale) {
  return [=](double s, const position& p) {
    std::vector<double> query = q.row(p.batch, p.head, p.q);
    if (bias.length() > 0) {
      const std::vector<double> add = detail::head_row(bias, p.head);
      for (std::size_t d = 0; d < query.size(); ++d) query[d] += add[d];
    }
    const index_t entry = detail::entry_of(p, first, table.length());
    return s + scale * detail::dot(query, detail::table_row(table, p.head, entry));
  };
}

inline score_map content_bias(const operand& k, index_t query_heads, const operand& bias,
                              double scale) {
  return [=](double s, const position& p) {
    const index_t key_head = p.head / (query_heads / k.heads());
    return s + scale * detail::dot(detail::head_row(bias, p.head), k.row(p.batch, key_head, p.k));
  };
}

inline score_map pairwise(const operand& q, const operand& k, const operand& weights,
                          std::function<double(double)> f, double scale) {
  return [=](double, const position& p) {
    const std::vector<double> query = q.row(p.batch, p.head, p.q);
    const std::vector<double> key = k.row(p.batch, p.head / (q.heads() / k.heads()), p.k);
    const std::vector<double> weight = detail::head_row(weights, p.head);
    double sum = 0;
    for (std::size_t d = 0; d < query.size(); ++d) sum += weight[d] * f(query[d] + key[d]);
    return scale * sum;
  };
}

}  // namespace reference

HEED_NAMESPACE_END
