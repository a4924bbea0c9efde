// How a call is cut into work items. Every choice depends on shapes alone, never on the number of
// threads, so that results are bit-identical on any executor.
#pragma once

#include <unistd.h>

#include "../config.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Sizes that blocking is derived from; a program may set them once at its start, before any call.
struct blocking {
  // Bytes of second-level cache that one core may count on.
  index_t cache_bytes = detect_cache_bytes();
  // Packed keys and values are kept for as many KV heads at once as fit here for every worker (one
  // at least): a head's are still in the second-level cache when its queries come.
  index_t packed_bytes = cache_bytes / 4;
  // Query rows of a work item: enough to reuse a block of keys from the cache many times.
  index_t tile_rows = 192;
  // A call is cut into about this many items of equal work where its shape allows it.
  index_t wanted_items = 64;
  // Up to this many query rows per KV head, where the backend can (Tiles::most_rows_in_place), keys
  // are read in place instead of packed.
  index_t rows_in_place = 16;
  // A split of the keys between items is not smaller than this.
  index_t split_keys = 512;
  // Where rows of weights are kept whole: items per KV head at most, since each has sums over
  // queries of its own.
  index_t row_items = 16;

  static blocking& current() {
    static blocking sizes;
    return sizes;
  }

 private:
  static index_t detect_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes >= 128 * 1024) return static_cast<index_t>(bytes);
#endif
    return index_t{1} << 20;
  }
};

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// Keys per block: a block of K and V fills half of the cache, in whole steps, at most as many as
// the backend wants for what it keeps of a strip and a block.
inline index_t block_keys(const blocking& sizes, index_t depth, index_t value_depth,
                          index_t element_bytes, index_t step_keys, index_t most_keys) {
  const index_t row_bytes = (depth + value_depth) * element_bytes;
  const index_t fitting = sizes.cache_bytes / 2 / (row_bytes > 0 ? row_bytes : 1);
  const index_t steps = fitting / step_keys;
  const index_t most = most_keys / step_keys;
  return (steps < 1 ? 1 : steps > most ? most : steps) * step_keys;
}

// Query rows per item: blocking::tile_rows, fewer where the call would give too few items.
inline index_t tile_rows(const blocking& sizes, index_t all_rows, index_t strip_rows) {
  index_t rows = all_rows / sizes.wanted_items;
  const index_t least = 4 * strip_rows;
  if (rows < least) rows = least;
  if (rows > sizes.tile_rows) rows = sizes.tile_rows;
  return ceil_div(rows, strip_rows) * strip_rows;
}

// The same where a mask skips keys for every `block` rows together (0: it does not), so that tiles
// end where blocks do: one block, or an equal part of it that is at least half as large as wanted,
// or several blocks where one does not fill two strips.
inline index_t aligned_rows(index_t rows, index_t block, index_t strip_rows) {
  if (block == 0) return rows;
  if (block < 2 * strip_rows) return rows / block > 0 ? rows / block * block : rows;
  const index_t parts = ceil_div(block, rows);
  for (index_t some = parts; some <= 2 * parts; ++some) {
    if (block % some == 0) return block / some;
  }
  return rows;
}

// Query rows whose whole rows of scores are kept at a time: at most `wanted`, fewer where they
// would take more than a quarter of the cache, but enough to use a block of keys several times.
inline index_t row_tile(const blocking& sizes, index_t wanted, index_t row_bytes,
                        index_t strip_rows) {
  index_t rows = sizes.cache_bytes / 4 / row_bytes / strip_rows * strip_rows;
  const index_t least = 4 * strip_rows;
  if (rows < least) rows = least;
  return rows < wanted ? rows : wanted;
}

// Keys of one item: an equal share of all the call's keys, counted once per tile of rows, so that
// long sequences of a ragged batch are cut into many items and short ones stay whole.
inline index_t item_keys(const blocking& sizes, index_t all_keys) {
  return all_keys > 0 ? ceil_div(all_keys, sizes.wanted_items) : 1;
}

// Items that the keys of one tile of rows are cut into.
inline index_t key_splits(const blocking& sizes, index_t item_keys, index_t keys) {
  const index_t wanted = ceil_div(keys, item_keys), possible = keys / sizes.split_keys;
  const index_t splits = wanted < possible ? wanted : possible;
  return splits < 1 ? 1 : splits;
}

}  // namespace engine
HEED_NAMESPACE_END
