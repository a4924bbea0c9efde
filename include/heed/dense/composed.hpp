// What methods share that are made of several attention calls: scratch memory beside that of the
// calls inside, the executor, and which modifiers go on to which call.
#pragma once

#include <tuple>

#include "../core/workspace.hpp"
#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace composed {

// Scratch memory of one call: what its modifiers name, or the thread's. Arrays are carved out of it
// once; the calls that are made while they are in use get the inner workspace.
template <class... Modifiers>
class call_memory {
 public:
  explicit call_memory(const Modifiers&... modifiers)
      : named_(detail::find<scratch>(modifiers...)) {}

  workspace& get() { return named_ != nullptr ? named_->memory : own_.get(); }
  scratch inner() { return scratch(get().inner()); }

  // lay_out(bump) takes the arrays: once to count the bytes, once to get them.
  template <class LayOut>
  void carve(const LayOut& lay_out) {
    detail::bump counted;
    lay_out(counted);
    detail::bump taken(get().reserve(counted.bytes()));
    lay_out(taken);
  }

 private:
  const scratch* named_;
  thread_workspace own_;
};

// Calls use(executor) with the one among the modifiers, or with serial.
template <class Use, class... Modifiers>
void with_executor(const Use& use, const Modifiers&... modifiers) {
  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  use(detail::pick<detail::picks_executor>(default_runner, modifiers...).runner);
}

// Calls use(kept…) with the modifiers that Keep picks.
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

}  // namespace composed
HEED_NAMESPACE_END
