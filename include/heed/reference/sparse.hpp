// Sparse attention from the formulas, in double precision: which blocks selectors keep, and LSH
// attention. Oracles for include/heed/sparse; attention over what is kept is reference::attention
// with a predicate.
//
// Nothing here is fast, and nothing is shared with the kernels but the views.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <vector>

#include "dense.hpp"

HEED_NAMESPACE_BEGIN
namespace reference {

// All rows of an operand.
class all_rows {
 public:
  explicit all_rows(const operand& x)
      : heads_(x.heads()),
        length_(x.length()),
        depth_(x.depth()),
        values_(static_cast<std::size_t>(x.batches() * heads_ * length_ * depth_)) {
    for (index_t b = 0; b < x.batches(); ++b) {
      for (index_t h = 0; h < heads_; ++h) {
        for (index_t i = 0; i < length_; ++i) {
          x.read_row(b, h, i, values_.data() + ((b * heads_ + h) * length_ + i) * depth_);
        }
      }
    }
  }
  const double* operator()(index_t b, index_t h, index_t i) const {
    return values_.data() + ((b * heads_ + h) * length_ + i) * depth_;
  }
  // Mean of rows [begin, end).
  std::vector<double> mean(index_t b, index_t h, index_t begin, index_t end) const {
    std::vector<double> sum(static_cast<std::size_t>(depth_));
    for (index_t i = begin; i < end; ++i) {
      for (index_t d = 0; d < depth_; ++d) sum[static_cast<std::size_t>(d)] += (*this)(b, h, i)[d];
    }
    for (double& x : sum) x /= static_cast<double>(end - begin);
    return sum;
  }

 private:
  index_t heads_, length_, depth_;
  std::vector<double> values_;
};

inline double dot_product(const double* a, const double* b, index_t n) {
  double sum = 0;
  for (index_t d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

// The `count` highest of the candidates, the lower number first among equals; +∞ comes first.
inline std::vector<bool> highest(const std::vector<double>& scores,
                                 const std::vector<bool>& candidates, index_t count) {
  std::vector<bool> kept(scores.size());
  for (index_t n = 0; n < count; ++n) {
    std::size_t best = scores.size();
    for (std::size_t j = 0; j < scores.size(); ++j) {
      if (!candidates[j] || kept[j]) continue;
      if (best == scores.size() || scores[j] > scores[best]) best = j;
    }
    if (best == scores.size()) break;
    kept[best] = true;
  }
  return kept;
}

// The fewest candidates, highest first, whose softmax weights reach `mass`; without `crossing` the
// one that goes beyond it is left out, unless it is the only one.
inline std::vector<bool> nucleus(const std::vector<double>& scores,
                                 const std::vector<bool>& candidates, double mass, bool crossing) {
  double total = 0, top = -HUGE_VAL;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    if (candidates[j]) top = std::max(top, scores[j]);
  }
  for (std::size_t j = 0; j < scores.size(); ++j) {
    if (candidates[j]) total += std::exp(scores[j] - top);
  }
  for (index_t count = 1;; ++count) {
    const std::vector<bool> kept = highest(scores, candidates, count);
    double sum = 0;
    index_t number = 0;
    for (std::size_t j = 0; j < scores.size(); ++j) {
      if (kept[j]) sum += std::exp(scores[j] - top), ++number;
    }
    if (number < count || sum >= mass * total * (1 - 1e-12)) {
      const bool over = number == count && sum > mass * total * (1 + 1e-12);
      return crossing || count == 1 || !over ? kept : highest(scores, candidates, count - 1);
    }
  }
}

// Whether query i of a head reads a page of keys: quest(b, h, i, page).
using block_predicate = std::function<bool(index_t, index_t, index_t, index_t)>;

// Quest: the pages with the highest bounds of q·k among those that begin no later than the query
// (which stands at the end of the keys); its own page always.
inline block_predicate quest(const operand& q_, const operand& k_, index_t page, index_t pages) {
  const all_rows q(q_), k(k_);
  const index_t keys = k_.length(), count = (keys + page - 1) / page;
  const index_t heads = q_.heads(), queries = q_.length(), group = heads / k_.heads();
  std::vector<std::vector<bool>> kept;
  for (index_t row = 0; row < q_.batches() * heads * queries; ++row) {
    const index_t b = row / queries / heads, h = row / queries % heads, i = row % queries;
    const index_t place = i + keys - queries;
    std::vector<double> scores(static_cast<std::size_t>(count));
    std::vector<bool> past(scores.size());
    for (index_t n = 0; n < count; ++n) {
      double bound = 0;
      for (index_t d = 0; d < q_.depth(); ++d) {
        double best = -HUGE_VAL;
        for (index_t j = n * page; j < std::min(keys, (n + 1) * page); ++j) {
          best = std::max(best, q(b, h, i)[d] * k(b, h / group, j)[d]);
        }
        bound += best;
      }
      const auto at = static_cast<std::size_t>(n);
      past[at] = n * page <= place;
      scores[at] = place >= 0 && n == place / page ? HUGE_VAL : bound;
    }
    kept.push_back(highest(scores, past, pages));
  }
  return [=](index_t b, index_t h, index_t i, index_t n) {
    return bool{
        kept[static_cast<std::size_t>((b * heads + h) * queries + i)][static_cast<std::size_t>(n)]};
  };
}

// SpargeAttn's block map: sparge(b, h, query block, key block). `keep` selects among the candidates
// of a row of scores.
using row_selector =
    std::function<std::vector<bool>(const std::vector<double>&, const std::vector<bool>&)>;
inline block_predicate sparge(const operand& q_, const operand& k_, index_t block_q,
                              index_t block_k, double theta, bool causal,
                              const row_selector& keep) {
  const all_rows q(q_), k(k_);
  const index_t queries = q_.length(), keys = k_.length(), heads = q_.heads(), depth = q_.depth();
  const index_t rows = (queries + block_q - 1) / block_q, columns = (keys + block_k - 1) / block_k;
  const index_t group = heads / k_.heads();
  // The mean over all pairs of rows, written out.
  const auto similar = [&](const all_rows& x, index_t b, index_t h, index_t begin, index_t end) {
    double sum = 0;
    for (index_t i = begin; i < end; ++i) {
      for (index_t j = begin; j < end; ++j) {
        const double* u = x(b, h, i);
        const double* w = x(b, h, j);
        sum += dot_product(u, w, depth) /
               std::sqrt(dot_product(u, u, depth) * dot_product(w, w, depth));
      }
    }
    return sum / static_cast<double>((end - begin) * (end - begin)) > theta;
  };
  std::vector<std::vector<bool>> kept;
  for (index_t row = 0; row < q_.batches() * heads * rows; ++row) {
    const index_t b = row / rows / heads, h = row / rows % heads, i = row % rows;
    const index_t begin = i * block_q, end = std::min(queries, begin + block_q);
    const std::vector<double> mean_q = q.mean(b, h, begin, end);
    const bool similar_q = similar(q, b, h, begin, end);
    std::vector<double> scores(static_cast<std::size_t>(columns));
    std::vector<bool> candidates(scores.size()), visible(scores.size()), forced(scores.size());
    for (index_t j = 0; j < columns; ++j) {
      const auto at = static_cast<std::size_t>(j);
      const index_t first = j * block_k, last = std::min(keys, first + block_k);
      const std::vector<double> mean_k = k.mean(b, h / group, first, last);
      scores[at] =
          dot_product(mean_q.data(), mean_k.data(), depth) / std::sqrt(static_cast<double>(depth));
      visible[at] = !causal || first <= end - 1 + keys - queries;
      const bool similar_k = similar(k, b, h / group, first, last);
      candidates[at] = visible[at] && similar_k;
      forced[at] = !similar_k || !similar_q;
    }
    std::vector<bool> seen = keep(scores, candidates);
    for (std::size_t j = 0; j < seen.size(); ++j) seen[j] = visible[j] && (seen[j] || forced[j]);
    kept.push_back(seen);
  }
  return [=](index_t b, index_t h, index_t i, index_t j) {
    return bool{
        kept[static_cast<std::size_t>((b * heads + h) * rows + i)][static_cast<std::size_t>(j)]};
  };
}

struct lsh_options {
  index_t chunk = 0;
  bool causal = false, across_buckets = true, duplicates = true;
  double self_score = -5e4;
  double scale = 1;
};

// LSH attention, token by token: x [B, H, L, D], v [B, H, L, Dv], bucket(b, h, round, token).
inline void lsh_attention(const operand& x_, const operand& v_, tensor_view<double, 4> out,
                          index_t rounds,
                          const std::function<index_t(index_t, index_t, index_t, index_t)>& bucket,
                          const lsh_options& how) {
  const all_rows x(x_), v(v_);
  const index_t length = x_.length(), depth = x_.depth(), chunks = rounds * length / how.chunk;
  for (index_t b = 0; b < x_.batches(); ++b) {
    for (index_t h = 0; h < x_.heads(); ++h) {
      // (round, token) in sorted order, and the chunk of each.
      std::vector<std::pair<index_t, index_t>> order;
      for (index_t r = 0; r < rounds; ++r) {
        for (index_t t = 0; t < length; ++t) order.push_back({r, t});
      }
      std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& c) {
        return a.first != c.first
                   ? a.first < c.first
                   : bucket(b, h, a.first, a.second) < bucket(b, h, c.first, c.second);
      });
      std::vector<std::vector<index_t>> chunk_of(
          static_cast<std::size_t>(rounds), std::vector<index_t>(static_cast<std::size_t>(length)));
      for (std::size_t i = 0; i < order.size(); ++i) {
        chunk_of[static_cast<std::size_t>(order[i].first)]
                [static_cast<std::size_t>(order[i].second)] = static_cast<index_t>(i) / how.chunk;
      }
      for (index_t q = 0; q < length; ++q) {
        std::vector<double> sums(static_cast<std::size_t>(v_.depth()));
        double total = 0, top = -HUGE_VAL;
        // Twice: the highest score of all rounds first. One softmax over all rounds' entries is
        // the merge of the rounds.
        for (int pass = 0; pass < 2; ++pass) {
          for (index_t r = 0; r < rounds; ++r) {
            const index_t mine = chunk_of[static_cast<std::size_t>(r)][static_cast<std::size_t>(q)];
            for (index_t back = 0; back < 2; ++back) {
              const index_t from = (mine - back + chunks) % chunks;
              for (index_t i = from * how.chunk; i < (from + 1) * how.chunk; ++i) {
                const auto [round, k] = order[static_cast<std::size_t>(i)];
                if (how.causal && k > q) continue;
                const bool same_bucket = round == r && bucket(b, h, r, q) == bucket(b, h, r, k);
                if (!how.across_buckets && !same_bucket) continue;
                const double* key = x(b, h, k);
                double score = how.scale * dot_product(x(b, h, q), key, depth) /
                               std::sqrt(dot_product(key, key, depth));
                if (k == q) score = how.self_score;
                if (!how.duplicates) {
                  index_t count = 0;
                  for (std::size_t s = 0; s < static_cast<std::size_t>(rounds); ++s) {
                    const index_t at_q = chunk_of[s][static_cast<std::size_t>(q)];
                    const index_t at_k = chunk_of[s][static_cast<std::size_t>(k)];
                    const bool meet =
                        how.across_buckets || bucket(b, h, static_cast<index_t>(s), q) ==
                                                  bucket(b, h, static_cast<index_t>(s), k);
                    if (meet && at_q == at_k) ++count;
                    if (meet && at_q == (at_k + 1) % chunks) ++count;
                  }
                  score -= std::log(static_cast<double>(count) + 1e-9);
                }
                if (pass == 0) {
                  top = std::max(top, score);
                } else {
                  const double weight = std::exp(score - top);
                  total += weight;
                  for (index_t d = 0; d < v_.depth(); ++d) {
                    sums[static_cast<std::size_t>(d)] += weight * v(b, h, k)[d];
                  }
                }
              }
            }
          }
        }
        for (index_t d = 0; d < v_.depth(); ++d) {
          out(b, h, q, d) = sums[static_cast<std::size_t>(d)] / total;
        }
      }
    }
  }
}

}  // namespace reference
HEED_NAMESPACE_END
