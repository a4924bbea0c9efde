// Exact attention from the formula, in double precision: the oracle that kernels are tested
// against. And the same steps with every result rounded to a lower precision, which tells how large
// the error of a kernel in that precision may be.
//
//   q [B, Hq, Lq, D] · k [B, Hkv, Lk, D] · v [B, Hkv, Lk, Dv] → out [B, Hq, Lq, Dv]
//
//   s_ij = f_n(… f_1(scale · Σ_d q_id k_jd))     for every key j that query i may attend to
//   m_i  = max_j s_ij
//   w_ij = e^(s_ij - m_i) / Σ_j e^(s_ij - m_i)
//   o_i  = Σ_j w_ij v_j
//   lse_i = m_i + log Σ_j e^(s_ij - m_i)
//
// A head's sink is one more score in m_i and in the sums over j, with the value vector 0. Query
// head h reads key head h / (Hq / Hkv). A key that is masked, or whose score is -inf, is left out,
// and a masked one is never read. A query without keys gives o = 0 and lse = -inf (the sink's logit
// where there is one).
//
// Nothing here is fast, and nothing is shared with the kernels but the views.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "../core/element.hpp"
#include "../core/tensor_view.hpp"
#include "options.hpp"
#include "sequences.hpp"

HEED_NAMESPACE_BEGIN

namespace reference {
namespace detail {

// The formula at the head of this file. Every step is computed in `accumulator<T>` and rounded to
// T: with T = double that is the oracle, with a narrower T it is a plain implementation in T.
template <element T>
void attend(const operand& q, const std::vector<key_source>& sources,
            const std::vector<sequence>& sequences, tensor_view<double, 4> out,
            const options& how) {
  using real = accumulator<T>;
  const auto rounded = [](real x) { return widen<real>(narrow<T>(x)); };
  const index_t query_heads = q.heads(), depth = q.depth(), value_depth = out.extent(3);
  // Without a depth every score is 0, whatever the scale.
  const double default_scale = depth > 0 ? 1 / std::sqrt(static_cast<double>(depth)) : 1.0;
  const real scale = static_cast<real>(how.scale.value_or(default_scale));

  index_t columns = 0;  // of the weights
  for (const key_source& source : sources) columns += source.k.length();

  // What is left of this: rows that belong to no sequence, and keys without weight.
  for (index_t b = 0; b < out.extent(0); ++b) {
    for (index_t h = 0; h < out.extent(1); ++h) {
      for (index_t i = 0; i < out.extent(2); ++i) {
        for (index_t d = 0; d < value_depth; ++d) out(b, h, i, d) = 0;
      }
    }
  }
  const auto rows = static_cast<std::size_t>(out.extent(0) * out.extent(1) * out.extent(2));
  if (how.lse != nullptr) how.lse->assign(rows, minus_infinity<double>());
  if (how.weights != nullptr) {
    how.weights->assign(rows * static_cast<std::size_t>(columns), 0.0);
  }

  struct term {  // a key that the query attends to
    real score;
    const double* value;
    index_t column;
  };
  std::vector<term> terms;
  std::vector<double> query(static_cast<std::size_t>(depth));
  std::vector<real> sum(static_cast<std::size_t>(value_depth));

  for (const sequence& s : sequences) {
    for (index_t h = 0; h < query_heads; ++h) {
      std::vector<lazy_rows> keys, values;
      for (const key_source& source : sources) {
        const index_t key_head = h / (query_heads / source.k.heads());
        keys.emplace_back(source.k, s.batch, key_head);
        values.emplace_back(source.v, s.batch, key_head);
      }

      for (index_t i = 0; i < s.queries.count; ++i) {
        const index_t row = s.queries.begin + i;
        q.read_row(s.batch, h, row, query.data());

        // Scores.
        terms.clear();
        index_t first_column = 0;
        for (std::size_t n = 0; n < sources.size(); ++n) {
          for (index_t j = 0; j < s.keys[n].count; ++j) {
            position p;
            p.batch = s.number;
            p.head = h;
            p.q = i;
            p.k = j;
            p.queries = s.queries.count;
            p.keys = s.keys[n].count;
            if (sources[n].visible && !sources[n].visible(p)) continue;

            const index_t at = s.keys[n].begin + j;
            const double* key = keys[n][at];
            real dot = 0;
            for (index_t d = 0; d < depth; ++d) {
              dot +=
                  static_cast<real>(query[static_cast<std::size_t>(d)]) * static_cast<real>(key[d]);
            }
            real score = rounded(rounded(dot) * scale);
            for (const score_map& f : sources[n].scores) {
              score = rounded(static_cast<real>(f(static_cast<double>(score), p)));
            }
            if (is_minus_infinity(score)) continue;
            terms.push_back({score, values[n][at], first_column + at});
          }
          first_column += sources[n].k.length();
        }

        const bool has_sink = !how.sinks.empty();
        const auto sink = has_sink ? static_cast<real>(how.sinks[static_cast<std::size_t>(h)])
                                   : minus_infinity<real>();
        const bool counts_sink = !is_minus_infinity(sink);
        if (terms.empty() && !counts_sink) continue;

        // Softmax.
        real highest = counts_sink ? sink : terms.front().score;
        for (const term& t : terms) highest = std::max(highest, t.score);
        real total = counts_sink ? std::exp(sink - highest) : real(0);
        for (const term& t : terms) total += std::exp(t.score - highest);

        // Weighted sum of the values.
        const index_t flat = (s.batch * query_heads + h) * q.length() + row;
        std::fill(sum.begin(), sum.end(), real(0));
        for (const term& t : terms) {
          const real weight = rounded(std::exp(t.score - highest) / total);
          for (index_t d = 0; d < value_depth; ++d) {
            sum[static_cast<std::size_t>(d)] += weight * static_cast<real>(t.value[d]);
          }
          if (how.weights != nullptr) {
            (*how.weights)[static_cast<std::size_t>(flat * columns + t.column)] =
                static_cast<double>(weight);
          }
        }
        for (index_t d = 0; d < value_depth; ++d) {
          out(s.batch, h, row, d) = static_cast<double>(rounded(sum[static_cast<std::size_t>(d)]));
        }
        if (how.lse != nullptr) {
          (*how.lse)[static_cast<std::size_t>(flat)] =
              static_cast<double>(highest + std::log(total));
        }
      }
    }
  }
}

template <element T>
void attend_padded(const operand& q, const std::vector<key_source>& sources,
                   tensor_view<double, 4> out, const options& how) {
  check(q, sources, out, how);
  attend<T>(q, sources, padded_sequences(q, sources, how), out, how);
}

// Sizes a result and returns a view of it.
inline tensor_view<double, 4> sized(std::vector<double>& out, const operand& q, index_t depth) {
  const tensor_view<double, 4> shape(nullptr, {q.batches(), q.heads(), q.length(), depth});
  out.assign(static_cast<std::size_t>(shape.size()), 0.0);
  return tensor_view<double, 4>(out.data(), shape.extents());
}

}  // namespace detail

// ---- the oracle
// ----------------------------------------------------------------------------------

inline void attention(const operand& q, const operand& k, const operand& v,
                      tensor_view<double, 4> out, const options& how = {}) {
  detail::attend_padded<double>(q, detail::one_source(k, v, how), out, how);
}

// The result in a vector, [B, Hq, Lq, Dv] and dense.
inline void attention(const operand& q, const operand& k, const operand& v,
                      std::vector<double>& out, const options& how = {}) {
  attention(q, k, v, detail::sized(out, q, v.depth()), how);
}

// One softmax over several sets of keys.
inline void attention(const operand& q, const std::vector<key_source>& sources,
                      tensor_view<double, 4> out, const options& how = {}) {
  detail::refuse_source_options(how);
  detail::attend_padded<double>(q, sources, out, how);
}
inline void attention(const operand& q, const std::vector<key_source>& sources,
                      std::vector<double>& out, const options& how = {}) {
  if (sources.empty()) raise("sources: none is given, so the values have no depth");
  attention(q, sources, detail::sized(out, q, sources.front().v.depth()), how);
}

// Sequences of different lengths behind each other: q [1, Hq, ΣLq, D], k [1, Hkv, ΣLk, D],
// v [1, Hkv, ΣLk, Dv]. Sequence n has the queries cu_q[n] … cu_q[n+1] - 1 and the keys cu_k[n] …
// cu_k[n+1] - 1; its number is the positions' batch. Weights are [1, Hq, ΣLq, ΣLk].
inline void ragged_attention(const operand& q, const operand& k, const operand& v,
                             tensor_view<double, 4> out, const std::vector<index_t>& cu_q,
                             const std::vector<index_t>& cu_k, const options& how = {}) {
  const std::vector<key_source> sources = detail::one_source(k, v, how);
  detail::check(q, sources, out, how);
  detail::attend<double>(q, sources, detail::ragged_sequences(q, k, cu_q, cu_k, how), out, how);
}
inline void ragged_attention(const operand& q, const operand& k, const operand& v,
                             std::vector<double>& out, const std::vector<index_t>& cu_q,
                             const std::vector<index_t>& cu_k, const options& how = {}) {
  ragged_attention(q, k, v, detail::sized(out, q, v.depth()), cu_q, cu_k, how);
}

// ---- a plain implementation in lower precision
// ---------------------------------------------------

// Attention as a straightforward program in T computes it: dot products and sums are kept in
// accumulator<T>; scores, scaled scores, weights and the result are rounded to T. The operands are
// taken as they are, and should be of type T. The rule for kernels is
//   max |kernel - attention| ≤ 2 · max |plain - attention|
template <element T>
void plain(const operand& q, const operand& k, const operand& v, tensor_view<double, 4> out,
           const options& how = {}) {
  detail::attend_padded<T>(q, detail::one_source(k, v, how), out, how);
}
template <element T>
void plain(const operand& q, const operand& k, const operand& v, std::vector<double>& out,
           const options& how = {}) {
  plain<T>(q, k, v, detail::sized(out, q, v.depth()), how);
}
template <element T>
void plain(const operand& q, const std::vector<key_source>& sources, tensor_view<double, 4> out,
           const options& how = {}) {
  detail::refuse_source_options(how);
  detail::attend_padded<T>(q, sources, out, how);
}

}  // namespace reference

HEED_NAMESPACE_END
