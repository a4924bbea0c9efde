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
#include "../observer/scores.hpp"

HEED_NAMESPACE_BEGIN

// Modifiers are those of heed::attention, and so is what it raises, where `to` is called scores_to.
template <class Backend = backend::native, viewable Q, readable K, viewable To, class... Modifiers>
void pointer_log_probabilities(const Q& q, const K& k, To&& to, const Modifiers&... modifiers) {
  const auto queries = view_of(q).template lifted<4>();
  const auto keys = read_view_of(k).template lifted<4>();
  const auto result = output_view_of(to).template lifted<4>();
  using Real =
      accumulator<typename decltype(queries)::value_type, typename decltype(keys)::value_type>;
  static_assert(std::is_same_v<typename decltype(result)::element_type, Real>,
                "heed::pointer_log_probabilities: the result needs float elements, or double ones "
                "where an operand is double");
  // Values and outputs without channels: what is left are the scores and their log-sum-exp.
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
  attention<Backend>(queries, keys, no_values, no_output, inner, modifiers..., scores_to{result},
                     lse_to{lse});
  for (index_t b = 0; b < batches; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      for (index_t i = 0; i < length; ++i) {
        Real* row = result.row(b, h, i);
        const Real total = lse(b, h, i);
        if (is_minus_infinity(total)) continue;  // a row that sees no key
        for (index_t j = 0; j < result.extent(3); ++j) {
          if (!is_minus_infinity(row[j])) row[j] -= total;
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
