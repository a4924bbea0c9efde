// What calls of this family share: the executor and the scratch memory that their modifiers name,
// and the modifiers that go on to the attention calls inside.
#pragma once

#include <tuple>

#include "../../core/workspace.hpp"
#include "../../dense/attention.hpp"

HEED_NAMESPACE_BEGIN
namespace lowrank::detail {

// Scratch memory of one call. Arrays are carved out of it once; calls that are made while they are
// in use get the inner workspace.
template <class... Modifiers>
class call_memory {
 public:
  explicit call_memory(const Modifiers&... modifiers)
      : named_(heed::detail::find<scratch>(modifiers...)) {}

  template <class LayOut>
  void carve(const LayOut& lay_out) {
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory().reserve(counted.bytes()));
    lay_out(taken);
  }
  scratch inner() { return scratch(memory().inner()); }

 private:
  workspace& memory() { return named_ != nullptr ? named_->memory : own_.get(); }

  const scratch* named_;
  thread_workspace own_;
};

// Calls use(runner) with the executor among the modifiers, or with serial.
template <class Use, class... Modifiers>
void with_executor(const Use& use, const Modifiers&... modifiers) {
  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  use(heed::detail::pick<heed::detail::picks_executor>(default_runner, modifiers...).runner);
}

// Calls use(kept...) with the modifiers that Keep picks, as references.
template <template <class> class Keep, class Use, class... Modifiers>
void with_kept(const Use& use, const Modifiers&... modifiers) {
  [[maybe_unused]] const auto keep = []<class M>(const M& modifier) {
    if constexpr (Keep<M>::value) {
      return std::tuple<const M&>(modifier);
    } else {
      return std::tuple<>();
    }
  };
  std::apply(use, std::tuple_cat(keep(modifiers)...));
}

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
