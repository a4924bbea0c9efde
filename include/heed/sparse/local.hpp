// Block-local attention: queries of a block see the keys of their own block, `back` blocks before
// and `ahead` blocks after it,
//
//   ⌊i / w⌋ − back ≤ ⌊j / w⌋ ≤ ⌊i / w⌋ + ahead
//
//   sparse::attention(q, k, v, out, sparse::local(heed::call_shape{1, 1, L, L}, w, 1, 0),
//                     heed::causal{})
//
// With & causal{} and back 1: the local heads of Routing Transformer and Reformer, the encoder-free
// half of Image Transformer; with back 0: chunked attention (Llama 4). Exact windows are
// heed::window.
#pragma once

#include "block_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

inline block_list local(const call_shape& call, index_t window, index_t back, index_t ahead) {
  if (back < 0 || ahead < 0) {
    raise(message("local: looks back ")
          << back << " and ahead " << ahead << " blocks, must not be negative");
  }
  block_shape shape = blocks_of(call, window, window);
  shape.batches = shape.heads = 1;
  return list_where(shape, [&](index_t, index_t, index_t i, index_t j) {
    return i - j <= back && j - i <= ahead;
  });
}

// The same in blocks: DeepSpeed's LocalSlidingWindowSparsityConfig, a window of `width` blocks
// around the own one (half of it when unidirectional).
inline block_list sliding_blocks(index_t blocks, index_t block, index_t width,
                                 bool unidirectional) {
  if (width < 1) raise(message("layout: width ") << width << " is not positive");
  const index_t side = width / 2;
  return list_where({1, 1, blocks, blocks, block, block},
                    [&](index_t, index_t, index_t i, index_t j) {
                      return j >= i - side && j <= (unidirectional ? i : i + side);
                    });
}

}  // namespace sparse
HEED_NAMESPACE_END
