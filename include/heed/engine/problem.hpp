// A call of exact attention after its arguments were checked, in the form that the engine works on.
//
//   q [B, Hq, Lq, D], out [B, Hq, Lq, Dv], lse [B, Hq, Lq]; each source k [B, Hkv, Lk, D],
//   v [B, Hkv, Lk, Dv]; query head h reads KV head h / (Hq / Hkv). One softmax runs over the keys
//   of all sources. A ragged batch has B = 1 and its sequences one after the other along L.
#pragma once

#include <tuple>

#include "../core/position.hpp"
#include "../core/quantized.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN
namespace engine {

// Where one sequence's rows lie along an axis: tensor batch, first row, number of rows.
struct rows_of_sequence {
  index_t batch = 0;
  index_t begin = 0;
  index_t count = 0;
};

// How the sequences of a batch lie along one axis of length L. At most one of the pointers is set:
// cumulative [sequences + 1], lengths [B]; padding [B] counts rows to leave out at the left.
struct batch_layout {
  index_t sequences = 0;
  index_t length = 0;
  const index_t* cumulative = nullptr;
  const index_t* lengths = nullptr;
  const index_t* padding = nullptr;

  rows_of_sequence at(index_t sequence) const {
    if (cumulative != nullptr) {
      return {0, cumulative[sequence], cumulative[sequence + 1] - cumulative[sequence]};
    }
    const index_t skipped = padding != nullptr ? padding[sequence] : 0;
    const index_t end = lengths != nullptr ? lengths[sequence] + skipped : length;
    return {sequence, skipped, end - skipped};
  }
  // Of the axis that arrays beside the operands have: the operand's own, however little of it is
  // used, or, in a ragged batch, that of the longest sequence.
  index_t extent() const { return cumulative != nullptr ? longest() : length; }
  index_t longest() const {
    index_t most = 0;
    for (index_t s = 0; s < sequences; ++s) most = at(s).count > most ? at(s).count : most;
    return most;
  }
};

// No mask: everything is visible.
struct everything {};
// No logit in the denominator.
struct no_sink {};

// A sink of any type that lives longer than this, or none.
template <class Real>
class sink_calls {
 public:
  explicit sink_calls(const no_sink&) {}
  template <class Sink>
  explicit sink_calls(const Sink& of)
      : sink_(&of), logit_([](const void* object, index_t head) {
          return static_cast<const Sink*>(object)->template logit<Real>(head);
        }) {}

  bool exists() const { return sink_ != nullptr; }
  Real logit(index_t head) const { return logit_(sink_, head); }

 private:
  const void* sink_ = nullptr;
  Real (*logit_)(const void*, index_t) = nullptr;
};

// One set of keys and values with its own mask and scores; K and V are tensor_view<const T, 4>,
// gathered_view<const T> or quantized_view<Code, 4>.
template <class K, class V, class Mask, class Scores>
struct source_of {
  using key_type = typename K::value_type;
  using value_type = typename V::value_type;

  K k;
  V v;
  batch_layout keys;
  Mask mask;
  Scores scores;
};

// Counts of tiles (one strip of queries × 64 keys), for tests and for tuning masks.
struct tile_counts {
  index_t all = 0;   // every score visible: no mask was evaluated for it, or it let all through
  index_t some = 0;  // visible in part
  index_t none = 0;  // looked at and left out; what key ranges exclude is never looked at
  index_t visited() const { return all + some; }
};

// Queries and Out are tensor_view<…, 4> or gathered_view.
template <class Real, class Queries, class Out, class... Sources>
struct problem {
  Queries q;
  Out out;
  tensor_view<Real, 3> lse;  // data() is null where it is not wanted
  batch_layout queries;
  std::tuple<Sources...> sources;
  Real scale = 1;
  sink_calls<Real> sink;
  tile_counts* counts = nullptr;

  index_t heads() const { return q.extent(1); }
  index_t key_heads() const { return std::get<0>(sources).k.extent(1); }
  index_t group() const { return heads() / key_heads(); }
  index_t depth() const { return q.extent(3); }
  index_t value_depth() const { return out.extent(3); }
};
template <class Real, class Queries, class Out, class... Sources>
problem(const Queries&, const Out&, const tensor_view<Real, 3>&, const batch_layout&,
        const std::tuple<Sources...>&, Real, const sink_calls<Real>&, tile_counts*)
    -> problem<Real, Queries, Out, Sources...>;

}  // namespace engine
HEED_NAMESPACE_END
