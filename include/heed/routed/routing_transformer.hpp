// Routing Transformer (Roy et al., "Efficient Content-Based Sparse Attention with Routing
// Transformers", 2021): attention within clusters of tokens.
//
//   a cluster of head h takes the w queries and the w_k keys whose directions are nearest to its
//   mean: q/|q|·μ_c and k/|k|·μ_c; what it takes stands in order of position
//   out_i = mean over the clusters that took query i of attention over the cluster's keys;
//           0 where none did (the sum is divided by their number + 1e-5, as in the known code)
//
// q [B, H, L, D], k and v [B, H, Lk, D], means [H, clusters, D]; memory_k and memory_v [H,
// clusters, M, D] are keys that every query of a cluster sees beside its own (M may be 0).
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../core/check_data.hpp"
#include "../dense/attention.hpp"
#include "../mask/mask.hpp"
#include "../sparse/estimate.hpp"
#include "../sparse/gathered_call.hpp"
#include "../sparse/select.hpp"

HEED_NAMESPACE_BEGIN
namespace routed {

struct cluster_options {
  index_t queries = 0, keys = 0;  // w and w_k: how many a cluster takes
  bool causal = false;            // a query sees keys up to its own position
};

// The rows that every cluster takes, ascending: [B·H·clusters, 1, count].
template <viewable X, class M>
std::vector<index_t> cluster_rows(const X& x, const tensor_view<M, 3>& means, index_t count) {
  const auto rows = sparse::estimation::rows_of("x", x);
  const index_t length = rows.extent(2), depth = rows.extent(3), heads = rows.extent(1);
  const sparse::top_k keep(count);
  if (count > length) {
    raise(message("clusters: take ") << count << " of " << length << " tokens");
  }
  std::vector<index_t> result, kept(static_cast<std::size_t>(length));
  std::vector<float> near(kept.size()), row(static_cast<std::size_t>(depth)), mean(row.size());
  for (index_t item = 0; item < rows.extent(0) * heads; ++item) {
    for (index_t c = 0; c < means.extent(1); ++c) {
      sparse::estimation::read_row(means.row(item % heads, c), depth, mean.data());
      for (index_t i = 0; i < length; ++i) {
        sparse::estimation::read_row(rows.row(item / heads, item % heads, i), depth, row.data());
        const float norm = std::sqrt(sparse::dot(row.data(), row.data(), depth));
        near[static_cast<std::size_t>(i)] =
            sparse::dot(row.data(), mean.data(), depth) / std::max(norm, 1e-12f);
      }
      const index_t found = keep(near.data(), length, kept.data());
      if (found < count) raise("clusters: q, k or means hold NaN");
      std::sort(kept.begin(), kept.begin() + found);
      result.insert(result.end(), kept.begin(), kept.begin() + found);
    }
  }
  return result;
}

// Options: scale, on, scratch.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, class M, class MK,
          class MV, viewable Out, class... Modifiers>
void routing_transformer(const Q& q_, const K& k_, const V& v_, const tensor_view<M, 3>& means,
                         const tensor_view<MK, 4>& memory_k, const tensor_view<MV, 4>& memory_v,
                         const cluster_options& how, Out&& result, const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_on<Modifiers> ||
                         heed::detail::is_any_of<Modifiers, scale, scratch>)),
                "heed::routed::routing_transformer takes scale, on and scratch; masks and scores "
                "would see places in the lists of clusters");
  const auto q = sparse::estimation::rows_of("q", q_);
  const auto k = sparse::estimation::rows_of("k", k_);
  const auto v = sparse::estimation::rows_of("v", v_);
  const auto out = output_view_of(result).template lifted<4>();
  using out_type = typename std::remove_cvref_t<decltype(out)>::value_type;
  using Real = accumulator<view_element<Q>, view_element<K>, view_element<V>, out_type>;
  const index_t heads = q.extent(1), clusters = means.extent(1), depth = out.extent(3);
  const auto same = [](const char* name, const char* axis, index_t mine, index_t wanted) {
    if (mine != wanted) {
      raise(message(name) << ": " << axis << " " << mine << ", must be " << wanted);
    }
  };
  same("k", "batch", k.extent(0), q.extent(0)), same("k", "head count", k.extent(1), heads);
  same("k", "depth", k.extent(3), q.extent(3));
  for (int axis : {0, 1, 2}) same("v", "extent", v.extent(axis), k.extent(axis));
  for (int axis : {0, 1, 2}) same("out", "extent", out.extent(axis), q.extent(axis));
  same("out", "depth", depth, v.extent(3));
  same("means", "head count", means.extent(0), heads);
  same("means", "depth", means.extent(2), q.extent(3));
  heed::detail::check_data("means", means);
  for (int axis : {0, 1}) {
    same("memory_k", "extent", memory_k.extent(axis), means.extent(axis));
    same("memory_v", "extent", memory_v.extent(axis), means.extent(axis));
  }
  same("memory_v", "length", memory_v.extent(2), memory_k.extent(2));

  const auto written = heed::detail::erase("out", out);
  heed::detail::check_operand(written);
  heed::detail::check_distinct_rows(written);
  heed::detail::check_disjoint(written, heed::detail::erase("q", q));
  heed::detail::check_disjoint(written, heed::detail::erase("k", k));
  heed::detail::check_disjoint(written, heed::detail::erase("v", v));
  if (out.empty()) return;

  const std::vector<index_t> taken_q = cluster_rows(q_, means, how.queries);
  const std::vector<index_t> taken_k = cluster_rows(k_, means, how.keys);
  const index_t sequences = heads * clusters;
  std::vector<Real> numbers(static_cast<std::size_t>(sequences * how.queries * depth));
  const tensor_view<Real, 4> part(numbers.data(), {sequences, 1, how.queries, depth});
  std::vector<Real> sum(static_cast<std::size_t>(heads * q.extent(2) * depth)),
      times(static_cast<std::size_t>(heads * q.extent(2)));
  // Every cluster's memory is a sequence, in whatever order heads and clusters lie.
  std::vector<index_t> places(static_cast<std::size_t>(memory_k.extent(2)));
  std::iota(places.begin(), places.end(), index_t{0});
  const tensor_view<const index_t, 3> all_places(places.data(), {sequences, 1, memory_k.extent(2)},
                                                 {0, 0, 1});
  const auto of_clusters = [&](const auto& memory) {
    return gathered_view(memory, all_places, clusters);
  };
  for (index_t b = 0; b < q.extent(0); ++b) {
    const tensor_view<const index_t, 3> query_rows(taken_q.data() + b * sequences * how.queries,
                                                   {sequences, 1, how.queries}),
        key_rows(taken_k.data() + b * sequences * how.keys, {sequences, 1, how.keys});
    const mask past{[&](const position& p) {
      return !how.causal || key_rows(p.batch, 0, p.k) <= query_rows(p.batch, 0, p.q);
    }};
    const gathered_view queries(q.slice(0, b, 1), query_rows, heads);
    const gathered_view keys(k.slice(0, b, 1), key_rows, heads);
    const gathered_view values(v.slice(0, b, 1), key_rows, heads);
    if (memory_k.extent(2) == 0 || clusters == 0) {
      heed::attention<Backend>(queries, keys, values, part, past, modifiers...);
    } else {
      heed::attention<Backend>(
          queries,
          sources{source{of_clusters(memory_k), of_clusters(memory_v)}, source{keys, values, past}},
          part, modifiers...);
    }
    std::fill(sum.begin(), sum.end(), Real(0));
    std::fill(times.begin(), times.end(), Real(0));
    for (index_t s = 0; s < sequences; ++s) {
      for (index_t i = 0; i < how.queries; ++i) {
        const index_t to = s / clusters * q.extent(2) + query_rows(s, 0, i);
        times[static_cast<std::size_t>(to)] += 1;
        for (index_t d = 0; d < depth; ++d) {
          sum[static_cast<std::size_t>(to * depth + d)] += part(s, 0, i, d);
        }
      }
    }
    for (index_t row = 0; row < heads * q.extent(2); ++row) {
      for (index_t d = 0; d < depth; ++d) {
        out(b, row / q.extent(2), row % q.extent(2), d) =
            narrow<out_type>(sum[static_cast<std::size_t>(row * depth + d)] /
                             (times[static_cast<std::size_t>(row)] + Real(1e-5)));
      }
    }
  }
}

}  // namespace routed
HEED_NAMESPACE_END
