// Routed attention from the formulas, in double precision: MoBA, NSA, clusters, regions. Oracles
// for include/heed/routed.
//
// Nothing here is fast, and nothing is shared with the kernels but the views.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "sparse.hpp"

HEED_NAMESPACE_BEGIN
namespace reference {

// The blocks that MoBA's query i of head h attends to (causally): the own one, and the highest
// q·mean(K) of those before.
inline block_predicate moba_blocks(const operand& q_, const operand& k_, index_t chunk,
                                   index_t topk) {
  const all_rows q(q_), k(k_);
  const index_t keys = k_.length(), count = (keys + chunk - 1) / chunk, heads = q_.heads();
  const index_t queries = q_.length(), group = heads / k_.heads();
  std::vector<std::vector<bool>> kept;
  for (index_t row = 0; row < q_.batches() * heads * queries; ++row) {
    const index_t b = row / queries / heads, h = row / queries % heads, i = row % queries;
    const index_t place = i + keys - queries;
    std::vector<double> gates(static_cast<std::size_t>(count));
    std::vector<bool> past(gates.size());
    for (index_t n = 0; n < count; ++n) {
      const std::vector<double> mean =
          k.mean(b, h / group, n * chunk, std::min(keys, (n + 1) * chunk));
      const auto at = static_cast<std::size_t>(n);
      past[at] = n * chunk <= place;
      gates[at] = past[at] && (n + 1) * chunk > place
                      ? HUGE_VAL
                      : dot_product(q(b, h, i), mean.data(), q_.depth());
    }
    kept.push_back(highest(gates, past, topk));
  }
  return [=](index_t b, index_t h, index_t i, index_t n) {
    return bool{
        kept[static_cast<std::size_t>((b * heads + h) * queries + i)][static_cast<std::size_t>(n)]};
  };
}

inline void moba(const operand& q, const operand& k, const operand& v, tensor_view<double, 4> out,
                 index_t chunk, index_t topk, options how = {}) {
  const block_predicate kept = moba_blocks(q, k, chunk, topk);
  how.visible = [=](const position& p) {
    return p.k <= p.aligned_q() && kept(p.batch, p.head, p.q, p.k / chunk);
  };
  attention(q, k, v, out, how);
}

// The blocks that NSA's selected branch visits, for KV head h: the first, the own, the one before,
// and those with the most weight in the compressed branch.
inline block_predicate nsa_blocks(const operand& q_, const operand& c_, index_t block,
                                  index_t count, double scale) {
  const all_rows q(q_), c(c_);
  const index_t length = q_.length(), heads = c_.heads(), group = q_.heads() / heads;
  const index_t blocks = c_.length();
  std::vector<std::vector<bool>> kept;
  for (index_t row = 0; row < q_.batches() * heads * length; ++row) {
    const index_t b = row / length / heads, h = row / length % heads, i = row % length;
    std::vector<double> weight(static_cast<std::size_t>(blocks));
    std::vector<bool> past(weight.size());
    for (index_t g = h * group; g < (h + 1) * group; ++g) {
      std::vector<double> e(weight.size());
      double total = 0;
      for (index_t n = 0; n < blocks && (n + 1) * block - 1 <= i; ++n) {
        const auto at = static_cast<std::size_t>(n);
        e[at] = std::exp(scale * dot_product(q(b, g, i), c(b, h, n), q_.depth()));
        total += e[at];
      }
      for (std::size_t n = 0; n < e.size() && total > 0; ++n) weight[n] += e[n] / total;
    }
    for (index_t n = 0; n < blocks; ++n) {
      const auto at = static_cast<std::size_t>(n);
      past[at] = n * block <= i;
      if (n == 0 || n == i / block || n == i / block - 1) weight[at] = HUGE_VAL;
    }
    kept.push_back(highest(weight, past, count));
  }
  return [=](index_t b, index_t h, index_t i, index_t n) {
    return bool{
        kept[static_cast<std::size_t>((b * heads + h) * length + i)][static_cast<std::size_t>(n)]};
  };
}

// All of NSA; gates(branch, b, h, i) for branches 0 compressed, 1 selected, 2 window.
inline void nsa(const operand& q, const operand& k, const operand& v, const operand& k_cmp,
                const operand& v_cmp,
                const std::function<double(int, index_t, index_t, index_t)>& gates, index_t block,
                index_t count, index_t window, tensor_view<double, 4> out) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.depth()));
  const index_t group = q.heads() / k.heads();
  const block_predicate kept = nsa_blocks(q, k_cmp, block, count, scale);
  std::vector<double> numbers(static_cast<std::size_t>(out.size()));
  const tensor_view<double, 4> part(numbers.data(), out.extents());
  for (index_t i = 0; i < out.size(); ++i) out.data()[i] = 0;  // row-major
  for (int branch = 0; branch < 3; ++branch) {
    options how;
    how.visible = [=](const position& p) {
      if (branch == 0) return (p.k + 1) * block - 1 <= p.q;
      if (branch == 1) return p.k <= p.q && kept(p.batch, p.head / group, p.q, p.k / block);
      return p.k <= p.q && p.q - p.k < window;
    };
    attention(q, branch == 0 ? k_cmp : k, branch == 0 ? v_cmp : v, part, how);
    for (index_t b = 0; b < out.extent(0); ++b) {
      for (index_t h = 0; h < out.extent(1); ++h) {
        for (index_t i = 0; i < out.extent(2); ++i) {
          for (index_t d = 0; d < out.extent(3); ++d) {
            out(b, h, i, d) += gates(branch, b, h, i) * part(b, h, i, d);
          }
        }
      }
    }
  }
}

// Routing Transformer: clusters [H, c, D] take the `count` nearest queries and keys by direction.
inline void routing_transformer(const operand& q_, const operand& k_, const operand& v_,
                                const operand& means_, index_t count_q, index_t count_k,
                                bool causal, tensor_view<double, 4> out) {
  const all_rows q(q_), k(k_), v(v_), means(means_);
  const index_t depth = q_.depth(), clusters = means_.length();
  const auto taken = [&](const all_rows& x, index_t b, index_t h, index_t c, index_t length,
                         index_t count) {
    std::vector<double> near(static_cast<std::size_t>(length));
    for (index_t i = 0; i < length; ++i) {
      const double* row = x(b, h, i);
      near[static_cast<std::size_t>(i)] =
          dot_product(row, means(0, h, c), depth) / std::sqrt(dot_product(row, row, depth));
    }
    return highest(near, std::vector<bool>(near.size(), true), count);
  };
  for (index_t b = 0; b < q_.batches(); ++b) {
    for (index_t h = 0; h < q_.heads(); ++h) {
      for (index_t i = 0; i < q_.length(); ++i) {
        std::vector<double> sum(static_cast<std::size_t>(v_.depth()));
        double times = 0;
        for (index_t c = 0; c < clusters; ++c) {
          if (!taken(q, b, h, c, q_.length(), count_q)[static_cast<std::size_t>(i)]) continue;
          times += 1;
          const std::vector<bool> keys = taken(k, b, h, c, k_.length(), count_k);
          double total = 0;
          std::vector<double> mine(sum.size());
          for (index_t j = 0; j < k_.length(); ++j) {
            if (!keys[static_cast<std::size_t>(j)] || (causal && j > i)) continue;
            const double weight = std::exp(dot_product(q(b, h, i), k(b, h, j), depth) /
                                           std::sqrt(static_cast<double>(depth)));
            total += weight;
            for (std::size_t d = 0; d < mine.size(); ++d) {
              mine[d] += weight * v(b, h, j)[d];
            }
          }
          for (std::size_t d = 0; d < mine.size() && total > 0; ++d) sum[d] += mine[d] / total;
        }
        for (index_t d = 0; d < v_.depth(); ++d) {
          out(b, h, i, d) = sum[static_cast<std::size_t>(d)] / (times + 1e-5);
        }
      }
    }
  }
}

// BiFormer: regions of an image of height·width tokens, windows × windows of them.
inline void biformer(const operand& q_, const operand& k_, const operand& v, index_t height,
                     index_t width, index_t windows, index_t topk, tensor_view<double, 4> out) {
  const all_rows q(q_), k(k_);
  const index_t heads = q_.heads(), depth = q_.depth(), regions = windows * windows;
  const auto region = [=](index_t i) {
    return i / width / (height / windows) * windows + i % width / (width / windows);
  };
  const auto mean = [&](const all_rows& x, index_t b, index_t r) {
    std::vector<double> sum(static_cast<std::size_t>(heads * depth));
    for (index_t i = 0; i < height * width; ++i) {
      if (region(i) != r) continue;
      for (index_t c = 0; c < heads * depth; ++c) {
        sum[static_cast<std::size_t>(c)] += x(b, c / depth, i)[c % depth];
      }
    }
    for (double& s : sum) s *= static_cast<double>(regions) / static_cast<double>(height * width);
    return sum;
  };
  std::vector<std::vector<bool>> routes;
  for (index_t b = 0; b < q_.batches(); ++b) {
    for (index_t r = 0; r < regions; ++r) {
      std::vector<double> near;
      const std::vector<double> mine = mean(q, b, r);
      for (index_t other = 0; other < regions; ++other) {
        near.push_back(dot_product(mine.data(), mean(k, b, other).data(), heads * depth));
      }
      routes.push_back(highest(near, std::vector<bool>(near.size(), true), topk));
    }
  }
  options how;
  how.scale = 1 / std::sqrt(static_cast<double>(heads * depth));
  how.visible = [=](const position& p) {
    return bool{routes[static_cast<std::size_t>(p.batch * regions + region(p.q))]
                      [static_cast<std::size_t>(region(p.k))]};
  };
  attention(q_, k_, v, out, how);
}

}  // namespace reference
HEED_NAMESPACE_END
