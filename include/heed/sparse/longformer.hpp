// Longformer (Beltagy et al., 2020): a window around every token, and a few global tokens that see
// everything and are seen by everything.
//
//   local row i    softmax over |i − j| ≤ w and all global j, of q·k
//   global row g   softmax over all j, of q_g·k_g: projections of their own
//
//   longformer(q, k, v, qg, kg, vg, state, w, out)
//
// q [B, Hq, L, D], k, kg [B, Hkv, L, D], v, vg [B, Hkv, L, Dv]; qg [B, Hq, most, D], row n is the
// n-th global token of its batch entry; state [B, L]: 1 global, 0 local, −1 padding (neither sees
// nor is seen, out 0). bslongformer is DeepSpeed's layout of the same idea in blocks.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "../core/check_data.hpp"
#include "../dense/attention.hpp"
#include "../mask/mask.hpp"
#include "block_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// DeepSpeed's BSLongformerSparsityConfig: a window of `width` blocks, and global blocks.
inline block_list bslongformer(index_t blocks, index_t block, index_t width,
                               std::span<const index_t> global_blocks, bool unidirectional) {
  if (width < 1) raise(message("layout: width ") << width << " is not positive");
  const auto global = [&](index_t i) {
    return std::find(global_blocks.begin(), global_blocks.end(), i) != global_blocks.end();
  };
  return list_where({1, 1, blocks, blocks, block, block},
                    [&](index_t, index_t, index_t i, index_t j) {
                      if (unidirectional && j > i) return false;
                      return abs(i - j) <= width / 2 || global(i) || global(j);
                    });
}

// What a local token sees.
class longformer_mask {
 public:
  longformer_mask(const tensor_view<const index_t, 2>& state, index_t window)
      : state_(state), window_(min(window, everything)) {
    if (window < 0) raise(message("longformer: window ") << window << " is negative");
    heed::detail::check_data("state", state);
  }
  bool operator()(const position& p) const {
    const index_t key = state_(p.batch, p.k);
    return state_(p.batch, p.q) >= 0 && (key == 1 || (key == 0 && abs(p.q - p.k) <= window_));
  }
  template <class Visit>
  void for_each_key_run(const tile_extent& t, Visit visit) const {
    const index_t first = t.q_begin - window_, last = t.q_end - 1 + window_;
    for (index_t k = t.k_begin; k < t.k_end; ++k) {
      index_t end = k;
      while (end < t.k_end && ((end >= first && end <= last) || state_(t.batch, end) == 1)) ++end;
      if (end > k) visit(k, end);
      k = max(k, end);
    }
  }
  void check(const call_shape& call) const {
    if (state_.extent(0) != call.batches || state_.extent(1) != call.keys) {
      raise(message("longformer: state is [")
            << state_.extent(0) << ", " << state_.extent(1) << "], the call has " << call.batches
            << " batches of " << call.keys << " keys");
    }
    if (call.queries != call.keys) {
      raise(message("longformer: ")
            << call.queries << " queries, must be as many as the " << call.keys << " keys");
    }
  }

 private:
  // Beyond every position, and far enough from the end of the range to be added to one.
  static constexpr index_t everything = index_t{1} << 61;

  tensor_view<const index_t, 2> state_;
  index_t window_;
};

// Options: scale, on, scratch. Raises before anything is written where shapes differ, qg has fewer
// rows than a batch entry has global tokens, data are null, or out shares memory with what global
// tokens read.
template <class Backend = backend::native, class Q, class K, class V, class Qg, class Kg, class Vg,
          class Out, class... Modifiers>
void longformer(const tensor_view<Q, 4>& q, const tensor_view<K, 4>& k, const tensor_view<V, 4>& v,
                const tensor_view<Qg, 4>& qg, const tensor_view<Kg, 4>& kg,
                const tensor_view<Vg, 4>& vg, const tensor_view<const index_t, 2>& state,
                index_t window, const tensor_view<Out, 4>& out, const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_on<Modifiers> ||
                         heed::detail::is_any_of<Modifiers, scale, scratch>)),
                "heed::sparse::longformer takes scale, on and scratch");
  const longformer_mask local(state, window);
  local.check({q.extent(0), q.extent(1), q.extent(2), k.extent(2)});
  std::vector<std::vector<index_t>> global(static_cast<std::size_t>(q.extent(0)));
  for (index_t b = 0; b < q.extent(0); ++b) {
    for (index_t i = 0; i < q.extent(2); ++i) {
      if (state(b, i) == 1) global[static_cast<std::size_t>(b)].push_back(i);
    }
    const auto count = static_cast<index_t>(global[static_cast<std::size_t>(b)].size());
    if (count > qg.extent(2)) {
      raise(message("qg: length ") << qg.extent(2) << " is less than the " << count
                                   << " global tokens of batch entry " << b);
    }
  }
  const auto same = [&](const char* name, const auto& x, const auto& like, int axis) {
    if (x.extent(axis) != like.extent(axis)) {
      raise(message(name) << ": extent " << x.extent(axis) << " of axis " << axis << ", must be "
                          << like.extent(axis));
    }
  };
  for (int axis : {0, 1, 3}) same("qg", qg, q, axis);
  for (int axis : {0, 1, 2, 3}) {
    same("kg", kg, k, axis);
    same("vg", vg, v, axis);
  }
  const auto written = heed::detail::erase("out", out);
  for (const auto& read : {heed::detail::erase("qg", qg), heed::detail::erase("kg", kg),
                           heed::detail::erase("vg", vg)}) {
    heed::detail::check_operand(read);
    heed::detail::check_disjoint(written, read);
  }
  heed::attention<Backend>(q, k, v, out, local, modifiers...);
  for (index_t b = 0; b < q.extent(0); ++b) {
    const std::vector<index_t>& rows = global[static_cast<std::size_t>(b)];
    const auto count = static_cast<index_t>(rows.size());
    if (count == 0) continue;
    const gathered_view<Out> result(out.slice(0, b, 1),
                                    tensor_view<const index_t, 3>(rows.data(), {1, 1, count}));
    heed::attention<Backend>(
        qg.slice(0, b, 1).slice(2, 0, count), kg.slice(0, b, 1), vg.slice(0, b, 1), result,
        mask{[&](const position& p) { return state(b, p.k) >= 0; }}, modifiers...);
  }
}

}  // namespace sparse
HEED_NAMESPACE_END
