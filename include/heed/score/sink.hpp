// Attention sink: a logit per query head that enters the denominator of the softmax and nothing
// else,
//
//   out = Σ_k exp(s_k)·v_k / (exp(sink[h]) + Σ_k exp(s_k)),
//
// so that a head can attend to nothing. The logit is in natural units and is not scaled. Not a
// score functor: the engine starts the softmax state with it, and the log-sum-exp includes it.
//
//   sink{logits}   learned, one per query head, of any element type (GPT-OSS, 2025)
//   sink{0.f}      the same for every head; 0 is "softmax off by one" (Miller, "Attention is off by
//                  one", 2023), the zero sink of Xiao et al., "Efficient Streaming Language Models
//                  with Attention Sinks", ICLR 2024
#pragma once

#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

template <element T>
class sink {
 public:
  explicit sink(tensor_view<const T, 1> logits)
      : logits_(logits.data()), heads_(logits.extent(0)), per_head_(true) {}
  explicit sink(T logit) : same_(logit) {}

  template <class Real>
  HEED_INLINE Real logit(index_t head) const {
    return widen<Real>(per_head_ ? logits_[head] : same_);
  }

  void check(const call_shape& shape) const {
    if (per_head_ && heads_ != shape.heads) {
      raise(message("sink: logits have extent ")
            << heads_ << ", call has " << shape.heads << " heads");
    }
  }

 private:
  const T* logits_ = nullptr;
  index_t heads_ = 0;
  bool per_head_ = false;
  T same_{};
};

template <class U>
sink(tensor_view<U, 1>) -> sink<std::remove_const_t<U>>;

HEED_NAMESPACE_END
