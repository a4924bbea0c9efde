// Decoding against keys that are dealt to the processes of an MPI communicator: all processes have
// the same queries, each attends to its own keys, and the states are merged up a tree.
//
//   own state:  attention(q, keys of process r)
//   round i:    process r takes in the state of process r + 2^i,   r a multiple of 2^(i+1)
//   process 0 hands the result to all: every one has the same bits
//
//   q [B, Hq, Lq, D] on every process · k [B, Hkv, Lk_r, D] · v [B, Hkv, Lk_r, Dv]
//   → out [B, Hq, Lq, Dv] on every process
//
// ⌈log₂ N⌉ rounds, each with a message of B·Hq·Lq·(Dv + 1) numbers whatever the number of keys:
// where the queries are few this is far less than keys that go round a ring. Shyam et al., "Tree
// Attention: Topology-aware Decoding for Long-Context Attention on GPU clusters", 2024. Not part of
// heed.hpp; needs an MPI library.
#pragma once

#include "../dense/attention.hpp"
#include "../dense/merge.hpp"
#include "detail/agree.hpp"
#include "detail/call.hpp"
#include "layout.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed {

// The layout says which positions this process's keys have. Modifiers, in any order: masks and
// scores (they see positions in the whole sequence, queries are aligned as in attention()), sink,
// scale, lse_to, on, scratch, count_tiles (of this process). All processes of the communicator make
// the same call with the same q. Raises invalid_argument with the same text on every process before
// anything is written when operands do not fit on one of them.
template <class Backend = backend::native, class Layout, viewable Q, viewable K, viewable V,
          viewable Out, class... Modifiers>
void tree_attention(MPI_Comm communicator, const Layout& layout, const Q& queries, const K& keys,
                    const V& values, Out&& result, const Modifiers&... modifiers) {
  static_assert((... && detail::is_modifier<Modifiers>),
                "heed::distributed::tree_attention: a modifier is neither a mask, a score, nor "
                "sink, scale, lse_to, on, scratch or count_tiles");
  const auto q = read_view_of(queries).template lifted<4>();
  const auto k = read_view_of(keys).template lifted<4>();
  const auto v = read_view_of(values).template lifted<4>();
  const auto out_view = output_view_of(result);
  const auto out = out_view.template lifted<4>();
  using Real = accumulator<typename decltype(q)::value_type, typename decltype(k)::value_type,
                           typename decltype(v)::value_type, typename decltype(out)::value_type>;
  const detail::process self(communicator);
  composed::call_memory memory(modifiers...);

  const index_t length = q.extent(2);
  const detail::placement at{
      {length, length, 0, length, 1}, layout.of(self.rank), length, layout.length};
  detail::agree(communicator, self, detail::summarise(q, k, v, out, length, layout.length),
                memory.get(), [&] {
                  detail::check_dealt("k", k.extent(2), layout, at.k, self);
                  detail::check_own<Real, view_rank<Q>>(
                      q, k, v, out, {q.extent(0), q.extent(1), at.queries, at.keys}, modifiers...);
                });

  detail::states<Real> own, taken;
  memory.carve([&](heed::detail::bump& take) {
    own = detail::states<Real>(take, q, v.extent(3));
    taken = detail::states<Real>(take, q, v.extent(3));
  });
  const scratch inner = memory.inner();
  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  const auto& runner =
      heed::detail::pick<heed::detail::picks_executor>(default_runner, modifiers...);
  const auto attend = [&](const auto&... placed) {
    heed::attention<Backend>(q, k, v, own.out, lse_to{own.lse}, inner, runner, placed...);
  };
  // A sink counts once.
  if (self.rank == 0) {
    detail::with_placed<Layout::consecutive, detail::of_one_call>(attend, at, modifiers...);
  } else {
    detail::with_placed<Layout::consecutive, detail::of_every_call>(attend, at, modifiers...);
  }

  const detail::line_type line;
  const int lines = detail::line_type::count(own.bytes);
  for (int reach = 1; reach < self.count; reach *= 2) {
    if (self.rank % (2 * reach) != 0) {
      MPI_Send(own.data, lines, line.get(), self.rank - reach, detail::message_tag, communicator);
      break;
    }
    if (self.rank + reach >= self.count) continue;
    MPI_Recv(taken.data, lines, line.get(), self.rank + reach, detail::message_tag, communicator,
             MPI_STATUS_IGNORE);
    merge({own.as_part(), taken.as_part()}, own.out, lse_to{own.lse}, runner);
  }
  MPI_Bcast(own.data, lines, line.get(), 0, communicator);
  detail::write_merged({own.as_part()}, out_view, modifiers...);
}

}  // namespace distributed
HEED_NAMESPACE_END
