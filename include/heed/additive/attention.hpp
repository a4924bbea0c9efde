// Additive attention: a small network on query and key in place of their product.
//
//   score_ij = w_h · tanh(q_i + k_j) = Σ_d w_h[d]·tanh(q_i[d] + k_j[d])
//   out_i = Σ_j softmax_j(score_ij) v_j
//
//   q [B, Hq, Lq, D], k [B, Hkv, Lk, D]   already projected: q = W_2 s, k = W_1 h, biases included
//   w [Hq|1, D] or [D]                    the network's last layer
//   v [B, Hkv, Lk, Dv], out [B, Hq, Lq, Dv]
//
// Operands, masks, lengths and options are those of heed::attention, as is what it raises. Scores
// are not scaled unless the call has a heed::scale. Another f than tanh: attention() with
// heed::pairwise{f, w}.
//
// Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and
// Translate", ICLR 2015. Luong's "concat" score is the same with q and k projected by the two
// halves of its matrix.
#pragma once

#include "../dense/attention.hpp"
#include "../score/pairwise.hpp"

HEED_NAMESPACE_BEGIN

template <class Backend = backend::native, viewable Q, readable K, readable V, viewable W,
          viewable Out, class... Modifiers>
void additive_attention(const Q& q, const K& k, const V& v, const W& w, Out&& out,
                        const Modifiers&... modifiers) {
  // The caller's scale, if any, comes first and counts.
  attention<Backend>(q, k, v, out, pairwise{tanh_of{}, view_of(w)}, modifiers..., scale{1});
}

HEED_NAMESPACE_END
