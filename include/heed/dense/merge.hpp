// Merge of partial attentions: what attention of the same queries over several disjoint sets of
// keys gave becomes what attention over all of the keys gives,
//
//   lse = log Σ_i exp(lse_i),   out = Σ_i exp(lse_i − lse)·out_i,
//
// the union of softmax states (core/softmax_state.hpp) for states that are already normalised.
// Exact up to rounding, and the keys may be cut in any way, so this is what joins
//
//   splits of a long sequence      FlashDecoding (Dao et al., 2023); Rabe and Staats, 2021
//   a shared prefix and own keys   Hydragen (Juravsky et al., 2024), RelayAttention (Zhu et al.,
//                                  2024): dense/shared_prefix.hpp does it in one call
//   levels of a tree of prefixes   cascade inference (Ye et al., 2024)
//   keys of several processes      Ring Attention (Liu et al., 2023)
//
//   heed::attention(q, k1, v1, out1, heed::lse_to{lse1});
//   heed::attention(q, k2, v2, out2, heed::lse_to{lse2});
//   heed::merge({heed::part{out1, lse1}, heed::part{out2, lse2}}, out, heed::lse_to{lse});
//
// A row's part with lse −∞ attended to nothing and counts nothing, whatever its out holds; where
// all parts are so, out is 0 and lse −∞. An lse of +∞ outweighs every finite one. A NaN in a part
// that counts reaches the result. A sink belongs into one of the parts, or it counts several times.
#pragma once

#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <span>

#include "../core/element.hpp"
#include "../core/pack.hpp"
#include "../core/view_of.hpp"
#include "detail/check.hpp"
#include "options.hpp"

HEED_NAMESPACE_BEGIN

// Attention over one set of keys: out [B, H, L, Dv] and its log-sum-exp [B, H, L] (natural
// logarithm), both float or both double. Leading axes may lack, as in attention().
template <class T>
struct part {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "heed::part: partial results are kept in float or double");
  tensor_view<const T, 4> out;
  tensor_view<const T, 3> lse;

  template <viewable Out, class Lse, int Rank>
  part(const Out& output, const tensor_view<Lse, Rank>& log_sum_exp)
      : out(read_only(view_of(output)).template lifted<4>()),
        lse(read_only(log_sum_exp).template lifted<3>()) {}

 private:
  template <class U, int Rank>
  static tensor_view<const T, Rank> read_only(const tensor_view<U, Rank>& view) {
    static_assert(std::is_same_v<std::remove_const_t<U>, T>,
                  "heed::part: out and lse have the same element type");
    return view;
  }
};
template <viewable Out, class Lse, int Rank>
part(const Out&, const tensor_view<Lse, Rank>&) -> part<std::remove_const_t<Lse>>;

namespace detail {

template <class M>
inline constexpr bool is_part = false;
template <class T>
inline constexpr bool is_part<part<T>> = true;

// What a contiguous range holds. std::span says so too, and <ranges> takes long to compile.
template <class Range>
using element_of =
    std::remove_const_t<typename decltype(std::span(std::declval<const Range&>()))::element_type>;

// The same elements: axes of one element may have any stride, the last one has none.
inline bool same_elements(const operand& a, const operand& b) {
  bool same = a.data == b.data && a.row_bytes == b.row_bytes;
  for (int axis = 0; axis < 3; ++axis) {
    same = same && a.extents[axis] == b.extents[axis] &&
           (a.extents[axis] <= 1 || a.strides[axis] == b.strides[axis]);
  }
  return same;
}

// An output may be an input, whole, to merge in place; it may not overlap it otherwise.
HEED_NOINLINE inline void check_disjoint_or_same(const operand& written, const operand& read) {
  if (!same_elements(written, read)) check_disjoint(written, read);
}

HEED_NOINLINE inline void check_part(index_t number, operand part_out, operand part_lse,
                                     const operand& out, const operand* lse) {
  char name[48], lse_name[48];
  std::snprintf(name, sizeof(name), "part %lld", static_cast<long long>(number));
  std::snprintf(lse_name, sizeof(lse_name), "lse of part %lld", static_cast<long long>(number));
  part_out.name = name;
  part_lse.name = lse_name;
  check_rows(part_out, out);
  require_equal(name, "depth", part_out.extents[3], "out", out.extents[3]);
  check_rows(part_lse, out);
  check_disjoint_or_same(out, part_out);
  check_disjoint(out, part_lse);
  if (lse != nullptr) {
    check_disjoint_or_same(*lse, part_lse);
    check_disjoint(*lse, part_out);
  }
}

// One row of all parts. The output may be the row of a part.
template <class Real, class T, class Out>
void merge_row(std::span<const part<T>> parts, index_t batch, index_t head, index_t at, Out* out,
               index_t depth, Real* lse) {
  const auto lse_of = [&](const part<T>& p) { return static_cast<Real>(p.lse(batch, head, at)); };
  Real highest = 0;
  bool any = false;
  for (const part<T>& p : parts) {
    const Real x = lse_of(p);
    if (is_minus_infinity(x)) continue;
    if (!any || x > highest) highest = x;
    any = true;
  }
  // The difference of two infinities would be NaN.
  const auto weight = [&](Real x) { return x == highest ? Real(1) : std::exp(x - highest); };
  Real total = 0;
  for (const part<T>& p : parts) {
    if (const Real x = lse_of(p); !is_minus_infinity(x)) total += weight(x);
  }
  const Real factor = any ? 1 / total : Real(0);
  // Sums in order of the parts, over as many columns as stay in the first-level cache.
  constexpr index_t columns = 256;
  Real sum[columns];
  for (index_t first = 0; first < depth; first += columns) {
    const index_t count = depth - first < columns ? depth - first : columns;
    for (index_t d = 0; d < count; ++d) sum[d] = 0;
    for (const part<T>& p : parts) {
      const Real x = lse_of(p);
      if (is_minus_infinity(x)) continue;
      const Real share = weight(x) * factor;
      const T* row = p.out.row(batch, head, at) + first;
      for (index_t d = 0; d < count; ++d) sum[d] += share * static_cast<Real>(row[d]);
    }
    for (index_t d = 0; d < count; ++d) out[first + d] = narrow<Out>(sum[d]);
  }
  if (lse != nullptr) *lse = any ? highest + std::log(total) : minus_infinity<Real>();
}

template <class T, viewable Out, class... Modifiers>
void merge_parts(std::span<const part<T>> parts, Out&& result, const Modifiers&... modifiers) {
  static_assert((... && (is_lse_to<Modifiers> || is_on<Modifiers>)),
                "heed::merge: options are heed::lse_to and heed::on");
  const auto view = output_view_of(result);
  using out_type = typename decltype(view)::value_type;
  using Real = accumulator<T, out_type>;
  const auto out = view.template lifted<4>();
  const auto lse = log_sum_exp_view<Real, view_rank<Out>>(modifiers...);
  constexpr bool wants_lse = (... || is_lse_to<Modifiers>);
  const operand output = erase("out", out), log_sum_exp = erase("lse", lse);
  check_output(output, output);
  if (wants_lse) {
    check_output(output, log_sum_exp);
    check_disjoint(log_sum_exp, output);
  }
  index_t number = 0;
  for (const part<T>& p : parts) {
    check_part(++number, erase("", p.out), erase("", p.lse), output,
               wants_lse ? &log_sum_exp : nullptr);
  }

  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  const auto& runner = pick<picks_executor>(default_runner, modifiers...);
  // Pieces of enough rows to be worth a worker's while.
  constexpr index_t piece = 64;
  const index_t heads = out.extent(1), length = out.extent(2);
  const index_t rows = out.extent(0) * heads * length;
  runner.runner.run((rows + piece - 1) / piece, [&](index_t item, int) {
    const index_t end = (item + 1) * piece < rows ? (item + 1) * piece : rows;
    for (index_t r = item * piece; r < end; ++r) {
      const index_t batch = r / length / heads, head = r / length % heads, at = r % length;
      merge_row<Real>(parts, batch, head, at, out.row(batch, head, at), out.extent(3),
                      wants_lse ? lse.row(batch, head) + at : nullptr);
    }
  });
}

}  // namespace detail

// Merges parts, as a list or as any contiguous range of heed::part, into out [B, H, L, Dv] of any
// element type. Options: lse_to (float, or double where the parts or out are), on. An output may be
// a part itself, which is then overwritten (keys that arrive one set after the other: ring
// attention), and may not overlap a part otherwise. Results are bit-identical on any executor.
// Raises invalid_argument before anything is written where shapes differ.
template <class Parts, viewable Out, class... Modifiers>
requires detail::is_part<detail::element_of<Parts>>
void merge(const Parts& parts, Out&& out, const Modifiers&... modifiers) {
  detail::merge_parts(std::span<const detail::element_of<Parts>>(parts), std::forward<Out>(out),
                      modifiers...);
}
template <class T, viewable Out, class... Modifiers>
void merge(std::initializer_list<part<T>> parts, Out&& out, const Modifiers&... modifiers) {
  detail::merge_parts(std::span<const part<T>>(parts.begin(), parts.size()), std::forward<Out>(out),
                      modifiers...);
}

HEED_NAMESPACE_END
