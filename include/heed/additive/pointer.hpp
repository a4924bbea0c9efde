// The distribution of attention itself as the result: which key does a query point at?
//
//   to[b, h, i, j] = log softmax_j(score_ij) = score_ij − log Σ_j e^(score_ij)
//   best[b, h, i]  = argmax_j to[b, h, i, j], the first of equals; −1 for a row that sees no key
//
//   q [B, Hq, Lq, D], k [B, Hkv, Lk, D]; to [B, Hq, Lq, Lk] of the type of the sums, float, or
//   double where an operand is; −∞ for keys that are masked or behind their batch entry's length.
//
// No values are mixed. The scores are q·k, or what the call's scores make of them:
// pairwise{tanh_of{}, w} with scale{1} gives the pointer of Vinyals, Fortunato and Jaitly, "Pointer
// Networks", NIPS 2015: u_ij = w·tanh(W_1 e_j + W_2 d_i). Masks leave out what was pointed at
// before.
#pragma once

#include "../dense/attention.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// Notes every score that is computed; whether its key is visible is not known here.
template <class Real>
struct note_scores {
  tensor_view<Real, 4> to;

  HEED_INLINE Real operator()(Real s, const position& p) const {
    to(p.batch, p.head, p.q, p.k) = s;
    return s;
  }
  template <int N>
  HEED_INLINE pack<Real, N> operator()(pack<Real, N> s, const pack_position<Real, N>& p) const {
    Real* row = to.row(p.batch, p.head, p.q) + p.first_key;
    for (int lane = 0; lane < p.valid; ++lane) row[lane] = s[lane];
    return s;
  }
  // As scores are asked whether they are functions of float.
  HEED_INLINE float operator()(float s, const position& p) const requires(sizeof(Real) != 4) {
    return static_cast<float>((*this)(static_cast<Real>(s), p));
  }
};

}  // namespace detail

// Masks, scores, scale, key_lengths, query_lengths, on and scratch are those of heed::attention,
// and so is what it raises; `to` must fit q and k.
template <class Backend = backend::native, viewable Q, readable K, viewable To, class... Modifiers>
void pointer_log_probabilities(const Q& q, const K& k, To&& to, const Modifiers&... modifiers) {
  static_assert(
      (... && (!std::is_same_v<Modifiers, ragged> && !std::is_same_v<Modifiers, left_padding>)),
      "heed::pointer_log_probabilities: the result has an axis for the keys of a batch "
      "entry, which ragged batches and left padding do not fit");
  const auto queries = view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  const auto result = output_view_of(to).template lifted<4>();
  using Real =
      accumulator<typename decltype(queries)::value_type, typename decltype(keys)::value_type>;
  static_assert(std::is_same_v<typename decltype(result)::element_type, Real>,
                "heed::pointer_log_probabilities: the result needs float elements, or double ones "
                "where an operand is double");
  const detail::operand out = detail::erase("to", result);
  detail::check_output(detail::erase("q", queries), out);
  detail::require_equal("to", "key count", result.extent(3), "k", keys.extent(2));
  detail::check_disjoint(out, detail::erase("q", queries));
  detail::for_each_array("k", keys,
                         [&](const detail::operand& in) { detail::check_disjoint(out, in); });

  // Values and outputs without channels; the log-sum-exp lies behind the call's own scratch.
  const index_t batches = queries.extent(0), heads = queries.extent(1), length = queries.extent(2);
  const scratch* named = detail::find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  workspace& memory = named != nullptr ? named->memory : memory_of_thread.get();
  detail::bump counted;
  counted.take<Real>(batches * heads * length);
  detail::bump taken(memory.reserve(counted.bytes()));
  const tensor_view<Real, 3> lse(taken.take<Real>(batches * heads * length),
                                 {batches, heads, length});
  const tensor_view<const Real, 4> no_values(nullptr,
                                             {keys.extent(0), keys.extent(1), keys.extent(2), 0});
  const tensor_view<Real, 4> no_output(nullptr, {batches, heads, length, 0});
  const scratch inner(memory.inner());
  attention<Backend>(queries, keys, no_values, no_output, inner, modifiers...,
                     detail::note_scores<Real>{result}, lse_to{lse});

  const auto mask = std::apply([](const auto&... masks) { return detail::conjunction(masks...); },
                               std::tuple_cat(detail::masks_in(modifiers)...));
  const key_lengths* ends = detail::find<key_lengths>(modifiers...);
  const query_lengths* lengths = detail::find<query_lengths>(modifiers...);
  for (index_t b = 0; b < batches; ++b) {
    const auto at = static_cast<std::size_t>(b);
    position p;
    p.batch = b;
    p.queries = lengths != nullptr ? lengths->values[at] : length;
    p.keys = ends != nullptr ? ends->values[at] : keys.extent(2);
    for (p.head = 0; p.head < heads; ++p.head) {
      for (p.q = 0; p.q < length; ++p.q) {
        Real* row = result.row(b, p.head, p.q);
        for (p.k = 0; p.k < result.extent(3); ++p.k) {
          bool visible = p.q < p.queries && p.k < p.keys;
          if constexpr (!std::is_same_v<std::remove_const_t<decltype(mask)>, engine::everything>) {
            visible = visible && mask(static_cast<const position&>(p));
          }
          row[p.k] = visible ? row[p.k] - lse(b, p.head, p.q) : minus_infinity<Real>();
        }
      }
    }
  }
}

// The key that every query points at: `best` [B, Hq, Lq] of signed integers, from the result of
// pointer_log_probabilities.
template <viewable LogProbabilities, viewable Best>
void pointer_argmax(const LogProbabilities& log_probabilities, Best&& best) {
  const auto from = view_of(log_probabilities).template lifted<4>();
  const auto to = output_view_of(best).template lifted<3>();
  using index_type = typename decltype(to)::value_type;
  static_assert(std::is_integral_v<index_type> && std::is_signed_v<index_type>,
                "heed::pointer_argmax: indices are signed integers");
  constexpr const char* axes[] = {"batch", "head count", "length"};
  for (int axis = 0; axis < 3; ++axis) {
    detail::require_equal("best", axes[axis], to.extent(axis), "log_probabilities",
                          from.extent(axis));
  }
  for (index_t b = 0; b < to.extent(0); ++b) {
    for (index_t h = 0; h < to.extent(1); ++h) {
      for (index_t i = 0; i < to.extent(2); ++i) {
        const auto* row = from.row(b, h, i);
        index_t top = -1;
        for (index_t j = 0; j < from.extent(3); ++j) {
          if (is_minus_infinity(row[j])) continue;
          if (top < 0 || row[j] > row[top]) top = j;
        }
        to(b, h, i) = static_cast<index_type>(top);
      }
    }
  }
}

HEED_NAMESPACE_END
