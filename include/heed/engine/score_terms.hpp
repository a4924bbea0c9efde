// The score terms (core/score_term.hpp) among a source's scores: their workers, one after the
// other.
#pragma once

#include <tuple>

#include "../core/score_term.hpp"
#include "query_rows.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Terms are computed on vectors: those of a backend that has a matrix unit too.
template <class Tiles>
struct vector_tiles {
  using type = Tiles;
};
template <class Tiles>
requires requires { typename Tiles::vectors; }
struct vector_tiles<Tiles> {
  using type = typename Tiles::vectors;
};

// What stands for a score that is no term.
struct no_worker {
  template <class Score>
  no_worker(const Score&, const term_sizes&, heed::detail::bump&) {}
  template <class Tile>
  HEED_INLINE void add(const Tile&) const {}
};
template <class Tiles, class Score>
struct worker_of {
  using type = no_worker;
};
template <class Tiles, score_term Score>
struct worker_of<Tiles, Score> {
  using type = typename Score::template worker<typename vector_tiles<Tiles>::type>;
};

template <class Scores>
inline constexpr bool has_terms = false;
template <class... Scores>
inline constexpr bool has_terms<std::tuple<Scores...>> = (... || score_term<Scores>);

// A term that stands in place of q·k, which then need not be computed.
template <class Score>
concept replacing_term = requires {
  requires Score::replaces_product;
};
template <class Scores>
inline constexpr bool replaces_product = false;
template <class... Scores>
inline constexpr bool replaces_product<std::tuple<Scores...>> = (... || replacing_term<Scores>);
// A backend's tiles for a call: a matrix unit has nothing to do where its product is replaced.
template <class Tiles, class... Sources>
using tiles_for =
    typename std::conditional_t<(... ||
                                 replaces_product<std::remove_cvref_t<decltype(Sources::scores)>>),
                                vector_tiles<Tiles>, std::type_identity<Tiles>>::type;

// The workers of a tuple of scores, and of scores behind a pointer (erased_hooks.hpp), which has no
// terms.
template <class Tiles, class Scores>
struct term_workers {
  term_workers(const Scores&, const term_sizes&, heed::detail::bump&) {}
  template <class Tile>
  void add(const Tile&) {}
};
template <class Tiles, class... Scores>
class term_workers<Tiles, std::tuple<Scores...>> {
 public:
  // Takes its memory, or counts it. Braces, so that memory is handed out in the same order each
  // time.
  term_workers(const std::tuple<Scores...>& scores, const term_sizes& sizes,
               heed::detail::bump& memory)
      : workers_(std::apply(
            [&](const auto&... score) {
              return std::tuple<typename worker_of<Tiles, Scores>::type...>{
                  typename worker_of<Tiles, Scores>::type(score, sizes, memory)...};
            },
            scores)) {}

  template <class Tile>
  void add(const Tile& tile) {
    std::apply([&](auto&... worker) { (worker.add(tile), ...); }, workers_);
  }

 private:
  std::tuple<typename worker_of<Tiles, Scores>::type...> workers_;
};

template <class Tiles>
term_sizes sizes_of_terms(index_t item_rows, index_t depth, index_t block_keys) {
  constexpr index_t strip_rows =
      Tiles::strip_rows > Tiles::most_rows_in_place ? Tiles::strip_rows : Tiles::most_rows_in_place;
  return {strip_rows, item_rows > strip_rows ? item_rows : strip_rows, block_keys, depth};
}

// Rows [row_begin, row_begin + row_count) of `rows` against the keys of one source.
struct term_item {
  const query_rows& rows;
  index_t row_begin, row_count;
  rows_of_sequence keys;
  index_t key_head;
};

// The terms of one source for one work item; nothing where it has none.
template <class Tiles, class Problem, class Source>
class source_terms {
  using scores_type = std::remove_cvref_t<decltype(Source::scores)>;
  using Real = typename Tiles::real;
  static constexpr bool any = has_terms<scores_type>;

 public:
  static constexpr bool replace_product = replaces_product<scores_type>;

  source_terms(const Problem& problem, const Source& source, const term_item& item, bool in_place,
               index_t block_keys, std::byte* memory)
      : problem_(problem),
        source_(source),
        item_(item),
        in_place_(in_place),
        memory_(memory),
        workers_(source.scores, sizes_of_terms<Tiles>(item.row_count, problem.depth(), block_keys),
                 memory_) {}

  // A strip of rows, from `first_row` of the item on, against a block of keys: all strips one after
  // the other, then the next block.
  HEED_INLINE void begin(index_t first_row, int rows) {
    if (first_row == 0) ++block_;
    first_row_ = first_row, rows_ = rows;
  }
  // Adds to s[rows][64], for `count` keys from `first_key` on, the block's step number `step`.
  HEED_INLINE void add(int step, index_t first_key, int count, Real* s, index_t stride) {
    if constexpr (any) add_to(step, first_key, count, s, stride);
  }

 private:
  HEED_NOINLINE void add_to(int step, index_t first_key, int count, Real* s, index_t stride) {
    if constexpr (replace_product) {
      for (int row = 0; row < rows_; ++row) {
        for (int c = 0; c < Tiles::step_keys; ++c) s[row * stride + c] = 0;
      }
    }
    using query_type = typename std::remove_cvref_t<decltype(problem_.q)>::value_type;
    const rows_of_sequence& queries = item_.rows.queries;
    const auto row_at = [&](index_t row) -> term_row<query_type> {
      const head_query from = item_.rows.at(item_.row_begin + row);
      return {problem_.q.row(queries.batch, from.head, queries.begin + from.query), from.head,
              from.query};
    };
    const auto key_rows = rows_at(source_.k, item_.keys.batch, item_.key_head, item_.keys.begin);
    const Real sign = problem_.scale < 0 ? Real(-1) : problem_.scale > 0 ? Real(1) : Real(0);
    workers_.add(score_tile<Real, std::remove_const_t<decltype(key_rows)>,
                            std::remove_const_t<decltype(row_at)>>{
        row_at, first_row_, rows_, in_place_, queries.count, item_.keys.count, problem_.depth(),
        key_rows, block_, step, first_key, count, sign, s, stride});
  }

  const Problem& problem_;
  const Source& source_;
  term_item item_;
  bool in_place_;
  index_t block_ = 0;
  index_t first_row_ = 0;
  int rows_ = 0;
  heed::detail::bump memory_;
  term_workers<Tiles, scores_type> workers_;
};

// Scratch memory for the terms of whichever source needs most.
template <class Tiles, class Problem>
index_t term_bytes(const Problem& problem, const term_sizes& sizes) {
  index_t most = 0;
  const auto count = [&](const auto& source) {
    heed::detail::bump counted;
    term_workers<Tiles, std::remove_cvref_t<decltype(source.scores)>>(source.scores, sizes,
                                                                      counted);
    most = counted.bytes() > most ? counted.bytes() : most;
  };
  std::apply([&](const auto&... source) { (count(source), ...); }, problem.sources);
  return most;
}

}  // namespace engine
HEED_NAMESPACE_END
