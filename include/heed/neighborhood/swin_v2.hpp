// Window attention of Swin Transformer V2: scaled cosine scores and a bias that a small network
// makes of the logarithm of the relative position,
//
//   s_ij = cos(q_i, k_j)·exp(min(logit_scale[h], log 100)) + 16·sigmoid(mlp(g(i − j))[h]) + m(i, j)
//   mlp(x) = w2·max(w1·x + b1, 0),   g(d) = sign(d)·log2(1 + 8·|d| / (p − 1)) / 3 along each axis
//
// p is the window that the network was trained on, the call's own unless it is named. Windows,
// shift, m, shapes and modifiers (but for scale) are those of swin.hpp; logit_scale [Hq]; w1
// [hidden, axes], b1 [hidden], w2 [Hq, hidden].
//
// Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", CVPR 2022.
#pragma once

#include <cmath>

#include "swin.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {

// The network behind the bias.
template <int N, element T>
struct log_position_bias {
  tensor_view<const T, 2> w1;
  tensor_view<const T, 1> b1;
  tensor_view<const T, 2> w2;
  coordinates<N> trained_window{};  // 0: the window of the call

  double operator()(const coordinates<N>& window, index_t entry, index_t head) const {
    double x[N];
    for (std::size_t a = static_cast<std::size_t>(N); a-- > 0;) {
      const index_t d = entry % (2 * window[a] - 1) - (window[a] - 1);
      const index_t trained = trained_window[a] > 0 ? trained_window[a] : window[a];
      const double reach = trained > 1 ? static_cast<double>(trained - 1) : 1;
      const double size = std::log2(1 + 8 * std::abs(static_cast<double>(d)) / reach) / 3;
      x[a] = d < 0 ? -size : size;
      entry /= 2 * window[a] - 1;
    }
    double sum = 0;
    for (index_t j = 0; j < b1.extent(0); ++j) {
      double hidden = widen<double>(b1(j));
      for (int a = 0; a < N; ++a) hidden += widen<double>(w1(j, a)) * x[a];
      if (hidden > 0) sum += widen<double>(w2(head, j)) * hidden;
    }
    return 16 / (1 + std::exp(-sum));
  }
  void check(index_t heads) const {
    const index_t hidden = b1.extent(0);
    if (w1.extent(0) != hidden || w1.extent(1) != N || w2.extent(0) != heads ||
        w2.extent(1) != hidden) {
      raise(message("swin_v2: w1 is [")
            << w1.extent(0) << ", " << w1.extent(1) << "] and w2 [" << w2.extent(0) << ", "
            << w2.extent(1) << "], must be [" << hidden << ", " << N << "] and [" << heads << ", "
            << hidden << "]");
    }
  }
};

namespace detail {

// s times one factor per query and one per key.
template <class Real>
struct cosine_score {
  const Real *queries = nullptr, *keys = nullptr;  // [sequences, heads, tokens of a window]
  index_t heads = 0, tokens = 0;

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    const index_t row = (p.batch * heads + p.head) * tokens;
    return s * S(queries[row + p.q]) * along_keys<S>(keys + row, 1, p);
  }
};

// factor(head) / |row| for every query head and row of the lists.
template <class Real, class Rows, class Factor>
void inverse_lengths(const Rows& rows, index_t heads, const Factor& factor, Real* to) {
  if (rows.empty()) return;
  for (index_t s = 0; s < rows.extent(0); ++s) {
    for (index_t head = 0; head < heads; ++head) {
      for (index_t i = 0; i < rows.extent(2); ++i) {
        const auto* row = rows.row(s, head * rows.extent(1) / heads, i);
        Real sum = 0;
        for (index_t d = 0; d < rows.extent(3); ++d)
          sum += widen<Real>(row[d]) * widen<Real>(row[d]);
        const Real length = std::sqrt(sum);
        *to++ = factor(head) / (length > Real(1e-12) ? length : Real(1e-12));
      }
    }
  }
}

}  // namespace detail

template <int N, class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class S, element T, class... Modifiers>
void swin_v2(const Q& q, const K& k, const V& v, Out&& out, const windows<N>& which,
             const tensor_view<S, 1>& logit_scale, const log_position_bias<N, T>& bias,
             const Modifiers&... modifiers) {
  static_assert((... && !std::is_same_v<Modifiers, scale>),
                "heed::neighborhood::swin_v2: logit_scale is the scale");
  const auto queries = read_view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  const auto values = read_view_of(v).template lifted<4>();
  const auto result = output_view_of(out).template lifted<4>();
  using Real =
      accumulator<typename decltype(queries)::value_type, typename decltype(keys)::value_type,
                  typename decltype(values)::value_type, typename decltype(result)::value_type>;
  const index_t heads = queries.extent(1);
  which.check();
  bias.check(heads);
  if (logit_scale.extent(0) != heads) {
    raise(message("swin_v2: logit_scale has extent ")
          << logit_scale.extent(0) << ", call has " << heads << " heads");
  }
  const auto prepare = [&](const detail::tile_lists& lists, workspace& memory) {
    const index_t rows = lists.sequences() * lists.most_keys;
    Real *of_queries = nullptr, *of_keys = nullptr;
    const auto lay_out = [&](heed::detail::bump& from) {
      of_queries = from.take<Real>(rows * heads);
      of_keys = from.take<Real>(rows * heads);
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory.reserve(counted.bytes()));
    lay_out(taken);
    detail::inverse_lengths(
        lists.queries(queries), heads,
        [&](index_t head) {
          const Real wanted = widen<Real>(logit_scale(head)), most = std::log(Real(100));
          return std::exp(wanted < most ? wanted : most);
        },
        of_queries);
    detail::inverse_lengths(
        lists.keys(keys), heads, [](index_t) { return Real(1); }, of_keys);
    return std::make_tuple(detail::cosine_score<Real>{of_queries, of_keys, heads, lists.most_keys});
  };
  detail::attend_windows<N, Backend>(
      queries, keys, values, result, which,
      [&](index_t entry, index_t head) {
        return static_cast<Real>(bias(which.window, entry, head));
      },
      prepare, scale(1.0), modifiers...);
}

}  // namespace neighborhood
HEED_NAMESPACE_END
