// Selectors: from the scores of a row of blocks (or keys) to those that attention visits.
//
//   top_k{n}         the n highest
//   top_p{mass}      the fewest whose softmax weights sum to `mass` at least (nucleus)
//   threshold{t}     all that reach t
//
//   select(scores [B, H, query blocks, key blocks], selector, block_q, block_k) → block_list
//
// A selector is anything callable as selector(scores, count, kept) → how many: it writes the
// numbers of what it keeps, in any order, to `kept` (room for `count`). Equal scores: the lower
// number first. −∞ and NaN are never kept, +∞ always is by top_p and threshold and comes first in
// top_k: estimators force blocks so.
//
// top_k: MoBA, Quest, NSA, SeerAttention and others; top_p: Twilight (Lin et al., 2025),
// SpargeAttn (Zhang et al., 2025), FlexPrefill; threshold: SeerAttention.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/element.hpp"
#include "../core/executor.hpp"
#include "block_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

namespace order {

// Orders scores by their bits, which stays right under -ffast-math: 0 for −∞ and NaN, the largest
// number for +∞, −0 like 0.
HEED_INLINE std::uint32_t rank_of(float score) {
  const auto bits = std::bit_cast<std::uint32_t>(score);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u || bits == 0xff800000u) return 0;
  return bits >> 31 != 0 ? 0x80000000u - magnitude : 0x80000000u + magnitude;
}
inline constexpr std::uint32_t always = 0x80000000u + 0x7f800000u;

// The numbers of the scores that may be kept.
inline index_t candidates(const float* scores, index_t count, index_t* kept) {
  index_t found = 0;
  for (index_t j = 0; j < count; ++j) {
    if (rank_of(scores[j]) != 0) kept[found++] = j;
  }
  return found;
}

// Highest first, the lower number first among equals.
struct higher {
  const float* scores;
  bool operator()(index_t a, index_t b) const {
    const std::uint32_t x = rank_of(scores[a]), y = rank_of(scores[b]);
    return x != y ? x > y : a < b;
  }
};

}  // namespace order

class top_k {
 public:
  explicit top_k(index_t count) : count_(count) {
    if (count < 1) raise(message("top_k: count ") << count << " is not positive");
  }
  index_t operator()(const float* scores, index_t count, index_t* kept) const {
    const index_t found = order::candidates(scores, count, kept);
    if (found <= count_) return found;
    std::nth_element(kept, kept + count_, kept + found, order::higher{scores});
    return count_;
  }

 private:
  index_t count_;
};

class top_p {
 public:
  // crossing: whether the block with which the sum reaches the mass belongs to the selection
  // (Twilight), or only the ones before it (SpargeAttn). The highest one always does.
  explicit top_p(double mass, bool crossing = true) : mass_(mass), crossing_(crossing) {
    if (!(mass > 0 && mass <= 1)) {
      raise(message("top_p: mass ") << mass << " is outside of (0, 1]");
    }
  }
  index_t operator()(const float* scores, index_t count, index_t* kept) const {
    const index_t found = order::candidates(scores, count, kept);
    std::sort(kept, kept + found, order::higher{scores});
    index_t forced = 0;
    while (forced < found && order::rank_of(scores[kept[forced]]) == order::always) ++forced;
    if (forced == found) return found;
    const double highest = static_cast<double>(scores[kept[forced]]);
    const auto weight = [&](index_t i) {
      return std::exp(static_cast<double>(scores[kept[i]]) - highest);
    };
    double total = 0;
    for (index_t i = forced; i < found; ++i) total += weight(i);
    // Rounding of the sum must not turn a mass of 1 into all but the last.
    const double wanted = mass_ * total * (1 - 1e-12);
    double sum = 0;
    index_t i = forced;
    while (i < found && sum < wanted) sum += weight(i++);
    if (!crossing_ && sum > wanted * (1 + 2e-12) && i > forced + 1) --i;
    return i;
  }

 private:
  double mass_;
  bool crossing_;
};

class threshold {
 public:
  explicit threshold(double least) : least_(static_cast<float>(least)) {
    if (order::rank_of(least_) == 0) raise("threshold: the least score is not a number");
  }
  index_t operator()(const float* scores, index_t count, index_t* kept) const {
    index_t found = 0;
    for (index_t j = 0; j < count; ++j) {
      if (order::rank_of(scores[j]) >= order::rank_of(least_)) kept[found++] = j;
    }
    return found;
  }

 private:
  float least_;
};

template <class S>
concept selector = requires(const S& s, const float* scores, index_t* kept) {
  { s(scores, index_t{}, kept) } -> std::convertible_to<index_t>;
};

// Applies a selector to every row of scores [B, H, query blocks, key blocks] (natural units, as
// they stand before a softmax); block_q and block_k say what a block is. The result has the same
// B, H and numbers of blocks.
template <selector Selector, class T, executor E = const serial>
block_list select(const tensor_view<T, 4>& scores, const Selector& keep, index_t block_q,
                  index_t block_k, E&& runner = {}) {
  static_assert(std::is_same_v<std::remove_const_t<T>, float>, "heed: scores are float");
  const block_shape shape{scores.extent(0), scores.extent(1), scores.extent(2),
                          scores.extent(3), block_q,          block_k};
  const index_t heads = shape.heads, rows = shape.query_blocks, count = shape.key_blocks;
  block_list result{shape, std::vector<index_t>(static_cast<std::size_t>(shape.rows() + 1)), {}};
  std::vector<std::vector<index_t>> of_head(static_cast<std::size_t>(shape.batches * heads));
  runner.run(shape.batches * heads, [&](index_t item, int) {
    std::vector<index_t>& mine = of_head[static_cast<std::size_t>(item)];
    std::vector<index_t> kept(static_cast<std::size_t>(count));
    for (index_t i = 0; i < rows; ++i) {
      const index_t number = keep(scores.row(item / heads, item % heads, i), count, kept.data());
      std::sort(kept.begin(), kept.begin() + number);
      mine.insert(mine.end(), kept.begin(), kept.begin() + number);
      result.offsets[static_cast<std::size_t>(item * rows + i + 1)] = number;
    }
  });
  for (std::size_t r = 1; r < result.offsets.size(); ++r) {
    result.offsets[r] += result.offsets[r - 1];
  }
  for (const std::vector<index_t>& mine : of_head) {
    result.blocks.insert(result.blocks.end(), mine.begin(), mine.end());
  }
  result.view();  // the block sizes are checked there
  return result;
}

}  // namespace sparse
HEED_NAMESPACE_END
