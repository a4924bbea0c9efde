// Attention over evicted caches and the scores of cache policies, from their formulas, in double
// precision: the oracle that stores and policies are tested against.
//
// Everything is said in positions of the whole sequence: k and v hold every token that was ever
// seen, and `kept` tells which of them are left. Scores are [B, Hkv, Lk]; those of tokens that are
// gone mean nothing.
#pragma once

#include "dense.hpp"

HEED_NAMESPACE_BEGIN
namespace reference {

// Positions that are left, ascending, of a batch entry and KV head.
using kept_positions = std::function<const std::vector<index_t>&(index_t batch, index_t key_head)>;

// True where the token is one of the kept ones.
inline predicate visible_if_kept(const kept_positions& kept, index_t group,
                                 const predicate& visible) {
  return [=](const position& p) {
    const std::vector<index_t>& list = kept(p.batch, p.head / group);
    return std::binary_search(list.begin(), list.end(), p.k) && (!visible || visible(p));
  };
}

// Attention over what is left; options.visible and scores see positions in the whole sequence.
inline void attention_over_kept(const operand& q, const operand& k, const operand& v,
                                const tensor_view<double, 4>& out, const kept_positions& kept,
                                options how = {}) {
  how.visible = visible_if_kept(kept, q.heads() / k.heads(), how.visible);
  attention(q, k, v, out, how);
}

// One score for every token: scores[(b·Hkv + h)·Lk + j].
using token_scores = std::vector<double>;

namespace detail {

// Calls use(b, h, kept positions, scores of the head).
template <class Use>
token_scores for_each_kept_head(const operand& k, const kept_positions& kept, const Use& use) {
  token_scores scores(static_cast<std::size_t>(k.batches() * k.heads() * k.length()));
  for (index_t b = 0; b < k.batches(); ++b) {
    for (index_t h = 0; h < k.heads(); ++h) {
      use(b, h, kept(b, h), scores.data() + (b * k.heads() + h) * k.length());
    }
  }
  return scores;
}

}  // namespace detail

// Attention weights of causal queries over what is left, summed over the last `window` of them:
// [B, Hq, Lk].
inline std::vector<double> received_attention(const operand& q, const operand& k,
                                              const kept_positions& kept, index_t window) {
  std::vector<double> weights, out(static_cast<std::size_t>(q.batches() * q.heads() * q.length()) *
                                   static_cast<std::size_t>(k.depth()));
  options how;
  how.weights = &weights;
  how.visible = [](const position& p) { return p.k <= p.aligned_q(); };
  attention_over_kept(
      q, k, k, tensor_view<double, 4>(out.data(), {q.batches(), q.heads(), q.length(), k.depth()}),
      kept, how);
  const auto keys = static_cast<std::size_t>(k.length());
  const auto queries = static_cast<std::size_t>(q.length());
  const auto count = std::min(static_cast<std::size_t>(window), queries);
  std::vector<double> sums(static_cast<std::size_t>(q.batches() * q.heads()) * keys);
  for (std::size_t row = 0; row < sums.size() / keys; ++row) {
    for (std::size_t i = queries - count; i < queries; ++i) {
      for (std::size_t j = 0; j < keys; ++j) {
        sums[row * keys + j] += weights[(row * queries + i) * keys + j];
      }
    }
  }
  return sums;
}

// SnapKV: received attention of the tokens before the window, pooled over `width` neighbours among
// those that are left (mean, or largest), then averaged over the group's query heads. H2O after a
// prompt is window = Lq, width = 1; positions from Lk − protect on have score infinity.
inline token_scores snapkv_scores(const operand& q, const operand& k, const kept_positions& kept,
                                  index_t window, index_t protect, index_t width, bool largest) {
  const std::vector<double> sums = received_attention(q, k, kept, window);
  const index_t group = q.heads() / k.heads(), keys = k.length();
  return detail::for_each_kept_head(
      k, kept, [&](index_t b, index_t h, const std::vector<index_t>& list, double* scores) {
        std::vector<index_t> before;
        for (const index_t p : list) {
          if (p < keys - protect) before.push_back(p);
        }
        const auto count = static_cast<index_t>(before.size());
        for (index_t i = 0; i < count; ++i) {
          double& score = scores[before[static_cast<std::size_t>(i)]];
          for (index_t g = 0; g < group; ++g) {
            double sum = 0, most = 0;
            for (index_t j = i - width / 2; j <= i + width / 2; ++j) {
              if (j < 0 || j >= count) continue;
              const double weight = sums[static_cast<std::size_t>(
                  (b * q.heads() + h * group + g) * keys + before[static_cast<std::size_t>(j)])];
              sum += weight;
              most = std::max(most, weight);
            }
            score +=
                (largest ? most : sum / static_cast<double>(width)) / static_cast<double>(group);
          }
        }
        for (const index_t p : list) {
          if (p >= keys - protect) scores[p] = HUGE_VAL;
        }
      });
}

// TOVA: the last query's weights, averaged over all heads.
inline token_scores tova_scores(const operand& q, const operand& k, const kept_positions& kept) {
  const std::vector<double> sums = received_attention(q, k, kept, 1);
  return detail::for_each_kept_head(
      k, kept, [&](index_t b, index_t, const std::vector<index_t>& list, double* scores) {
        for (const index_t p : list) {
          for (index_t head = 0; head < q.heads(); ++head) {
            scores[p] += sums[static_cast<std::size_t>((b * q.heads() + head) * k.length() + p)] /
                         static_cast<double>(q.heads());
          }
        }
      });
}

// −‖k‖.
inline token_scores l2_norm_scores(const operand& k, const kept_positions& kept) {
  return detail::for_each_kept_head(
      k, kept, [&](index_t b, index_t h, const std::vector<index_t>& list, double* scores) {
        for (const index_t p : list) {
          double sum = 0;
          for (const double x : k.row(b, h, p)) sum += x * x;
          scores[p] = -std::sqrt(sum);
        }
      });
}

// −cos(k, mean of k / ‖k‖).
inline token_scores keydiff_scores(const operand& k, const kept_positions& kept) {
  return detail::for_each_kept_head(
      k, kept, [&](index_t b, index_t h, const std::vector<index_t>& list, double* scores) {
        const auto unit = [&](std::vector<double> row) {
          double sum = 0;
          for (const double x : row) sum += x * x;
          for (double& x : row) x /= std::sqrt(sum);
          return row;
        };
        std::vector<double> mean(static_cast<std::size_t>(k.depth()));
        for (const index_t p : list) {
          const auto row = unit(k.row(b, h, p));
          for (std::size_t d = 0; d < row.size(); ++d) mean[d] += row[d];
        }
        mean = unit(mean);
        for (const index_t p : list) {
          const auto row = unit(k.row(b, h, p));
          for (std::size_t d = 0; d < row.size(); ++d) scores[p] -= row[d] * mean[d];
        }
      });
}

// LagKV: rank of a token's spread within its partition, in units of the next partition's range.
inline token_scores lagkv_scores(const operand& k, const operand& v, const kept_positions& kept,
                                 index_t sinks, index_t lag) {
  return detail::for_each_kept_head(
      k, kept, [&](index_t b, index_t h, const std::vector<index_t>& list, double* scores) {
        const auto count = static_cast<index_t>(list.size());
        for (index_t i = 0; i < count; ++i) {
          const bool too_few = count < sinks + 2 * lag && i >= sinks;
          scores[list[static_cast<std::size_t>(i)]] =
              too_few ? static_cast<double>(i - sinks) / static_cast<double>(count - sinks) : 1;
        }
        for (index_t begin = sinks; begin + 2 * lag <= count; begin += lag) {
          std::vector<double> spread(static_cast<std::size_t>(lag));
          for (const operand* x : {&k, &v}) {
            std::vector<double> deviation;
            for (index_t i = begin; i < begin + lag; ++i) {
              auto row = x->row(b, h, list[static_cast<std::size_t>(i)]);
              for (std::size_t d = 0; d < row.size(); ++d) {
                double least = HUGE_VAL, most = -HUGE_VAL;
                for (index_t j = begin + lag; j < begin + 2 * lag; ++j) {
                  const double next = x->row(b, h, list[static_cast<std::size_t>(j)])[d];
                  least = std::min(least, next), most = std::max(most, next);
                }
                row[d] = (row[d] - least) / (most - least);
              }
              double mean = 0, square = 0;
              for (const double value : row) mean += value / static_cast<double>(row.size());
              for (const double value : row) square += (value - mean) * (value - mean);
              deviation.push_back(std::sqrt(square / static_cast<double>(row.size() - 1)));
            }
            double total = 0;
            for (const double value : deviation) total += std::exp(value);
            for (std::size_t i = 0; i < spread.size(); ++i) {
              spread[i] += std::exp(deviation[i]) / total / 2;
            }
          }
          for (std::size_t i = 0; i < spread.size(); ++i) {
            double rank = 0;
            for (std::size_t j = 0; j < spread.size(); ++j) {
              if (spread[j] < spread[i] || (spread[j] == spread[i] && j < i)) ++rank;
            }
            scores[list[static_cast<std::size_t>(begin) + i]] = rank / static_cast<double>(lag);
          }
        }
      });
}

// Quest: the largest of q·x over the box that a page's keys span, the largest over the group's
// query heads; [B, Hkv, ⌈Lk / page⌉], of the last query.
inline std::vector<double> quest_bounds(const operand& q, const operand& k, index_t page) {
  const index_t pages = (k.length() + page - 1) / page, group = q.heads() / k.heads();
  std::vector<double> bounds;
  for (index_t b = 0; b < k.batches(); ++b) {
    for (index_t h = 0; h < k.heads(); ++h) {
      for (index_t p = 0; p < pages; ++p) {
        double most = -HUGE_VAL;
        for (index_t g = 0; g < group; ++g) {
          const auto query = q.row(b, h * group + g, q.length() - 1);
          double bound = 0;
          for (std::size_t d = 0; d < query.size(); ++d) {
            double product = -HUGE_VAL;
            for (index_t j = p * page; j < std::min(k.length(), (p + 1) * page); ++j) {
              product = std::max(product, query[d] * k.row(b, h, j)[d]);
            }
            bound += product;
          }
          most = std::max(most, bound);
        }
        bounds.push_back(most);
      }
    }
  }
  return bounds;
}

}  // namespace reference
HEED_NAMESPACE_END
