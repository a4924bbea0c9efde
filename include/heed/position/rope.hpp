// Rotary position embedding (RoPE): turns pairs of elements of every row by angles that grow with
// the row's position, so that the product of a query and a key depends on their distance only.
//
// Row r at position p = (offset + r, or its position id), of which the first d elements take part
// (the others are copied), with the frequencies w_i = theta'^(-2i/d), i < d/2:
//
//   angle_i = p / linear_factor · w_i        theta' = theta·ntk_factor^(d/(d-2))
//   (a, b) → (a·cos - b·sin, a·sin + b·cos)
//   rotate_half:  pair i is (x[i], x[i + d/2])        interleaved:  pair i is (x[2i], x[2i+1])
//
// x and out are [B, H, L, D], or the last two or three of these axes, of any element types and any
// strides with contiguous rows. Angles, cosines and sines are computed in double, once per position
// and frequency for all heads; or read from caches: [positions, d/2], indexed by position, or
// [B|1, L, d/2], indexed by row (the two forms of ONNX RotaryEmbedding).
//
// Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (interleaved);
// rotate_half is the layout of GPT-NeoX and LLaMA. Linear scaling: Chen et al., "Extending Context
// Window of Large Language Models via Positional Interpolation", 2023. NTK-aware scaling: bloc97,
// 2023, as described in Peng et al., "YaRN", 2023, section 3.1.
#pragma once

#include <type_traits>
#include <vector>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../core/view_of.hpp"
#include "detail/overlap.hpp"
#include "detail/rope_angles.hpp"
#include "detail/rope_rows.hpp"
#include "rope_options.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

template <class T, class U, class Executor>
void apply_rope(const tensor_view<T, 4>& from, const tensor_view<U, 4>& to,
                const rope_options& options, Executor& pool) {
  using real = accumulator<T, U>;
  static constexpr const char* axes[] = {"batch axis has extent ", "head axis has extent ",
                                         "length axis has extent ", "depth axis has extent "};
  for (int axis = 0; axis < 4; ++axis) {
    if (from.extent(axis) != to.extent(axis)) {
      raise(message("out: ") << axes[axis] << to.extent(axis) << ", x has " << from.extent(axis));
    }
  }
  const index_t batches = from.extent(0), heads = from.extent(1), rows = from.extent(2),
                depth = from.extent(3);
  const rope_angles angles(options, "x", batches, rows, rope_dimension(options, depth));
  check_overlap(from, to);
  if (to.empty()) return;

  // Per worker: cosines and sines of one row, as computed and as multiplied with.
  const index_t half = angles.half();
  const auto per_worker = static_cast<std::size_t>(2 * half);
  std::vector<double> exact(per_worker * static_cast<std::size_t>(pool.workers()));
  std::vector<real> rounded(exact.size());
  pool.run(rows, [&](index_t row, int worker) {
    double* const exact_cosines = exact.data() + per_worker * static_cast<std::size_t>(worker);
    real* const cosines = rounded.data() + per_worker * static_cast<std::size_t>(worker);
    for (index_t batch = 0; batch < batches; ++batch) {
      if (batch == 0 || !angles.same_for_all_batches()) {
        angles.read(batch, row, exact_cosines, exact_cosines + half);
        for (index_t i = 0; i < 2 * half; ++i) cosines[i] = static_cast<real>(exact_cosines[i]);
      }
      for (index_t head = 0; head < heads; ++head) {
        rotate_row<real>(from.row(batch, head, row), to.row(batch, head, row), cosines,
                         cosines + half, half, depth, options.pairing);
      }
    }
  });
}

}  // namespace detail

// Rotates every row of x into out; both are anything that view_of takes. Out may be x itself (same
// pointer, type and strides) or must not overlap it. Rows may run in parallel; the result does not
// depend on the executor.
template <viewable X, viewable Out, class Executor = serial>
void apply_rope(X&& x, Out&& out, const rope_options& options = {}, Executor&& pool = Executor{}) {
  static_assert(executor<std::remove_cvref_t<Executor>>, "heed: the last argument is no executor");
  static_assert(view_rank<X> >= 2 && view_rank<X> <= 4, "heed: rope takes 2, 3 or 4 axes");
  static_assert(view_rank<X> == view_rank<Out>, "heed: x and out differ in rank");
  detail::apply_rope(view_of(x).template lifted<4>(),
                     output_view_of(static_cast<Out&&>(out)).template lifted<4>(), options, pool);
}

// In place.
template <viewable X, class Executor = serial>
void apply_rope(X&& x, const rope_options& options = {}, Executor&& pool = Executor{}) {
  apply_rope(x, static_cast<X&&>(x), options, pool);
}

// Fills caches [positions, d/2] for rope_options::cache with the cosines and sines that the options
// would give to rows 0, 1, …: computed once, they serve all layers and steps.
template <element T>
void fill_rope_cache(tensor_view<T, 2> cosines, tensor_view<T, 2> sines,
                     const rope_options& options = {}) {
  static_assert(!std::is_const_v<T>, "heed: cosines are a view of constants");
  if (options.cache.given()) raise("rope: a cache is filled from positions, not from a cache");
  const index_t rows = cosines.extent(0), half = cosines.extent(1);
  if (sines.extent(0) != rows || sines.extent(1) != half) {
    raise(message("sines: extents ") << sines.extent(0) << " x " << sines.extent(1)
                                     << ", cosines have " << rows << " x " << half);
  }
  if (options.dimension != 0 && options.dimension != 2 * half) {
    raise(message("cosines: column count ") << half << ", rotary dimension " << options.dimension
                                            << " needs " << options.dimension / 2);
  }
  const detail::rope_angles angles(options, "the cache", 1, rows, 2 * half);
  std::vector<double> exact(static_cast<std::size_t>(2 * half));
  for (index_t row = 0; row < rows; ++row) {
    angles.read(0, row, exact.data(), exact.data() + half);
    for (index_t i = 0; i < half; ++i) {
      cosines(row, i) = narrow<T>(exact[static_cast<std::size_t>(i)]);
      sines(row, i) = narrow<T>(exact[static_cast<std::size_t>(half + i)]);
    }
  }
}

HEED_NAMESPACE_END
