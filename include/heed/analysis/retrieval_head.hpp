// Which heads look at what is copied.
//
//   copied[b, i]   the key whose token query i reproduces (or would); negative: none
//
//   retrieval_score   share of those queries whose largest weight lies on the copied key:
//                     of top_keys_to with K = 1. Wu et al., "Retrieval Head Mechanistically
//                     Explains Long-Context Factuality", ICLR 2025
//   copied_share      their mean weight on it: of key_weights_to. Tang et al., "RazorAttention",
//                     ICLR 2025, measures echo and induction heads so, on random tokens repeated
//
// echo_keys and induction_keys list such keys for a sequence of tokens: the last earlier place of
// the query's own token, and the place behind it, whose token an induction head predicts (Olsson et
// al., "In-context Learning and Induction Heads", 2022).
#pragma once

#include <array>

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace analysis {

namespace detail {

// heads[b, h] = mean over queries with a copied key of value(b, h, i, key); 0 where there is none.
template <class I, class T, class Value>
void mean_over_copies(const char* name, const tensor_view<I, 2>& copied,
                      const std::array<index_t, 3>& rows, const tensor_view<T, 2>& heads,
                      const Value& value) {
  if (heads.extent(0) != rows[0] || heads.extent(1) != rows[1]) {
    raise(message(name) << ": heads are [" << heads.extent(0) << ", " << heads.extent(1)
                        << "], the observed rows have [" << rows[0] << ", " << rows[1] << ", …]");
  }
  if (copied.extent(0) != rows[0] || copied.extent(1) != rows[2]) {
    raise(message(name) << ": copied keys are [" << copied.extent(0) << ", " << copied.extent(1)
                        << "], the observed rows have batch " << rows[0] << " and length "
                        << rows[2]);
  }
  for (index_t b = 0; b < rows[0]; ++b) {
    for (index_t h = 0; h < rows[1]; ++h) {
      double sum = 0, count = 0;
      for (index_t i = 0; i < rows[2]; ++i) {
        if (copied(b, i) < 0) continue;
        sum += value(b, h, i, copied(b, i));
        ++count;
      }
      heads(b, h) = narrow<T>(count > 0 ? sum / count : 0.0);
    }
  }
}

}  // namespace detail

// top [B, H, Lq, ≥ 1], copied [B, Lq] → heads [B, H]
template <class I, class J, class T>
void retrieval_score(const tensor_view<I, 4>& top, const tensor_view<J, 2>& copied,
                     const tensor_view<T, 2>& heads) {
  if (top.extent(3) < 1) raise("retrieval_score: there are no top keys");
  detail::mean_over_copies("retrieval_score", copied, {top.extent(0), top.extent(1), top.extent(2)},
                           heads, [&](index_t b, index_t h, index_t i, index_t key) {
                             return static_cast<index_t>(top(b, h, i, 0)) == key ? 1.0 : 0.0;
                           });
}

// weights [B, H, Lq, 1] on the copied keys, copied [B, Lq] → heads [B, H]
template <class U, class J, class T>
void copied_share(const tensor_view<U, 4>& weights, const tensor_view<J, 2>& copied,
                  const tensor_view<T, 2>& heads) {
  if (weights.extent(3) < 1) raise("copied_share: there are no weights");
  detail::mean_over_copies(
      "copied_share", copied, {weights.extent(0), weights.extent(1), weights.extent(2)}, heads,
      [&](index_t b, index_t h, index_t i, index_t) { return widen<double>(weights(b, h, i, 0)); });
}

// tokens [L] → keys [L]: the last j < i with the token of i, plus `behind`; −1 where there is none.
template <class Token, class I>
void echo_keys(const tensor_view<Token, 1>& tokens, const tensor_view<I, 1>& keys,
               index_t behind = 0) {
  if (keys.extent(0) != tokens.extent(0)) {
    raise(message("echo_keys: ") << keys.extent(0) << " keys for " << tokens.extent(0)
                                 << " tokens");
  }
  for (index_t i = 0; i < tokens.extent(0); ++i) {
    index_t j = i - 1;
    while (j >= 0 && tokens(j) != tokens(i)) --j;
    keys(i) = static_cast<I>(j < 0 ? -1 : j + behind);
  }
}
template <class Token, class I>
void induction_keys(const tensor_view<Token, 1>& tokens, const tensor_view<I, 1>& keys) {
  echo_keys(tokens, keys, 1);
}

}  // namespace analysis
HEED_NAMESPACE_END
