// Score terms: parts of a score that need more of the query and the key than their position.
//
//   score = scores(scale · (q·k + Σ terms))
//
// A score functor maps one score at its place; a term sees a strip of query rows and a step of keys
// and adds to all their scores at once, before they are scaled. Terms are scores that leave the
// value alone when they are called like one, and have
//
//   static constexpr bool is_score_term = true;
//   template <class Tiles> class worker {
//     worker(const Term&, const term_sizes&, bump&);   scratch memory of one thread
//     void add(const score_tile<…>&);                  adds to tile.scores
//   };
//
// `Tiles` are a backend's vectors (docs/kernel-contract.md). A worker lives as long as one item's
// visit of one set of keys: blocks of at most block_keys / 64 steps come in ascending order of
// keys, each with all its strips, each with all its steps, so that it can keep what a block or a
// strip has in common.
#pragma once

#include "position.hpp"
#include "workspace.hpp"

HEED_NAMESPACE_BEGIN

// The largest tile that a worker will see.
struct term_sizes {
  index_t strip_rows = 0;  // rows of a strip
  index_t item_rows = 0;   // rows of a work item
  index_t block_keys = 0;  // keys of a block
  index_t depth = 0;       // channels of queries and keys
};

// One query row, as the caller has it.
template <class Query>
struct term_row {
  const Query* query = nullptr;
  index_t head = 0;
  index_t q = 0;  // position in its sequence
};

// A strip of query rows against one step of keys.
template <class Real, class KeyRows, class RowAt>
struct score_tile {
  RowAt row_at;       // row of the work item → term_row; rows are head by head, q by q
  index_t first_row;  // first row of the strip, in the item
  int rows;           // rows of the strip
  bool in_place;      // few rows: what the caller has is read where it lies
  index_t queries;    // length of the sequence
  index_t keys;       // likewise
  index_t depth;      // channels
  KeyRows key_rows;   // the sequence's keys
  index_t block;      // counts the blocks
  int step;           // counts the steps of the block
  index_t first_key;  // of the step
  int count;          // keys of the step, up to the last one that some row sees
  Real sign;          // of the scale: −1, 0, 1; the products in `scores` have it
  Real* scores;       // [rows][64]; columns from `count` on may be written
  index_t stride;

  // Keys − queries puts query q at key position q + alignment.
  index_t alignment() const { return keys - queries; }
  // Keys of the step that exist.
  int keys_of_step() const {
    return keys - first_key < 64 ? static_cast<int>(keys - first_key) : 64;
  }
};

template <class M>
concept score_term = requires {
  requires M::is_score_term;
};

namespace detail {

// Rows of the item from strip row `first` on that have consecutive queries of one head.
template <class Tile>
int rows_of_same_head(const Tile& tile, int first) {
  const auto row = tile.row_at(tile.first_row + first);
  const index_t left = tile.queries - row.q;
  return left < tile.rows - first ? static_cast<int>(left) : tile.rows - first;
}

}  // namespace detail

HEED_NAMESPACE_END
