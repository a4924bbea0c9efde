// Exact attention from the formula, in double precision: the oracle that kernels are tested
// against. And the same steps with every result rounded to a lower precision, which tells how large
// the error of a kernel in that precision may be.
//
//   q [B, Hq, Lq, D] · k [B, Hkv, Lk, D] · v [B, Hkv, Lk, Dv] → out [B, Hq, Lq, Dv]
//
//   s_ij = f_n(… f_1(scale · Σ_d q_id k_jd))     for every key j that query i may attend to
//   m_i  = max_j s_ij
//   w_ij = e^(s_ij - m_i) / Σ_j e^(s_ij - m_i)
//   o_i  = Σ_j w_ij v_j
//   lse_i = m_i + log Σ_j e^(s_ij - m_i)
//
// A head's sink is one more score in m_i and in the sums over j, with the value vector 0. Query
// head h reads key head h / (Hq / Hkv). A key that is masked, or whose score is -inf, is left out,
// and a masked one is never read. A query without keys gives o = 0 and lse = -inf (the sink's logit
// where there is one).
//
// Nothing here is fast, and nothing is shared with the kernels but the views.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../config.hpp"
#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"
#include "../core/view_of.hpp"

HEED_NAMESPACE_BEGIN

namespace reference {

// True where the query at a position may attend to the key.
using predicate = std::function<bool(const position&)>;
// Maps a scaled score and its position to a score.
using score_map = std::function<double(double, const position&)>;

// A tensor [batch, head, length, depth] of any element type, or codes with scales, read as double,
// row by row. Rank 2 and 3 are lifted. Refers to the caller's memory.
class operand {
 public:
  operand() = default;
  template <readable X>
  operand(X&& x) {
    const auto view = read_view_of(x).template lifted<4>();
    for (int axis = 0; axis < 4; ++axis)
      extents_[static_cast<std::size_t>(axis)] = view.extent(axis);
    read_row_ = [view](index_t batch, index_t head, index_t at, double* row) {
      for (index_t d = 0; d < view.extent(3); ++d) {
        if constexpr (is_quantized<std::remove_cvref_t<X>>) {
          row[d] = view.value(batch, head, at, d);
        } else {
          row[d] = widen<double>(view(batch, head, at, d));
        }
      }
    };
  }

  index_t batches() const { return extents_[0]; }
  index_t heads() const { return extents_[1]; }
  index_t length() const { return extents_[2]; }
  index_t depth() const { return extents_[3]; }

  void read_row(index_t batch, index_t head, index_t at, double* row) const {
    read_row_(batch, head, at, row);
  }
  std::vector<double> row(index_t batch, index_t head, index_t at) const {
    std::vector<double> result(static_cast<std::size_t>(depth()));
    read_row(batch, head, at, result.data());
    return result;
  }

 private:
  std::array<index_t, 4> extents_{};
  std::function<void(index_t, index_t, index_t, double*)> read_row_;
};

// One of several sets of keys under one softmax. Its positions count from its own first key.
struct key_source {
  operand k = {}, v = {};                  // [B, Hkv, Lk, D], [B, Hkv, Lk, Dv]
  predicate visible = {};                  // empty: every key
  std::vector<score_map> scores = {};      // applied in order
  std::vector<index_t> key_lengths = {};   // [B] real keys; empty: all that follow the padding
  std::vector<index_t> left_padding = {};  // [B] rows before the first real key; empty: none
};

// In positions, q and k count from the first query and the first real key of their sequence (behind
// its left padding), and `queries` and `keys` are the sequence's real lengths.
struct options {
  std::optional<double> scale = {};  // 1/√D when empty
  predicate visible = {};            // these four as in key_source
  std::vector<score_map> scores = {};
  std::vector<index_t> key_lengths = {};
  std::vector<index_t> left_padding = {};
  std::vector<index_t> query_lengths = {};  // [B] real queries; rows behind get out 0, lse -inf
  std::vector<double> sinks = {};           // [Hq] one logit per head; empty: none
  std::vector<double>* lse = nullptr;       // receives [B, Hq, Lq]
  std::vector<double>* weights = nullptr;   // receives [B, Hq, Lq, Lk], Lk summed over all sources
};

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

// The formula at the head of this file. Every step is computed in `accumulator<T>` and rounded to
// T: with T = double that is the oracle, with a narrower T it is a plain implementation in T.
template <element T>
void attend(const operand& q, const std::vector<key_source>& sources,
            const std::vector<sequence>& sequences, tensor_view<double, 4> out,
            const options& how) {
  using real = accumulator<T>;
  const auto rounded = [](real x) { return widen<real>(narrow<T>(x)); };
  const index_t query_heads = q.heads(), depth = q.depth(), value_depth = out.extent(3);
  // Without a depth every score is 0, whatever the scale.
  const double default_scale = depth > 0 ? 1 / std::sqrt(static_cast<double>(depth)) : 1.0;
  const real scale = static_cast<real>(how.scale.value_or(default_scale));

  index_t columns = 0;  // of the weights
  for (const key_source& source : sources) columns += source.k.length();

  // What is left of this: rows that belong to no sequence, and keys without weight.
  for (index_t b = 0; b < out.extent(0); ++b) {
    for (index_t h = 0; h < out.extent(1); ++h) {
      for (index_t i = 0; i < out.extent(2); ++i) {
        for (index_t d = 0; d < value_depth; ++d) out(b, h, i, d) = 0;
      }
    }
  }
  const auto rows = static_cast<std::size_t>(out.extent(0) * out.extent(1) * out.extent(2));
  if (how.lse != nullptr) how.lse->assign(rows, minus_infinity<double>());
  if (how.weights != nullptr) {
    how.weights->assign(rows * static_cast<std::size_t>(columns), 0.0);
  }

  struct term {  // a key that the query attends to
    real score;
    const double* value;
    index_t column;
  };
  std::vector<term> terms;
  std::vector<double> query(static_cast<std::size_t>(depth));
  std::vector<real> sum(static_cast<std::size_t>(value_depth));

  for (const sequence& s : sequences) {
    for (index_t h = 0; h < query_heads; ++h) {
      std::vector<lazy_rows> keys, values;
      for (const key_source& source : sources) {
        const index_t key_head = h / (query_heads / source.k.heads());
        keys.emplace_back(source.k, s.batch, key_head);
        values.emplace_back(source.v, s.batch, key_head);
      }

      for (index_t i = 0; i < s.queries.count; ++i) {
        const index_t row = s.queries.begin + i;
        q.read_row(s.batch, h, row, query.data());

        // Scores.
        terms.clear();
        index_t first_column = 0;
        for (std::size_t n = 0; n < sources.size(); ++n) {
          for (index_t j = 0; j < s.keys[n].count; ++j) {
            position p;
            p.batch = s.number;
            p.head = h;
            p.q = i;
            p.k = j;
            p.queries = s.queries.count;
            p.keys = s.keys[n].count;
            if (sources[n].visible && !sources[n].visible(p)) continue;

            const index_t at = s.keys[n].begin + j;
            const double* key = keys[n][at];
            real dot = 0;
            for (index_t d = 0; d < depth; ++d) {
              dot +=
                  static_cast<real>(query[static_cast<std::size_t>(d)]) * static_cast<real>(key[d]);
            }
            real score = rounded(rounded(dot) * scale);
            for (const score_map& f : sources[n].scores) {
              score = rounded(static_cast<real>(f(static_cast<double>(score), p)));
            }
            if (is_minus_infinity(score)) continue;
            terms.push_back({score, values[n][at], first_column + at});
          }
          first_column += sources[n].k.length();
        }

        const bool has_sink = !how.sinks.empty();
        const auto sink = has_sink ? static_cast<real>(how.sinks[static_cast<std::size_t>(h)])
                                   : minus_infinity<real>();
        const bool counts_sink = !is_minus_infinity(sink);
        if (terms.empty() && !counts_sink) continue;

        // Softmax.
        real highest = counts_sink ? sink : terms.front().score;
        for (const term& t : terms) highest = std::max(highest, t.score);
        real total = counts_sink ? std::exp(sink - highest) : real(0);
        for (const term& t : terms) total += std::exp(t.score - highest);

        // Weighted sum of the values.
        const index_t flat = (s.batch * query_heads + h) * q.length() + row;
        std::fill(sum.begin(), sum.end(), real(0));
        for (const term& t : terms) {
          const real weight = rounded(std::exp(t.score - highest) / total);
          for (index_t d = 0; d < value_depth; ++d) {
            sum[static_cast<std::size_t>(d)] += weight * static_cast<real>(t.value[d]);
          }
          if (how.weights != nullptr) {
            (*how.weights)[static_cast<std::size_t>(flat * columns + t.column)] =
                static_cast<double>(weight);
          }
        }
        for (index_t d = 0; d < value_depth; ++d) {
          out(s.batch, h, row, d) = static_cast<double>(rounded(sum[static_cast<std::size_t>(d)]));
        }
        if (how.lse != nullptr) {
          (*how.lse)[static_cast<std::size_t>(flat)] =
              static_cast<double>(highest + std::log(total));
        }
      }
    }
  }
}

// ---- checks
// --------------------------------------------------------------------------------------

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

template <element T>
void attend_padded(const operand& q, const std::vector<key_source>& sources,
                   tensor_view<double, 4> out, const options& how) {
  check(q, sources, out, how);
  attend<T>(q, sources, padded_sequences(q, sources, how), out, how);
}

inline std::vector<key_source> one_source(const operand& k, const operand& v, const options& how) {
  return {key_source{k, v, how.visible, how.scores, how.key_lengths, how.left_padding}};
}

// Sizes a result and returns a view of it.
inline tensor_view<double, 4> sized(std::vector<double>& out, const operand& q, index_t depth) {
  const tensor_view<double, 4> shape(nullptr, {q.batches(), q.heads(), q.length(), depth});
  out.assign(static_cast<std::size_t>(shape.size()), 0.0);
  return tensor_view<double, 4>(out.data(), shape.extents());
}

inline void refuse_source_options(const options& how) {
  if (how.visible || !how.scores.empty() || !how.key_lengths.empty() || !how.left_padding.empty()) {
    raise("options: visible, scores, key_lengths and left_padding belong to each key source");
  }
}

}  // namespace detail

// ---- the oracle
// ----------------------------------------------------------------------------------

inline void attention(const operand& q, const operand& k, const operand& v,
                      tensor_view<double, 4> out, const options& how = {}) {
  detail::attend_padded<double>(q, detail::one_source(k, v, how), out, how);
}

// The result in a vector, [B, Hq, Lq, Dv] and dense.
inline void attention(const operand& q, const operand& k, const operand& v,
                      std::vector<double>& out, const options& how = {}) {
  attention(q, k, v, detail::sized(out, q, v.depth()), how);
}

// One softmax over several sets of keys.
inline void attention(const operand& q, const std::vector<key_source>& sources,
                      tensor_view<double, 4> out, const options& how = {}) {
  detail::refuse_source_options(how);
  detail::attend_padded<double>(q, sources, out, how);
}
inline void attention(const operand& q, const std::vector<key_source>& sources,
                      std::vector<double>& out, const options& how = {}) {
  if (sources.empty()) raise("sources: none is given, so the values have no depth");
  attention(q, sources, detail::sized(out, q, sources.front().v.depth()), how);
}

// Sequences of different lengths behind each other: q [1, Hq, ΣLq, D], k [1, Hkv, ΣLk, D],
// v [1, Hkv, ΣLk, Dv]. Sequence n has the queries cu_q[n] … cu_q[n+1] - 1 and the keys cu_k[n] …
// cu_k[n+1] - 1; its number is the positions' batch. Weights are [1, Hq, ΣLq, ΣLk].
inline void ragged_attention(const operand& q, const operand& k, const operand& v,
                             tensor_view<double, 4> out, const std::vector<index_t>& cu_q,
                             const std::vector<index_t>& cu_k, const options& how = {}) {
  const std::vector<key_source> sources = {key_source{k, v, how.visible, how.scores}};
  detail::check(q, sources, out, how);
  if (q.batches() != 1) {
    raise("q: batch count " + std::to_string(q.batches()) + " of a ragged batch is not 1");
  }
  detail::check_cumulative("cu_q", cu_q, q.length());
  detail::check_cumulative("cu_k", cu_k, k.length());
  if (cu_q.size() != cu_k.size()) {
    raise("cu_k: " + std::to_string(cu_k.size()) + " entries do not match the " +
          std::to_string(cu_q.size()) + " of cu_q");
  }
  if (!how.key_lengths.empty() || !how.left_padding.empty() || !how.query_lengths.empty()) {
    raise("options: lengths of a ragged batch come from cu_q and cu_k");
  }
  std::vector<detail::sequence> sequences;
  for (std::size_t n = 0; n + 1 < cu_q.size(); ++n) {
    sequences.push_back({static_cast<index_t>(n),
                         0,
                         {cu_q[n], cu_q[n + 1] - cu_q[n]},
                         {{cu_k[n], cu_k[n + 1] - cu_k[n]}}});
  }
  detail::attend<double>(q, sources, sequences, out, how);
}
inline void ragged_attention(const operand& q, const operand& k, const operand& v,
                             std::vector<double>& out, const std::vector<index_t>& cu_q,
                             const std::vector<index_t>& cu_k, const options& how = {}) {
  ragged_attention(q, k, v, detail::sized(out, q, v.depth()), cu_q, cu_k, how);
}

// ---- a plain implementation in lower precision
// ---------------------------------------------------

// Attention as a straightforward program in T computes it: dot products and sums are kept in
// accumulator<T>; scores, scaled scores, weights and the result are rounded to T. The operands are
// taken as they are, and should be of type T. The rule for kernels is
//   max |kernel - attention| ≤ 2 · max |plain - attention|
template <element T>
void plain(const operand& q, const operand& k, const operand& v, tensor_view<double, 4> out,
           const options& how = {}) {
  detail::attend_padded<T>(q, detail::one_source(k, v, how), out, how);
}
template <element T>
void plain(const operand& q, const operand& k, const operand& v, std::vector<double>& out,
           const options& how = {}) {
  plain<T>(q, k, v, detail::sized(out, q, v.depth()), how);
}
template <element T>
void plain(const operand& q, const std::vector<key_source>& sources, tensor_view<double, 4> out,
           const options& how = {}) {
  detail::refuse_source_options(how);
  detail::attend_padded<T>(q, sources, out, how);
}

}  // namespace reference

HEED_NAMESPACE_END
