// Memory of one work item: packed keys and values that it shares with others, and its own scratch.
#pragma once

#include "../core/weight_row.hpp"
#include "../core/workspace.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Steps of one source of one KV head in the packed form; null where keys are read in place.
template <class Packed>
struct packed_source {
  const Packed* keys = nullptr;           // [steps] of key_step_size
  const Packed* values = nullptr;         // [steps] of value_step_size
  const unsigned char* finite = nullptr;  // [steps]: all values of the step are finite
};

// Scratch of one worker for one item, handed out of the workspace. A slot describes a step that a
// strip was compared with: there are as many as steps in a block, or, where rows of weights are
// kept whole (row_loop.hpp), as many for every strip as there are steps in a row.
template <class Tiles>
struct item_scratch {
  using Real = typename Tiles::real;
  // Of a strip: packed, or the one strip that reads its keys in place.
  static constexpr index_t rows =
      Tiles::strip_rows > Tiles::most_rows_in_place ? Tiles::strip_rows : Tiles::most_rows_in_place;

  typename Tiles::packed* queries;  // [strips] of query_strip_size
  Real* weighted;                   // [strips·rows][padded Dv]
  Real* maximum;                    // [strips·rows]
  Real* sum;                        // [strips·rows]
  Real* shrink;                     // [rows]
  Real* scores;                     // the session's
  std::uint64_t* bits;              // [slots][rows]
  index_t* wanted;                  // [block_keys / 64]: the steps of a block that some row may see
  index_t* steps;                   // [slots]: the steps that the columns of `scores` stand for
  unsigned char* partial;           // [slots]: the step's bits were needed
  unsigned char* first;             // [slots]: first key of the step that some row sees
  unsigned char* last;              // [slots]: one past the last such key
  key_run* runs;                    // [slots], these three only for whole rows
  index_t* scored;                  // [strips]: slots that have scores
  index_t* added;                   // [strips]: slots whose values were added
  std::byte* terms;                 // the score terms'

  // Whole rows have `row_keys` keys, a multiple of 64; 0: rows are not kept.
  void take(heed::detail::bump& memory, index_t tile_rows, index_t depth, index_t value_depth,
            index_t block_keys, index_t row_keys, index_t bytes_of_terms) {
    const index_t strips =
        ((tile_rows > rows ? tile_rows : rows) + Tiles::strip_rows - 1) / Tiles::strip_rows;
    const index_t height = strips * Tiles::strip_rows;
    const bool whole = row_keys > 0;
    const index_t slots =
        whole ? strips * (row_keys / Tiles::step_keys) : block_keys / Tiles::step_keys;
    queries = memory.take<typename Tiles::packed>(strips * Tiles::query_strip_size(depth));
    weighted = memory.take<Real>(height * Tiles::padded(value_depth));
    maximum = memory.take<Real>(height);
    sum = memory.take<Real>(height);
    shrink = memory.take<Real>(rows);
    scores = memory.take<Real>(whole ? Tiles::session::score_size(row_keys, height)
                                     : Tiles::session::score_size(block_keys));
    bits = memory.take<std::uint64_t>(slots * rows);
    wanted = memory.take<index_t>(block_keys / Tiles::step_keys);
    steps = memory.take<index_t>(slots);
    partial = memory.take<unsigned char>(slots);
    first = memory.take<unsigned char>(slots);
    last = memory.take<unsigned char>(slots);
    runs = memory.take<key_run>(whole ? slots : 0);
    scored = memory.take<index_t>(whole ? strips : 0);
    added = memory.take<index_t>(whole ? strips : 0);
    terms = memory.take<std::byte>(bytes_of_terms);
  }
};

}  // namespace engine
HEED_NAMESPACE_END
