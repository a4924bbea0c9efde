// Attention with any normaliser, from the formula, in double precision: the oracle for normalisers,
// weight transforms and observers.
//
//   s_ij   as in dense.hpp, for every key j that query i may attend to
//   p_i    = f_n(… f_1(s_i))      row maps: the first one is the normaliser
//   out_i  = Σ_j p_ij v_j
//
// The matrix of weights [B, Hq, Lq, Lk] is the other result: what observers report is a few loops
// over it, at the end of this file.
#pragma once

#include <numeric>

#include "dense.hpp"

HEED_NAMESPACE_BEGIN
namespace reference {

// A row's visible keys, in order.
struct row {
  index_t batch = 0;  // of the tensors
  index_t head = 0;
  std::vector<double> values;   // scores, then weights
  std::vector<position> at;     // positions of the keys
  std::vector<index_t> column;  // their places on the key axis, sources one behind the other
  double sum() const { return std::accumulate(values.begin(), values.end(), 0.0); }
  double largest() const {
    double most = -HUGE_VAL;
    for (double x : values) most = std::max(most, x);
    return most;
  }
};
using row_map = std::function<void(row&)>;

// ---- normalisers
// ---------------------------------------------------------------------------------

inline row_map softmax(std::vector<double> sinks = {}) {
  return [sinks](row& r) {
    double top = r.largest(), total = 0;
    if (!sinks.empty()) top = std::max(top, sinks[static_cast<std::size_t>(r.head)]);
    if (!sinks.empty()) total = std::exp(sinks[static_cast<std::size_t>(r.head)] - top);
    for (double s : r.values) total += std::exp(s - top);
    for (double& s : r.values) s = std::exp(s - top) / total;
  };
}
inline row_map sigmoid_weights(std::vector<double> biases) {
  return [biases](row& r) {
    for (double& s : r.values) {
      s = 1 / (1 + std::exp(-(s + biases[static_cast<std::size_t>(r.head)])));
    }
  };
}
// divisor: 0 none, 1 the number of visible keys, 2 the sum.
inline row_map relu_weights(int power, int divisor) {
  return [power, divisor](row& r) {
    for (double& s : r.values) s = s > 0 ? std::pow(s, power) : 0;
    const double by = divisor == 0   ? 1
                      : divisor == 1 ? static_cast<double>(r.values.size())
                                     : r.sum();
    for (double& s : r.values) s = by > 0 ? s / by : 0;
  };
}
inline row_map signed_softmax() {
  return [](row& r) {
    double top = 0, total = 0;
    for (double s : r.values) top = std::max(top, std::abs(s));
    for (double s : r.values) total += std::exp(std::abs(s) - top);
    for (double& s : r.values) {
      const double sign = s > 0 ? 1 : s < 0 ? -1 : 0;
      s = sign * std::exp(std::abs(s) - top) / total;
    }
  };
}
// α-entmax for α = 2 (sparsemax) and 1.5: the threshold over prefixes of the sorted scores.
inline row_map entmax(double alpha) {
  return [alpha](row& r) {
    std::vector<double> sorted = r.values;
    for (double& s : sorted) s *= alpha - 1;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double tau = 0, sum = 0, squares = 0;
    for (std::size_t n = 1; n <= sorted.size(); ++n) {
      const double x = sorted[n - 1], count = static_cast<double>(n);
      sum += x, squares += x * x;
      double candidate;
      if (alpha == 2) {
        candidate = (sum - 1) / count;
      } else {
        const double mean = sum / count, rest = (1 - (squares - count * mean * mean)) / count;
        if (rest < 0) break;
        candidate = mean - std::sqrt(rest);
      }
      if (x <= candidate) break;  // no part of the support any more
      tau = candidate;
    }
    for (double& s : r.values) {
      s = std::pow(std::max(0.0, s * (alpha - 1) - tau), 1 / (alpha - 1));
    }
  };
}

// ---- transforms
// ----------------------------------------------------------------------------------

inline row_map relaxed(double gamma) {
  return [gamma](row& r) {
    for (double& p : r.values) p = (1 - gamma) * p + gamma / static_cast<double>(r.values.size());
  };
}
inline row_map factor(std::function<double(const position&)> f) {
  return [f](row& r) {
    for (std::size_t j = 0; j < r.values.size(); ++j) r.values[j] *= f(r.at[j]);
  };
}
// sinks and takers say yes or no to (batch, column).
inline row_map redistribute(std::function<bool(index_t, index_t)> sink,
                            std::function<bool(index_t, index_t)> taker, double keep,
                            double most_sink_share, double least_taken) {
  return [=](row& r) {
    double sinks = 0, takers = 0, both = 0;
    for (std::size_t j = 0; j < r.values.size(); ++j) {
      const bool is_sink = sink(r.batch, r.column[j]), takes = taker(r.batch, r.column[j]);
      sinks += is_sink ? r.values[j] : 0;
      takers += takes ? r.values[j] : 0;
      both += is_sink && takes ? r.values[j] : 0;
    }
    if (takers - both <= 0 || both / takers > most_sink_share || takers < least_taken) return;
    for (std::size_t j = 0; j < r.values.size(); ++j) {
      const bool is_sink = sink(r.batch, r.column[j]), takes = taker(r.batch, r.column[j]);
      if (!is_sink && takes) r.values[j] += (1 - keep) * sinks * r.values[j] / (takers - both);
      if (is_sink) r.values[j] *= keep;
    }
  };
}

// ---- attention
// -----------------------------------------------------------------------------------

struct weighted_result {
  std::vector<double> out;      // [B, Hq, Lq, Dv]
  std::vector<double> scores;   // [B, Hq, Lq, Lk], −∞ where nothing is visible
  std::vector<double> weights;  // [B, Hq, Lq, Lk]
  index_t columns = 0;          // Lk of all sources
};

namespace detail {

inline weighted_result attend_rows(const operand& q, const std::vector<key_source>& sources,
                                   const std::vector<sequence>& sequences,
                                   const std::vector<row_map>& maps, const options& how) {
  const index_t depth = q.depth(), value_depth = sources.front().v.depth();
  const double scale =
      how.scale.value_or(depth > 0 ? 1 / std::sqrt(static_cast<double>(depth)) : 1.0);
  weighted_result result;
  for (const key_source& source : sources) result.columns += source.k.length();
  const auto rows = static_cast<std::size_t>(q.batches() * q.heads() * q.length());
  result.out.assign(rows * static_cast<std::size_t>(value_depth), 0.0);
  result.weights.assign(rows * static_cast<std::size_t>(result.columns), 0.0);
  result.scores.assign(result.weights.size(), -HUGE_VAL);
  std::vector<double> query(static_cast<std::size_t>(depth)), key = query;
  std::vector<double> value(static_cast<std::size_t>(value_depth));
  for (const sequence& s : sequences) {
    for (index_t h = 0; h < q.heads(); ++h) {
      for (index_t i = 0; i < s.queries.count; ++i) {
        const index_t flat = (s.batch * q.heads() + h) * q.length() + s.queries.begin + i;
        q.read_row(s.batch, h, s.queries.begin + i, query.data());
        row r;
        r.batch = s.batch, r.head = h;
        std::vector<std::size_t> source_of;
        index_t first_column = 0;
        for (std::size_t n = 0; n < sources.size(); ++n) {
          const key_source& source = sources[n];
          for (index_t j = 0; j < s.keys[n].count; ++j) {
            const position p{s.number, h, i, j, s.queries.count, s.keys[n].count};
            if (source.visible && !source.visible(p)) continue;
            source.k.read_row(s.batch, h / (q.heads() / source.k.heads()), s.keys[n].begin + j,
                              key.data());
            double score = scale * std::inner_product(query.begin(), query.end(), key.begin(), 0.0);
            for (const score_map& f : source.scores) score = f(score, p);
            if (is_minus_infinity(score)) continue;
            r.values.push_back(score);
            r.at.push_back(p);
            r.column.push_back(first_column + s.keys[n].begin + j);
            source_of.push_back(n);
          }
          first_column += source.k.length();
        }
        const auto at = [&](std::vector<double>& matrix, std::size_t j) -> double& {
          return matrix[static_cast<std::size_t>(flat * result.columns + r.column[j])];
        };
        for (std::size_t j = 0; j < r.values.size(); ++j) at(result.scores, j) = r.values[j];
        if (r.values.empty()) continue;
        for (const row_map& map : maps) map(r);
        first_column = 0;
        for (std::size_t j = 0; j < r.values.size(); ++j) {
          at(result.weights, j) = r.values[j];
          const key_source& source = sources[source_of[j]];
          source.v.read_row(s.batch, h / (q.heads() / source.v.heads()),
                            s.keys[source_of[j]].begin + r.at[j].k, value.data());
          for (index_t d = 0; d < value_depth; ++d) {
            result.out[static_cast<std::size_t>(flat * value_depth + d)] +=
                r.values[j] * value[static_cast<std::size_t>(d)];
          }
        }
      }
    }
  }
  return result;
}

}  // namespace detail

// Options as in dense.hpp; its sinks, lse and weights are not looked at.
inline weighted_result weighted_attention(const operand& q, const std::vector<key_source>& sources,
                                          const std::vector<row_map>& maps,
                                          const options& how = {}) {
  return detail::attend_rows(q, sources, detail::padded_sequences(q, sources, how), maps, how);
}
inline weighted_result weighted_attention(const operand& q, const operand& k, const operand& v,
                                          const std::vector<row_map>& maps,
                                          const options& how = {}) {
  return weighted_attention(q, detail::one_source(k, v, how), maps, how);
}
inline weighted_result ragged_weighted_attention(const operand& q, const operand& k,
                                                 const operand& v, const std::vector<index_t>& cu_q,
                                                 const std::vector<index_t>& cu_k,
                                                 const std::vector<row_map>& maps,
                                                 const options& how = {}) {
  return detail::attend_rows(q, detail::one_source(k, v, how),
                             detail::ragged_sequences(q, k, cu_q, cu_k, how), maps, how);
}

// ---- what observers report, of weights [rows][columns]
// -------------------------------------------

// Sums over groups of `queries` rows: [rows / queries][columns].
inline std::vector<double> column_sums(const std::vector<double>& weights, index_t queries,
                                       index_t columns) {
  const auto width = static_cast<std::size_t>(columns), height = static_cast<std::size_t>(queries);
  std::vector<double> sums(height == 0 ? 0 : weights.size() / height);
  for (std::size_t at = 0; at < weights.size(); ++at) {
    sums[at / (width * height) * width + at % width] += weights[at];
  }
  return sums;
}
// −Σ p ln p of every row
inline std::vector<double> row_entropy(const std::vector<double>& weights, index_t columns) {
  const auto width = static_cast<std::size_t>(columns);
  std::vector<double> entropy(width == 0 ? 0 : weights.size() / width);
  for (std::size_t at = 0; at < weights.size(); ++at) {
    if (weights[at] > 0) entropy[at / width] -= weights[at] * std::log(weights[at]);
  }
  return entropy;
}
// Largest weight of blocks of a matrix of `queries` rows: [rows /
// queries][⌈queries/bq⌉][⌈columns/bk⌉]
inline std::vector<double> block_maxima(const std::vector<double>& weights, index_t queries,
                                        index_t columns, index_t query_block, index_t key_block) {
  const index_t down = (queries + query_block - 1) / query_block;
  const index_t across = (columns + key_block - 1) / key_block;
  const index_t rows = static_cast<index_t>(weights.size()) / columns;
  std::vector<double> maxima(static_cast<std::size_t>(rows / queries * down * across));
  for (index_t row = 0; row < rows; ++row) {
    for (index_t column = 0; column < columns; ++column) {
      const index_t block =
          (row / queries * down + row % queries / query_block) * across + column / key_block;
      double& most = maxima[static_cast<std::size_t>(block)];
      most = std::max(most, weights[static_cast<std::size_t>(row * columns + column)]);
    }
  }
  return maxima;
}

}  // namespace reference
HEED_NAMESPACE_END
