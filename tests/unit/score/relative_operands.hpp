// Operands of a call with relative embeddings, and its error against the oracle.
#pragma once

#include <gtest/gtest.h>

#include "heed/reference/score.hpp"
#include "support/tensor.hpp"

namespace heed_test {

namespace reference = heed::reference;

struct relative_call {
  index_t batches, heads, key_heads, queries, keys, depth;
  index_t entries, first, table_heads;
};

template <class T>
struct relative_operands {
  tensor<T> q, k, v, table, bias, out;
  relative_operands(const relative_call& c, layout how, unsigned seed)
      : q(c.batches, c.heads, c.queries, c.depth, how),
        k(c.batches, c.key_heads, c.keys, c.depth, how),
        v(c.batches, c.key_heads, c.keys, 24, how),
        table(1, c.table_heads, c.entries, c.depth, how),
        bias(1, 1, c.table_heads, c.depth, how),
        out(c.batches, c.heads, c.queries, 24, how) {
    q.fill(seed), k.fill(seed + 1), v.fill(seed + 2), table.fill(seed + 3), bias.fill(seed + 4);
  }
  heed::tensor_view<const T, 3> entries() const {
    const auto x = table.read();
    return {x.data(), {x.extent(1), x.extent(2), x.extent(3)}, {x.stride(1), x.stride(2), 1}};
  }
  heed::tensor_view<const T, 2> query_bias() const {
    const auto x = bias.read();
    return {x.data(), {x.extent(2), x.extent(3)}, {x.stride(2), 1}};
  }
  // Error of the call that was made, beyond 5e-6 of the number.
  double error(const reference::options& how) {
    tensor<double> wanted(out.read().extent(0), out.read().extent(1), out.read().extent(2), 24);
    reference::attention(q.read(), k.read(), v.read(), wanted.view(), how);
    EXPECT_EQ(out.overwritten_around(), 0);
    return heed_test::worst_error(out.read(), wanted.read(), 5e-6);
  }
};

}  // namespace heed_test
