// Which queries and keys of the operands belong together, and whether operands and options fit:
// what the oracles of attention do before their formulas.
#pragma once

#include <string>
#include <vector>

#include "../core/error.hpp"
#include "../core/tensor_view.hpp"
#include "options.hpp"

HEED_NAMESPACE_BEGIN

namespace reference {
namespace detail {

struct range {
  index_t begin, count;
};

// Queries and keys that belong together, as rows of one batch entry of the operands.
struct sequence {
  index_t number;  // what positions call `batch`
  index_t batch;
  range queries;
  std::vector<range> keys;  // one per source
};

// The rows of one head, each read when it is first asked for: a masked key is never read.
class lazy_rows {
 public:
  lazy_rows(const operand& source, index_t batch, index_t head)
      : source_(&source),
        batch_(batch),
        head_(head),
        values_(static_cast<std::size_t>(source.length() * source.depth())),
        present_(static_cast<std::size_t>(source.length())) {}

  const double* operator[](index_t at) {
    double* row = values_.data() + at * source_->depth();
    if (!present_[static_cast<std::size_t>(at)]) {
      source_->read_row(batch_, head_, at, row);
      present_[static_cast<std::size_t>(at)] = true;
    }
    return row;
  }

 private:
  const operand* source_;
  index_t batch_, head_;
  std::vector<double> values_;
  std::vector<bool> present_;
};

// "k: depth 40 is not q's depth 64"
inline void require_equal(const char* name, const char* axis, index_t value, const char* other_name,
                          index_t other) {
  if (value != other) {
    raise(std::string(name) + ": " + axis + " " + std::to_string(value) + " is not " + other_name +
          "'s " + axis + " " + std::to_string(other));
  }
}

// The values of an optional array with one entry per batch entry, each within [0, highest].
inline std::vector<index_t> per_batch(const char* name, const std::vector<index_t>& values,
                                      index_t batches, index_t highest, index_t otherwise) {
  if (values.empty()) return std::vector<index_t>(static_cast<std::size_t>(batches), otherwise);
  if (static_cast<index_t>(values.size()) != batches) {
    raise(std::string(name) + ": " + std::to_string(values.size()) + " entries for " +
          std::to_string(batches) + " batch entries");
  }
  for (index_t value : values) {
    if (value < 0 || value > highest) {
      raise(std::string(name) + ": " + std::to_string(value) + " is outside [0, " +
            std::to_string(highest) + "]");
    }
  }
  return values;
}

inline void check(const operand& q, const std::vector<key_source>& sources,
                  const tensor_view<double, 4>& out, const options& how) {
  for (const key_source& source : sources) {
    require_equal("k", "batch count", source.k.batches(), "q", q.batches());
    require_equal("v", "batch count", source.v.batches(), "q", q.batches());
    require_equal("k", "depth", source.k.depth(), "q", q.depth());
    require_equal("v", "head count", source.v.heads(), "k", source.k.heads());
    require_equal("v", "length", source.v.length(), "k", source.k.length());
    require_equal("v", "depth", source.v.depth(), "out", out.extent(3));
    const index_t heads = source.k.heads();
    if (q.heads() > 0 && (heads == 0 || q.heads() % heads != 0)) {
      raise("k: head count " + std::to_string(heads) + " does not divide query head count " +
            std::to_string(q.heads()));
    }
  }
  require_equal("out", "batch count", out.extent(0), "q", q.batches());
  require_equal("out", "head count", out.extent(1), "q", q.heads());
  require_equal("out", "length", out.extent(2), "q", q.length());
  if (!how.sinks.empty() && static_cast<index_t>(how.sinks.size()) != q.heads()) {
    raise("sinks: " + std::to_string(how.sinks.size()) + " logits for " +
          std::to_string(q.heads()) + " query heads");
  }
}

// One sequence per batch entry, as the options' lengths say.
inline std::vector<sequence> padded_sequences(const operand& q,
                                              const std::vector<key_source>& sources,
                                              const options& how) {
  const std::vector<index_t> queries =
      per_batch("query_lengths", how.query_lengths, q.batches(), q.length(), q.length());
  std::vector<sequence> sequences;
  for (index_t b = 0; b < q.batches(); ++b) {
    sequences.push_back({b, b, {0, queries[static_cast<std::size_t>(b)]}, {}});
  }
  for (const key_source& source : sources) {
    const index_t length = source.k.length();
    const std::vector<index_t> padding =
        per_batch("left_padding", source.left_padding, q.batches(), length, 0);
    const std::vector<index_t> lengths =
        per_batch("key_lengths", source.key_lengths, q.batches(), length, -1);
    for (std::size_t b = 0; b < sequences.size(); ++b) {
      const index_t real = lengths[b] < 0 ? length - padding[b] : lengths[b];
      if (padding[b] + real > length) {
        raise("key_lengths: " + std::to_string(real) + " keys after " + std::to_string(padding[b]) +
              " of left padding leave the key length " + std::to_string(length));
      }
      sequences[b].keys.push_back({padding[b], real});
    }
  }
  return sequences;
}

inline void check_cumulative(const char* name, const std::vector<index_t>& cumulative,
                             index_t length) {
  if (cumulative.empty()) raise(std::string(name) + ": it is empty, it must begin with 0");
  index_t former = 0;
  for (index_t value : cumulative) {
    if (value < former || value > length) {
      raise(std::string(name) + ": " + std::to_string(value) + " is outside [" +
            std::to_string(former) + ", " + std::to_string(length) + "]");
    }
    former = value;
  }
}

// The sequences of a ragged batch, as ragged_attention() describes them.
inline std::vector<sequence> ragged_sequences(const operand& q, const operand& k,
                                              const std::vector<index_t>& cu_q,
                                              const std::vector<index_t>& cu_k,
                                              const options& how) {
  if (q.batches() != 1) {
    raise("q: batch count " + std::to_string(q.batches()) + " of a ragged batch is not 1");
  }
  check_cumulative("cu_q", cu_q, q.length());
  check_cumulative("cu_k", cu_k, k.length());
  if (cu_q.size() != cu_k.size()) {
    raise("cu_k: " + std::to_string(cu_k.size()) + " entries do not match the " +
          std::to_string(cu_q.size()) + " of cu_q");
  }
  if (!how.key_lengths.empty() || !how.left_padding.empty() || !how.query_lengths.empty()) {
    raise("options: lengths of a ragged batch come from cu_q and cu_k");
  }
  std::vector<sequence> sequences;
  for (std::size_t n = 0; n + 1 < cu_q.size(); ++n) {
    sequences.push_back({static_cast<index_t>(n),
                         0,
                         {cu_q[n], cu_q[n + 1] - cu_q[n]},
                         {{cu_k[n], cu_k[n + 1] - cu_k[n]}}});
  }
  return sequences;
}

inline std::vector<key_source> one_source(const operand& k, const operand& v, const options& how) {
  return {key_source{k, v, how.visible, how.scores, how.key_lengths, how.left_padding}};
}

inline void refuse_source_options(const options& how) {
  if (how.visible || !how.scores.empty() || !how.key_lengths.empty() || !how.left_padding.empty()) {
    raise("options: visible, scores, key_lengths and left_padding belong to each key source");
  }
}

}  // namespace detail
}  // namespace reference

HEED_NAMESPACE_END
