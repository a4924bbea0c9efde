// Pooled key sets: means of neighbouring tokens.
//
//   segment_means   out[i] = mean of x[⌊i·L/m⌋ … ⌈(i+1)·L/m⌉ − 1],  i < m
//   mean_pool       the same along both axes of a grid of tokens
//
//   x [B, H, L, D] → out [B, H·g, m, D]; head h of out is the mean of head h / g of x
//
// The bounds are those of adaptive average pooling: m equal segments where m divides L, else
// segments that differ by a token and may share one with their neighbour. Landmarks of Xiong et
// al., "Nyströmformer", AAAI 2021; agents of Han et al., "Agent Attention", ECCV 2024; pooled keys
// of block estimators.
#pragma once

#include "detail/call.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {

// Tokens that lie on a grid, row by row. A sequence is a grid of one column.
struct grid {
  index_t rows = 0;
  index_t columns = 1;
  constexpr index_t size() const { return rows * columns; }
};

namespace detail {

// Along one axis: cell `at` of `cells` over `extent` elements.
struct segment {
  index_t begin, end;
  segment(index_t at, index_t cells, index_t extent)
      : begin(at * extent / cells), end(((at + 1) * extent + cells - 1) / cells) {}
};

// Sums over tokens below lengths[b] (all where lengths is null), divided by the size of the cell:
// tokens behind a sequence count as zeros and are not read.
template <class T, class Out, class Executor>
void pool(const tensor_view<T, 4>& x, grid from, const tensor_view<Out, 4>& out, grid to,
          const index_t* lengths, Executor& executor) {
  using Real = accumulator<T, Out>;
  constexpr index_t columns = 256;  // that are summed at a time, on the stack
  const index_t heads = out.extent(1), depth = out.extent(3);
  const index_t group = x.extent(1) > 0 ? heads / x.extent(1) : 1;
  executor.run(out.extent(0) * heads * to.size(), [&](index_t item, int) {
    const index_t cell = item % to.size(), head = item / to.size() % heads;
    const index_t batch = item / to.size() / heads;
    const segment rows(cell / to.columns, to.rows, from.rows);
    const segment tokens(cell % to.columns, to.columns, from.columns);
    const index_t length = lengths != nullptr ? lengths[batch] : from.size();
    const Real factor =
        Real(1) / static_cast<Real>((rows.end - rows.begin) * (tokens.end - tokens.begin));
    Out* mean = out.row(batch, head, cell);
    for (index_t first = 0; first < depth; first += columns) {
      const index_t count = depth - first < columns ? depth - first : columns;
      Real sum[columns];
      for (index_t d = 0; d < count; ++d) sum[d] = 0;
      for (index_t r = rows.begin; r < rows.end; ++r) {
        for (index_t c = tokens.begin; c < tokens.end; ++c) {
          const index_t token = r * from.columns + c;
          if (token >= length) continue;
          const T* row = x.row(batch, head / group, token) + first;
          for (index_t d = 0; d < count; ++d) sum[d] += widen<Real>(row[d]);
        }
      }
      for (index_t d = 0; d < count; ++d) {
        mean[first + d] = narrow<std::remove_const_t<Out>>(sum[d] * factor);
      }
    }
  });
}

HEED_NOINLINE inline void check_grid(const char* name, grid g) {
  if (g.rows < 1 || g.columns < 1) {
    raise(message(name) << ": grid of " << g.rows << " rows and " << g.columns
                        << " columns, both must be positive");
  }
}

// A grid that the tokens of an operand fill.
HEED_NOINLINE inline void check_filled(const char* name, index_t length, grid g) {
  if (g.rows < 0 || g.columns < 0 || length != g.size()) {
    raise(message(name) << ": length " << length << " is not a grid of " << g.rows << " rows and "
                        << g.columns << " columns");
  }
}

HEED_NOINLINE inline void check_pool(const heed::detail::operand& x, grid from,
                                     const heed::detail::operand& out, grid to) {
  using namespace heed::detail;
  check_operand(x);
  check_operand(out);
  check_distinct_rows(out);
  require_equal("out", "batch", out.extents[0], "x", x.extents[0]);
  require_equal("out", "depth", out.extents[3], "x", x.extents[3]);
  if (out.extents[1] != 0 && (x.extents[1] == 0 || out.extents[1] % x.extents[1] != 0)) {
    raise(message("out: head count ")
          << out.extents[1] << " is not a multiple of x's " << x.extents[1]);
  }
  check_filled("x", x.extents[2], from);
  check_filled("out", out.extents[2], to);
  check_grid("x", from);
  check_grid("out", to);
  check_disjoint(out, x);
}

}  // namespace detail

// Means of the cells of a grid: x [B, H, L, D] with L tokens on `from`, out [B, H·g, m, D] with m
// tokens on `to`, of any element types. Options: on; key_lengths, whose tokens behind a sequence
// count as zeros. Raises invalid_argument before anything is written where shapes do not fit.
template <viewable X, viewable Out, class... Modifiers>
void mean_pool(const X& x, grid from, Out&& out, grid to, const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_on<Modifiers> || std::is_same_v<Modifiers, key_lengths>)),
                "heed::lowrank::mean_pool: options are heed::on and heed::key_lengths");
  const auto in = read_view_of(x).template lifted<4>();
  const auto means = output_view_of(out).template lifted<4>();
  detail::check_pool(heed::detail::erase("x", in), from, heed::detail::erase("out", means), to);
  const index_t* lengths =
      detail::checked_lengths<key_lengths>("key_lengths", in.extent(0), in.extent(2), modifiers...);
  composed::with_executor(
      [&](auto& executor) { detail::pool(in, from, means, to, lengths, executor); }, modifiers...);
}

// Means of m = out.extent(2) segments of a sequence.
template <viewable X, viewable Out, class... Modifiers>
void segment_means(const X& x, Out&& out, const Modifiers&... modifiers) {
  const index_t length = read_view_of(x).template lifted<4>().extent(2);
  const index_t segments = output_view_of(out).template lifted<4>().extent(2);
  mean_pool(x, grid{length}, std::forward<Out>(out), grid{segments}, modifiers...);
}

}  // namespace lowrank
HEED_NAMESPACE_END
