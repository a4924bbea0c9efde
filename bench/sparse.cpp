// Attention over lists, next to dense attention of the same shape, call by call in turn.
//
//   sparse/blocks/float/D:64/S:4096/density:10/block:64/<backend>    a random block list
//   sparse/rows/…/keys:<n>/block:64                                   n scattered keys per block of
//                                                                     queries, gathered
//   sparse/sparge/…/top_p:50       pooled blocks chosen by mass, estimator included
//   sparse/quest/D:128/keys:32768/pages:128                           one decoding step, 16 keys a
//                                                                     page, estimator included
//   sparse/lsh/…/chunk:64/rounds:2                                    hashing not included
//
// Counters, of the fastest calls:
//   gflops       2·(D + Dv) per score of the listed blocks (of a page that is read, of a key)
//   of_ceiling   gflops over what multiply-adds from registers reach
//   visited      tiles that were computed
//   tile_ratio   time per visited tile over that of dense attention
//   time_ratio   time over that of dense attention
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <heed/mask/causal.hpp>
#include <heed/sparse/lsh.hpp>
#include <heed/sparse/quest.hpp>
#include <heed/sparse/sparge.hpp>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "support/dense_case.hpp"

namespace {

using namespace heed_bench;
namespace sparse = heed::sparse;
using heed::call_shape;
using heed::tile_counts;

// A call that says which tiles it visited (where it can), and the scores that it is about.
using counted_call = std::function<void(tile_counts&)>;

void compare(benchmark::State& state, const counted_call& ours, const counted_call& dense,
             double scores, index_t depth) {
  tile_counts of_ours, of_dense, ignored;
  ours(of_ours), dense(of_dense);
  double mine = std::numeric_limits<double>::infinity(), theirs = mine;
  for ([[maybe_unused]] auto _ : state) {
    mine = std::min(mine, cpu_seconds_of([&] { ours(ignored); }));
    state.PauseTiming();
    theirs = std::min(theirs, cpu_seconds_of([&] { dense(ignored); }));
    state.ResumeTiming();
  }
  const double gflops = 4e-9 * static_cast<double>(depth) * scores / mine;
  state.counters["gflops"] = gflops;
  state.counters["of_ceiling"] = gflops / fma_gflops<float>();
  state.counters["time_ratio"] = mine / theirs;
  if (of_ours.visited() != 0) {
    state.counters["visited"] = static_cast<double>(of_ours.visited());
    state.counters["tile_ratio"] = mine / static_cast<double>(of_ours.visited()) /
                                   (theirs / static_cast<double>(of_dense.visited()));
  }
}

// Each block with some probability, the own one always.
sparse::block_list random_blocks(index_t length, index_t block_q, index_t block_k, double density) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<double> draw;
  return sparse::list_where(sparse::blocks_of({1, 1, length, length}, block_q, block_k),
                            [&](index_t, index_t, index_t i, index_t j) {
                              const bool own = i * block_q / block_k == j;
                              return draw(generator) < density || own;
                            });
}

template <class Backend>
counted_call dense_call(const operands<float>& x) {
  return [&x](tile_counts& counts) {
    heed::attention<Backend>(x.query_view(), x.key_view(), x.value_view(), x.out_view(),
                             heed::count_tiles{counts});
  };
}

std::string shape_name(const char* kind, index_t depth, index_t length) {
  return std::string("sparse/") + kind + "/float/D:" + std::to_string(depth) +
         "/S:" + std::to_string(length);
}

template <class Backend>
void add_blocks(index_t depth, index_t length, index_t percent, index_t block) {
  const std::string name = shape_name("blocks", depth, length) +
                           "/density:" + std::to_string(percent) +
                           "/block:" + std::to_string(block) + "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<float>(prefill(1, length, depth));
    const auto list = random_blocks(length, block, 64, 0.01 * static_cast<double>(percent));
    const counted_call ours = [&](tile_counts& counts) {
      sparse::attention<Backend>(x.query_view(), x.key_view(), x.value_view(), x.out_view(), list,
                                 heed::count_tiles{counts});
    };
    compare(state, ours, dense_call<Backend>(x),
            static_cast<double>(list.blocks.size()) * static_cast<double>(block * 64), depth);
  });
}

template <class Backend>
void add_rows(index_t depth, index_t length, index_t keys) {
  const std::string name = shape_name("rows", depth, length) + "/keys:" + std::to_string(keys) +
                           "/block:64/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<float>(prefill(1, length, depth));
    std::mt19937 generator(1);
    std::vector<index_t> offsets{0}, rows, all(static_cast<std::size_t>(length));
    std::iota(all.begin(), all.end(), index_t{0});
    for (index_t i = 0; i < length / 64; ++i) {
      std::sample(all.begin(), all.end(), std::back_inserter(rows), keys, generator);
      offsets.push_back(static_cast<index_t>(rows.size()));
    }
    const sparse::row_list list({1, 1, length, length}, 64, offsets, rows);
    const counted_call ours = [&](tile_counts& counts) {
      sparse::attention<Backend>(x.query_view(), x.key_view(), x.value_view(), x.out_view(), list,
                                 heed::count_tiles{counts});
    };
    compare(state, ours, dense_call<Backend>(x), static_cast<double>(length * keys), depth);
  });
}

template <class Backend>
void add_sparge(index_t depth, index_t length) {
  const std::string name =
      shape_name("sparge", depth, length) + "/top_p:50/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<float>(prefill(1, length, depth));
    sparse::sparge_options how;
    how.similarity = -1;  // random rows are not alike
    const sparse::top_p keep(0.5, false);
    const auto list = sparse::sparge_list(x.query_view(), x.key_view(), keep, how);
    const counted_call ours = [&](tile_counts& counts) {
      sparse::sparge<Backend>(x.query_view(), x.key_view(), x.value_view(), x.out_view(), keep, how,
                              heed::count_tiles{counts});
    };
    compare(
        state, ours, dense_call<Backend>(x),
        static_cast<double>(list.blocks.size()) * static_cast<double>(how.block_q * how.block_k),
        depth);
  });
}

template <class Backend>
void add_quest(index_t depth, index_t keys, index_t pages) {
  const std::string name = "sparse/quest/float/D:" + std::to_string(depth) +
                           "/keys:" + std::to_string(keys) + "/pages:" + std::to_string(pages) +
                           "/" + std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    constexpr index_t page = 16;
    const auto x = make_operands<float>(decode(4, keys, depth));
    const auto bounds = sparse::block_bounds(x.key_view(), page);  // a cache keeps them
    const counted_call ours = [&](tile_counts&) {
      sparse::attention<Backend>(x.query_view(), x.key_view(), x.value_view(), x.out_view(),
                                 sparse::quest_list(x.query_view(), bounds, keys, page, pages),
                                 heed::causal{});
    };
    compare(state, ours, dense_call<Backend>(x), 32.0 * static_cast<double>(pages * page), depth);
  });
}

template <class Backend>
void add_lsh(index_t depth, index_t length, index_t rounds) {
  const std::string name = shape_name("lsh", depth, length) +
                           "/chunk:64/rounds:" + std::to_string(rounds) + "/" +
                           std::string(Backend::name);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto x = make_operands<float>(prefill(1, length, depth));
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> turns(static_cast<std::size_t>(depth * rounds * (length / 128)));
    for (float& t : turns) t = normal(generator);
    const auto buckets = sparse::lsh_buckets(
        x.query_view(),
        heed::tensor_view<const float, 3>(turns.data(), {depth, rounds, length / 128}));
    const heed::tensor_view<const index_t, 4> numbers(buckets.data(), {1, 1, rounds, length});
    const counted_call ours = [&](tile_counts& counts) {
      sparse::lsh_attention<Backend>(x.query_view(), x.value_view(), x.out_view(), numbers, {},
                                     heed::count_tiles{counts});
    };
    compare(state, ours, dense_call<Backend>(x), static_cast<double>(length * rounds * 128), depth);
  });
}

template <class Backend>
void add_backend() {
  for (index_t depth : {64, 128}) {
    for (index_t length : {4096, 16384}) {
      for (index_t block : {64, 128}) add_blocks<Backend>(depth, length, 10, block);
    }
  }
  add_rows<Backend>(64, 4096, 512);
  add_sparge<Backend>(64, 4096);
  add_lsh<Backend>(64, 4096, 2);
  add_quest<Backend>(128, 32768, 128);
}

[[maybe_unused]] const bool registered = [] {
  add_backend<heed::backend::native>();
  return true;
}();

}  // namespace
