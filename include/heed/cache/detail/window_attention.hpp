// Attention that the newest queries pay to each key, aggregated over the query heads of a KV head.
#pragma once

#include "../../mask/causal.hpp"
#include "../../observer/column_sums.hpp"
#include "../policy.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

// How the scores of the query heads that share a KV head become one.
enum class aggregation { mean, largest };

namespace detail {

// Per query head, over the evidence's last n queries, under a mask that sees original positions:
//
//   sums[b, h, j] = Σ_i softmax_j(s)[i, j]        [B, Hq, n]
template <class Evidence, class Mask>
void column_sums(const Evidence& e, index_t queries, const Mask& visible,
                 const tensor_view<double, 3>& sums) {
  using Real = accumulator<typename decltype(e.q)::value_type, typename decltype(e.k)::value_type>;
  const auto nothing = [](index_t b, index_t h, index_t l) {  // values, and outputs, of no depth
    return tensor_view<Real, 4>(nullptr, {b, h, l, 0});
  };
  attention(e.q.slice(2, e.q.extent(2) - queries, queries), e.k,
            nothing(e.batches(), e.key_heads(), e.size()), nothing(e.batches(), e.heads(), queries),
            key_lengths{e.kept.lengths},
            mask_at_positions<Mask, Evidence::ordered>{e.kept, e.group(), visible},
            column_sums_to{sums});
}

// for_each(b, h, slots, row): the sums of one query head, to be changed in place (pooling) or left
// alone, before they are aggregated into scores [B, Hkv, n].
template <class Evidence, class Mask, class Each>
void window_attention(const Evidence& e, index_t window, const Mask& mask, aggregation how,
                      const tensor_view<double, 3>& scores, const Each& each) {
  const index_t queries = std::min(window, e.q.extent(2));
  std::vector<double> memory(static_cast<std::size_t>(e.batches() * e.heads() * e.size()));
  const tensor_view<double, 3> sums(memory.data(), {e.batches(), e.heads(), e.size()});
  column_sums(e, queries, mask, sums);
  e.for_each_head([&](index_t b, index_t h) {
    const index_t slots = e.slots(b, h), group = e.group();
    double* const to = scores.row(b, h);
    for (index_t member = 0; member < group; ++member) {
      double* const row = sums.row(b, h * group + member);
      each(b, h, slots, row);
      for (index_t j = 0; j < slots; ++j) {
        to[j] = member == 0                ? row[j]
                : how == aggregation::mean ? to[j] + row[j]
                                           : std::max(to[j], row[j]);
      }
    }
    if (how == aggregation::mean) {
      for (index_t j = 0; j < slots; ++j) to[j] /= static_cast<double>(group);
    }
  });
}

}  // namespace detail
}  // namespace cache
HEED_NAMESPACE_END
