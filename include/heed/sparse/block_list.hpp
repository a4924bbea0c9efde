// Lists of key blocks: which blocks of keys each block of queries attends to, as compressed sparse
// rows.
//
//   row (b, h, i)   the ascending numbers of the key blocks that query block i of head h sees,
//                   blocks[offsets[(b·heads + h)·query_blocks + i] … offsets[… + 1])
//   query q         may attend to key k where k / block_k is in the list of q / block_q
//
// A list is a mask, and the dense tile loop is its engine: block_list_view walks the listed runs of
// keys (for_each_key_run) and classifies tiles, so that what is not listed costs nothing. batches
// and heads of 1 serve all; a list per KV head serves the query heads of its group. q and k are
// counted from the beginning of their own sequence, without alignment.
//
// The block-sparse layouts of Child et al. ("Generating Long Sequences with Sparse Transformers",
// 2019), BigBird, Longformer, and what every block selector produces (select.hpp).
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "../core/error.hpp"
#include "../core/position.hpp"
#include "../core/tensor_view.hpp"
#include "../mask/algebra.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// How many blocks there are, and of how many queries and keys.
struct block_shape {
  index_t batches = 1, heads = 1;
  index_t query_blocks = 0, key_blocks = 0;
  index_t block_q = 64, block_k = 64;

  index_t rows() const { return batches * heads * query_blocks; }
};

// The blocks of a call; the last ones may be cut short.
inline block_shape blocks_of(const call_shape& call, index_t block_q, index_t block_k) {
  if (block_q < 1) raise(message("block_q: ") << block_q << " is not positive");
  if (block_k < 1) raise(message("block_k: ") << block_k << " is not positive");
  return {call.batches,
          call.heads,
          call.queries / block_q + (call.queries % block_q != 0),
          call.keys / block_k + (call.keys % block_k != 0),
          block_q,
          block_k};
}

namespace lists {

// ⌊x / size⌋ for x ≥ 0, by a shift where that will do: tiles are classified by the thousand.
class divider {
 public:
  explicit divider(index_t size)
      : size_(size),
        shift_(size > 0 && (size & (size - 1)) == 0
                   ? std::countr_zero(static_cast<std::uint64_t>(size))
                   : -1) {}
  HEED_INLINE index_t operator()(index_t x) const { return shift_ >= 0 ? x >> shift_ : x / size_; }

 private:
  index_t size_;
  int shift_;
};

// The first entry of an ascending list that is not below `bound`, found without jumps.
HEED_INLINE const index_t* first_from(const index_t* begin, const index_t* end, index_t bound) {
  index_t count = end - begin;
  while (count > 1) {
    const index_t half = count / 2;
    begin += begin[half - 1] < bound ? half : 0;
    count -= half;
  }
  return begin + (count == 1 && *begin < bound);
}

}  // namespace lists

// A list over the caller's arrays, and the mask that it is.
class block_list_view {
 public:
  // Raises where a block size or extent is not positive, the offsets do not ascend from 0 to the
  // number of blocks, or a row's blocks do not ascend within [0, key_blocks).
  block_list_view(const block_shape& shape, std::span<const index_t> offsets,
                  std::span<const index_t> blocks)
      : shape_(shape),
        query_block_(shape.block_q),
        key_block_(shape.block_k),
        group_(1),
        offsets_(offsets.data()),
        blocks_(blocks.data()) {
    check_arrays(offsets, blocks);
  }

  const block_shape& shape() const { return shape_; }
  index_t query_block() const { return shape_.block_q; }
  std::span<const index_t> row(index_t batch, index_t head, index_t query_block) const {
    const index_t* from = offsets_ + (batch * shape_.heads + head) * shape_.query_blocks;
    return {blocks_ + from[query_block],
            static_cast<std::size_t>(from[query_block + 1] - from[query_block])};
  }

  // The same list as the mask of a call with that many query heads, a multiple of its own.
  block_list_view for_heads(index_t query_heads) const {
    if (shape_.heads < 1 ? query_heads != 0 : query_heads % shape_.heads != 0) {
      raise(message("block list: head count ")
            << shape_.heads << " does not divide query head count " << query_heads);
    }
    block_list_view result = *this;
    result.group_size_ = shape_.heads < 1 ? 1 : max(query_heads / shape_.heads, 1);
    result.group_ = lists::divider(result.group_size_);
    return result;
  }

  // The same list with its layout as bits, kept in `storage`: looked up faster than searched.
  block_list_view with_bits(std::vector<std::uint64_t>& storage) const {
    block_list_view result = *this;
    result.words_ = (shape_.key_blocks + 63) / 64;
    storage.assign(static_cast<std::size_t>(shape_.rows() * result.words_), 0);
    for (index_t r = 0; r < shape_.rows(); ++r) {
      for (index_t i = offsets_[r]; i < offsets_[r + 1]; ++i) {
        storage[static_cast<std::size_t>(r * result.words_ + blocks_[i] / 64)] |=
            std::uint64_t{1} << blocks_[i] % 64;
      }
    }
    result.bits_ = storage.data();
    return result;
  }

  HEED_INLINE bool operator()(const position& p) const {
    return lists_block(row_of(p.batch, p.head, query_block_(p.q)), key_block_(p.k));
  }
  template <class Real, int N>
  HEED_INLINE typename pack<Real, N>::mask operator()(const pack_position<Real, N>& p) const {
    using mask = typename pack<Real, N>::mask;
    const index_t of_query = row_of(p.batch, p.head, query_block_(p.q));
    index_t block = key_block_(p.first_key);
    mask result(lists_block(of_query, block));
    // Most often all keys lie in one block; else each further block takes over from its first key.
    const index_t end = p.first_key + p.valid;
    for (index_t begin = (block + 1) * shape_.block_k; begin < end; begin += shape_.block_k) {
      ++block;
      const mask behind = mask_detail::key_at_least(p, begin);
      result = (result & !behind) | (behind & mask(lists_block(of_query, block)));
    }
    return result;
  }

  visibility tile(const tile_extent& t) const {
    if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) return visibility::none;
    const index_t first = key_block_(t.k_begin), behind = key_block_(t.k_end - 1) + 1;
    const index_t top = row_of(t.batch, t.head, query_block_(t.q_begin));
    const index_t bottom = top + query_block_(t.q_end - 1) - query_block_(t.q_begin);
    bool any = false, every = true;
    for (index_t r = top; r <= bottom; ++r) {
      for (index_t block = first; block < behind; ++block) {
        const bool listed = lists_block(r, block);
        any = any || listed;
        every = every && listed;
      }
      if (any && !every) return visibility::some;
    }
    return any ? visibility::all : visibility::none;
  }
  key_ranges visible_keys(const tile_extent& t) const {
    key_ranges result;
    for_each_key_run(t, [&](index_t begin, index_t end) { result.add(begin, end); });
    return result;
  }

  // The union of the lists of the extent's query blocks, as runs of neighbouring blocks.
  template <class Visit>
  void for_each_key_run(const tile_extent& t, Visit visit) const {
    if (t.q_begin >= t.q_end || t.k_begin >= t.k_end) return;
    constexpr index_t window = 4096;  // blocks that are marked at a time
    const index_t end = key_block_(t.k_end - 1) + 1;
    const index_t top = row_of(t.batch, t.head, query_block_(t.q_begin));
    const index_t bottom = top + query_block_(t.q_end - 1) - query_block_(t.q_begin);
    index_t run_begin = 0, run_end = -1;
    const auto flush = [&] {
      const index_t begin = max(t.k_begin, run_begin * shape_.block_k);
      const index_t behind = min(t.k_end, run_end * shape_.block_k);
      if (begin < behind) visit(begin, behind);
    };
    for (index_t base = key_block_(t.k_begin); base < end; base += window) {
      std::uint64_t marks[window / 64] = {};
      for (index_t r = top; r <= bottom; ++r) {
        const index_t* behind = blocks_ + offsets_[r + 1];
        for (const index_t* at = lists::first_from(blocks_ + offsets_[r], behind, base);
             at != behind && *at < min(end, base + window); ++at) {
          marks[(*at - base) / 64] |= std::uint64_t{1} << (*at - base) % 64;
        }
      }
      for (index_t word = 0; word < window / 64 && base + word * 64 < end; ++word) {
        for (std::uint64_t left = marks[word]; left != 0; left &= left - 1) {
          const index_t block = base + word * 64 + std::countr_zero(left);
          if (block != run_end) {
            flush();
            run_begin = block;
          }
          run_end = block + 1;
        }
      }
    }
    flush();
  }

  void check(const call_shape& call) const {
    const auto fits = [](const char* axis, index_t mine, index_t needed) {
      if (mine < needed) {
        raise(message("block list: ") << mine << " " << axis << " blocks, the call has " << needed);
      }
    };
    if (shape_.batches != 1 && shape_.batches != call.batches) {
      raise(message("block list: batch ") << shape_.batches << ", the call has " << call.batches);
    }
    if (shape_.heads != 1 && shape_.heads * group_size_ != call.heads) {
      raise(message("block list: ")
            << shape_.heads * group_size_ << " query heads, the call has " << call.heads);
    }
    const block_shape needed = blocks_of(call, shape_.block_q, shape_.block_k);
    fits("query", shape_.query_blocks, needed.query_blocks);
    fits("key", shape_.key_blocks, needed.key_blocks);
  }

 private:
  // The row of a query head's block of queries.
  HEED_INLINE index_t row_of(index_t batch, index_t head, index_t block) const {
    const index_t of_batch = shape_.batches == 1 ? 0 : batch * shape_.heads;
    const index_t of_head = shape_.heads == 1 ? 0 : group_(head);
    return (of_batch + of_head) * shape_.query_blocks + block;
  }
  HEED_INLINE bool lists_block(index_t r, index_t block) const {
    if (bits_ != nullptr) return (bits_[r * words_ + block / 64] >> block % 64 & 1) != 0;
    const index_t* end = blocks_ + offsets_[r + 1];
    const index_t* at = lists::first_from(blocks_ + offsets_[r], end, block);
    return at != end && *at == block;
  }

  HEED_NOINLINE void check_arrays(std::span<const index_t> offsets,
                                  std::span<const index_t> blocks) const {
    const auto positive = [](const char* name, index_t value) {
      if (value < 1) raise(message("block list: ") << name << " " << value << " is not positive");
    };
    positive("block_q", shape_.block_q);
    positive("block_k", shape_.block_k);
    for (index_t extent : {shape_.batches, shape_.heads, shape_.query_blocks, shape_.key_blocks}) {
      if (extent < 0) raise(message("block list: extent ") << extent << " is negative");
    }
    const auto count = static_cast<index_t>(offsets.size());
    if (count != shape_.rows() + 1) {
      raise(message("block list: ")
            << count << " offsets, must be one more than the " << shape_.rows() << " rows");
    }
    if (offsets[0] != 0) {
      raise(message("block list: offsets start with ") << offsets[0] << ", must start with 0");
    }
    for (index_t r = 0; r < shape_.rows(); ++r) {
      const index_t begin = offsets_[r], end = offsets_[r + 1];
      if (end < begin) {
        raise(message("block list: offset ")
              << r + 1 << " is " << end << ", less than " << begin << " before it");
      }
      if (end > static_cast<index_t>(blocks.size())) break;  // the total below says so
      for (index_t i = begin; i < end; ++i) {
        if (blocks_[i] < 0 || blocks_[i] >= shape_.key_blocks) {
          raise(message("block list: entry ")
                << i - begin << " of row " << r << " is " << blocks_[i] << ", must lie in [0, "
                << shape_.key_blocks << ")");
        }
        if (i > begin && blocks_[i] <= blocks_[i - 1]) {
          raise(message("block list: entry ")
                << i - begin << " of row " << r << " is " << blocks_[i] << ", not greater than "
                << blocks_[i - 1] << " before it");
        }
      }
    }
    if (offsets_[shape_.rows()] != static_cast<index_t>(blocks.size())) {
      raise(message("block list: offsets end with ")
            << offsets_[shape_.rows()] << ", there are " << blocks.size() << " blocks");
    }
  }

  block_shape shape_;
  lists::divider query_block_, key_block_, group_;
  index_t group_size_ = 1;
  const index_t* offsets_;
  const index_t* blocks_;
  const std::uint64_t* bits_ = nullptr;  // [rows][words_]
  index_t words_ = 0;
};

// A list that owns its arrays.
struct block_list {
  block_shape shape;
  std::vector<index_t> offsets, blocks;

  block_list_view view() const { return {shape, offsets, blocks}; }
};

// The list of the blocks (batch, head, query block, key block) that a predicate wants.
template <class Predicate>
block_list list_where(const block_shape& shape, const Predicate& wanted) {
  block_list result{shape, {0}, {}};
  for (index_t b = 0; b < shape.batches; ++b) {
    for (index_t h = 0; h < shape.heads; ++h) {
      for (index_t i = 0; i < shape.query_blocks; ++i) {
        for (index_t j = 0; j < shape.key_blocks; ++j) {
          if (wanted(b, h, i, j)) result.blocks.push_back(j);
        }
        result.offsets.push_back(static_cast<index_t>(result.blocks.size()));
      }
    }
  }
  return result;
}

// The list of a layout [batch, head, query blocks, key blocks] of bool or integers, 0 for blocks
// that are left out; rank 2 and 3 are lifted.
template <class T, int Rank>
block_list list_of(const tensor_view<T, Rank>& layout, index_t block_q, index_t block_k) {
  static_assert(std::is_integral_v<std::remove_const_t<T>>,
                "heed: a layout is made of bool or integers");
  const auto all = layout.template lifted<4>();
  return list_where(
      {all.extent(0), all.extent(1), all.extent(2), all.extent(3), block_q, block_k},
      [&](index_t b, index_t h, index_t i, index_t j) { return all(b, h, i, j) != 0; });
}

// The blocks of a call in which a mask shows something. Attention under the list and the mask is
// attention under the mask; the list alone shows whole blocks.
template <mask_function Mask>
block_list list_of(const Mask& mask, const call_shape& call, index_t block_q, index_t block_k) {
  const block_shape shape = blocks_of(call, block_q, block_k);
  check_modifier(mask, call);
  return list_where(shape, [&](index_t b, index_t h, index_t i, index_t j) {
    const tile_extent t{b,
                        h,
                        i * block_q,
                        min(call.queries, (i + 1) * block_q),
                        j * block_k,
                        min(call.keys, (j + 1) * block_k),
                        call.queries,
                        call.keys};
    const visibility seen = tile_visibility(mask, t);
    if (seen != visibility::some) return seen == visibility::all;
    for (index_t q = t.q_begin; q < t.q_end; ++q) {
      for (index_t k = t.k_begin; k < t.k_end; ++k) {
        if (mask(position{b, h, q, k, call.queries, call.keys})) return true;
      }
    }
    return false;
  });
}

}  // namespace sparse
HEED_NAMESPACE_END
