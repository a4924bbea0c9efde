// Random lists for tests of sparse and routed attention.
#pragma once

#include <random>
#include <string>

#include "heed/sparse/block_list.hpp"
#include "support/errors.hpp"

namespace heed_test {

using heed::index_t;

// Every block with some probability; some rows stay empty.
inline heed::sparse::block_list random_list(const heed::sparse::block_shape& shape, double density,
                                            unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> draw;
  index_t last = -1;
  bool empty = false;
  return heed::sparse::list_where(shape, [&](index_t b, index_t h, index_t i, index_t) {
    const index_t row = (b * shape.heads + h) * shape.query_blocks + i;
    if (row != last) empty = draw(generator) < 0.1;
    last = row;
    return draw(generator) < density && !empty;
  });
}

}  // namespace heed_test
