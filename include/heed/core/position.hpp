// What masks and score functors see: the position of a score, and the extent of a tile of scores.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "../config.hpp"
#include "pack.hpp"

HEED_NAMESPACE_BEGIN

// One score (Key = index_t) or one query row with a pack of consecutive keys (Key = pack).
//   batch, head   of the query (a sequence's number in a ragged batch)
//   q, k          positions in their sequence, from 0
//   queries, keys lengths of that sequence; the lower-right alignment puts query q at key position
//                 q + keys - queries
template <class Key>
struct basic_position {
  index_t batch = 0;
  index_t head = 0;
  index_t q = 0;
  Key k{};
  index_t queries = 0;
  index_t keys = 0;

  // Position of the query on the axis of the keys, last query at last key.
  HEED_INLINE index_t aligned_q() const { return q + keys - queries; }
};
using position = basic_position<index_t>;

// A pack of consecutive keys first_key, first_key + 1, …. Only `valid` of them exist; the lanes
// behind repeat the last one, so that look-ups by `k` stay in bounds, and their results are
// dropped.
template <class Real, int N>
struct pack_position : basic_position<pack<integer_of<Real>, N>> {
  index_t first_key = 0;
  int valid = N;
};

// Position of lane 0's key and the lanes behind it; keys from `end` on repeat the last one.
template <class Real, int N>
HEED_INLINE pack_position<Real, N> pack_at(const position& first, index_t end) {
  using integers = pack<integer_of<Real>, N>;
  pack_position<Real, N> p;
  p.batch = first.batch;
  p.head = first.head;
  p.q = first.q;
  p.queries = first.queries;
  p.keys = first.keys;
  p.first_key = first.k;
  const index_t left = end - first.k;
  p.valid = left < N ? static_cast<int>(left) : N;
  p.k = min(lane_indices<integers>() + first.k, integers(end - 1));
  return p;
}

// Queries [q_begin, q_end) of one head against keys [k_begin, k_end).
struct tile_extent {
  index_t batch = 0;
  index_t head = 0;
  index_t q_begin = 0, q_end = 0;
  index_t k_begin = 0, k_end = 0;
  index_t queries = 0;
  index_t keys = 0;

  index_t alignment() const { return keys - queries; }
};

// Sizes of a whole call, for modifiers that check their own arrays before anything is computed: a
// mask or score may have `void check(const call_shape&) const`, which raises when it does not fit.
struct call_shape {
  index_t batches = 0;  // or sequences of a ragged batch
  index_t heads = 0;    // query heads
  index_t queries = 0;  // the longest sequence's
  index_t keys = 0;
  index_t value_depth = 0;  // of out; only for hooks on rows of weights (weight_row.hpp)
  index_t depth = 0;        // of q and k; for score terms (score_term.hpp)
};

// How much of a tile a mask lets through. `some` is always a right answer: the tile is then decided
// score by score.
enum class visibility { none, some, all };

constexpr visibility operator&(visibility a, visibility b) {
  if (a == visibility::none || b == visibility::none) return visibility::none;
  return a == visibility::all && b == visibility::all ? visibility::all : visibility::some;
}
constexpr visibility operator|(visibility a, visibility b) {
  if (a == visibility::all || b == visibility::all) return visibility::all;
  return a == visibility::none && b == visibility::none ? visibility::none : visibility::some;
}
constexpr visibility operator!(visibility a) {
  if (a == visibility::some) return a;
  return a == visibility::all ? visibility::none : visibility::all;
}

// Sorted, disjoint ranges of keys that a range of queries may visit. Holds up to `capacity` ranges;
// beyond that the closest neighbours are joined, which is never wrong, only slower.
class key_ranges {
 public:
  static constexpr int capacity = 8;
  struct range {
    index_t begin, end;
  };

  key_ranges() = default;
  key_ranges(index_t begin, index_t end) { add(begin, end); }

  int size() const { return size_; }
  const range* begin() const { return ranges_.data(); }
  const range* end() const { return ranges_.data() + size_; }

  // Adds a range; ranges that touch are joined.
  HEED_NOINLINE void add(index_t begin, index_t end) {
    if (begin >= end) return;
    int at = 0;
    while (at < size_ && get(at).end < begin) ++at;
    int last = at;
    while (last < size_ && get(last).begin <= end) {
      begin = get(last).begin < begin ? get(last).begin : begin;
      end = get(last).end > end ? get(last).end : end;
      ++last;
    }
    const int removed = last - at;
    if (removed == 0) {
      for (int i = size_; i > at; --i) get(i) = get(i - 1);
      ++size_;
    } else {
      for (int i = last; i < size_; ++i) get(i - removed + 1) = get(i);
      size_ -= removed - 1;
    }
    get(at) = {begin, end};
    if (size_ > capacity) join_closest();
  }

  HEED_NOINLINE key_ranges operator&(const key_ranges& other) const {
    key_ranges result;
    for (const range& a : *this) {
      for (const range& b : other) {
        result.add(a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end);
      }
    }
    return result;
  }
  HEED_NOINLINE key_ranges operator|(const key_ranges& other) const {
    key_ranges result = *this;
    for (const range& b : other) result.add(b.begin, b.end);
    return result;
  }

 private:
  range& get(int i) { return ranges_[static_cast<std::size_t>(i)]; }

  void join_closest() {
    int closest = 0;
    for (int i = 1; i + 1 < size_; ++i) {
      if (get(i + 1).begin - get(i).end < get(closest + 1).begin - get(closest).end) closest = i;
    }
    get(closest).end = get(closest + 1).end;
    for (int i = closest + 1; i + 1 < size_; ++i) get(i) = get(i + 1);
    --size_;
  }

  std::array<range, capacity + 1> ranges_{};
  int size_ = 0;
};

// ---- what may be passed as a mask or a score ---------------------------------------------------

// A predicate on positions: true where the query may attend to the key.
template <class M>
concept mask_function = requires(const M& m, const position& p) {
  { m(p) } -> std::convertible_to<bool>;
};

// Keys [begin, end) of one query row; they may reach beyond those that exist.
struct key_interval {
  index_t begin = 0;
  index_t end = 0;
};

// A mask whose rows see one interval of keys each may say which: interval(p) for p of any key. The
// engine then asks once per row instead of once per key.
template <class M>
concept interval_mask = mask_function<M> && requires(const M& m, const position& p) {
  { m.interval(p) } -> std::same_as<key_interval>;
};

// A mask that knows its keys 64 at a time: bits(first, count) has bit c set where the query may
// attend to key first.k + c, for c < count ≤ 64. What it says of bits behind count is dropped.
template <class M>
concept bit_mask = mask_function<M> && requires(const M& m, const position& p) {
  { m.bits(p, 64) } -> std::same_as<std::uint64_t>;
};

// A mask whose queries see many runs of keys (lists of blocks) may walk through them:
// for_each_key_run(extent, visit) calls visit(begin, end) for all keys of the extent that one of
// its queries may see, in ascending order. Runs may touch or overlap their neighbours.
template <class M>
concept key_run_mask = mask_function<M> &&
    requires(const M& m, const tile_extent& t, void (*visit)(index_t, index_t)) {
  m.for_each_key_run(t, visit);
};

// A mask that skips keys for queries [n·b, (n + 1)·b) together, b = query_block() ≥ 1, may say so:
// the engine then cuts its tiles of queries where the blocks end. Only time depends on it.
template <class M>
concept query_block_mask = mask_function<M> && requires(const M& m) {
  { m.query_block() } -> std::same_as<index_t>;
};

// Maps a score and its position to a score.
template <class F>
concept score_function = requires(const F& f, float s, const position& p) {
  { f(s, p) } -> std::convertible_to<float>;
};

// A score that gradients can pass: derivative(s, p) = ∂f(s, p)/∂s, for the score s before f.
template <class F>
concept differentiable_score = score_function<F> &&
    requires(const F& f, float s, const position& p) {
  { f.derivative(s, p) } -> std::convertible_to<float>;
};

// Base of scores that add something to s which does not depend on s.
struct additive_score {
  template <class S, class P>
  HEED_INLINE S derivative(S, const P&) const {
    return S(1);
  }
};

// Lets a mask or score compare its own sizes with the call's.
template <class Modifier>
void check_modifier(const Modifier& modifier, const call_shape& shape) {
  if constexpr (requires { modifier.check(shape); }) modifier.check(shape);
}

// Visibility of a tile under any mask: its own answer where it has one.
template <mask_function M>
HEED_INLINE visibility tile_visibility(const M& mask, const tile_extent& t) {
  if constexpr (requires {
                  { mask.tile(t) } -> std::same_as<visibility>;
                }) {
    return mask.tile(t);
  } else {
    return visibility::some;
  }
}

// Keys that the queries of t may visit under any mask, within [t.k_begin, t.k_end).
template <mask_function M>
key_ranges visible_keys(const M& mask, const tile_extent& t) {
  if constexpr (requires {
                  { mask.visible_keys(t) } -> std::same_as<key_ranges>;
                }) {
    return mask.visible_keys(t) & key_ranges(t.k_begin, t.k_end);
  } else {
    return key_ranges(t.k_begin, t.k_end);
  }
}

// Reads row[k·stride] for every key of a position, as values of type S (scalar or pack).
template <class S, class T, class Key>
HEED_INLINE S along_keys(const T* row, index_t stride, const basic_position<Key>& p) {
  static_assert(!is_pack<Key>);
  return widen<S>(row[p.k * stride]);
}
template <class S, class T, class Real, int N>
HEED_INLINE S along_keys(const T* row, index_t stride, const pack_position<Real, N>& p) {
  S result(Real(0));
  if (stride == 0) return S(widen<Real>(row[0]));
  const T* first = row + p.first_key * stride;
  if (stride == 1 && p.valid == N) {
    for (int lane = 0; lane < N; ++lane) result.v[lane] = widen<Real>(first[lane]);
  } else {
    for (int lane = 0; lane < p.valid; ++lane) result.v[lane] = widen<Real>(first[lane * stride]);
  }
  return result;
}

HEED_NAMESPACE_END
