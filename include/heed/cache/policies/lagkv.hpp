// LagKV: tokens are cut into partitions of `lag`; a token stays if its keys and values spread
// widely when scaled by the range of the next partition.
//
//   x̄_jd = (x_jd − min_d) / (max_d − min_d),  min and max over the next partition's tokens
//   s(x) = softmax within the partition of std_d(x̄_j)
//   score_j = rank of (s(k)_j + s(v)_j) / 2 within its partition, / lag
//
// The first `sinks` tokens, the last partition and what is left behind it have score 1; of fewer
// than sinks + 2·lag tokens the newest stay. Liang et al., "LagKV: Lag-Relative Information of the
// KV Cache Tells Which Tokens Are Important", 2025. No query is needed.
#pragma once

#include "../policy.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

struct lagkv {
  index_t sinks, lag;

  explicit lagkv(index_t first = 4, index_t partition = 128) : sinks(first), lag(partition) {
    if (first < 0) raise(message("lagkv: ") << first << " sinks, must not be negative");
    if (partition < 1) raise(message("lagkv: lag ") << partition << ", must be at least 1");
  }
  template <class Evidence>
  void score(const Evidence& e, const tensor_view<double, 3>& scores) const {
    static_assert(Evidence::ordered, "heed: lagkv needs rows in the order of their tokens");
    e.for_each_head([&](index_t b, index_t h) {
      const index_t slots = e.slots(b, h);
      const bool short_of = slots < sinks + 2 * lag;
      for (index_t j = 0; j < slots; ++j) {
        scores(b, h, j) = short_of && j >= sinks
                              ? static_cast<double>(j - sinks) / static_cast<double>(slots - sinks)
                              : 1;
      }
      if (short_of) return;
      std::vector<double> spread(static_cast<std::size_t>(lag));
      std::vector<index_t> order(static_cast<std::size_t>(lag));
      for (index_t begin = sinks; begin + 2 * lag <= slots; begin += lag) {
        std::fill(spread.begin(), spread.end(), 0.0);
        add_spread(begin, e.k.extent(3), spread,
                   [&](index_t j, index_t d) { return e.key(b, h, j, d); });
        add_spread(begin, e.v.extent(3), spread,
                   [&](index_t j, index_t d) { return e.value(b, h, j, d); });
        std::iota(order.begin(), order.end(), index_t{0});
        std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) {
          return spread[static_cast<std::size_t>(i)] < spread[static_cast<std::size_t>(j)];
        });
        for (index_t rank = 0; rank < lag; ++rank) {
          scores(b, h, begin + order[static_cast<std::size_t>(rank)]) =
              static_cast<double>(rank) / static_cast<double>(lag);
        }
      }
    });
  }

 private:
  // spread[i] += softmax_i(std_d(x̄)) over the partition that begins at `begin`.
  template <class Read>
  void add_spread(index_t begin, index_t depth, std::vector<double>& spread,
                  const Read& read) const {
    std::vector<double> sums(static_cast<std::size_t>(lag)), squares(sums);
    for (index_t d = 0; d < depth; ++d) {
      double least = read(begin + lag, d), most = least;
      for (index_t i = 1; i < lag; ++i) {
        least = std::min(least, read(begin + lag + i, d));
        most = std::max(most, read(begin + lag + i, d));
      }
      if (!(most > least)) continue;  // a channel without range spreads nothing
      for (index_t i = 0; i < lag; ++i) {
        const double x = (read(begin + i, d) - least) / (most - least);
        sums[static_cast<std::size_t>(i)] += x;
        squares[static_cast<std::size_t>(i)] += x * x;
      }
    }
    double total = 0, largest = 0;
    const auto n = static_cast<double>(depth);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const double variance = (squares[i] - sums[i] * sums[i] / n) / (n - 1);
      sums[i] = std::sqrt(std::max(variance, 0.0));
      largest = std::max(largest, sums[i]);
    }
    for (double& x : sums) total += x = std::exp(x - largest);
    for (std::size_t i = 0; i < sums.size(); ++i) spread[i] += sums[i] / total;
  }
};

}  // namespace cache
HEED_NAMESPACE_END
