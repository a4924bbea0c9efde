// What distributed calls share: partial results that travel, and the modifiers that go on to the
// attention of one block.
#pragma once

#include "../../dense/composed.hpp"
#include "../../dense/merge.hpp"
#include "../placed.hpp"
#include "mpi.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed::detail {

// Attention of all queries over some of the keys, in one piece of whole lines: out, then lse.
template <class Real>
struct states {
  Real* data = nullptr;
  index_t bytes = 0;
  tensor_view<Real, 4> out;
  tensor_view<Real, 3> lse;

  states() = default;
  template <class Q>
  states(heed::detail::bump& memory, const Q& q, index_t depth) {
    const index_t rows = q.extent(0) * q.extent(1) * q.extent(2);
    bytes = line_type::bytes(rows * (depth + 1) * index_t{sizeof(Real)});
    data = memory.take<Real>(bytes / index_t{sizeof(Real)});
    out = {data, {q.extent(0), q.extent(1), q.extent(2), depth}};
    lse = {data == nullptr ? data : data + rows * depth, {q.extent(0), q.extent(1), q.extent(2)}};
  }
  part<Real> as_part() const { return part<Real>(out, lse); }
};

// Options that every call of attention inside gets. A sink belongs to one of them, or it would
// count once for every process.
template <class M>
struct of_every_call : std::bool_constant<heed::detail::is_any_of<M, scale, count_tiles>> {};
template <class M>
struct of_one_call : std::bool_constant<of_every_call<M>::value || heed::detail::sink_function<M>> {
};

// Calls use(…) with masks and scores at their places and the options that Keep picks.
template <bool Consecutive, template <class> class Keep, class Use, class... Modifiers>
void with_placed(const Use& use, const placement& at, const Modifiers&... modifiers) {
  std::apply(use, std::tuple_cat(placed<Consecutive, Keep>(modifiers, at)...));
}

template <class M>
struct of_the_merge : std::bool_constant<heed::detail::is_lse_to<M> || heed::detail::is_on<M>> {};

// The union of parts, in the caller's output and log-sum-exp.
template <class Real, class Out, class... Modifiers>
void write_merged(std::initializer_list<part<Real>> parts, const Out& out,
                  const Modifiers&... modifiers) {
  composed::with_kept<of_the_merge>([&](const auto&... kept) { merge(parts, out, kept...); },
                                    modifiers...);
}

}  // namespace distributed::detail
HEED_NAMESPACE_END
