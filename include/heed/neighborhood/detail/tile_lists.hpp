// Tiles as sequences of one attention call: their lists of query and key rows, and what masks and
// scores need to know about them.
//
// Sequence s = batch·tiles + tile. Lists of different lengths are padded; the lengths say how much
// of each counts.
#pragma once

#include <cstdint>
#include <span>

#include "../../core/gathered.hpp"
#include "../../core/score_term.hpp"
#include "tiling.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {
namespace detail {

template <class T>
std::span<const index_t> as_span(const T* values, index_t count) {
  return {values, static_cast<std::size_t>(count)};
}

struct tile_lists {
  index_t batches = 0, tiles = 0;
  index_t most_queries = 0, most_keys = 0;  // of a tile: lengths of the padded lists
  index_t tokens = 0;
  index_t* query_rows = nullptr;  // [batches·tiles, most_queries]
  index_t* key_rows = nullptr;    // [batches·tiles, most_keys]
  index_t* query_counts = nullptr;
  index_t* key_counts = nullptr;  // [batches·tiles]

  index_t sequences() const { return batches * tiles; }
  void take(heed::detail::bump& from) {
    query_rows = from.take<index_t>(sequences() * most_queries);
    key_rows = from.take<index_t>(sequences() * most_keys);
    query_counts = from.take<index_t>(sequences());
    key_counts = from.take<index_t>(sequences());
  }
  // Lists of the first batch entry for all others.
  void repeat() const {
    for (index_t b = 1; b < batches; ++b) {
      copy(query_rows, b * tiles * most_queries, tiles * most_queries);
      copy(key_rows, b * tiles * most_keys, tiles * most_keys);
      copy(query_counts, b * tiles, tiles);
      copy(key_counts, b * tiles, tiles);
    }
  }

  template <class T>
  gathered_view<T> queries(const tensor_view<T, 4>& x) const {
    return {x, tensor_view<const index_t, 3>(query_rows, {sequences(), 1, most_queries})};
  }
  template <class T>
  gathered_view<T> keys(const tensor_view<T, 4>& x) const {
    return {x, tensor_view<const index_t, 3>(key_rows, {sequences(), 1, most_keys})};
  }
  std::span<const index_t> query_lengths() const { return as_span(query_counts, sequences()); }
  std::span<const index_t> key_lengths() const { return as_span(key_counts, sequences()); }

  // The position of a score among the tokens of the grid, from the position in the lists.
  HEED_INLINE position of_tokens(const position& p) const {
    return {p.batch / tiles,
            p.head,
            query_rows[p.batch * most_queries + p.q],
            key_rows[p.batch * most_keys + p.k],
            tokens,
            tokens};
  }

 private:
  static void copy(index_t* rows, index_t to, index_t count) {
    for (index_t i = 0; i < count; ++i) rows[to + i] = rows[i];
  }
};

// A caller's score, which speaks of tokens, in the lists: keys of a pack are not neighbours among
// the tokens, so each is asked for by itself.
template <class Score>
struct score_of_tokens {
  static_assert(
      !score_term<Score>,
      "heed: terms such as relative embeddings need queries and keys at their own places, "
      "not at those of tiles");
  const Score& own;
  tile_lists lists;
  call_shape shape;

  template <class S>
  HEED_INLINE S operator()(S s, const position& p) const {
    return static_cast<S>(own(s, static_cast<const position&>(lists.of_tokens(p))));
  }
  // Where the score is a mask too (a bias of −∞).
  HEED_INLINE bool visible(const position& p) const
      requires(requires(const Score& score) { score.visible(p); }) {
    return own.visible(static_cast<const position&>(lists.of_tokens(p)));
  }
  template <class Real, int N>
  HEED_INLINE typename pack<Real, N>::mask visible(const pack_position<Real, N>& p) const
      requires(requires(const Score& score, const position& at) { score.visible(at); }) {
    typename pack<Real, N>::mask seen(false);
    position at{p.batch, p.head, p.q, p.first_key, p.queries, p.keys};
    for (int lane = 0; lane < p.valid; ++lane, ++at.k) {
      seen.bits[lane] = -static_cast<int>(visible(at));
    }
    return seen;
  }
  void check(const call_shape&) const { check_modifier(own, shape); }
};

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
