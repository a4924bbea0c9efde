// The rows of the tile loop: which query head and query each of them is.
#pragma once

#include "problem.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// A row's query head and query.
struct head_query {
  index_t head = 0;
  index_t query = 0;
};

// The query rows of one sequence and KV head: all queries of its first query head, then those of
// the second, and so on.
struct query_rows {
  rows_of_sequence queries;
  index_t first_head = 0;

  template <class Problem>
  query_rows(const Problem& problem, index_t sequence, index_t key_head)
      : queries(problem.queries.at(sequence)), first_head(key_head * problem.group()) {}
  head_query at(index_t row) const {
    return {first_head + row / queries.count, row % queries.count};
  }
  // The row behind one of them, without a division.
  head_query after(const head_query& row) const {
    return row.query + 1 < queries.count ? head_query{row.head, row.query + 1}
                                         : head_query{row.head + 1, 0};
  }
};

}  // namespace engine
HEED_NAMESPACE_END
