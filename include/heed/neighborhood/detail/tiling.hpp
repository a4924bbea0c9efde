// How a grid is cut into tiles of queries, and which box of keys each tile needs.
//
// A tile is a box of query places within one dilation group; its keys are the box that spans all
// its queries' windows (the halo box). Both are listed row-major. A strip of the engine's rows then
// sees about window₀ + r − 1 layers of the key box, r being the layers of the tile that the strip
// lies in: tiles are narrow across the first axis and long along it, so that those layers are full
// of visible keys.
#pragma once

#include "../../core/workspace.hpp"
#include "../pattern.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

// A tile along one axis: queries at places [begin, begin + size) of a dilation group, keys at
// [key_begin, key_begin + key_size). Tiles of one kind differ in nothing but where they lie.
struct axis_tile {
  index_t remainder = 0;
  index_t begin = 0, size = 0;
  index_t key_begin = 0, key_size = 0;
  index_t kind = 0;
};

// Calls visit(tile) for all tiles of up to `size` places along an axis.
template <class Visit>
HEED_INLINE void for_each_axis_tile(const axis& along, index_t size, Visit visit) {
  for (index_t remainder = 0; remainder < along.dilation; ++remainder) {
    const index_t n = along.places(remainder);
    for (index_t begin = 0; begin < n; begin += size) {
      const index_t end = min(begin + size, n);
      // Windows move forward with their query: the first begins and the last ends first and last.
      const index_t key_begin = along.window_of(begin, n).begin;
      const index_t key_end = along.window_of(end - 1, n).end;
      visit(axis_tile{remainder, begin, end - begin, key_begin, key_end - key_begin, 0});
    }
  }
}

// Whether two tiles of an axis have the same queries and windows, seen from their own first query.
inline bool same_kind(const axis& along, const axis_tile& a, const axis_tile& b) {
  if (a.size != b.size || a.key_size != b.key_size) return false;
  if (a.key_begin - a.begin != b.key_begin - b.begin) return false;
  for (index_t i = 0; i < a.size; ++i) {
    const key_interval x = along.window_of(a.begin + i, along.places(a.remainder));
    const key_interval y = along.window_of(b.begin + i, along.places(b.remainder));
    if (x.begin - a.begin != y.begin - b.begin || x.end - a.begin != y.end - b.begin) return false;
  }
  return true;
}

// Sums over the tiles of one axis for one tile size: what the cost of a tiling is made of.
struct axis_sums {
  index_t size = 0;
  double tiles = 0;  // number of them
  double keys = 0;   // Σ key_size
  double pairs = 0;  // Σ size·key_size
};

inline axis_sums sums_of(const axis& along, index_t size) {
  axis_sums sums{size, 0, 0, 0};
  for_each_axis_tile(along, size, [&](const axis_tile& tile) {
    sums.tiles += 1;
    sums.keys += static_cast<double>(tile.key_size);
    sums.pairs += static_cast<double>(tile.size * tile.key_size);
  });
  return sums;
}

// Tile sizes worth trying along an axis: plain ones, and multiples of the stride, which end where
// windows jump.
struct tile_sizes {
  static constexpr int capacity = 24;
  index_t values[capacity];
  int count = 0;

  explicit tile_sizes(const axis& along) {
    const index_t longest = along.places(0);
    for (index_t size : {1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 48, 64}) add(min(size, longest));
    if (along.stride == 1) return;
    for (index_t groups : {1, 2, 3, 4, 6, 8, 12, 16}) add(min(groups * along.stride, longest));
  }

 private:
  void add(index_t size) {
    for (int i = 0; i < count; ++i) {
      if (values[i] == size) return;
    }
    values[count++] = size;
  }
};

// What things cost, in units of one score: a product with a key and one with a value.
struct tiling_costs {
  double key = 16;      // packing a key and its value
  double partial = 24;  // keys of a strip that are computed before the first visible one
  double tile = 1000;   // entering and leaving a tile
  index_t most_queries = 256;
};

// Tile size along every axis, the cheapest for strips of so many query rows.
template <int N>
coordinates<N> choose_tile(const pattern<N>& which, index_t strip, const tiling_costs& costs = {}) {
  axis_sums sums[N][tile_sizes::capacity];
  int counts[N], at[N] = {};
  for (int a = 0; a < N; ++a) {
    const tile_sizes sizes(which.along(a));
    counts[a] = sizes.count;
    for (int i = 0; i < sizes.count; ++i) sums[a][i] = sums_of(which.along(a), sizes.values[i]);
  }
  const double tokens = static_cast<double>(which.tokens());
  const double window = static_cast<double>(which.window[0]);
  coordinates<N> best{};
  double least = -1;
  for (bool more = true; more;) {
    index_t queries = 1;
    for (int a = 0; a < N; ++a) queries *= sums[a][at[a]].size;
    if (queries <= costs.most_queries) {
      const axis_sums& outer = sums[0][at[0]];
      double tiles = outer.tiles, keys = outer.keys, across = static_cast<double>(which.grid[0]);
      for (int a = 1; a < N; ++a) {
        tiles *= sums[a][at[a]].tiles;
        keys *= sums[a][at[a]].keys;
        across *= sums[a][at[a]].pairs;
      }
      const index_t section = queries / outer.size;
      // Layers of the tile that a strip lies in, and layers of the key box that it sees.
      const double layers = section % strip == 0 ? 1
                            : strip % section == 0
                                ? static_cast<double>(strip / section)
                                : 1 + static_cast<double>(strip - 1) / static_cast<double>(section);
      const double box = outer.pairs / static_cast<double>(which.grid[0]);
      const double seen = window + layers - 1 < box ? window + layers - 1 : box;
      const double waste = seen < box ? costs.partial : 0;
      const double cost = across * seen + waste * tokens + costs.key * keys + costs.tile * tiles;
      if (least < 0 || cost < least) {
        least = cost;
        for (int a = 0; a < N; ++a) best[static_cast<std::size_t>(a)] = sums[a][at[a]].size;
      }
    }
    more = false;
    for (int a = N; a-- > 0 && !more;) {
      more = ++at[a] < counts[a];
      if (!more) at[a] = 0;
    }
  }
  return best;
}

// Calls visit(place) for every place of a box, row-major.
template <int N, class Visit>
HEED_INLINE void for_each_place(const coordinates<N>& extents, Visit visit) {
  coordinates<N> at{};
  for (bool more = true; more;) {
    visit(at);
    more = false;
    for (std::size_t a = at.size(); a-- > 0 && !more;) {
      more = ++at[a] < extents[a];
      if (!more) at[a] = 0;
    }
  }
}

// The tiles along every axis, in scratch memory.
template <int N>
struct grid_tiles {
  axis_tile* tiles[N] = {};
  index_t counts[N] = {}, kinds[N] = {};
  index_t all = 1;           // tiles of the grid
  index_t all_kinds = 1;     // kinds of tiles of the grid
  index_t most_queries = 1;  // of a tile
  index_t most_keys = 1;

  grid_tiles(const pattern<N>& which, const coordinates<N>& size, workspace& memory) {
    for (int a = 0; a < N; ++a) {
      index_t queries = 0, keys = 0;
      for_each_axis_tile(which.along(a), size[static_cast<std::size_t>(a)],
                         [&](const axis_tile& tile) {
                           ++counts[a];
                           queries = max(queries, tile.size);
                           keys = max(keys, tile.key_size);
                         });
      all *= counts[a];
      most_queries *= queries;
      most_keys *= keys;
    }
    const auto lay_out = [&](heed::detail::bump& from) {
      for (int a = 0; a < N; ++a) tiles[a] = from.take<axis_tile>(counts[a]);
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory.reserve(counted.bytes()));
    lay_out(taken);
    for (int a = 0; a < N; ++a) {
      list(which.along(a), size[static_cast<std::size_t>(a)], a);
      all_kinds *= kinds[a];
    }
  }

  // The tile along axis a of tile number t of the grid.
  template <class Visit>
  void for_each(Visit visit) const {
    coordinates<N> extents{};
    for (int a = 0; a < N; ++a) extents[static_cast<std::size_t>(a)] = counts[a];
    index_t number = 0;
    for_each_place<N>(extents, [&](const coordinates<N>& at) {
      axis_tile own[N];
      for (int a = 0; a < N; ++a) own[a] = tiles[a][at[static_cast<std::size_t>(a)]];
      visit(number++, own);
    });
  }
  index_t kind_of(const axis_tile (&own)[N]) const {
    index_t kind = 0;
    for (int a = 0; a < N; ++a) kind = kind * kinds[a] + own[a].kind;
    return kind;
  }

 private:
  void list(const axis& along, index_t size, int a) {
    index_t count = 0;
    for_each_axis_tile(along, size, [&](axis_tile tile) {
      tile.kind = kinds[a];
      for (index_t i = count; i-- > 0 && tile.kind == kinds[a];) {
        if (same_kind(along, tiles[a][i], tile)) tile.kind = tiles[a][i].kind;
      }
      if (tile.kind == kinds[a]) ++kinds[a];
      tiles[a][count++] = tile;
    });
  }
};

template <int N>
HEED_INLINE coordinates<N> queries_of(const axis_tile (&own)[N]) {
  coordinates<N> sizes;
  for (int a = 0; a < N; ++a) sizes[static_cast<std::size_t>(a)] = own[a].size;
  return sizes;
}
template <int N>
HEED_INLINE coordinates<N> keys_of(const axis_tile (&own)[N]) {
  coordinates<N> sizes;
  for (int a = 0; a < N; ++a) sizes[static_cast<std::size_t>(a)] = own[a].key_size;
  return sizes;
}

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
