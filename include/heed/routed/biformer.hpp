// Bi-level routing attention (Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing
// Attention", 2023): an image of height·width tokens, row by row, is cut into windows × windows
// regions;
//
//   region r routes to the topk regions with the highest mean(q_r)·mean(k_r'), over all heads
//   out_i = softmax over all tokens of these regions, scale 1/√(H·D): the full depth
//   plus LePE, a depthwise convolution of v (add_depthwise)
//
//   biformer(q, k, v, {height, width, windows, topk}, out, …); add_depthwise(v, w, bias, …, out)
//
// q, k, v, out [B, H, height·width, D]; windows divides both sides.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/check_data.hpp"
#include "../dense/attention.hpp"
#include "../sparse/attention.hpp"
#include "../sparse/estimate.hpp"
#include "../sparse/select.hpp"

HEED_NAMESPACE_BEGIN
namespace routed {

struct region_options {
  index_t height = 0, width = 0;
  index_t windows = 7, topk = 4;
  double scale = 0;  // 0: 1/√(H·D)

  index_t regions() const { return windows * windows; }
  index_t region_size() const { return height * width / regions(); }
  // Row of the i-th token of region r.
  index_t token(index_t r, index_t i) const {
    const index_t h = height / windows, w = width / windows;
    return (r / windows * h + i / w) * width + r % windows * w + i % w;
  }
  void check(index_t length) const {
    if (windows < 1 || height < 1 || width < 1 || height % windows != 0 || width % windows != 0) {
      raise(message("regions: ") << windows << " windows do not divide an image of " << height
                                 << " by " << width);
    }
    if (length != height * width) {
      raise(message("q: length ") << length << " differs from the image's " << height * width);
    }
    if (topk > regions()) {
      raise(message("regions: topk ") << topk << " is more than the " << regions() << " regions");
    }
  }
};

// The regions that every region routes to, highest first: [B, regions, topk].
template <viewable Q, viewable K>
std::vector<index_t> region_routes(const Q& q, const K& k, const region_options& how) {
  const auto queries = sparse::estimation::rows_of("q", q);
  const auto keys = sparse::estimation::rows_of("k", k);
  how.check(queries.extent(2));
  sparse::lists::check_axes("k", keys, "q", queries, true);
  const sparse::top_k keep(how.topk);
  const index_t heads = queries.extent(1), depth = queries.extent(3), regions = how.regions();
  const auto means = [&](const auto& x) {
    sparse::table result({x.extent(0), 1, regions, heads * depth});
    for (index_t b = 0; b < x.extent(0); ++b) {
      for (index_t r = 0; r < regions; ++r) {
        float* mean = result.view().row(b, 0, r);
        for (index_t i = 0; i < how.region_size(); ++i) {
          for (index_t c = 0; c < heads * depth; ++c) {
            mean[c] += widen<float>(x(b, c / depth, how.token(r, i), c % depth)) /
                       static_cast<float>(how.region_size());
          }
        }
      }
    }
    return result;
  };
  const sparse::table of_q = means(queries), of_k = means(keys);
  const sparse::table near = sparse::product_scores(of_q.view(), of_k.view(), 1.0);
  std::vector<index_t> routes, kept(static_cast<std::size_t>(regions));
  for (index_t b = 0; b < queries.extent(0); ++b) {
    for (index_t r = 0; r < regions; ++r) {
      const float* scores = near.view().row(b, 0, r);
      if (keep(scores, regions, kept.data()) < how.topk) raise("regions: q or k holds NaN");
      std::sort(kept.begin(), kept.begin() + how.topk, sparse::order::higher{scores});
      routes.insert(routes.end(), kept.begin(), kept.begin() + how.topk);
    }
  }
  return routes;
}

// Modifiers: on, scratch, count_tiles.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void biformer(const Q& q_, const K& k_, const V& v_, const region_options& how, Out&& result,
              const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_on<Modifiers> ||
                         heed::detail::is_any_of<Modifiers, scratch, count_tiles>)),
                "heed::routed::biformer takes on, scratch and count_tiles; masks and scores would "
                "see places in the lists of regions");
  const auto q = sparse::estimation::rows_of("q", q_);
  const auto k = sparse::estimation::rows_of("k", k_);
  const auto v = sparse::estimation::rows_of("v", v_);
  const auto out = output_view_of(result).template lifted<4>();
  sparse::estimation::check_heads_and_depth(q, k);
  if (k.extent(1) != q.extent(1) || k.extent(2) != q.extent(2)) {
    raise(message("k: [heads, length] [")
          << k.extent(1) << ", " << k.extent(2) << "] differ from q's [" << q.extent(1) << ", "
          << q.extent(2) << "]");
  }
  sparse::lists::check_axes("v", v, "k", k, true);
  sparse::lists::check_axes("out", out, "q", q, true);
  const std::vector<index_t> routes = region_routes(q_, k_, how);
  const index_t regions = how.regions(), size = how.region_size();
  std::vector<index_t> query_rows, key_rows;
  for (index_t s = 0; s < q.extent(0) * regions; ++s) {
    for (index_t i = 0; i < size; ++i) query_rows.push_back(how.token(s % regions, i));
    for (index_t n = 0; n < how.topk; ++n) {
      const index_t region = routes[static_cast<std::size_t>(s * how.topk + n)];
      for (index_t i = 0; i < size; ++i) key_rows.push_back(how.token(region, i));
    }
  }
  using rows = tensor_view<const index_t, 3>;
  const rows queries(query_rows.data(), {q.extent(0) * regions, 1, size});
  const rows keys(key_rows.data(), {q.extent(0) * regions, 1, how.topk * size});
  const double depth = static_cast<double>(q.extent(1) * q.extent(3));
  heed::attention<Backend>(gathered_view(q, queries), gathered_view(k, keys),
                           gathered_view(v, keys), gathered_view(out, queries),
                           scale(how.scale != 0 ? how.scale : 1 / std::sqrt(depth > 0 ? depth : 1)),
                           modifiers...);
}

// out += depthwise convolution of x [B, H, height·width, D] with weight [H·D, side, side] (odd
// side, zeros around the image) and bias [H·D]: locally enhanced position encoding.
template <viewable X, class W, class T, int Rank>
void add_depthwise(const X& x_, const tensor_view<W, 3>& weight, const tensor_view<W, 1>& bias,
                   index_t height, index_t width, const tensor_view<T, Rank>& result) {
  const auto x = sparse::estimation::rows_of("x", x_);
  const auto out = result.template lifted<4>();
  const index_t depth = x.extent(3), side = weight.extent(1), reach = side / 2;
  for (int axis : {0, 1, 2, 3}) {
    if (out.extent(axis) != x.extent(axis)) {
      raise(message("out: extent ")
            << out.extent(axis) << " of axis " << axis << " differs from x's " << x.extent(axis));
    }
  }
  if (height < 0 || width < 0 || x.extent(2) != height * width) {
    raise(message("x: length ") << x.extent(2) << " differs from an image of " << height << " by "
                                << width);
  }
  if (side % 2 == 0 || weight.extent(2) != side || weight.extent(0) != x.extent(1) * depth ||
      bias.extent(0) != weight.extent(0)) {
    raise(message("weight: [") << weight.extent(0) << ", " << side << ", " << weight.extent(2)
                               << "] with " << bias.extent(0) << " biases, must be one odd square "
                               << "and one bias for each of " << x.extent(1) * depth
                               << " channels");
  }
  const auto written = heed::detail::erase("out", out), read = heed::detail::erase("x", x);
  heed::detail::check_output(read, written);
  heed::detail::check_disjoint(written, read);
  heed::detail::check_data("weight", weight);
  heed::detail::check_data("bias", bias);
  using Real = accumulator<view_element<X>, W, T>;
  for (index_t b = 0; b < x.extent(0); ++b) {
    for (index_t h = 0; h < x.extent(1); ++h) {
      for (index_t i = 0; i < height * width; ++i) {
        for (index_t d = 0; d < depth; ++d) {
          const index_t channel = h * depth + d;
          Real sum = widen<Real>(out(b, h, i, d)) + widen<Real>(bias(channel));
          for (index_t u = 0; u < side; ++u) {
            for (index_t w = 0; w < side; ++w) {
              const index_t row = i / width + u - reach, column = i % width + w - reach;
              if (row < 0 || row >= height || column < 0 || column >= width) continue;
              sum += widen<Real>(weight(channel, u, w)) *
                     widen<Real>(x(b, h, row * width + column, d));
            }
          }
          out(b, h, i, d) = narrow<T>(sum);
        }
      }
    }
  }
}

}  // namespace routed
HEED_NAMESPACE_END
