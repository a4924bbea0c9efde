// What normalisers, weight transforms and observers see: the weights of one query over every key
// that it was compared with, a whole row at a time.
//
//   normaliser  `void normalize(Row& row) const`      scores become weights, in place
//   transform   `void transform(Row& row) const`      weights become other weights, in place
//   observer    `void observe(const Row& row) const`  reads the weights that multiply v, exact and
//               final; `void observe_scores(const Row& row) const` reads the scores before that
//
// The row lies in scratch memory, 64 keys after 64 keys, those left out that no query of the tile
// sees. It is all that exists of the matrix of weights: memory is linear in the number of keys.
#pragma once

#include <cstdint>

#include "element.hpp"
#include "position.hpp"

HEED_NAMESPACE_BEGIN

// Keys [key, key + count) of one source, in columns [64·i, 64·i + count) of run i.
struct key_run {
  index_t key = 0;     // position of the first one in its sequence
  index_t column = 0;  // its place on the key axis of the call: row of k, behind earlier sources
  index_t local = 0;   // the same, counted from the first key of the sequence
  index_t keys = 0;    // length of the sequence, as in a position
  int count = 0;       // 1 to 64
  int source = 0;
};

template <class Real, int N>
struct weight_row {
  using real = Real;
  using pack_type = pack<Real, N>;
  static constexpr int lanes = N;
  static constexpr int run_keys = 64;

  index_t sequence = 0;        // what positions call `batch`
  index_t batch = 0, row = 0;  // the query's place in q and out
  index_t head = 0, query = 0;
  index_t queries = 0;
  index_t head_in_group = 0;      // among the query heads of its KV head
  Real* weights = nullptr;        // [64·run_count]; scores before normalize()
  const key_run* runs = nullptr;  // [run_count], in order of sources and keys
  index_t run_count = 0;
  const std::uint64_t* bits = nullptr;  // of run i at i·bits_stride
  index_t bits_stride = 0;

  index_t size() const { return run_count * run_keys; }

  // Bit c: the query sees key c of run i. Only there for hooks with `needs_visibility = true`.
  std::uint64_t visible(index_t i) const { return bits[i * bits_stride]; }

  // Position of the first key of run i.
  position first(index_t i) const {
    return {sequence, head, query, runs[i].key, queries, runs[i].keys};
  }

  // Every value x, a pack at a time, becomes f(x).
  template <class F>
  HEED_INLINE void map(F f) const {
    for (index_t c = 0; c < size(); c += N) {
      store_pack(weights + c, f(load_pack<pack_type>(weights + c)));
    }
  }
  // Σ f(x)
  template <class F>
  HEED_INLINE Real sum(F f) const {
    pack_type total(Real(0));
    for (index_t c = 0; c < size(); c += N) total += f(load_pack<pack_type>(weights + c));
    return sum_lanes(total);
  }
  // The largest f(x); masked_score where there are no keys.
  template <class F>
  HEED_INLINE Real largest(F f) const {
    pack_type most(masked_score<Real>);
    for (index_t c = 0; c < size(); c += N) most = max(f(load_pack<pack_type>(weights + c)), most);
    return max_lanes(most);
  }

  // Every value x becomes f(x, p), p its position: with packs where f takes them, else key by key.
  template <class F>
  HEED_INLINE void map_at(const F& f) const {
    for (index_t i = 0; i < run_count; ++i) {
      position at = first(i);
      const index_t end = at.k + runs[i].count;
      Real* x = weights + i * run_keys;
      for (int c = 0; c < runs[i].count; c += N, at.k += N) {
        if constexpr (requires(pack_type s, const pack_position<Real, N>& p) {
                        pack_type(f(s, p));
                      }) {
          const pack_type mapped(f(load_pack<pack_type>(x + c), pack_at<Real, N>(at, end)));
          store_pack(x + c, mapped);
        } else {
          position key = at;
          for (int lane = c; lane < runs[i].count && lane < c + N; ++lane, ++key.k) {
            x[lane] = static_cast<Real>(f(x[lane], static_cast<const position&>(key)));
          }
        }
      }
      // Columns behind the last key stay empty, whatever f makes of them.
      for (int c = runs[i].count; c < run_keys; ++c) x[c] = 0;
    }
  }

  // Calls visit(value, run, key within the run) for every key that exists.
  template <class Visit>
  HEED_INLINE void for_each(Visit visit) const {
    for (index_t i = 0; i < run_count; ++i) {
      for (int c = 0; c < runs[i].count; ++c) visit(weights[i * run_keys + c], runs[i], c);
    }
  }
};

namespace detail {
using row_probe = weight_row<float, 4>;
}

template <class M>
concept normalizer_function = requires(const M& m, detail::row_probe& row) {
  m.normalize(row);
};
template <class M>
concept weight_transform = requires(const M& m, detail::row_probe& row) {
  m.transform(row);
};
template <class M>
concept score_observer = requires(const M& m, const detail::row_probe& row) {
  m.observe_scores(row);
};
template <class M>
concept weight_observer = requires(const M& m, const detail::row_probe& row) {
  m.observe(row);
};
// An observer of sums over queries: `add_columns(row, sums)` adds a row to sums[local key], in
// scratch memory of one work item; the engine adds up the items' sums in a fixed order and gives
// them to `store_columns(batch, head, first column, sums, count)`.
template <class M>
concept column_observer = requires(const M& m, const detail::row_probe& row, float* sums) {
  m.add_columns(row, sums);
  m.store_columns(index_t{}, index_t{}, index_t{}, sums, index_t{});
};
// Has its way with a row of the output before it is rounded: `finish(row, depth, head)`.
template <class M>
concept output_function = requires(const M& m, float* row) {
  m.finish(row, index_t{}, index_t{});
};
// Everything that works on whole rows of weights.
template <class M>
concept row_hook = normalizer_function<M> || weight_transform<M> || score_observer<M> ||
    weight_observer<M> || column_observer<M> || output_function<M>;

HEED_NAMESPACE_END
