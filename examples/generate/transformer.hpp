// The Llama architecture over any attention: embedding, per layer
//
//   x += attention(rope(norm(x)·Wqᵀ), rope(norm(x)·Wkᵀ), norm(x)·Wvᵀ)·Woᵀ
//   x += (silu(norm(x)·Wgᵀ) ∘ norm(x)·Wuᵀ)·Wdᵀ
//
// and logits = norm(x)·Eᵀ. One function, forward(), serves a prompt and a single new token alike.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <heed/core/tensor_view.hpp>
#include <heed/core/thread_pool.hpp>
#include <heed/core/view_of.hpp>
#include <heed/position/rope.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "eigen.hpp"
#include "weights.hpp"

namespace example {

// A token is a byte.
using token_span = std::span<const std::uint8_t>;

// Which positions' logits are wanted.
enum class logits { all, last };

struct stopwatch {
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

// A byte-level Llama without its attention, which the class derived from it has: what comes before
// and after is the same for all, and compiled once.
class language_model {
 public:
  // The weights and the pool must outlive the model.
  language_model(const llama_weights& weights, heed::thread_pool& pool, index context)
      : config_(weights.config),
        weights_(weights),
        pool_(pool),
        context_(context),
        scratch_(static_cast<std::size_t>(pool.workers())) {
    if (context < 1 || context > config_.context) {
      throw std::runtime_error("context " + std::to_string(context) +
                               " is not from 1 to the model's " + std::to_string(config_.context));
    }
    cosines_.resize(context, config_.depth / 2);
    sines_.resize(context, config_.depth / 2);
    heed::rope_options options;
    options.theta = static_cast<double>(config_.theta);
    heed::fill_rope_cache(heed::view_of(cosines_), heed::view_of(sines_), options);
  }
  virtual ~language_model() = default;

  // Tokens that the model has seen, and at most can see.
  index size() const { return size_; }
  index context() const { return context_; }
  // Time in attention and its cache, and in forward() as a whole.
  double attention_seconds() const { return attention_seconds_; }
  double seconds() const { return seconds_; }

  // Forgets all tokens.
  void clear() {
    forget();
    size_ = 0;
  }

  // Appends tokens and returns, for each of them or for the last one, the logits of what comes
  // next: [tokens or 1, 256]. The result is overwritten by the next call.
  const matrix& forward(token_span tokens, logits wanted) {
    const stopwatch whole;
    const auto count = static_cast<index>(tokens.size());
    if (count == 0) throw std::runtime_error("forward needs at least one token");
    if (count > context_ - size_) {
      throw std::runtime_error(std::to_string(size_) + " tokens and " + std::to_string(count) +
                               " more do not fit into the context of " + std::to_string(context_));
    }
    hidden_.resize(count, config_.hidden);
    qkv_.resize(count, config_.qkv_width());
    attended_.resize(count, config_.query_width());
    for (index i = 0; i < count; ++i) {
      hidden_.row(i) = weights_.embedding.row(tokens[static_cast<std::size_t>(i)]);
    }

    for (index layer = 0; layer < config_.layers; ++layer) {
      const llama_weights::layer& w = weights_.layers[static_cast<std::size_t>(layer)];
      for_row_blocks(count, [&](index begin, index rows, scratch& s) {
        normalize(hidden_.middleRows(begin, rows), w.input_norm, s.normed);
        qkv_.middleRows(begin, rows).noalias() = s.normed * w.qkv.transpose();
      });
      attend(layer);
      for_row_blocks(count, [&](index begin, index rows, scratch& s) {
        auto hidden = hidden_.middleRows(begin, rows);
        hidden.noalias() += attended_.middleRows(begin, rows) * w.o.transpose();
        normalize(hidden, w.post_norm, s.normed);
        s.gate_up.noalias() = s.normed * w.gate_up.transpose();
        const auto gate = s.gate_up.leftCols(config_.intermediate).array();
        const auto up = s.gate_up.rightCols(config_.intermediate).array();
        s.activated = (gate * up / (1.0f + (-gate).exp())).matrix();
        hidden.noalias() += s.activated * w.down.transpose();
      });
    }

    const index first = wanted == logits::all ? 0 : count - 1;
    logits_.resize(count - first, config_.vocabulary);
    for_row_blocks(logits_.rows(), [&](index begin, index rows, scratch& s) {
      normalize(hidden_.middleRows(first + begin, rows), weights_.norm, s.normed);
      logits_.middleRows(begin, rows).noalias() = s.normed * weights_.embedding.transpose();
    });
    size_ += count;
    seconds_ += whole.seconds();
    return logits_;
  }

 protected:
  // attended_ = attention of the rows in qkv_, the newest of all tokens.
  virtual void attend(index layer) = 0;
  virtual void forget() = 0;

  const llama_config& config_;
  matrix cosines_, sines_;  // [context, depth / 2]
  matrix qkv_, attended_;
  double attention_seconds_ = 0;

 private:
  // Reused by one worker.
  struct scratch {
    matrix normed, gate_up, activated;
  };

  // Calls body(first row, rows, scratch) for blocks of rows, in parallel. The blocks depend on the
  // count alone, so that results do not depend on the number of threads.
  template <class Body>
  void for_row_blocks(index count, const Body& body) {
    constexpr index block = 128;
    pool_.run((count + block - 1) / block, [&](heed::index_t item, int worker) {
      const index begin = item * block;
      body(begin, std::min(block, count - begin), scratch_[static_cast<std::size_t>(worker)]);
    });
  }

  // RMS norm: x / sqrt(mean(x²) + ε) ∘ weight, row by row.
  template <class Rows>
  void normalize(const Rows& x, const row_vector& weight, matrix& result) const {
    result.resize(x.rows(), x.cols());
    for (index i = 0; i < x.rows(); ++i) {
      const float mean = x.row(i).squaredNorm() / static_cast<float>(x.cols());
      result.row(i) = (x.row(i) / std::sqrt(mean + config_.epsilon)).cwiseProduct(weight);
    }
  }

  const llama_weights& weights_;
  heed::thread_pool& pool_;
  index context_;
  index size_ = 0;
  std::vector<scratch> scratch_;
  matrix hidden_, logits_;
  double seconds_ = 0;
};

// Attention keeps the keys and values of all tokens so far, or what it wants of them:
//
//   using operand = …   type of queries and keys: float, Eigen::bfloat16, Eigen::half
//   void clear()        forgets all tokens
//   void operator()(index layer, q, k, v, out)
//     q [1, heads, n, depth], k [1, key heads, n, depth], both turned by their positions, and
//     v (float): views of the n newest tokens; out [1, heads, n, depth] (float) is written
template <class Attention>
class transformer : public language_model {
 public:
  transformer(const llama_weights& weights, heed::thread_pool& pool, index context,
              Attention attention)
      : language_model(weights, pool, context), attention_(std::move(attention)) {}

  Attention& attention() { return attention_; }

 private:
  using operand_matrix =
      Eigen::Matrix<typename Attention::operand, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  void forget() override { attention_.clear(); }

  // Some heads out of rows [length, width], as [1, heads, length, depth]; nothing is copied.
  template <class Matrix>
  auto heads_of(Matrix& rows, index first_column, index heads) const {
    using element = std::remove_pointer_t<decltype(rows.data())>;
    return heed::tensor_view<element, 4>(rows.data() + first_column,
                                         {1, heads, rows.rows(), config_.depth},
                                         {0, config_.depth, rows.cols(), 1});
  }

  void attend(index layer) override {
    rotated_.resize(qkv_.rows(), config_.query_width() + config_.key_width());
    // Keys lie behind queries, so that one call turns the heads of both; it writes operands.
    const index rotated_heads = config_.heads + config_.key_heads;
    heed::rope_options rope;
    rope.offset = size();
    rope.cache = heed::rope_cache(heed::view_of(cosines_), heed::view_of(sines_));
    heed::apply_rope(heads_of(qkv_, 0, rotated_heads), heads_of(rotated_, 0, rotated_heads), rope);
    const stopwatch timer;
    attention_(layer, heads_of(rotated_, 0, config_.heads),
               heads_of(rotated_, config_.query_width(), config_.key_heads),
               heads_of(qkv_, config_.query_width() + config_.key_width(), config_.key_heads),
               heads_of(attended_, 0, config_.heads));
    attention_seconds_ += timer.seconds();
  }

  Attention attention_;
  operand_matrix rotated_;  // queries and keys
};

}  // namespace example
