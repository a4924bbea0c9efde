// Checks that all processes of a call make together: an argument that does not fit on one of them
// is the same error on every one, before anything is written or sent.
#pragma once

#include <cstring>

#include "../../dense/attention.hpp"
#include "../placed.hpp"
#include "mpi.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed::detail {

// What a process tells the others: extents that must agree, and whether its own checks failed.
struct call_summary {
  static constexpr int size = 12;
  static constexpr const char* names[size] = {
      "own error",       "q: batch",          "q: head count",   "k: head count",
      "q: depth",        "v: depth",          "q: element size", "k: element size",
      "v: element size", "out: element size", "query count",     "key count"};
  long long values[size] = {};
};

// Runs one process's checks and tells the others; raises on every process what one of them found,
// or where summaries differ. Without exceptions a process that finds something ends, and MPI ends
// the others.
template <class Checks>
void agree(MPI_Comm communicator, const process& self, call_summary summary, workspace& memory,
           const Checks& checks) {
  char text[512] = {};
#if defined(HEED_HAS_EXCEPTIONS)
  try {
    checks();
  } catch (const invalid_argument& error) {
    summary.values[0] = 1;
    std::strncpy(text, error.what(), sizeof(text) - 1);
  }
#else
  checks();
#endif
  constexpr int size = call_summary::size;
  const index_t bytes = static_cast<index_t>(sizeof(summary.values)) * self.count;
  auto* all = reinterpret_cast<long long*>(memory.reserve(bytes));
  MPI_Allgather(summary.values, size, MPI_LONG_LONG, all, size, MPI_LONG_LONG, communicator);
  for (int rank = 0; rank < self.count; ++rank) {
    if (all[rank * size] == 0) continue;
    MPI_Bcast(text, static_cast<int>(sizeof(text)), MPI_CHAR, rank, communicator);
    raise(message("process ") << rank << ": " << text);
  }
  for (int rank = 1; rank < self.count; ++rank) {
    for (int i = 1; i < size; ++i) {
      const auto own = static_cast<index_t>(all[rank * size + i]);
      const auto first = static_cast<index_t>(all[i]);
      if (own != first) {
        raise(message(call_summary::names[i]) << " " << own << " on process " << rank
                                              << " differs from " << first << " on process 0");
      }
    }
  }
}

// An operand's tokens against what its layout gives to this process.
HEED_NOINLINE inline void check_dealt(const char* name, index_t length, const dealt& layout,
                                      const token_places& places, const process& self) {
  if (layout.processes != self.count) {
    raise(message(name) << ": dealt to " << layout.processes << " processes, the communicator has "
                        << self.count);
  }
  if (length != places.count) {
    raise(message(name) << ": length " << length << ", of " << layout.length
                        << " tokens this process's share is " << places.count);
  }
}

// Modifiers of a distributed call.
template <class M>
inline constexpr bool is_modifier =
    mask_function<M> || score_function<M> || heed::detail::is_lse_to<M> || heed::detail::is_on<M> ||
    heed::detail::sink_function<M> || heed::detail::is_any_of<M, scale, scratch, count_tiles>;

template <class Q, class K, class V, class Out>
call_summary summarise(const Q& q, const K& k, const V& v, const Out&, index_t queries,
                       index_t keys) {
  return {{0, q.extent(0), q.extent(1), k.extent(1), q.extent(3), v.extent(3),
           sizeof(typename Q::value_type), sizeof(typename K::value_type),
           sizeof(typename V::value_type), sizeof(typename Out::value_type), queries, keys}};
}

// One process's checks, in attention()'s words; masks, scores and sinks see the whole sequence.
template <class Real, int QueryRank, class Q, class K, class V, class Out, class... Modifiers>
void check_own(const Q& q, const K& k, const V& v, const Out& out, const call_shape& whole,
               const Modifiers&... modifiers) {
  using namespace heed::detail;
  const operand query = erase("q", q), keys = erase("k", k), values = erase("v", v);
  const operand output = erase("out", out);
  check_operand(query);
  check_output(query, output);
  check_keys_and_values(keys, values);
  check_source(query, output, keys, values);
  for (const operand& in : {query, keys, values}) check_disjoint(output, in);
  if constexpr ((... || is_lse_to<Modifiers>)) {
    const operand lse = erase("lse", log_sum_exp_view<Real, QueryRank>(modifiers...));
    check_output(query, lse);
    for (const operand& other : {output, query, keys, values}) check_disjoint(lse, other);
  }
  (check_modifier(modifiers, whole), ...);
  const scale* wanted = find<scale>(modifiers...);
  if (wanted != nullptr && !(wanted->value - wanted->value == 0)) {
    raise("scale: value is not finite");
  }
}

}  // namespace distributed::detail
HEED_NAMESPACE_END
