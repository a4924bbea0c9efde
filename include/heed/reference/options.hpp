// What oracles of attention are told: operands of any kind as rows of doubles, masks and scores as
// functions of positions, lengths, and where further results go.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <type_traits>
#include <vector>

#include "../core/element.hpp"
#include "../core/position.hpp"
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

}  // namespace reference

HEED_NAMESPACE_END
