// Quest: nothing is evicted; each query attends to the pages whose keys may score highest.
//
//   bound_p = Σ_d max(q_d·low_pd, q_d·high_pd) ≥ q·k for every key k of page p,
//   low_p and high_p: the smallest and largest channels of the page's keys
//
// The k pages of highest bound are read. Tang et al., "Quest: Query-Aware Sparsity for Efficient
// Long-Context LLM Inference", 2024. Query heads that share a KV head share its pages: their bounds
// are aggregated.
//
//   bounds.append(k);                                    // beside store.append(k, v)
//   heed::attention(q, cache::subset(store, bounds.choose(q, 64)), out);
#pragma once

#include "../../core/pack.hpp"
#include "../detail/window_attention.hpp"
#include "../subset.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

class page_bounds {
 public:
  page_bounds(index_t batches, index_t key_heads, index_t page_size, index_t depth)
      : batches_(batches), key_heads_(key_heads), page_size_(page_size), depth_(depth) {
    if (page_size < 1)
      raise(message("page_bounds: page size ") << page_size << ", must be at least 1");
    if (batches < 0 || key_heads < 0 || depth < 0) {
      raise(message("page_bounds: a size is negative: [")
            << batches << ", " << key_heads << ", " << depth << "]");
    }
    lists_.resize(static_cast<std::size_t>(batches * key_heads));
  }

  index_t size() const { return size_; }
  index_t page_size() const { return page_size_; }
  index_t pages() const { return (size_ + page_size_ - 1) / page_size_; }
  index_t bytes() const {
    index_t floats = 0;
    for (const auto& list : lists_) floats += static_cast<index_t>(list.capacity());
    return floats * static_cast<index_t>(sizeof(float));
  }

  // The keys of n new tokens, [B, Hkv, n, D].
  template <viewable K>
  void append(const K& k) {
    const auto keys = read_view_of(k).template lifted<4>();
    require("batch", keys.extent(0), batches_);
    require("head count", keys.extent(1), key_heads_);
    require("depth", keys.extent(3), depth_);
    heed::detail::check_operand(heed::detail::erase("k", keys));
    for (index_t i = 0; i < keys.extent(2); ++i, ++size_) {
      const bool first = size_ % page_size_ == 0;
      for (index_t list = 0; list < batches_ * key_heads_; ++list) {
        auto& rows = lists_[static_cast<std::size_t>(list)];
        if (first) rows.resize(rows.size() + static_cast<std::size_t>(2 * depth_));
        float* const low = rows.data() + size_ / page_size_ * 2 * depth_;
        float* const high = low + depth_;
        const auto* key = keys.row(list / key_heads_, list % key_heads_, i);
        for (index_t d = 0; d < depth_; ++d) {
          const auto x = widen<float>(key[d]);
          low[d] = first || x < low[d] ? x : low[d];
          high[d] = first || x > high[d] ? x : high[d];
        }
      }
    }
  }

  // Bounds of the newest query's products, before scaling, into [B, Hkv, pages]; q [B, Hq, Lq, D].
  template <viewable Q>
  void score(const Q& q, const tensor_view<double, 3>& scores,
             aggregation how = aggregation::largest) const {
    const auto queries = read_view_of(q).template lifted<4>();
    const index_t heads = queries.extent(1);
    if (queries.extent(0) != batches_ || queries.extent(3) != depth_ || queries.extent(2) < 1 ||
        key_heads_ == 0 || heads % key_heads_ != 0) {
      raise(message("page_bounds: queries [")
            << queries.extent(0) << ", " << heads << ", " << queries.extent(2) << ", "
            << queries.extent(3) << "] do not fit keys of batch " << batches_ << ", " << key_heads_
            << " heads, depth " << depth_);
    }
    if (scores.extents() != std::array<index_t, 3>{batches_, key_heads_, pages()}) {
      raise(message("page_bounds: scores hold ")
            << scores.extent(2) << " pages, there are " << pages());
    }
    const index_t group = heads / key_heads_;
    std::vector<float> row(static_cast<std::size_t>(depth_));
    for (index_t b = 0; b < batches_; ++b) {
      for (index_t head = 0; head < heads; ++head) {
        const index_t h = head / group;
        const auto* from = queries.row(b, head, queries.extent(2) - 1);
        for (std::size_t d = 0; d < row.size(); ++d) row[d] = widen<float>(from[d]);
        const float* bounds = lists_[static_cast<std::size_t>(b * key_heads_ + h)].data();
        for (index_t page = 0; page < pages(); ++page, bounds += 2 * depth_) {
          const auto bound = static_cast<double>(upper_bound(row.data(), bounds));
          double& to = scores(b, h, page);
          to = head % group == 0          ? bound
               : how == aggregation::mean ? to + bound
                                          : std::max(to, bound);
        }
      }
    }
  }

  // The tokens of the `count` pages of highest bound of every KV head.
  template <viewable Q>
  kept_tokens choose(const Q& q, index_t count, aggregation how = aggregation::largest) const {
    std::vector<double> memory(static_cast<std::size_t>(batches_ * key_heads_ * pages()));
    const tensor_view<double, 3> scores(memory.data(), {batches_, key_heads_, pages()});
    score(q, scores, how);
    return tokens_of_pages(scores, count, page_size_, size_);
  }

  // The same from any scores of pages [B, Hkv, pages], the last of which may be partly filled.
  static kept_tokens tokens_of_pages(const tensor_view<const double, 3>& scores, index_t count,
                                     index_t page_size, index_t size) {
    if (count < 1) raise(message("quest: top ") << count << " pages, must be at least 1");
    detail::ledger pages(scores.extent(0), scores.extent(1));
    pages.append(scores.extent(2));
    const kept_tokens chosen = top_tokens(scores, pages.kept(), budget(count));
    kept_tokens result(chosen.batches(), chosen.key_heads());
    for (index_t b = 0; b < chosen.batches(); ++b) {
      for (index_t h = 0; h < chosen.key_heads(); ++h) {
        auto& list = result.at(b, h);
        list.reserve(chosen.at(b, h).size() * static_cast<std::size_t>(page_size));
        for (const index_t page : chosen.at(b, h)) {
          const index_t end = std::min(size, (page + 1) * page_size);
          for (index_t i = page * page_size; i < end; ++i) list.push_back(i);
        }
      }
    }
    return result;
  }

 private:
  static void require(const char* what, index_t value, index_t wanted) {
    if (value != wanted) {
      raise(message("k: ") << what << " " << value << " is not the page bounds' " << wanted);
    }
  }
  // Lanes along the depth.
  float upper_bound(const float* q, const float* low) const {
    using vector = pack<float, 16>;
    const float* high = low + depth_;
    vector sums(0.f);
    index_t d = 0;
    for (; d + 16 <= depth_; d += 16) {
      const auto x = load_pack<vector>(q + d);
      sums += max(x * load_pack<vector>(low + d), x * load_pack<vector>(high + d));
    }
    float sum = sum_lanes(sums);
    for (; d < depth_; ++d) sum += std::max(q[d] * low[d], q[d] * high[d]);
    return sum;
  }

  index_t batches_, key_heads_, page_size_, depth_;
  index_t size_ = 0;
  std::vector<std::vector<float>> lists_;  // [B·Hkv][pages][2][D]: smallest, then largest
};

}  // namespace cache
HEED_NAMESPACE_END
