// Argument checks of linear attention: one message that names the operand, the axis and both
// values, before anything is written.
#pragma once

#include <span>

#include "../options.hpp"

HEED_NAMESPACE_BEGIN
namespace linear::detail {

HEED_NOINLINE inline void check_lengths(const char* name, std::span<const index_t> lengths,
                                        index_t batches, index_t longest) {
  require_equal(name, "count", static_cast<index_t>(lengths.size()), "the batch", batches);
  for (index_t b = 0; b < batches; ++b) {
    const index_t length = lengths[static_cast<std::size_t>(b)];
    if (length < 0 || length > longest) {
      raise(message(name) << ": entry " << b << " is " << length << ", must lie in [0, " << longest
                          << "]");
    }
  }
}
HEED_NOINLINE inline void check_cumulative(const char* name, std::span<const index_t> cumulative,
                                           const char* operand, index_t batches, index_t total) {
  if (batches != 1) {
    raise(message(operand) << ": batch " << batches
                           << ", a ragged batch has its sequences along one batch of 1");
  }
  if (cumulative.empty() || cumulative[0] != 0) raise(message(name) << ": must start with 0");
  for (std::size_t i = 1; i < cumulative.size(); ++i) {
    if (cumulative[i] < cumulative[i - 1]) {
      raise(message(name) << ": entry " << i << " is " << cumulative[i] << ", less than "
                          << cumulative[i - 1] << " before it");
    }
  }
  require_equal(name, "total", cumulative.back(), "the length", total);
}

// How the sequences lie along k and v.
HEED_NOINLINE inline engine::batch_layout token_layout(const char* operand, index_t batches,
                                                       index_t length, const ragged* rows,
                                                       const key_lengths* lengths) {
  engine::batch_layout layout;
  layout.sequences = batches;
  layout.length = length;
  if (rows != nullptr) {
    if (lengths != nullptr) raise("ragged: key_lengths is for batches that are not ragged");
    check_cumulative("cumulative_keys", rows->cumulative_keys, operand, batches, length);
    layout.sequences = static_cast<index_t>(rows->cumulative_keys.size()) - 1;
    layout.cumulative = rows->cumulative_keys.data();
  }
  if (lengths != nullptr) {
    check_lengths("key_lengths", lengths->values, batches, length);
    layout.lengths = lengths->values.data();
  }
  return layout;
}

// And along q: as along k where reads are causal.
HEED_NOINLINE inline engine::batch_layout query_layout(bool bidirectional, index_t batches,
                                                       index_t length,
                                                       const engine::batch_layout& keys,
                                                       const ragged* rows,
                                                       const query_lengths* lengths) {
  engine::batch_layout layout;
  layout.sequences = batches;
  layout.length = length;
  if (rows != nullptr) {
    check_cumulative("cumulative_queries", rows->cumulative_queries, "q", batches, length);
    layout.sequences = static_cast<index_t>(rows->cumulative_queries.size()) - 1;
    layout.cumulative = rows->cumulative_queries.data();
  }
  if (lengths != nullptr) {
    if (rows != nullptr) raise("ragged: query_lengths is for batches that are not ragged");
    check_lengths("query_lengths", lengths->values, batches, length);
    layout.lengths = lengths->values.data();
  }
  require_equal(rows != nullptr ? "cumulative_queries" : "q", "number of sequences",
                layout.sequences, "that of k,", keys.sequences);
  if (bidirectional) return layout;
  require_equal("q", "length", length, "that of k,", keys.length);
  if (lengths == nullptr && rows == nullptr) return keys;
  for (index_t s = 0; s < keys.sequences; ++s) {
    if (layout.at(s).count != keys.at(s).count) {
      raise(message("q: sequence ")
            << s << " has " << layout.at(s).count << " queries and " << keys.at(s).count
            << " keys; causal linear attention reads as it writes");
    }
  }
  return layout;
}

template <class T>
void check_state(const char* name, const tensor_view<T, 4>& s, const tensor_view<T, 3>& z,
                 index_t sequences, index_t heads, index_t features, index_t values,
                 bool needs_sum) {
  check_data(name, s);
  require_equal(name, "batch", s.extent(0), "the number of sequences", sequences);
  require_equal(name, "head count", s.extent(1), "the state's", heads);
  require_equal(name, "rows", s.extent(2), "the number of features", features);
  require_equal(name, "columns", s.extent(3), "the depth of v,", values);
  if (!needs_sum) {
    if (z.data() != nullptr) {
      raise(message(name) << ": has a sum of keys, which only a normaliser reads");
    }
    return;
  }
  if (z.data() == nullptr && features * heads * sequences != 0) {
    raise(message(name) << ": lacks the sum of keys [B, H, D] that the normaliser reads");
  }
  require_equal(name, "batch of the sum of keys", z.extent(0), "the number of sequences",
                sequences);
  require_equal(name, "head count of the sum of keys", z.extent(1), "the state's", heads);
  require_equal(name, "depth of the sum of keys", z.extent(2), "the number of features", features);
}

template <class T, int Rank>
void check_written(const char* name, const tensor_view<T, Rank>& x) {
  for (int axis = 0; axis + 1 < Rank && !x.empty(); ++axis) {
    if (x.extent(axis) > 1 && x.stride(axis) == 0) {
      raise(message(name) << ": axis " << axis << " of extent " << x.extent(axis)
                          << " has stride 0, its rows would overwrite each other");
    }
  }
}
// The plain mistake of passing one tensor twice.
template <class T, class U>
void check_apart(const tensor_view<T, 4>& out, const char* name, const tensor_view<U, 4>& in) {
  if (!out.empty() && !in.empty() &&
      static_cast<const void*>(out.data()) == static_cast<const void*>(in.data())) {
    raise(message("out: is the memory of ") << name);
  }
}

template <class Call>
void check_call(const Call& call, bool wants_state) {
  check_data("q", call.q);
  check_data("k", call.k);
  check_data("v", call.v);
  check_data("out", call.out);
  const index_t batches = call.k.extent(0), length = call.k.extent(2);
  require_equal("q", "batch", call.q.extent(0), "k's", batches);
  require_equal("v", "batch", call.v.extent(0), "k's", batches);
  require_equal("out", "batch", call.out.extent(0), "k's", batches);
  require_equal("q", "depth", call.q.extent(3), "k's", call.k.extent(3));
  require_equal("v", "length", call.v.extent(2), "k's", length);
  require_equal("out", "length", call.out.extent(2), "q's", call.q.extent(2));
  require_equal("out", "depth", call.out.extent(3), "v's", call.v.extent(3));
  const index_t heads = call.state_heads(), outputs = std::max(heads, call.q.extent(1));
  require_divides("k", call.k.extent(1), "the state's", heads);
  require_divides("v", call.v.extent(1), "the state's", heads);
  require_equal("out", "head count", call.out.extent(1), "the largest of q, k and v,", outputs);
  require_divides("k and v", heads, "that of out,", outputs);
  require_divides("q", call.q.extent(1), "that of out,", outputs);
  check_written("out", call.out);
  check_apart(call.out, "q", call.q);
  check_apart(call.out, "k", call.k);
  check_apart(call.out, "v", call.v);
  if (call.chunk < 1) raise(message("chunk: ") << call.chunk << " tokens, must be at least 1");
  if (!(call.scale - call.scale == 0)) raise("scale: value is not finite");

  const index_t features = call.features();
  const gate_shape shape{batches, heads, length, features};
  if (call.has_strength) {
    using values = token_values<std::remove_cvref_t<decltype(*call.strength.data())>>;
    values{call.strength}.check_shape(call.is_delta ? "delta" : "strength", shape);
  }
  if (call.reads_before) {
    check_data("bonus", call.bonus);
    require_divides("bonus", call.bonus.extent(0), "the state's", heads);
    require_equal("bonus", "depth", call.bonus.extent(1), "the number of features", features);
  }
  const index_t sequences = call.keys.sequences, values = call.v.extent(3);
  if (call.has_initial) {
    check_state("initial_state", call.initial, call.initial_sum, sequences, heads, features, values,
                call.is_normalized);
  }
  if (wants_state) {
    check_state("final_state", call.final, call.final_sum, sequences, heads, features, values,
                call.is_normalized);
    check_written("final_state", call.final);
    check_written("final_state: sum of keys", call.final_sum);
  }
  call.decay.check("decay", shape, call.keys);
}

}  // namespace linear::detail
HEED_NAMESPACE_END
