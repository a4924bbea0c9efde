// Linformer: softmax attention over r keys that are linear maps of all keys along the sequence,
//
//   out = softmax(scale·q (Eᵀk)ᵀ) (Fᵀv)
//
//   q [B, Hq, Lq, D] · k [B, Hkv, Lk, D] · v [B, Hkv, Lk, Dv] · E, F [Hkv|1, N, r], N ≥ Lk
//
// linear in Lk where r is fixed. Wang et al., "Linformer: Self-Attention with Linear Complexity",
// 2020. Its ways of sharing: headwise, projections without a head axis (or with one of extent 1);
// key-value, one projection for both; layerwise, the same view in every layer. One KV head for all
// queries is Hkv = 1. Not causal: every projected key mixes all tokens.
#pragma once

#include "sequence_projection.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank {
namespace detail {

template <class M>
struct goes_on_to_attention
    : std::bool_constant<!std::is_same_v<M, scratch> && !std::is_same_v<M, key_lengths>> {};

}  // namespace detail

// Modifiers: those of heed::attention but masks, ragged and left_padding; scores and biases see the
// r projected keys. key_lengths: tokens behind a sequence do not exist. Raises invalid_argument
// before anything is written where operands or modifiers do not fit.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable E,
          viewable F, viewable Out, class... Modifiers>
void linformer(const Q& q, const K& k, const V& v, const E& e, const F& f, Out&& out,
               const Modifiers&... modifiers) {
  static_assert((... && !(mask_function<Modifiers> || std::is_same_v<Modifiers, ragged> ||
                          std::is_same_v<Modifiers, left_padding>)),
                "heed::lowrank::linformer: every projected key mixes all tokens, so that masks, "
                "ragged batches and left padding have no meaning");
  const auto keys = read_view_of(k).template lifted<4>();
  const auto values = read_view_of(v).template lifted<4>();
  const auto key_map = read_view_of(e).template lifted<3>();
  const auto value_map = read_view_of(f).template lifted<3>();
  using Real = accumulator<view_element<const Q&>, view_element<const K&>, view_element<const V&>,
                           view_element<const E&>, view_element<const F&>,
                           std::remove_reference_t<decltype(*output_view_of(out).data())>>;
  const auto key = heed::detail::erase("k", keys), value = heed::detail::erase("v", values);
  heed::detail::check_keys_and_values(key, value);
  detail::check_projection(heed::detail::erase("e", key_map), key);
  detail::check_projection(heed::detail::erase("f", value_map), value);
  heed::detail::require_equal("f", "rank", value_map.extent(2), "e", key_map.extent(2));
  const index_t batches = keys.extent(0), heads = keys.extent(1), rank = key_map.extent(2);
  const index_t depth = keys.extent(3), value_depth = values.extent(3);
  const index_t* lengths =
      detail::checked_lengths<key_lengths>("key_lengths", batches, keys.extent(2), modifiers...);

  composed::call_memory memory(modifiers...);
  tensor_view<Real, 4> small_keys, small_values;
  composed::with_executor(
      [&](auto& executor) {
        Real* copies = nullptr;
        memory.carve([&](heed::detail::bump& take) {
          small_keys = detail::take_view<Real>(take, batches, heads, rank, depth);
          small_values = detail::take_view<Real>(take, batches, heads, rank, value_depth);
          copies = take.template take<Real>(executor.workers() * detail::projected_tokens *
                                            (std::max(depth, value_depth) + rank));
        });
        detail::project<Backend>(keys, key_map, lengths, small_keys, copies, executor);
        detail::project<Backend>(values, value_map, lengths, small_values, copies, executor);
      },
      modifiers...);
  const scratch inner = memory.inner();
  composed::with_kept<detail::goes_on_to_attention>(
      [&](const auto&... kept) {
        heed::attention<Backend>(q, small_keys, small_values, std::forward<Out>(out), inner,
                                 kept...);
      },
      modifiers...);
}

}  // namespace lowrank
HEED_NAMESPACE_END
