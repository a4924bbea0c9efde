// Attention that each key receives from the newest queries, per query head:
//
//   sums[b, h, j] = Σ_i softmax_j(s)[i, j],  i over the last n queries
//
// in memory linear in the lengths. The log-sum-exp of the rows known, a sum over rows is a
// log-sum-exp itself, that of attention with queries and keys exchanged:
//
//   Σ_i e^(s_ij − lse_i) = e^(lse'_j),  lse'_j = log Σ_i e^(s_ij − lse_i)
#pragma once

#include "../../score/score.hpp"
#include "../policy.hpp"

HEED_NAMESPACE_BEGIN
namespace cache::detail {

// The mask of query (p.k) and key (p.q) exchanged; head: of KV head h's group, member `member`.
template <class Mask>
struct exchanged_mask {
  Mask mask;
  index_t group, member;

  bool operator()(const position& p) const {
    const position original{p.batch, p.head * group + member, p.k, p.q, p.keys, p.queries};
    return mask(original);
  }
  visibility tile(const tile_extent& t) const {
    return tile_visibility(mask, tile_extent{t.batch, t.head * group + member, t.k_begin, t.k_end,
                                             t.q_begin, t.q_end, t.keys, t.queries});
  }
};

// The last `queries` of the evidence's, under a mask that sees original positions.
template <class Evidence, class Mask>
void column_sums(const Evidence& e, index_t queries, const Mask& visible,
                 const tensor_view<double, 3>& sums) {
  using query_type = typename decltype(e.q)::value_type;
  using key_type = typename decltype(e.k)::value_type;
  using Real = accumulator<query_type, key_type>;
  const auto q = e.q.slice(2, e.q.extent(2) - queries, queries);
  const index_t batches = e.batches(), heads = e.heads(), key_heads = e.key_heads();
  const index_t size = e.size(), group = e.group();
  const auto mask = mask_at_positions<Mask, Evidence::ordered>{e.kept, group, visible};
  std::vector<Real> row_lse(static_cast<std::size_t>(batches * heads * queries));
  std::vector<Real> column_lse(static_cast<std::size_t>(batches * key_heads * size));
  const tensor_view<Real, 3> rows(row_lse.data(), {batches, heads, queries});
  const tensor_view<Real, 3> columns(column_lse.data(), {batches, key_heads, size});
  const auto nothing = [](index_t b, index_t h, index_t l) {  // values, and outputs, of no depth
    return tensor_view<Real, 4>(nullptr, {b, h, l, 0});
  };
  attention(q, e.k, nothing(batches, key_heads, size), nothing(batches, heads, queries),
            key_lengths{e.kept.lengths}, mask, lse_to{rows});
  // A row that sees nothing is hidden from every key; its −∞ must not meet another infinity.
  for (Real& lse : row_lse) lse = is_minus_infinity(lse) ? Real(0) : lse;
  for (index_t member = 0; member < group; ++member) {
    const auto of_member = [&](auto x) {  // the member's rows of each group
      auto extents = x.extents();
      auto strides = x.strides();
      extents[1] = key_heads;
      strides[1] *= group;
      using view = decltype(x);
      return view(x.data() + (x.empty() ? 0 : member * x.stride(1)), extents, strides);
    };
    const tensor_view<Real, 3> lse = of_member(rows);
    const heed::score normalized{[&](auto s, const auto& p) {
      return s - along_keys<decltype(s)>(lse.row(p.batch, p.head), 1, p);
    }};
    attention(e.k, of_member(q), nothing(batches, key_heads, queries),
              nothing(batches, key_heads, size), query_lengths{e.kept.lengths},
              exchanged_mask<std::remove_const_t<decltype(mask)>>{mask, group, member}, normalized,
              lse_to{columns});
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < key_heads; ++h) {
        for (index_t j = 0; j < size; ++j) {
          const Real lse_of_key = columns(b, h, j);
          sums(b, h * group + member, j) =
              is_minus_infinity(lse_of_key) ? 0 : std::exp(static_cast<double>(lse_of_key));
        }
      }
    }
  }
}

}  // namespace cache::detail
HEED_NAMESPACE_END
