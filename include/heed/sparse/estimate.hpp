// Estimators: cheap scores of blocks of keys, [B, Hq, query blocks, key blocks], for selectors.
//
//   pooled_scores    scale·mean(q block)·mean(k block)                  MoBA, SpargeAttn, BiFormer
//   bound_scores     Σ_d max(q_d·min_d, q_d·max_d), min and max over the keys of a block: no key of
//                    the block scores higher                            Quest (Tang et al., 2024)
//   maximum_scores   max_j q·k_j over the keys j of the block that the query may see by causality
//                                                                       block indexers, and exact
//   sampled_mass     share of the attention of a few sampled queries that every key receives
//                    [B, Hq, 1, Lk]                                     SampleAttention (2024)
//
// q [B, Hq, Lq, D] and k [B, Hkv, Lk, D] of any element type; sums are kept in float. They are
// plain functions into tables of float: a selector of one's own takes any table, an estimator of
// one's own fills one. Work is cut by batch and head for the executor.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "../core/check_data.hpp"
#include "../core/executor.hpp"
#include "../core/pack.hpp"
#include "../core/view_of.hpp"
#include "block_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// Numbers [B, H, rows, columns] that own their memory.
struct table {
  tensor_view<float, 4>::shape extents;
  std::vector<float> values;

  explicit table(const tensor_view<float, 4>::shape& of, float value = 0)
      : extents(of), values(static_cast<std::size_t>(of[0] * of[1] * of[2] * of[3]), value) {}
  tensor_view<float, 4> view() { return {values.data(), extents}; }
  tensor_view<const float, 4> view() const { return {values.data(), extents}; }
};

// Σ_d a[d]·b[d], in an order that depends on n alone.
HEED_INLINE float dot(const float* a, const float* b, index_t n) {
  using lanes = pack<float, 16>;
  lanes sum(0.0f);
  index_t d = 0;
  for (; d + 16 <= n; d += 16) sum += load_pack<lanes>(a + d) * load_pack<lanes>(b + d);
  float result = sum_lanes(sum);
  for (; d < n; ++d) result += a[d] * b[d];
  return result;
}

namespace estimation {

inline index_t blocks(index_t length, index_t block) {
  return length / block + (length % block != 0);
}

// Any tensor as rows [B, H, L, D], which are read here before a call of attention could look at
// them.
template <viewable X>
auto rows_of(const char* name, const X& x) {
  const auto rows = read_view_of(x).template lifted<4>();
  heed::detail::check_data(name, rows);
  return rows;
}
template <class T>
HEED_INLINE void read_row(const T* from, index_t depth, float* to) {
  for (index_t d = 0; d < depth; ++d) to[d] = widen<float>(from[d]);
}

template <class Q, class K>
void check_heads_and_depth(const Q& q, const K& k) {
  if (k.extent(0) != q.extent(0)) {
    raise(message("k: batch ") << k.extent(0) << " differs from q's " << q.extent(0));
  }
  if (k.extent(1) == 0 ? q.extent(1) != 0 : q.extent(1) % k.extent(1) != 0) {
    raise(message("k: head count ")
          << k.extent(1) << " does not divide query head count " << q.extent(1));
  }
  if (k.extent(3) != q.extent(3)) {
    raise(message("k: depth ") << k.extent(3) << " differs from q's " << q.extent(3));
  }
}
inline void check_block(const char* name, index_t size) {
  if (size < 1) raise(message(name) << ": " << size << " is not positive");
}

// scores[b, h, i, j] of every query row i of `queries` and row j of `keys`.
template <class E, class Row, class Score>
void for_each_score(E&& runner, tensor_view<float, 4> scores, index_t depth, const Row& read_query,
                    const Score& score) {
  const index_t heads = scores.extent(1);
  runner.run(scores.extent(0) * heads, [&](index_t item, int) {
    std::vector<float> row(static_cast<std::size_t>(depth));
    const index_t b = item / heads, h = item % heads;
    for (index_t i = 0; i < scores.extent(2); ++i) {
      read_query(b, h, i, row.data());
      for (index_t j = 0; j < scores.extent(3); ++j) scores(b, h, i, j) = score(b, h, i, j, row);
    }
  });
}

// Calls visit(b, h, i, row) with row[j] = factor·q_i·k_j, j < end(i), for one query after the
// other: memory beside the keys as float is one row for every batch entry and head.
template <class E, class Q, class K, class End, class Visit>
void for_each_row_of_products(E&& runner, const Q& q, const K& k, double factor, const End& end,
                              const Visit& visit) {
  const index_t heads = q.extent(1), depth = q.extent(3);
  const index_t group = k.extent(1) == 0 ? 1 : heads / k.extent(1);
  const auto by = static_cast<float>(factor);
  table keys({k.extent(0), k.extent(1), k.extent(2), depth});
  const auto wide = keys.view();
  for (index_t b = 0; b < k.extent(0); ++b) {
    for (index_t h = 0; h < k.extent(1); ++h) {
      for (index_t j = 0; j < k.extent(2); ++j) {
        read_row(k.row(b, h, j), depth, wide.row(b, h, j));
      }
    }
  }
  runner.run(q.extent(0) * heads, [&](index_t item, int) {
    const index_t b = item / heads, h = item % heads;
    std::vector<float> query(static_cast<std::size_t>(depth));
    std::vector<float> row(static_cast<std::size_t>(k.extent(2)));
    for (index_t i = 0; i < q.extent(2); ++i) {
      read_row(q.row(b, h, i), depth, query.data());
      for (index_t j = 0; j < end(i); ++j) {
        row[static_cast<std::size_t>(j)] = by * dot(query.data(), wide.row(b, h / group, j), depth);
      }
      visit(b, h, i, row.data());
    }
  });
}

}  // namespace estimation

// Mean of every block of rows: [B, H, L, D] → [B, H, ⌈L / block⌉, D].
template <viewable X, executor E = const serial>
table pooled_means(const X& x, index_t block, E&& runner = {}) {
  estimation::check_block("block", block);
  const auto rows = estimation::rows_of("x", x);
  const index_t length = rows.extent(2), depth = rows.extent(3), heads = rows.extent(1);
  table means({rows.extent(0), heads, estimation::blocks(length, block), depth});
  const auto out = means.view();
  runner.run(rows.extent(0) * heads, [&](index_t item, int) {
    const index_t b = item / heads, h = item % heads;
    for (index_t i = 0; i < length; ++i) {
      float* mean = out.row(b, h, i / block);
      const auto* from = rows.row(b, h, i);
      for (index_t d = 0; d < depth; ++d) mean[d] += widen<float>(from[d]);
      if (i + 1 == length || (i + 1) % block == 0) {
        const float share = 1.0f / static_cast<float>(i % block + 1);
        for (index_t d = 0; d < depth; ++d) mean[d] *= share;
      }
    }
  });
  return means;
}

// factor·q_i·k_j for tables or tensors of queries and keys; query head h reads key head h / group.
template <viewable Q, viewable K, executor E = const serial>
table product_scores(const Q& queries, const K& keys, double factor, E&& runner = {}) {
  const auto q = estimation::rows_of("q", queries);
  const auto k = estimation::rows_of("k", keys);
  estimation::check_heads_and_depth(q, k);
  table scores({q.extent(0), q.extent(1), q.extent(2), k.extent(2)});
  const auto to = scores.view();
  estimation::for_each_row_of_products(
      runner, q, k, factor, [&](index_t) { return k.extent(2); },
      [&](index_t b, index_t h, index_t i, const float* row) {
        std::copy_n(row, k.extent(2), to.row(b, h, i));
      });
  return scores;
}

// Scores of blocks by the means of their queries and keys; scale 0 stands for 1/√D.
template <viewable Q, viewable K, executor E = const serial>
table pooled_scores(const Q& q, const K& k, index_t block_q, index_t block_k, double scale = 0,
                    E&& runner = {}) {
  const double depth = static_cast<double>(estimation::rows_of("q", q).extent(3));
  const table queries = pooled_means(q, block_q, runner), keys = pooled_means(k, block_k, runner);
  return product_scores(queries.view(), keys.view(),
                        scale != 0 ? scale : 1 / std::sqrt(depth > 0 ? depth : 1), runner);
}

// Least and greatest number of every channel in every block: two tables [B, H, ⌈L / block⌉, D].
template <viewable K, executor E = const serial>
std::pair<table, table> block_bounds(const K& keys, index_t block, E&& runner = {}) {
  estimation::check_block("block", block);
  const auto k = estimation::rows_of("k", keys);
  const index_t length = k.extent(2), depth = k.extent(3), heads = k.extent(1);
  const tensor_view<float, 4>::shape extents{k.extent(0), heads, estimation::blocks(length, block),
                                             depth};
  std::pair<table, table> bounds{table(extents), table(extents)};
  const auto low = bounds.first.view(), high = bounds.second.view();
  runner.run(k.extent(0) * heads, [&](index_t item, int) {
    const index_t b = item / heads, h = item % heads;
    for (index_t i = 0; i < length; ++i) {
      float* least = low.row(b, h, i / block);
      float* most = high.row(b, h, i / block);
      const auto* from = k.row(b, h, i);
      for (index_t d = 0; d < depth; ++d) {
        const float x = widen<float>(from[d]);
        least[d] = i % block == 0 || x < least[d] ? x : least[d];
        most[d] = i % block == 0 || x > most[d] ? x : most[d];
      }
    }
  });
  return bounds;
}

// The highest score that a key within the bounds could have, for every query: [B, Hq, Lq, blocks].
template <viewable Q, executor E = const serial>
table bound_scores(const Q& queries, const std::pair<table, table>& bounds, double factor,
                   E&& runner = {}) {
  const auto q = estimation::rows_of("q", queries);
  const auto low = bounds.first.view(), high = bounds.second.view();
  estimation::check_heads_and_depth(q, low);
  const index_t depth = q.extent(3), group = low.extent(1) == 0 ? 1 : q.extent(1) / low.extent(1);
  table scores({q.extent(0), q.extent(1), q.extent(2), low.extent(2)});
  const auto by = static_cast<float>(factor);
  estimation::for_each_score(
      runner, scores.view(), depth,
      [&](index_t b, index_t h, index_t i, float* row) {
        estimation::read_row(q.row(b, h, i), depth, row);
        for (index_t d = 0; d < depth; ++d) row[d] *= by;
      },
      [&](index_t b, index_t h, index_t, index_t j, const std::vector<float>& row) {
        const float* least = low.row(b, h / group, j);
        const float* most = high.row(b, h / group, j);
        using lanes = pack<float, 16>;
        const float* x = row.data();
        lanes sums(0.0f);
        index_t d = 0;
        for (; d + 16 <= depth; d += 16) {
          const lanes at = load_pack<lanes>(x + d);
          sums += max(at * load_pack<lanes>(least + d), at * load_pack<lanes>(most + d));
        }
        float sum = sum_lanes(sums);
        for (; d < depth; ++d) sum += x[d] < 0 ? x[d] * least[d] : x[d] * most[d];
        return sum;
      });
  return scores;
}

// The first query block that may see key block j, and whether block i's own keys are in block j,
// where the last query stands at the last key.
struct causal_blocks {
  index_t block_q, block_k, queries, keys;
  // Key position of the first and of the last query of block i.
  index_t first(index_t i) const { return i * block_q + keys - queries; }
  index_t last(index_t i) const { return min(queries, (i + 1) * block_q) - 1 + keys - queries; }
  bool future(index_t i, index_t j) const { return j * block_k > last(i); }
  bool own(index_t i, index_t j) const { return !future(i, j) && (j + 1) * block_k > first(i); }
};

// −∞ for what lies wholly in the future of a block of queries, and `own` for the blocks that hold
// the queries' own keys: +∞ forces them.
inline void make_causal(tensor_view<float, 4> scores, const causal_blocks& blocks, bool force_own) {
  for (index_t b = 0; b < scores.extent(0); ++b) {
    for (index_t h = 0; h < scores.extent(1); ++h) {
      for (index_t i = 0; i < scores.extent(2); ++i) {
        for (index_t j = 0; j < scores.extent(3); ++j) {
          if (blocks.future(i, j)) {
            scores(b, h, i, j) = minus_infinity<float>();
          } else if (force_own && blocks.own(i, j)) {
            scores(b, h, i, j) = -minus_infinity<float>();
          }
        }
      }
    }
  }
}

// max over the keys of a block of factor·q·k, for every query; with `causal`, over the keys up to
// the query's own (−∞ where there is none). Memory beside the result is linear in the lengths.
template <viewable Q, viewable K, executor E = const serial>
table maximum_scores(const Q& queries, const K& keys, index_t block_k, double factor, bool causal,
                     E&& runner = {}) {
  estimation::check_block("block_k", block_k);
  const auto q = estimation::rows_of("q", queries);
  const auto k = estimation::rows_of("k", keys);
  estimation::check_heads_and_depth(q, k);
  const index_t length = k.extent(2), aligned = length - q.extent(2);
  table scores({q.extent(0), q.extent(1), q.extent(2), estimation::blocks(length, block_k)},
               minus_infinity<float>());
  const auto to = scores.view();
  const auto end = [&](index_t i) { return causal ? min(length, i + aligned + 1) : length; };
  estimation::for_each_row_of_products(runner, q, k, factor, end,
                                       [&](index_t b, index_t h, index_t i, const float* row) {
                                         float* best = to.row(b, h, i);
                                         for (index_t j = 0; j < end(i); ++j) {
                                           float& most = best[j / block_k];
                                           if (is_minus_infinity(most) || row[j] > most)
                                             most = row[j];
                                         }
                                       });
  return scores;
}

// Softmax weights of the queries first, first + step, … over the keys that causality allows, summed
// per key and divided by the number of queries: [B, Hq, 1, Lk].
template <viewable Q, viewable K, executor E = const serial>
table sampled_mass(const Q& queries, const K& keys, index_t first, index_t step, double factor,
                   bool causal, E&& runner = {}) {
  estimation::check_block("step", step);
  const auto q = estimation::rows_of("q", queries);
  if (first < 0 || first >= q.extent(2)) {
    raise(message("first: ") << first << " must lie in [0, " << q.extent(2) << ")");
  }
  const index_t count = (q.extent(2) - first + step - 1) / step;
  using view = std::remove_const_t<decltype(q)>;
  const view sampled(q.row(0, 0, first), {q.extent(0), q.extent(1), count, q.extent(3)},
                     {q.stride(0), q.stride(1), step * q.stride(2), q.stride(3)});
  const auto k = estimation::rows_of("k", keys);
  estimation::check_heads_and_depth(q, k);
  const index_t length = k.extent(2), aligned = length - q.extent(2);
  table mass({q.extent(0), q.extent(1), 1, length});
  const auto to = mass.view();
  const auto end = [&](index_t i) {
    return causal ? min(length, first + i * step + aligned + 1) : length;
  };
  estimation::for_each_row_of_products(
      runner, sampled, k, factor, end, [&](index_t b, index_t h, index_t i, const float* row) {
        float highest = 0, total = 0;
        for (index_t j = 0; j < end(i); ++j) {
          highest = j == 0 || row[j] > highest ? row[j] : highest;
        }
        for (index_t j = 0; j < end(i); ++j) total += std::exp(row[j] - highest);
        const float share = 1 / (total * static_cast<float>(count));
        for (index_t j = 0; j < end(i); ++j) {
          to(b, h, 0, j) += std::exp(row[j] - highest) * share;
        }
      });
  return mass;
}

}  // namespace sparse
HEED_NAMESPACE_END
