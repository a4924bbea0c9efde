// Low-rank attention from the formulas, in double precision: the oracle of include/heed/lowrank.
// Matrices with a row for every query and a column for every key are stored whole, products are
// plain loops, and nothing is shared with the kernels but the views.
//
//   q [B, Hq, Lq, D] · k [B, Hkv, Lk, D] · v [B, Hkv, Lk, Dv] → out [B, Hq, Lq, Dv], as a vector
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dense.hpp"

HEED_NAMESPACE_BEGIN
namespace reference {

struct matrix {
  index_t rows = 0, columns = 0;
  std::vector<double> values;

  matrix() = default;
  matrix(index_t r, index_t c)
      : rows(r), columns(c), values(static_cast<std::size_t>(r * c), 0.0) {}
  double& operator()(index_t i, index_t j) {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
  double operator()(index_t i, index_t j) const {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
};

inline matrix operator*(const matrix& a, const matrix& b) {
  matrix c(a.rows, b.columns);
  for (index_t i = 0; i < a.rows; ++i) {
    for (index_t j = 0; j < b.columns; ++j) {
      for (index_t p = 0; p < a.columns; ++p) c(i, j) += a(i, p) * b(p, j);
    }
  }
  return c;
}
inline matrix transposed(const matrix& a) {
  matrix t(a.columns, a.rows);
  for (index_t i = 0; i < a.rows; ++i) {
    for (index_t j = 0; j < a.columns; ++j) t(j, i) = a(i, j);
  }
  return t;
}
// factor·I − a
inline matrix identity_minus(double factor, const matrix& a) {
  matrix c(a.rows, a.columns);
  for (index_t i = 0; i < a.rows; ++i) {
    for (index_t j = 0; j < a.columns; ++j) c(i, j) = (i == j ? factor : 0.0) - a(i, j);
  }
  return c;
}

// One head of an operand; rows from `length` on are zeros and not read.
inline matrix head_of(const operand& x, index_t batch, index_t head, index_t length) {
  matrix m(x.length(), x.depth());
  for (index_t i = 0; i < length; ++i) x.read_row(batch, head, i, m.values.data() + i * x.depth());
  return m;
}

// softmax(scale·q kᵀ + bias) by rows; keys from `visible` on have weight 0.
inline matrix softmax_weights(const matrix& q, const matrix& k, double scale, index_t visible,
                              const matrix* bias = nullptr) {
  matrix w = q * transposed(k);
  for (index_t i = 0; i < w.rows; ++i) {
    double highest = -HUGE_VAL, total = 0;
    for (index_t j = 0; j < visible; ++j) {
      w(i, j) = w(i, j) * scale + (bias != nullptr ? (*bias)(i, j) : 0.0);
      highest = std::max(highest, w(i, j));
    }
    for (index_t j = 0; j < visible; ++j) total += w(i, j) = std::exp(w(i, j) - highest);
    for (index_t j = 0; j < w.columns; ++j) w(i, j) = j < visible ? w(i, j) / total : 0.0;
  }
  return w;
}

// Means over the cells of a grid: cell i of m along an axis of n covers ⌊i n/m⌋ … ⌈(i+1) n/m⌉ − 1.
inline matrix pooled(const matrix& x, index_t rows, index_t columns, index_t cell_rows,
                     index_t cell_columns) {
  matrix means(cell_rows * cell_columns, x.columns);
  const auto begin = [](index_t i, index_t n, index_t m) { return i * n / m; };
  const auto end = [](index_t i, index_t n, index_t m) { return ((i + 1) * n + m - 1) / m; };
  for (index_t i = 0; i < cell_rows; ++i) {
    for (index_t j = 0; j < cell_columns; ++j) {
      for (index_t d = 0; d < x.columns; ++d) {
        double sum = 0, count = 0;
        for (index_t r = begin(i, rows, cell_rows); r < end(i, rows, cell_rows); ++r) {
          for (index_t c = begin(j, columns, cell_columns); c < end(j, columns, cell_columns);
               ++c) {
            sum += x(r * columns + c, d);
            count += 1;
          }
        }
        means(i * cell_columns + j, d) = sum / count;
      }
    }
  }
  return means;
}

inline double largest_column_sum(const matrix& a) {
  double most = 0;
  for (index_t j = 0; j < a.columns; ++j) {
    double sum = 0;
    for (index_t i = 0; i < a.rows; ++i) sum += std::abs(a(i, j));
    most = std::max(most, sum);
  }
  return most;
}

// The cubic iteration; all start with the same factor where `shared` is set.
inline std::vector<matrix> pseudo_inverses(const std::vector<matrix>& all, int iterations,
                                           bool shared) {
  double column = 0, row = 0;
  for (const matrix& a : all) {
    column = std::max(column, largest_column_sum(a));
    row = std::max(row, largest_column_sum(transposed(a)));
  }
  std::vector<matrix> result;
  for (const matrix& a : all) {
    const double size =
        shared ? column * row : largest_column_sum(a) * largest_column_sum(transposed(a));
    matrix z = transposed(a);
    for (double& x : z.values) x /= size;
    for (int step = 0; step < iterations; ++step) {
      const matrix az = a * z;
      z = z * identity_minus(13, az * identity_minus(15, az * identity_minus(7, az)));
      for (double& x : z.values) x /= 4;
    }
    result.push_back(z);
  }
  return result;
}

// Odd filters on a grid of tokens; empty weights: none.
struct depthwise_filter {
  std::vector<double> weights = {};  // [H][D][R][C]
  std::vector<double> bias = {};     // [H][D], or empty
  index_t filter_rows = 0, filter_columns = 0;
  index_t grid_rows = 0, grid_columns = 0;
};

struct low_rank_options {
  std::optional<double> scale = {};
  std::vector<index_t> query_lengths = {}, key_lengths = {};
  depthwise_filter filter = {};
  int iterations = 6;         // of the pseudo-inverse
  bool shared_start = false;  // its start from the maxima over all batch entries and heads
};

namespace detail {

inline index_t length_or(const std::vector<index_t>& lengths, index_t batch, index_t otherwise) {
  return lengths.empty() ? otherwise : lengths[static_cast<std::size_t>(batch)];
}
inline double scale_or_default(const low_rank_options& how, index_t depth) {
  return how.scale.value_or(depth > 0 ? 1 / std::sqrt(static_cast<double>(depth)) : 1.0);
}

// What the convolution adds to one token's channel.
inline double filtered(const depthwise_filter& f, const matrix& v, index_t head, index_t token,
                       index_t d) {
  if (f.weights.empty()) return 0;
  double sum = f.bias.empty() ? 0 : f.bias[static_cast<std::size_t>(head * v.columns + d)];
  for (index_t r = 0; r < f.filter_rows; ++r) {
    for (index_t c = 0; c < f.filter_columns; ++c) {
      const index_t row = token / f.grid_columns + r - f.filter_rows / 2;
      const index_t column = token % f.grid_columns + c - f.filter_columns / 2;
      if (row < 0 || row >= f.grid_rows || column < 0 || column >= f.grid_columns) continue;
      const index_t tap = ((head * v.columns + d) * f.filter_rows + r) * f.filter_columns + c;
      sum += f.weights[static_cast<std::size_t>(tap)] * v(row * f.grid_columns + column, d);
    }
  }
  return sum;
}

// out[b, h] = o + convolution, rows of sequences only.
inline void put(std::vector<double>& out, const matrix& o, const matrix& v,
                const low_rank_options& how, index_t batch, index_t heads, index_t head) {
  const index_t rows = length_or(how.query_lengths, batch, o.rows);
  for (index_t i = 0; i < rows; ++i) {
    for (index_t d = 0; d < o.columns; ++d) {
      const index_t at = ((batch * heads + head) * o.rows + i) * o.columns + d;
      out[static_cast<std::size_t>(at)] = o(i, d) + filtered(how.filter, v, head, i, d);
    }
  }
}

}  // namespace detail

// Nyström attention with m landmarks.
inline std::vector<double> nystrom(const operand& q, const operand& k, const operand& v, index_t m,
                                   const low_rank_options& how = {}) {
  std::vector<double> out(
      static_cast<std::size_t>(q.batches() * q.heads() * q.length() * v.depth()));
  const double scale = detail::scale_or_default(how, q.depth());
  std::vector<matrix> overlaps, firsts, lasts;
  for (index_t b = 0; b < q.batches(); ++b) {
    const index_t keys = detail::length_or(how.key_lengths, b, k.length());
    for (index_t h = 0; h < q.heads(); ++h) {
      const index_t key_head = h / (q.heads() / k.heads());
      const matrix all_q = head_of(q, b, h, detail::length_or(how.query_lengths, b, q.length()));
      const matrix all_k = head_of(k, b, key_head, keys), all_v = head_of(v, b, key_head, keys);
      if (m >= k.length()) {  // exact
        detail::put(out, softmax_weights(all_q, all_k, scale, keys) * all_v, all_v, how, b,
                    q.heads(), h);
        continue;
      }
      const matrix small_q = pooled(all_q, q.length(), 1, m, 1);
      const matrix small_k = pooled(all_k, k.length(), 1, m, 1);
      firsts.push_back(softmax_weights(all_q, small_k, scale, m));
      overlaps.push_back(softmax_weights(small_q, small_k, scale, m));
      lasts.push_back(softmax_weights(small_q, all_k, scale, keys) * all_v);
    }
  }
  if (overlaps.empty()) return out;
  const std::vector<matrix> inverses = pseudo_inverses(overlaps, how.iterations, how.shared_start);
  for (index_t b = 0; b < q.batches(); ++b) {
    const index_t keys = detail::length_or(how.key_lengths, b, k.length());
    for (index_t h = 0; h < q.heads(); ++h) {
      const auto at = static_cast<std::size_t>(b * q.heads() + h);
      detail::put(out, firsts[at] * (inverses[at] * lasts[at]),
                  head_of(v, b, h / (q.heads() / k.heads()), keys), how, b, q.heads(), h);
    }
  }
  return out;
}

// Linformer: e and f [H|1, N, r] as operands [1, H|1, N, r].
inline std::vector<double> linformer(const operand& q, const operand& k, const operand& v,
                                     const operand& e, const operand& f,
                                     const low_rank_options& how = {}) {
  std::vector<double> out(
      static_cast<std::size_t>(q.batches() * q.heads() * q.length() * v.depth()));
  const auto projected = [](const matrix& x, const operand& map, index_t head) {
    matrix rows = head_of(map, 0, map.heads() == 1 ? 0 : head, map.length());
    rows.values.resize(static_cast<std::size_t>(x.rows * rows.columns));
    rows.rows = x.rows;
    return transposed(rows) * x;
  };
  for (index_t b = 0; b < q.batches(); ++b) {
    const index_t keys = detail::length_or(how.key_lengths, b, k.length());
    for (index_t h = 0; h < q.heads(); ++h) {
      const index_t key_head = h / (q.heads() / k.heads());
      const matrix small_k = projected(head_of(k, b, key_head, keys), e, key_head);
      const matrix small_v = projected(head_of(v, b, key_head, keys), f, key_head);
      const matrix all_q = head_of(q, b, h, detail::length_or(how.query_lengths, b, q.length()));
      const double scale = detail::scale_or_default(how, q.depth());
      detail::put(out, softmax_weights(all_q, small_k, scale, small_k.rows) * small_v, small_v, how,
                  b, q.heads(), h);
    }
  }
  return out;
}

// Agent attention with agents of any origin; the biases by (batch, head, row, column), or empty.
inline std::vector<double> agent(
    const operand& q, const operand& k, const operand& v, const operand& agents,
    const std::function<double(index_t, index_t, index_t, index_t)>& gather_bias = {},
    const std::function<double(index_t, index_t, index_t, index_t)>& spread_bias = {},
    const low_rank_options& how = {}) {
  std::vector<double> out(
      static_cast<std::size_t>(q.batches() * q.heads() * q.length() * v.depth()));
  const double scale = detail::scale_or_default(how, q.depth());
  for (index_t b = 0; b < q.batches(); ++b) {
    const index_t keys = detail::length_or(how.key_lengths, b, k.length());
    for (index_t h = 0; h < q.heads(); ++h) {
      const index_t key_head = h / (q.heads() / k.heads());
      const matrix a = head_of(agents, b, h, agents.length());
      const matrix all_q = head_of(q, b, h, detail::length_or(how.query_lengths, b, q.length()));
      const matrix all_k = head_of(k, b, key_head, keys), all_v = head_of(v, b, key_head, keys);
      const auto table = [&](const auto& bias, index_t rows, index_t columns) {
        matrix t(rows, columns);
        for (index_t i = 0; i < rows && bias; ++i) {
          for (index_t j = 0; j < columns; ++j) t(i, j) = bias(b, h, i, j);
        }
        return t;
      };
      const matrix first = table(gather_bias, a.rows, all_k.rows);
      const matrix second = table(spread_bias, all_q.rows, a.rows);
      const matrix gathered = softmax_weights(a, all_k, scale, keys, &first) * all_v;
      detail::put(out, softmax_weights(all_q, a, scale, a.rows, &second) * gathered, all_v, how, b,
                  q.heads(), h);
    }
  }
  return out;
}

}  // namespace reference
HEED_NAMESPACE_END
