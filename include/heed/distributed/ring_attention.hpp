// Exact attention of a sequence that is dealt to the processes of an MPI communicator. Every
// process holds its share of queries, keys and values and gets the output of its queries.
//
//   for s = 0 … N − 1:  state ∪= attention(own queries, keys of process r − s)
//                       while the block moves on to process r + 1
//
//   q [B, Hq, Lq_r, D] · k [B, Hkv, Lk_r, D] · v [B, Hkv, Lk_r, Dv] → out [B, Hq, Lq_r, Dv]
//
// Blocks of keys and values are passed round a ring; sending and receiving go on while a block is
// attended to, and the states are merged by log-sum-exp (dense/merge.hpp). Memory beside the
// operands is two blocks of keys and values and two partial outputs, whatever the number of
// processes. The layout says who holds what (layout.hpp):
//
//   const heed::distributed::striped layout(length, processes);
//   heed::distributed::ring_attention(MPI_COMM_WORLD, layout, q, k, v, out, heed::causal{});
//
// blocks: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023.
// striped: Brandon et al., "Striped Attention", 2023. Not part of heed.hpp; needs an MPI library.
#pragma once

#include <algorithm>
#include <cstring>
#include <thread>

#include "../dense/attention.hpp"
#include "../dense/merge.hpp"
#include "detail/agree.hpp"
#include "detail/call.hpp"
#include "layout.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed {
namespace detail {

// An executor that looks after messages between its items, on the calling thread alone: most MPI
// libraries move large messages only when they are called.
template <class Executor>
class while_sending {
 public:
  while_sending(Executor& inner, MPI_Request (&requests)[2]) : inner_(inner), requests_(requests) {}
  int workers() const { return inner_.workers(); }
  template <class Body>
  void run(index_t count, const Body& body) {
    const std::thread::id caller = std::this_thread::get_id();
    inner_.run(count, [&](index_t item, int worker) {
      body(item, worker);
      if (std::this_thread::get_id() == caller) {
        int done = 0;
        MPI_Testall(2, requests_, &done, MPI_STATUSES_IGNORE);
      }
    });
  }

 private:
  Executor& inner_;
  MPI_Request (&requests_)[2];
};

// A block of keys and values in one message: rows of k, then rows of v from the next line on.
template <class K, class V>
struct block_message {
  index_t batches, heads, depth, value_depth;

  index_t key_bytes(index_t tokens) const {
    return line_type::bytes(batches * heads * tokens * depth * index_t{sizeof(K)});
  }
  index_t bytes(index_t tokens) const {
    return key_bytes(tokens) +
           line_type::bytes(batches * heads * tokens * value_depth * index_t{sizeof(V)});
  }
  tensor_view<K, 4> keys(std::byte* data, index_t tokens) const {
    return {reinterpret_cast<K*>(data), {batches, heads, tokens, depth}};
  }
  tensor_view<V, 4> values(std::byte* data, index_t tokens) const {
    return {reinterpret_cast<V*>(data == nullptr ? data : data + key_bytes(tokens)),
            {batches, heads, tokens, value_depth}};
  }
};

template <class T>
void copy_rows(const tensor_view<const T, 4>& from, const tensor_view<T, 4>& to) {
  const auto bytes = static_cast<std::size_t>(to.extent(3)) * sizeof(T);
  if (bytes == 0) return;
  for (index_t b = 0; b < to.extent(0); ++b) {
    for (index_t h = 0; h < to.extent(1); ++h) {
      for (index_t i = 0; i < to.extent(2); ++i) {
        std::memcpy(static_cast<void*>(to.row(b, h, i)), from.row(b, h, i), bytes);
      }
    }
  }
}

}  // namespace detail

// Queries and keys of two lengths, each with its layout. Modifiers, in any order: masks and scores
// (they see positions in the whole sequence), sink, scale, lse_to, on, scratch, count_tiles (of
// this process). All processes of the communicator make the same call. Raises invalid_argument with
// the same text on every process before anything is written when operands do not fit on one of
// them.
template <class Backend = backend::native, class QueryLayout, class KeyLayout, viewable Q,
          viewable K, viewable V, viewable Out, class... Modifiers>
void ring_attention(MPI_Comm communicator, const QueryLayout& query_layout,
                    const KeyLayout& key_layout, const Q& queries, const K& keys, const V& values,
                    Out&& result, const Modifiers&... modifiers) {
  static_assert((... && detail::is_modifier<Modifiers>),
                "heed::distributed::ring_attention: a modifier is neither a mask, a score, nor "
                "sink, scale, lse_to, on, scratch or count_tiles");
  const auto q = read_view_of(queries).template lifted<4>();
  const auto k = read_view_of(keys).template lifted<4>();
  const auto v = read_view_of(values).template lifted<4>();
  const auto out_view = output_view_of(result);
  const auto out = out_view.template lifted<4>();
  using key_type = typename decltype(k)::value_type;
  using value_type = typename decltype(v)::value_type;
  using Real = accumulator<typename decltype(q)::value_type, key_type, value_type,
                           typename decltype(out)::value_type>;
  const detail::process self(communicator);
  composed::call_memory memory(modifiers...);

  detail::placement at{query_layout.of(self.rank), {}, query_layout.length, key_layout.length};
  detail::agree(communicator, self, detail::summarise(q, k, v, out, at.queries, at.keys),
                memory.get(), [&] {
                  detail::check_dealt("q", q.extent(2), query_layout, at.q, self);
                  detail::check_dealt("k", k.extent(2), key_layout, key_layout.of(self.rank), self);
                  detail::check_own<Real, view_rank<Q>>(
                      q, k, v, out, {q.extent(0), q.extent(1), at.queries, at.keys}, modifiers...);
                });

  const detail::block_message<key_type, value_type> block{k.extent(0), k.extent(1), k.extent(3),
                                                          v.extent(3)};
  index_t most = 0;
  for (int rank = 0; rank < self.count; ++rank) {
    most = std::max(most, block.bytes(key_layout.of(rank).count));
  }
  if (self.count == 1) most = 0;
  std::byte *held = nullptr, *arriving = nullptr;
  detail::states<Real> sum, next;
  memory.carve([&](heed::detail::bump& take) {
    held = take.template take<std::byte>(most);
    arriving = take.template take<std::byte>(most);
    sum = detail::states<Real>(take, q, v.extent(3));
    next = detail::states<Real>(take, q, v.extent(3));
  });
  const scratch inner = memory.inner();

  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  auto& executor =
      heed::detail::pick<heed::detail::picks_executor>(default_runner, modifiers...).runner;
  constexpr bool consecutive = QueryLayout::consecutive && KeyLayout::consecutive;
  const detail::line_type line;
  for (int step = 0; step < self.count; ++step) {
    at.k = key_layout.of(self.before(step));
    const auto block_k = block.keys(held, at.k.count);
    const auto block_v = block.values(held, at.k.count);
    MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
    if (step + 1 < self.count) {
      if (step == 0) {
        detail::copy_rows(k, block_k);
        detail::copy_rows(v, block_v);
      }
      const index_t coming = key_layout.of(self.before(step + 1)).count;
      MPI_Irecv(arriving, line.count(block.bytes(coming)), line.get(), self.before(),
                detail::message_tag, communicator, &requests[0]);
      MPI_Isend(held, line.count(block.bytes(at.k.count)), line.get(), self.next(),
                detail::message_tag, communicator, &requests[1]);
    }
    detail::while_sending running(executor, requests);
    const on runner(running);
    if (step == 0) {
      // A sink counts once.
      detail::with_placed<consecutive, detail::of_one_call>(
          [&](const auto&... placed) {
            heed::attention<Backend>(q, k, v, sum.out, lse_to{sum.lse}, inner, runner, placed...);
          },
          at, modifiers...);
    } else {
      detail::with_placed<consecutive, detail::of_every_call>(
          [&](const auto&... placed) {
            heed::attention<Backend>(q, block_k, block_v, next.out, lse_to{next.lse}, inner, runner,
                                     placed...);
          },
          at, modifiers...);
      if (step + 1 < self.count) {
        merge({sum.as_part(), next.as_part()}, sum.out, lse_to{sum.lse}, on{executor});
      }
    }
    MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
    std::swap(held, arriving);
  }
  if (self.count == 1) {
    detail::write_merged({sum.as_part()}, out_view, modifiers...);
  } else {
    detail::write_merged({sum.as_part(), next.as_part()}, out_view, modifiers...);
  }
}

// Queries and keys of one sequence.
template <class Backend = backend::native, class Layout, viewable Q, viewable K, viewable V,
          viewable Out, class... Modifiers>
requires std::is_base_of_v<detail::dealt, Layout>
void ring_attention(MPI_Comm communicator, const Layout& layout, const Q& q, const K& k, const V& v,
                    Out&& out, const Modifiers&... modifiers) {
  ring_attention<Backend>(communicator, layout, layout, q, k, v, std::forward<Out>(out),
                          modifiers...);
}

}  // namespace distributed
HEED_NAMESPACE_END
