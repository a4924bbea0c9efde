// Neighborhood, shifted window and halo attention from their definitions, in double precision: the
// oracle of the neighborhood family. Everything is a search over all pairs of tokens.
//
// Tokens of a grid are numbered row-major. q, k [B, H, N, D], v [B, Hkv, N, Dv] → out [B, H, N,
// Dv].
#pragma once

#include <vector>

#include "dense.hpp"

HEED_NAMESPACE_BEGIN

namespace reference {

// ---- neighborhood
// --------------------------------------------------------------------------------

struct neighborhood_axis {
  index_t extent, window, stride = 1, dilation = 1;
  bool causal = false;
};

namespace detail {

inline std::vector<index_t> coordinates_of(index_t token, const std::vector<index_t>& grid) {
  std::vector<index_t> at(grid.size());
  for (std::size_t a = grid.size(); a-- > 0; token /= grid[a]) at[a] = token % grid[a];
  return at;
}

// Generalized neighborhood attention along one axis: tokens of one remainder mod dilation are
// neighbours of each other; `stride` of them share the window around their leader.
inline bool sees_along(const neighborhood_axis& axis, index_t q, index_t k) {
  if (q % axis.dilation != k % axis.dilation) return false;
  index_t last = q;  // of the group
  while (last + axis.dilation < axis.extent) last += axis.dilation;
  last /= axis.dilation;
  const index_t place = q / axis.dilation, key = k / axis.dilation;
  index_t leader = place - place % axis.stride;
  for (index_t i = 0; i < (axis.causal ? axis.stride - 1 : axis.stride / 2); ++i) {
    if (leader < last) ++leader;
  }
  if (axis.causal) return key <= place && key > leader - axis.window;
  index_t begin = leader - axis.window / 2;
  while (begin < 0) ++begin;
  while (begin + axis.window - 1 > last) --begin;
  return begin <= key && key < begin + axis.window;
}

}  // namespace detail

// Whether token q sees token k.
inline bool sees(const std::vector<neighborhood_axis>& axes, index_t q, index_t k) {
  std::vector<index_t> grid;
  for (const neighborhood_axis& axis : axes) grid.push_back(axis.extent);
  const std::vector<index_t> at = detail::coordinates_of(q, grid),
                             of = detail::coordinates_of(k, grid);
  for (std::size_t a = 0; a < axes.size(); ++a) {
    if (!detail::sees_along(axes[a], at[a], of[a])) return false;
  }
  return true;
}

// `bias` is [H, 2w₀ − 1, …] or empty; `how` may have more masks, scores and what else it offers.
inline void neighborhood_attention(const operand& q, const operand& k, const operand& v,
                                   tensor_view<double, 4> out,
                                   const std::vector<neighborhood_axis>& axes,
                                   const std::vector<double>& bias = {}, options how = {}) {
  std::vector<index_t> grid;
  for (const neighborhood_axis& axis : axes) grid.push_back(axis.extent);
  const predicate also = how.visible;
  how.visible = [&](const position& p) { return sees(axes, p.q, p.k) && (!also || also(p)); };
  if (!bias.empty()) {
    how.scores.insert(how.scores.begin(), [&](double s, const position& p) {
      const std::vector<index_t> at = detail::coordinates_of(p.q, grid),
                                 of = detail::coordinates_of(p.k, grid);
      index_t entry = p.head;
      for (std::size_t a = 0; a < axes.size(); ++a) {
        const index_t places = of[a] / axes[a].dilation - at[a] / axes[a].dilation;
        entry = entry * (2 * axes[a].window - 1) + places + axes[a].window - 1;
      }
      return s + bias[static_cast<std::size_t>(entry)];
    });
  }
  attention(q, k, v, out, how);
}

// ---- shifted windows
// -----------------------------------------------------------------------------

// Swin: the image rolled by −shift, cut into windows that attend to themselves. What was not a
// neighbour before it was rolled gets `mask_value` added. `table` is [(2h − 1)(2w − 1), H], entry
// by query − key; empty: none.
struct shifted_windows {
  index_t height, width;        // of the image
  index_t rows, columns;        // of a window
  index_t down = 0, right = 0;  // shift
  double mask_value = -100;
};

inline void window_attention(const operand& q, const operand& k, const operand& v,
                             tensor_view<double, 4> out, const shifted_windows& w,
                             const std::vector<double>& table, options how = {}) {
  // Where a token lies in the rolled image.
  const auto row = [&](index_t token) { return (token / w.width + w.height - w.down) % w.height; };
  const auto column = [&](index_t token) {
    return (token % w.width + w.width - w.right) % w.width;
  };
  // The slices [0, −window), [−window, −shift), [−shift, end) of an axis.
  const auto slice = [](index_t at, index_t extent, index_t window, index_t shift) {
    if (shift == 0) return 0;
    return at < extent - window ? 0 : at < extent - shift ? 1 : 2;
  };
  how.visible = [&](const position& p) {
    return row(p.q) / w.rows == row(p.k) / w.rows &&
           column(p.q) / w.columns == column(p.k) / w.columns;
  };
  how.scores.push_back([&](double s, const position& p) {
    if (!table.empty()) {
      const index_t down = row(p.q) % w.rows - row(p.k) % w.rows + w.rows - 1;
      const index_t right = column(p.q) % w.columns - column(p.k) % w.columns + w.columns - 1;
      const auto entry =
          static_cast<std::size_t>((down * (2 * w.columns - 1) + right) * q.heads() + p.head);
      s += table[entry];
    }
    const bool apart =
        slice(row(p.q), w.height, w.rows, w.down) != slice(row(p.k), w.height, w.rows, w.down) ||
        slice(column(p.q), w.width, w.columns, w.right) !=
            slice(column(p.k), w.width, w.columns, w.right);
    return apart ? s + w.mask_value : s;
  });
  attention(q, k, v, out, how);
}

}  // namespace reference

HEED_NAMESPACE_END
