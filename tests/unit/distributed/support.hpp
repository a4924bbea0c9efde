// Whole tensors that every process has, the share of one of them, and the truth for its queries.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "heed/distributed/layout.hpp"
#include "heed/reference/dense.hpp"
#include "support/tensor.hpp"

namespace distributed_test {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
namespace reference = heed::reference;

struct shape {
  index_t batches, heads, key_heads, queries, keys, depth, value_depth;
};

// The rows of x at `places`.
template <class T>
tensor<T> share_of(const tensor<T>& x, const heed::distributed::token_places& places,
                   layout how = layout::dense) {
  const auto from = x.view();
  tensor<T> result(from.extent(0), from.extent(1), places.count, from.extent(3), how);
  const auto to = result.view();
  for (index_t b = 0; b < to.extent(0); ++b) {
    for (index_t h = 0; h < to.extent(1); ++h) {
      for (index_t i = 0; i < to.extent(2); ++i) {
        for (index_t d = 0; d < to.extent(3); ++d) to(b, h, i, d) = from(b, h, places[i], d);
      }
    }
  }
  return result;
}

// A whole call in double, on one process.
template <class T>
struct whole_call {
  shape s;
  tensor<T> q, k, v;
  tensor<double> out;
  std::vector<double> lse;

  whole_call(const shape& of, unsigned seed, const reference::options& how = {})
      : s(of),
        q(s.batches, s.heads, s.queries, s.depth),
        k(s.batches, s.key_heads, s.keys, s.depth),
        v(s.batches, s.key_heads, s.keys, s.value_depth),
        out(s.batches, s.heads, s.queries, s.value_depth) {
    q.fill(seed), k.fill(seed + 1), v.fill(seed + 2);
    reference::options with_lse = how;
    with_lse.lse = &lse;
    reference::attention(q.read(), k.read(), v.read(), out.view(), with_lse);
  }

  // The largest error of one process's log-sum-exp.
  template <class Real>
  double lse_error(const std::vector<Real>& got,
                   const heed::distributed::token_places& places) const {
    double worst = 0;
    std::size_t at = 0;
    for (index_t row = 0; row < s.batches * s.heads; ++row) {
      for (index_t i = 0; i < places.count; ++i, ++at) {
        const double g = static_cast<double>(got[at]);
        const double w = lse[static_cast<std::size_t>(row * s.queries + places[i])];
        if (g == w) continue;  // −∞
        worst = std::max(worst, heed_test::is_nan(g) ? HUGE_VAL : std::abs(g - w));
      }
    }
    return worst;
  }
};

inline bool causally(const heed::position& p) { return p.k <= p.aligned_q(); }
inline reference::options visible_where(reference::predicate visible) {
  reference::options how;
  how.visible = std::move(visible);
  return how;
}

}  // namespace distributed_test
