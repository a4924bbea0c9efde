// The state of linear attention as an object that goes from call to call: prefill, then one token
// at a time, in constant memory.
//
//   linear::state<float> memory(batches, heads, features, values);
//   memory.step(q, k, v, out, linear::token_decay(g));    // any number of tokens, heads as in
//   memory.step(q1, k1, v1, out1, linear::token_decay(g1));  // linear::attention
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "attention.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// S [B, H, features, Dv] and z [B, H, features], 0 at first. Real is float, or double where the
// operands are.
template <class Real>
class state {
 public:
  state(index_t batches, index_t heads, index_t features, index_t values)
      : extents_{batches, heads, features, values} {
    for (const index_t extent : extents_) {
      if (extent < 0) raise(message("state: extent ") << extent << " is below 0");
    }
    s_.assign(static_cast<std::size_t>(batches * heads * features * values), Real(0));
    z_.assign(static_cast<std::size_t>(batches * heads * features), Real(0));
  }

  tensor_view<Real, 4> s() { return {s_.data(), extents_}; }
  tensor_view<Real, 3> key_sum() { return {z_.data(), {extents_[0], extents_[1], extents_[2]}}; }
  index_t tokens() const { return tokens_; }  // seen so far

  void reset() {
    std::fill(s_.begin(), s_.end(), Real(0));
    std::fill(z_.begin(), z_.end(), Real(0));
    tokens_ = 0;
  }

  // Goes on with the tokens of one call of linear::attention.
  template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
            class... Modifiers>
  void step(const Q& q, const K& k, const V& v, Out&& out, const Modifiers&... modifiers) {
    constexpr bool normalises = (... || detail::is_instance<normalized, Modifiers>);
    if constexpr (normalises) {
      attention<Backend>(q, k, v, out, modifiers..., initial_state(s(), key_sum()),
                         final_state(s(), key_sum()));
    } else {
      attention<Backend>(q, k, v, out, modifiers..., initial_state(s()), final_state(s()));
    }
    tokens_ += read_view_of(k).template lifted<4>().extent(2);
  }

 private:
  std::array<index_t, 4> extents_;
  std::vector<Real> s_, z_;
  index_t tokens_ = 0;
};

}  // namespace linear
HEED_NAMESPACE_END
