// Nyström attention: a softmax over L × L scores by way of m landmarks,
//
//   out = softmax(scale·q k̃ᵀ) · A⁺ · (softmax(scale·q̃ kᵀ) v) [+ depthwise convolution of v]
//   A   = softmax(scale·q̃ k̃ᵀ),   q̃, k̃ [m, D] means of m segments of q and k
//
//   q [B, Hq, Lq, D] · k [B, Hkv, Lk, D] · v [B, Hkv, Lk, Dv] → out [B, Hq, Lq, Dv]
//
// Time and memory are linear in L: three attentions, none with an L × L matrix. A⁺ is six steps of
// a cubic iteration (pseudo_inverse.hpp), whose start upstream takes over the whole batch. With at
// least as many landmarks as keys the result is exact attention, as upstream has it. Xiong et al.,
// "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", AAAI 2021. Not
// causal: every landmark mixes a segment.
#pragma once

#include "depthwise.hpp"
#include "pseudo_inverse.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {

struct landmarks {
  index_t count = 64;
  inverse_options inverse = {};
};

// Modifiers: depthwise (needs Lq = Lk), scale, key_lengths, query_lengths, on, scratch. Tokens
// behind a length count as zeros in the means of their segment, as upstream's mask has it; rows
// behind a query length come out as 0. Raises invalid_argument before anything is written where
// operands or modifiers do not fit.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          class... Modifiers>
void nystrom(const Q& queries, const K& keys, const V& values, Out&& result, const landmarks& how,
             const Modifiers&... modifiers) {
  static_assert((... && detail::is_chain_option<Modifiers>),
                "heed::lowrank::nystrom: options are depthwise, scale, key_lengths, query_lengths, "
                "on and scratch; masks and scores have no meaning for landmarks");
  const auto q = read_view_of(queries).template lifted<4>();
  const auto k = read_view_of(keys).template lifted<4>();
  const auto v = read_view_of(values).template lifted<4>();
  const auto out = output_view_of(result).template lifted<4>();
  using Real = accumulator<typename decltype(q)::value_type, typename decltype(k)::value_type,
                           typename decltype(v)::value_type, typename decltype(out)::value_type>;
  const detail::no_depthwise none;
  const auto& filter = heed::detail::pick<detail::picks_depthwise>(none, modifiers...);
  detail::check_attention_operands(q, k, v, out);
  const index_t batches = q.extent(0), heads = q.extent(1), depth = q.extent(3);
  const index_t value_depth = v.extent(3), m = how.count;
  filter.check(heads, q.extent(2), v.extent(2), value_depth);
  if (m < 1) raise(message("landmarks: count ") << m << " is not positive");
  if (how.inverse.iterations < 0) {
    raise(message("landmarks: iterations ") << how.inverse.iterations << " is negative");
  }
  const index_t* query_counts =
      detail::checked_lengths<query_lengths>("query_lengths", batches, q.extent(2), modifiers...);
  const index_t* key_counts =
      detail::checked_lengths<key_lengths>("key_lengths", batches, k.extent(2), modifiers...);
  const bool exact = m >= k.extent(2);

  composed::call_memory memory(modifiers...);
  tensor_view<Real, 4> small_q, small_k, identity, overlap, inverse, gathered, mixed;
  memory.carve([&](heed::detail::bump& take) {
    const index_t count = exact ? 0 : m;
    const auto view = [&](index_t columns) {
      return detail::take_view<Real>(take, batches, heads, count, columns);
    };
    small_q = view(depth), small_k = view(depth), overlap = view(count), inverse = view(count);
    gathered = view(value_depth), mixed = view(value_depth);
    identity = detail::take_view<Real>(take, 1, 1, count, count);
  });
  const scratch inner = memory.inner();
  const auto add_local = [&](const auto& attend) {
    detail::plus_convolution<Real>(filter, v, out, query_counts, key_counts, inner, attend,
                                   modifiers...);
  };
  if (exact) {
    return add_local([&](const auto& to, const scratch& memory_inside) {
      composed::with_kept<detail::is_option_of_both>(
          [&](const auto&... kept) {
            heed::attention<Backend>(q, k, v, to, memory_inside, kept...);
          },
          modifiers...);
    });
  }
  composed::with_executor(
      [&](auto& executor) {
        detail::pool(q, grid{q.extent(2)}, small_q, grid{m}, query_counts, executor);
        detail::pool(k, grid{k.extent(2)}, small_k, grid{m}, key_counts, executor);
      },
      modifiers...);
  // The weights of m × m scores are what attention makes of the identity as values.
  for (index_t i = 0; i < m * m; ++i) identity.data()[i] = i % (m + 1) == 0 ? Real(1) : Real(0);
  const tensor_view<Real, 4> unit(identity.data(), {batches, heads, m, m}, {0, 0, m, 1});
  composed::with_kept<detail::is_plain_option>(
      [&](const auto&... kept) {
        heed::attention<Backend>(small_q, small_k, unit, overlap, inner, kept...);
      },
      modifiers...);
  composed::with_kept<detail::is_option_of_keys>(
      [&](const auto&... kept) {
        heed::attention<Backend>(small_q, k, v, gathered, inner, kept...);
      },
      modifiers...);
  composed::with_executor(
      [&](auto& executor) {
        pseudo_inverse<Backend>(overlap, inverse, how.inverse, on{executor}, inner);
        executor.run(batches * heads, [&](index_t item, int) {
          Real* to = mixed.data() + item * m * value_depth;
          std::fill_n(to, m * value_depth, Real(0));
          backend::products<Backend, Real>::add(m, value_depth, m, inverse.data() + item * m * m, m,
                                                1, gathered.data() + item * m * value_depth,
                                                value_depth, to, value_depth);
        });
      },
      modifiers...);
  add_local([&](const auto& to, const scratch& memory_inside) {
    composed::with_kept<detail::is_option_of_queries>(
        [&](const auto&... kept) {
          heed::attention<Backend>(q, small_k, mixed, to, memory_inside, kept...);
        },
        modifiers...);
  });
}

}  // namespace lowrank
HEED_NAMESPACE_END
