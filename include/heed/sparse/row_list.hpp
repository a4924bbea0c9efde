// Lists of single keys: which keys each block of queries (of one query, too) attends to.
//
//   row (b, h, i)   the ascending numbers of the keys that queries [i·block_q, (i + 1)·block_q) of
//                   head h see
//
// A row list is a block list with blocks of one key, and runs another way: every row becomes a
// sequence of one attention call whose keys are gathered in place (core/gathered.hpp). Masks and
// scores of the call still see the operands' own positions (gathered_call.hpp).
//
// Scattered keys of top-k selection: Loki, TidalDecode, Unlimiformer, SampleAttention's columns.
#pragma once

#include <utility>
#include <vector>

#include "block_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

struct row_list : block_list {
  // offsets [batches·heads·⌈queries / block_q⌉ + 1] into rows. Raises as block_list_view does.
  row_list(const call_shape& call, index_t block_q, std::vector<index_t> list_offsets,
           std::vector<index_t> rows)
      : block_list{blocks_of(call, block_q, 1), std::move(list_offsets), std::move(rows)} {
    view();
  }
  // A list with blocks of one key.
  explicit row_list(block_list list) : block_list(std::move(list)) {
    if (shape.block_k != 1) {
      raise(message("row list: made of blocks of ") << shape.block_k << " keys, must be 1");
    }
    view();
  }
};

// The rows of a list as gathered_view wants them: padded to the longest, one sequence for every
// batch entry, fold of heads and block of queries.
struct row_numbers {
  index_t sequences = 0, block_q = 0, longest = 0;
  std::vector<index_t> query_rows, key_rows, query_counts, key_counts;

  // Fold f reads the list of head first_head + f·head_step, or the only one.
  row_numbers(const block_list& list, const call_shape& call, index_t folds, index_t first_head,
              index_t head_step)
      : sequences(call.batches * folds * list.shape.query_blocks),
        block_q(min(list.shape.block_q, call.queries)) {
    const block_list_view view = list.view();
    const auto for_each_list = [&](const auto& visit) {
      for (index_t b = 0; b < call.batches; ++b) {
        for (index_t f = 0; f < folds; ++f) {
          for (index_t i = 0; i < list.shape.query_blocks; ++i) {
            visit(i, view.row(list.shape.batches == 1 ? 0 : b,
                              list.shape.heads == 1 ? 0 : first_head + f * head_step, i));
          }
        }
      }
    };
    for_each_list([&](index_t i, const std::span<const index_t>& row) {
      query_counts.push_back(min(block_q, call.queries - i * list.shape.block_q));
      key_counts.push_back(static_cast<index_t>(row.size()));
      longest = max(longest, key_counts.back());
    });
    query_rows.resize(static_cast<std::size_t>(sequences * block_q));
    key_rows.resize(static_cast<std::size_t>(sequences * longest));
    index_t s = 0;
    for_each_list([&](index_t i, const std::span<const index_t>& row) {
      for (index_t r = 0; r < query_counts[static_cast<std::size_t>(s)]; ++r) {
        query_rows[static_cast<std::size_t>(s * block_q + r)] = i * list.shape.block_q + r;
      }
      std::copy(row.begin(), row.end(), key_rows.begin() + s * longest);
      ++s;
    });
  }

  tensor_view<const index_t, 3> query_view() const {
    return {query_rows.data(), {sequences, 1, block_q}};
  }
  tensor_view<const index_t, 3> key_view() const {
    return {key_rows.data(), {sequences, 1, longest}};
  }
};

}  // namespace sparse
HEED_NAMESPACE_END
