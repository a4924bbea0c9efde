// Executors: who runs the independent pieces of a call.
//
// An executor has `int workers()`, the number of pieces that may run at once, and
// `run(count, body)`, which calls body(item, worker) exactly once for every item in [0, count) and
// returns when all are done. `worker` is in [0, workers()), and no two calls with the same worker
// overlap, so it indexes scratch memory. Items are independent: results do not depend on the
// executor or on its number of workers. The body does not throw.
#pragma once

#include <concepts>

#include "../config.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {
struct any_body {
  void operator()(index_t, int) const {}
};
}  // namespace detail

template <class E>
concept executor = requires(E& e, const detail::any_body& body) {
  { e.workers() } -> std::convertible_to<int>;
  e.run(index_t{1}, body);
};

// Everything on the calling thread, in order.
struct serial {
  constexpr int workers() const { return 1; }
  template <class Body>
  void run(index_t count, const Body& body) const {
    for (index_t item = 0; item < count; ++item) body(item, 0);
  }
};

HEED_NAMESPACE_END
