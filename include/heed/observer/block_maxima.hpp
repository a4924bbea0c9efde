// The largest weight in every block of queries and keys, what block-sparse patterns are chosen by.
//
//   maxima[b, h, I, J] = max p_ij,  i in [I·bq, (I+1)·bq), j in [J·bk, (J+1)·bk)
//
//   maxima [B, Hq, ⌈Lq / bq⌉, ⌈Lk / bk⌉], float or double; blocks count rows of q and k. 0 where no
//   weight is positive.
#pragma once

#include "../core/weight_row.hpp"
#include "detail/target.hpp"

HEED_NAMESPACE_BEGIN

template <class T>
struct block_maxima_to {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "heed: block_maxima_to is float or double");
  tensor_view<T, 4> maxima;
  index_t query_block, key_block;

  template <int Rank>
  block_maxima_to(tensor_view<T, Rank> target, index_t queries, index_t keys)
      : maxima(target.template lifted<4>()), query_block(queries), key_block(keys) {
    if (queries < 1 || keys < 1) {
      raise(message("block_maxima_to: blocks of ")
            << queries << " queries and " << keys << " keys, must be 1 or more");
    }
  }

  template <class Row>
  void observe(const Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    T* of_blocks = maxima.row(row.batch, row.head, row.row / query_block);
    for (index_t i = 0; i < row.run_count; ++i) {
      const key_run& run = row.runs[i];
      const real* w = row.weights + i * Row::run_keys;
      index_t block = run.column / key_block;
      if (block == (run.column + run.count - 1) / key_block) {  // one block: as packs
        pack_type most(real(0));
        for (int c = 0; c < Row::run_keys; c += Row::lanes) {
          most = max(load_pack<pack_type>(w + c), most);
        }
        raise_to(of_blocks + block, max_lanes(most));
        continue;
      }
      for (int c = 0; c < run.count; ++block) {
        const index_t end = (block + 1) * key_block - run.column;
        real most = 0;
        for (; c < run.count && c < end; ++c) most = w[c] > most ? w[c] : most;
        raise_to(of_blocks + block, most);
      }
    }
  }

  void clear() const { observer_detail::fill(maxima, T(0)); }
  void check(const call_shape& shape) const {
    const auto blocks = [](index_t length, index_t of) { return length / of + (length % of != 0); };
    observer_detail::check_target("block_maxima_to", maxima,
                                  {shape.batches, shape.heads, blocks(shape.queries, query_block),
                                   blocks(shape.keys, key_block)},
                                  "query block count", "key block count");
  }
  template <class Use>
  void outputs(const Use& use) const {
    use("block_maxima_to", maxima);
  }

 private:
  // Rows of a block may belong to several threads; a maximum does not depend on their order.
  template <class Real>
  HEED_INLINE static void raise_to(T* at, Real value) {
    T latest;
    __atomic_load(at, &latest, __ATOMIC_RELAXED);
    T wanted = static_cast<T>(value);
    while (latest < wanted && !__atomic_compare_exchange(at, &latest, &wanted, true,
                                                         __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
};
template <class T, int Rank>
block_maxima_to(tensor_view<T, Rank>, index_t, index_t) -> block_maxima_to<T>;

HEED_NAMESPACE_END
