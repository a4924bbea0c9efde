// BigBird (Zaheer et al., 2020): blocks of keys that a query block sees are a window around it, the
// global ones, and a few random ones.
//
//   bigbird_layout   DeepSpeed's: window of `width` blocks, the first `global` blocks see and are
//                    seen by everything, random blocks per row
//   bigbird          the paper's own block-sparse attention (itc), as in its TensorFlow and
//                    transformers' code: first and last query block see everything; the second one
//                    0, 1, 2, last; the second last 0 and the last three; the others 0, i − 1, i,
//                    i + 1, last; each with its random ones. A block that is listed twice counts
//                    twice in the softmax.
//
// Random blocks are the caller's: random [heads or 1, rows, per row].
#pragma once

#include <cmath>
#include <vector>

#include "../core/check_data.hpp"
#include "attention.hpp"
#include "estimate.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// random(h, i, r) are block numbers for query block i.
inline block_list bigbird_layout(index_t blocks, index_t block, index_t width, index_t global,
                                 const tensor_view<const index_t, 3>& random, bool unidirectional) {
  if (width < 1) raise(message("layout: width ") << width << " is not positive");
  if (global < 0) raise(message("layout: ") << global << " global blocks, must not be negative");
  if (random.extent(1) != blocks) {
    raise(message("random: rows ")
          << random.extent(1) << ", must be one for each of the " << blocks << " blocks");
  }
  heed::detail::check_data("random", random);
  return list_where({1, random.extent(0), blocks, blocks, block, block},
                    [&](index_t, index_t h, index_t i, index_t j) {
                      if (unidirectional && j > i) return false;
                      if (abs(i - j) <= width / 2 || i < global || j < global) return true;
                      for (index_t r = 0; r < random.extent(2); ++r) {
                        if (random(h, i, r) == j) return true;
                      }
                      return false;
                    });
}

// s + table[h, q / block, k / block]: the logarithm of how often a block counts.
struct block_bias {
  tensor_view<const float, 4> table;  // [1, heads or 1, query blocks, key blocks]
  index_t block_q, block_k;

  template <class S>
  requires std::is_arithmetic_v<S> S operator()(S s, const position& p) const {
    const index_t head = table.extent(1) == 1 ? 0 : p.head;
    return s + static_cast<S>(table(0, head, p.q / block_q, p.k / block_k));
  }
  void check(const call_shape& shape) const {
    if (table.extent(1) != 1 && table.extent(1) != shape.heads) {
      raise(message("random: head count ")
            << table.extent(1) << " is neither 1 nor q's " << shape.heads);
    }
  }
};

// How often each of `blocks` key blocks counts for each query block: [1, heads, blocks, blocks].
// random [heads or 1, blocks − 2, R]: row i − 1 belongs to query block i. At least 5 blocks.
inline table bigbird_counts(index_t blocks, const tensor_view<const index_t, 3>& random) {
  if (blocks < 5) raise(message("bigbird: ") << blocks << " blocks, must be 5 at least");
  if (random.extent(1) != blocks - 2) {
    raise(message("random: rows ")
          << random.extent(1) << ", must be one for each of the " << blocks - 2 << " inner blocks");
  }
  heed::detail::check_data("random", random);
  table counts({1, random.extent(0), blocks, blocks});
  const auto count = counts.view();
  const index_t last = blocks - 1;
  for (index_t h = 0; h < random.extent(0); ++h) {
    for (index_t i = 0; i < blocks; ++i) {
      float* row = count.row(0, h, i);
      if (i == 0 || i == last) {
        for (index_t j = 0; j < blocks; ++j) row[j] = 1;
        continue;
      }
      for (index_t j = i - 1; j <= i + 1; ++j) row[j] += 1;
      if (i > 1) row[0] += 1;
      if (i < last - 1) row[last] += 1;
      for (index_t r = 0; r < random.extent(2); ++r) {
        const index_t j = random(h, i - 1, r);
        if (j < 0 || j > last) {
          raise(message("random: block ") << j << " must lie in [0, " << blocks << ")");
        }
        row[j] += 1;
      }
    }
  }
  return counts;
}

// q, k, v, out [B, H, L, D] with L a multiple of `block`; modifiers as in sparse::attention.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void bigbird(const Q& q, const K& k, const V& v, Out&& out, index_t block,
             const tensor_view<const index_t, 3>& random, const Modifiers&... modifiers) {
  const call_shape call = lists::shape_of(q, k);
  if (block < 1 || call.queries % block != 0 || call.keys != call.queries) {
    raise(message("bigbird: block ") << block << " does not divide " << call.queries
                                     << " queries and " << call.keys << " keys alike");
  }
  table bias = bigbird_counts(call.queries / block, random);
  const auto counts = bias.view();
  const block_list list =
      list_where({1, counts.extent(1), counts.extent(2), counts.extent(3), block, block},
                 [&](index_t, index_t h, index_t i, index_t j) { return counts(0, h, i, j) > 0; });
  for (float& x : bias.values) x = x > 0 ? std::log(x) : 0.0f;
  const table& logarithms = bias;
  sparse::attention<Backend>(q, k, v, out, list, block_bias{logarithms.view(), block, block},
                             modifiers...);
}

}  // namespace sparse
HEED_NAMESPACE_END
