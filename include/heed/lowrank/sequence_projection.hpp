// Learned key sets: a linear map along the sequence,
//
//   out[b, h, i, :] = Σ_t e[h, t, i]·x[b, h, t, :],   t < L, i < r
//
//   x [B, H, L, D] · e [H|1, N, r], N ≥ L → out [B, H, r, D]
//
// e has a row for every token that a sequence may have; those from L on are not used. Wang et al.,
// "Linformer: Self-Attention with Linear Complexity", 2020.
#pragma once

#include <algorithm>

#include "../backend/products.hpp"
#include "detail/call.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {
namespace detail {

// `rows` rows of any element type as Real: in place where they are, else converted into `copy`.
template <class Real, class T>
const Real* rows_as(const T* from, index_t& stride, index_t rows, index_t depth, Real* copy) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, Real>) {
    return from;
  } else {
    for (index_t i = 0; i < rows; ++i) {
      for (index_t d = 0; d < depth; ++d) copy[i * depth + d] = widen<Real>(from[i * stride + d]);
    }
    stride = depth;
    return copy;
  }
}

inline constexpr index_t projected_tokens = 128;  // that are converted and multiplied at a time

// `copies` has, per worker, room for projected_tokens rows of x and of e.
template <class Backend, class Real, class T, class E, class Executor>
void project(const tensor_view<T, 4>& x, const tensor_view<E, 3>& e, const index_t* lengths,
             const tensor_view<Real, 4>& out, Real* copies, Executor& executor) {
  const index_t heads = x.extent(1), depth = x.extent(3), rank = e.extent(2);
  executor.run(x.extent(0) * heads, [&](index_t item, int worker) {
    const index_t batch = item / heads, head = item % heads;
    const index_t length = lengths != nullptr ? lengths[batch] : x.extent(2);
    Real* to = out.row(batch, head, 0);
    Real* copy_x = copies + worker * projected_tokens * (depth + rank);
    Real* copy_e = copy_x + projected_tokens * depth;
    for (index_t i = 0; i < rank; ++i) std::fill_n(to + i * out.stride(2), depth, Real(0));
    for (index_t first = 0; first < length; first += projected_tokens) {
      const index_t count = std::min(projected_tokens, length - first);
      index_t x_row = x.stride(2), e_row = e.stride(1);
      const Real* tokens = rows_as(x.row(batch, head, first), x_row, count, depth, copy_x);
      const Real* weights =
          rows_as(e.row(e.extent(0) == 1 ? 0 : head, first), e_row, count, rank, copy_e);
      backend::products<Backend, Real>::add(rank, depth, count, weights, 1, e_row, tokens, x_row,
                                            to, out.stride(2));
    }
  });
}

HEED_NOINLINE inline void check_projection(const heed::detail::operand& e,
                                           const heed::detail::operand& x) {
  // [H|1, N, r] by their three axes.
  const char* const name = e.name;
  const index_t e_heads = e.extents[0], e_rows = e.extents[1];
  heed::detail::check_operand(e);
  if (e_heads != 1 && e_heads != x.extents[1]) {
    raise(message(name) << ": head count " << e_heads << " is neither 1 nor " << x.name << "'s "
                        << x.extents[1]);
  }
  if (e_rows < x.extents[2]) {
    raise(message(name) << ": " << e_rows << " rows are fewer than " << x.name << "'s length "
                        << x.extents[2]);
  }
}

}  // namespace detail

// out = eᵀ·x along the sequence; x and e of any element types, out of the type of the sums (float,
// or double where x or e is). Options: on, scratch, key_lengths (tokens behind a sequence do not
// exist). Raises invalid_argument before anything is written where shapes do not fit.
template <class Backend = backend::native, viewable X, viewable E, viewable Out, class... Modifiers>
void project_sequence(const X& x, const E& e, Out&& out, const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_on<Modifiers> || std::is_same_v<Modifiers, scratch> ||
                         std::is_same_v<Modifiers, key_lengths>)),
                "heed::lowrank::project_sequence: options are heed::on, heed::scratch and "
                "heed::key_lengths");
  const auto tokens = read_view_of(x).template lifted<4>();
  const auto map = read_view_of(e).template lifted<3>();
  const auto to = output_view_of(out).template lifted<4>();
  using Real = typename decltype(to)::value_type;
  static_assert(std::is_same_v<Real, accumulator<typename decltype(tokens)::value_type,
                                                 typename decltype(map)::value_type>>,
                "heed::lowrank::project_sequence: out is float, or double where x or e is");
  const auto from = heed::detail::erase("x", tokens), result = heed::detail::erase("out", to);
  heed::detail::check_operand(from);
  detail::check_projection(heed::detail::erase("e", map), from);
  heed::detail::require_equal("out", "batch", to.extent(0), "x", tokens.extent(0));
  heed::detail::require_equal("out", "head count", to.extent(1), "x", tokens.extent(1));
  heed::detail::require_equal("out", "length", to.extent(2), "e's rank", map.extent(2));
  heed::detail::require_equal("out", "depth", to.extent(3), "x", tokens.extent(3));
  heed::detail::check_output(result, result);
  heed::detail::check_disjoint(result, from);
  heed::detail::check_disjoint(result, heed::detail::erase("e", map));
  const index_t* lengths = detail::checked_lengths<key_lengths>("key_lengths", tokens.extent(0),
                                                                tokens.extent(2), modifiers...);
  composed::call_memory memory(modifiers...);
  composed::with_executor(
      [&](auto& executor) {
        Real* copies = nullptr;
        memory.carve([&](heed::detail::bump& take) {
          copies = take.template take<Real>(executor.workers() * detail::projected_tokens *
                                            (tokens.extent(3) + map.extent(2)));
        });
        detail::project<Backend>(tokens, map, lengths, to, copies, executor);
      },
      modifiers...);
}

}  // namespace lowrank
HEED_NAMESPACE_END
