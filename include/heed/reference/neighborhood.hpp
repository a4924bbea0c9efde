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

// ---- blocks with a halo
// --------------------------------------------------------------------------

// HaloNet: block b of an image of height·width keys sees its own keys and `halo` more on every
// side; keys beyond the border are zero and count. Of every query_stride-th row and column there is
// a query. rel_y, rel_x [2·(block + 2·halo) − 1, D], by place in the window − place in the block.
struct halo_image {
  index_t height, width;
  index_t rows, columns;  // of a block
  index_t halo_rows, halo_columns;
  index_t query_stride = 1;
};

inline void halo_attention(const operand& q, const operand& k, const operand& v,
                           tensor_view<double, 4> out, const halo_image& image,
                           const std::vector<double>& rel_y, const std::vector<double>& rel_x) {
  const index_t window_rows = image.rows + 2 * image.halo_rows,
                window_columns = image.columns + 2 * image.halo_columns;
  const index_t rows = image.rows / image.query_stride,
                columns = image.columns / image.query_stride;
  const index_t across = image.width / image.query_stride;
  std::vector<double> query(static_cast<std::size_t>(q.depth())), key(query.size()),
      value(static_cast<std::size_t>(v.depth()));
  const auto dot = [&](const double* x) {
    double sum = 0;
    for (std::size_t d = 0; d < query.size(); ++d) sum += query[d] * x[d];
    return sum;
  };
  for (index_t b = 0; b < q.batches(); ++b) {
    for (index_t h = 0; h < q.heads(); ++h) {
      const index_t key_head = h / (q.heads() / k.heads());
      for (index_t i = 0; i < q.length(); ++i) {
        q.read_row(b, h, i, query.data());
        const index_t y = i / across, x = i % across;
        std::vector<double> sum(value.size(), 0.0);
        double total = 0;
        for (index_t wy = 0; wy < window_rows; ++wy) {
          for (index_t wx = 0; wx < window_columns; ++wx) {
            const index_t ky = y / rows * image.rows - image.halo_rows + wy;
            const index_t kx = x / columns * image.columns - image.halo_columns + wx;
            const bool inside = ky >= 0 && ky < image.height && kx >= 0 && kx < image.width;
            double score = dot(rel_y.data() + (wy - y % rows + window_rows - 1) * q.depth()) +
                           dot(rel_x.data() + (wx - x % columns + window_columns - 1) * q.depth());
            if (inside) {
              k.read_row(b, key_head, ky * image.width + kx, key.data());
              v.read_row(b, key_head, ky * image.width + kx, value.data());
              score += dot(key.data()) / std::sqrt(static_cast<double>(q.depth()));
            }
            const double weight = std::exp(score);
            total += weight;
            for (std::size_t d = 0; inside && d < sum.size(); ++d) sum[d] += weight * value[d];
          }
        }
        for (std::size_t d = 0; d < sum.size(); ++d) {
          out(b, h, i, static_cast<index_t>(d)) = sum[d] / total;
        }
      }
    }
  }
}

}  // namespace reference

HEED_NAMESPACE_END
