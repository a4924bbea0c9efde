// The biases of agent attention from their learned tables: a small picture for every agent, resized
// to the grid of tokens, plus a term for the token's row and one for its column,
//
//   bias[h, a, (r, c)] = resize(picture[h, a])[r, c] + row_terms[h, a, r] + column_terms[h, a, c]
//
//   make_gather_bias   picture [H, n, P, S], row_terms [H, n, R], column_terms [H, n, C]
//                      → bias [H, n, R·C], agents over tokens
//   make_spread_bias   picture [H, n, P, S], row_terms [H, R, n], column_terms [H, C, n]
//                      → bias [H, R·C, n], tokens over agents
//
// Resizing is bilinear with the centres of pixels at half numbers and borders repeated:
// interpolate(mode="bilinear", align_corners=False) of PyTorch. Made once for a model, then passed
// to agent() with every call. Han et al., "Agent Attention", ECCV 2024.
#pragma once

#include <algorithm>

#include "mean_pool.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {
namespace detail {

// Where element `at` of `to` lies among `from` elements: between two neighbours.
template <class Real>
struct between {
  index_t low, high;
  Real share;  // of `high`
  between(index_t at, index_t to, index_t from) {
    const Real place =
        (static_cast<Real>(at) + Real(0.5)) * static_cast<Real>(from) / static_cast<Real>(to) -
        Real(0.5);
    const Real inside = std::max(place, Real(0));
    low = std::min(static_cast<index_t>(inside), from - 1);
    high = std::min(low + 1, from - 1);
    share = inside - static_cast<Real>(low);
  }
};

template <class Real, class T>
Real resized(const tensor_view<T, 4>& picture, index_t head, index_t agent, index_t row,
             index_t column, grid tokens) {
  const between<Real> r(row, tokens.rows, picture.extent(2));
  const between<Real> c(column, tokens.columns, picture.extent(3));
  const auto at = [&](index_t i, index_t j) { return widen<Real>(picture(head, agent, i, j)); };
  const Real upper = at(r.low, c.low) + c.share * (at(r.low, c.high) - at(r.low, c.low));
  const Real lower = at(r.high, c.low) + c.share * (at(r.high, c.high) - at(r.high, c.low));
  return upper + r.share * (lower - upper);
}

// Axis of rows, columns and bias along which tokens lie; agents lie along the other one of 1 and 2.
HEED_NOINLINE inline void check_tables(const index_t* picture, const index_t* rows,
                                       const index_t* columns, const index_t* bias, grid tokens,
                                       int token_axis) {
  const int agent_axis = 3 - token_axis;
  const auto require = heed::detail::require_equal;
  check_grid("bias", tokens);
  if (picture[2] < 1 || picture[3] < 1) {
    raise(message("picture: extents ")
          << picture[2] << " and " << picture[3] << " must be positive");
  }
  require("row_terms", "head count", rows[0], "picture", picture[0]);
  require("column_terms", "head count", columns[0], "picture", picture[0]);
  require("bias", "head count", bias[0], "picture", picture[0]);
  require("row_terms", "agent count", rows[agent_axis], "picture", picture[1]);
  require("column_terms", "agent count", columns[agent_axis], "picture", picture[1]);
  require("bias", "agent count", bias[agent_axis], "picture", picture[1]);
  require("row_terms", "row count", rows[token_axis], "the grid", tokens.rows);
  require("column_terms", "column count", columns[token_axis], "the grid", tokens.columns);
  check_filled("bias", bias[token_axis], tokens);
}

// TokenAxis 2: [H, n, L]; 1: [H, L, n].
template <int TokenAxis, class T, class Out>
void make_bias(const tensor_view<const T, 4>& picture, const tensor_view<const T, 3>& rows,
               const tensor_view<const T, 3>& columns, grid tokens,
               const tensor_view<Out, 3>& bias) {
  using Real = accumulator<T, Out>;
  check_tables(picture.extents().data(), rows.extents().data(), columns.extents().data(),
               bias.extents().data(), tokens, TokenAxis);
  const auto written = heed::detail::erase("bias", bias);
  heed::detail::check_operand(written);
  heed::detail::check_distinct_rows(written);
  for (const auto& read :
       {heed::detail::erase("picture", picture), heed::detail::erase("row_terms", rows),
        heed::detail::erase("column_terms", columns)}) {
    heed::detail::check_operand(read);
    heed::detail::check_disjoint(written, read);
  }
  const auto at = []<class U>(const tensor_view<U, 3>& x, index_t head, index_t agent,
                              index_t token) -> U& {
    return TokenAxis == 2 ? x(head, agent, token) : x(head, token, agent);
  };
  for (index_t h = 0; h < picture.extent(0); ++h) {
    for (index_t a = 0; a < picture.extent(1); ++a) {
      for (index_t t = 0; t < tokens.size(); ++t) {
        const index_t row = t / tokens.columns, column = t % tokens.columns;
        const Real value = resized<Real>(picture, h, a, row, column, tokens) +
                           widen<Real>(at(rows, h, a, row)) +
                           widen<Real>(at(columns, h, a, column));
        at(bias, h, a, t) = narrow<Out>(value);
      }
    }
  }
}

}  // namespace detail

// For gather_bias. Raises invalid_argument before anything is written where shapes do not fit.
template <element T, element Out>
void make_gather_bias(const tensor_view<T, 4>& picture, const tensor_view<T, 3>& row_terms,
                      const tensor_view<T, 3>& column_terms, grid tokens,
                      const tensor_view<Out, 3>& bias) {
  detail::make_bias<2, std::remove_const_t<T>>(picture, row_terms, column_terms, tokens, bias);
}

// For spread_bias.
template <element T, element Out>
void make_spread_bias(const tensor_view<T, 4>& picture, const tensor_view<T, 3>& row_terms,
                      const tensor_view<T, 3>& column_terms, grid tokens,
                      const tensor_view<Out, 3>& bias) {
  detail::make_bias<1, std::remove_const_t<T>>(picture, row_terms, column_terms, tokens, bias);
}

}  // namespace lowrank
HEED_NAMESPACE_END
