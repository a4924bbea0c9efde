// Masks and scores behind pointers to functions that work on a tile at a time: the engine is
// compiled once for all masks and once for all scores, and a call costs nothing beside a tile.
#pragma once

#include <tuple>
#include <type_traits>

#include "hooks.hpp"
#include "score_terms.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Rows [first, first + count) of an item, in the order of query heads and then queries, against
// keys from first.k on. first.queries is not 0.
struct tile_rows_at {
  position first;
  int count = 0;

  // Calls visit(row, position) for every row.
  template <class Visit>
  HEED_INLINE void for_each(Visit visit) const {
    position at = first;
    for (int row = 0; row < count; ++row) {
      visit(row, static_cast<const position&>(at));
      if (++at.q == at.queries) ++at.head, at.q = 0;
    }
  }
  // Calls visit(extent) for every run of rows of one query head.
  template <class Visit>
  HEED_INLINE void for_each_extent(index_t key_end, Visit visit) const {
    index_t head = first.head, q = first.q;
    for (index_t left = count; left > 0; ++head, q = 0) {
      const index_t run = left < first.queries - q ? left : first.queries - q;
      visit(
          tile_extent{first.batch, head, q, q + run, first.k, key_end, first.queries, first.keys});
      left -= run;
    }
  }
};

// A function that is called with [begin, end), and lives longer than this.
class run_visitor {
 public:
  template <class Visit>
  explicit run_visitor(const Visit& visit)
      : object_(&visit), call_([](const void* object, index_t begin, index_t end) {
          (*static_cast<const Visit*>(object))(begin, end);
        }) {}
  void operator()(index_t begin, index_t end) const { call_(object_, begin, end); }

 private:
  const void* object_;
  void (*call_)(const void*, index_t, index_t);
};

// What the rows of a tile see of up to 64 keys together.
struct seen_bits {
  std::uint64_t by_any = 0;
  std::uint64_t by_all = 0;
};

// A mask that lives longer than the call, or none.
struct mask_calls {
  const void* mask = nullptr;
  index_t query_block = 0;  // 0: the mask does not change by blocks of queries
  // Null where the mask has no runs; ranges_of then says what a tile may see.
  void (*runs_of)(const void*, const tile_extent&, run_visitor) = nullptr;
  key_ranges (*ranges_of)(const void*, const tile_extent&) = nullptr;
  visibility (*tile)(const void*, const tile_rows_at&, index_t) = nullptr;
  seen_bits (*bits)(const void*, const tile_rows_at&, int, std::uint64_t*) = nullptr;

  bool hides_some() const { return mask != nullptr; }
  void for_each_key_run(const tile_extent& t, run_visitor visit) const { runs_of(mask, t, visit); }
  key_ranges visible_keys(const tile_extent& t) const { return ranges_of(mask, t); }
  // Keys [rows.first.k, key_end).
  visibility classify(const tile_rows_at& rows, index_t key_end) const {
    return tile(mask, rows, key_end);
  }
  // bits[row] of `count` keys, for every row.
  seen_bits visible(const tile_rows_at& rows, int count, std::uint64_t* to) const {
    return bits(mask, rows, count, to);
  }
};

template <class Real, int N, class Mask>
mask_calls calls_of(const Mask& mask) {
  mask_calls calls;
  calls.mask = &mask;
  if constexpr (query_block_mask<Mask>) calls.query_block = mask.query_block();
  if constexpr (key_run_mask<Mask>) {
    calls.runs_of = [](const void* of, const tile_extent& t, run_visitor visit) {
      static_cast<const Mask*>(of)->for_each_key_run(t, visit);
    };
  }
  calls.ranges_of = [](const void* of, const tile_extent& t) {
    return visible_keys(*static_cast<const Mask*>(of), t);
  };
  calls.tile = [](const void* of, const tile_rows_at& rows, index_t key_end) {
    bool all = true, none = true;
    rows.for_each_extent(key_end, [&](const tile_extent& t) {
      const visibility seen = tile_visibility(*static_cast<const Mask*>(of), t);
      all = all && seen == visibility::all;
      none = none && seen == visibility::none;
    });
    return all ? visibility::all : none ? visibility::none : visibility::some;
  };
  calls.bits = [](const void* of, const tile_rows_at& rows, int count, std::uint64_t* to) {
    seen_bits seen{0, ~std::uint64_t{0}};
    rows.for_each([&](int row, const position& first) {
      to[row] = visible_bits<Real, N>(*static_cast<const Mask*>(of), first, count);
      seen.by_any |= to[row];
      seen.by_all &= to[row];
    });
    return seen;
  };
  return calls;
}

// A tuple of scores that lives longer than the call: s[row][c] ← scores(scale·s[row][c]) for
// c < count. Or none.
template <class Real>
struct score_calls {
  const void* scores = nullptr;
  void (*apply)(const void*, const tile_rows_at&, int count, Real scale, Real* s,
                index_t stride) = nullptr;
};

template <class Real, int N, class Scores>
void apply_to_tile(const Scores& scores, const tile_rows_at& rows, int count, Real scale, Real* s,
                   index_t stride) {
  rows.for_each([&](int row, const position& first) {
    apply_scores<Real, N>(scores, s + row * stride, scale, first, count);
  });
}
template <class Real, int N>
void apply_to_tile(const score_calls<Real>& calls, const tile_rows_at& rows, int count, Real scale,
                   Real* s, index_t stride) {
  calls.apply(calls.scores, rows, count, scale, s, stride);
}

template <class Scores>
constexpr bool change_scores(const Scores&) {
  return true;
}
template <class Real>
bool change_scores(const score_calls<Real>& calls) {
  return calls.apply != nullptr;
}

template <class Real, int N, class Scores>
score_calls<Real> calls_of_scores(const Scores& scores) {
  return {&scores, [](const void* of, const tile_rows_at& rows, int count, Real scale, Real* s,
                      index_t stride) {
            apply_to_tile<Real, N>(*static_cast<const Scores*>(of), rows, count, scale, s, stride);
          }};
}

// A source whose hooks are called through pointers. Score terms stay what they are: their kernels
// depend on the operands. WholeRows: scores are kept, and so have to be scaled in any case.
template <class Tiles, bool WholeRows, class K, class V, class Mask, class Scores>
auto erased(const source_of<K, V, Mask, Scores>& source) {
  using Real = typename Tiles::real;
  mask_calls mask;
  if constexpr (!std::is_same_v<Mask, everything>) {
    mask = calls_of<Real, Tiles::lanes>(source.mask);
  }
  if constexpr (has_terms<Scores>) {
    return source_of<K, V, mask_calls, Scores>{source.k, source.v, source.keys, mask,
                                               source.scores};
  } else {
    score_calls<Real> scores;
    if constexpr (WholeRows || std::tuple_size_v<Scores> != 0) {
      scores = calls_of_scores<Real, Tiles::lanes>(source.scores);
    }
    return source_of<K, V, mask_calls, score_calls<Real>>{source.k, source.v, source.keys, mask,
                                                          scores};
  }
}

}  // namespace engine
HEED_NAMESPACE_END
