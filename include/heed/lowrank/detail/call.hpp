// What calls of this family share: checks, scratch tensors, and the options that go on to the
// attention calls inside.
#pragma once

#include "../../dense/composed.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank::detail {

// Options that go on to every attention inside, and those that are about its queries or its keys.
template <class M>
struct is_plain_option : std::bool_constant<heed::detail::is_on<M> || std::is_same_v<M, scale>> {};
template <class M>
struct is_option_of_queries
    : std::bool_constant<is_plain_option<M>::value || std::is_same_v<M, query_lengths>> {};
template <class M>
struct is_option_of_keys
    : std::bool_constant<is_plain_option<M>::value || std::is_same_v<M, key_lengths>> {};
template <class M>
struct is_option_of_both
    : std::bool_constant<is_option_of_queries<M>::value || is_option_of_keys<M>::value> {};

// [B, H, L, D] in scratch memory, dense.
template <class Real>
tensor_view<Real, 4> take_view(heed::detail::bump& memory, index_t batches, index_t heads,
                               index_t length, index_t depth) {
  const tensor_view<Real, 4> shape(nullptr, {batches, heads, length, depth});
  return {memory.take<Real>(shape.size()), shape.extents()};
}

// The lengths of the batch entries, checked, or null where the call names none.
template <class Lengths, class... Modifiers>
const index_t* checked_lengths(const char* name, index_t batches, index_t longest,
                               const Modifiers&... modifiers) {
  const Lengths* lengths = heed::detail::find<Lengths>(modifiers...);
  if (lengths == nullptr) return nullptr;
  heed::detail::check_lengths(name, lengths->values, batches, longest, nullptr);
  return lengths->values.data();
}

// Checks of operands as attention() has them, in the same words.
template <class Q, class K, class V, class Out>
void check_attention_operands(const Q& q, const K& k, const V& v, const Out& out) {
  using namespace heed::detail;
  const operand query = erase("q", q), keys = erase("k", k), values = erase("v", v);
  const operand output = erase("out", out);
  check_operand(query);
  check_output(query, output);
  check_keys_and_values(keys, values);
  check_source(query, output, keys, values);
  check_disjoint(output, query);
  check_disjoint(output, keys);
  check_disjoint(output, values);
}

}  // namespace lowrank::detail
HEED_NAMESPACE_END
