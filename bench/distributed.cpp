// Attention of a sequence that is dealt to several processes.
//
//   distributed/work/<layout>/<mask>/float/D:64/L:<tokens>/processes:8/<backend>
//     every process's blocks, attended to one after the other by this process: what each of 8
//     processes would have to do in a ring, without their messages
//   distributed/ring/<layout>/<mask>/float/D:64/L:<tokens>/processes:<N>/<backend>
//     ring_attention on the N processes of `mpirun -np N bench/distributed`
//
// 8 heads. Counters:
//   gflops        visible scores only, of all processes together (work: of this one)
//   of_ceiling    gflops over multiply-add from registers, times N (ring)
//   most_work     tiles of the busiest process over the mean: 1 is balance
//   most_time     processor time of the busiest process over the mean
//   ring_share    (work) the share of a ring's time in which a process computes, where every step
//                 waits for the slowest: mean time over the sum of each step's longest
#include <benchmark/benchmark.h>

#include <algorithm>
#include <heed/distributed/ring_attention.hpp>
#include <heed/mask/causal.hpp>
#include <string>
#include <vector>

#include "support/dense_case.hpp"

namespace {

using namespace heed_bench;
namespace distributed = heed::distributed;
using Backend = heed::backend::native;

constexpr index_t heads = 8, depth = 64;

template <class Layout>
constexpr const char* layout_name() {
  if constexpr (std::is_same_v<Layout, distributed::blocks>) return "blocks";
  if constexpr (std::is_same_v<Layout, distributed::striped>) return "striped";
  return "zigzag";
}

std::string name_of(const char* kind, const char* layout, mask_kind mask, index_t length,
                    int processes) {
  return std::string("distributed/") + kind + "/" + layout + "/" + heed_bench::name_of(mask) +
         "/float/D:64/L:" + std::to_string(length) + "/processes:" + std::to_string(processes) +
         "/" + std::string(Backend::name);
}

heed::tensor_view<float, 3> share(const std::shared_ptr<float>& data, index_t count) {
  return {data.get(), {heads, count, depth}};
}

double busiest_over_mean(const std::vector<double>& work) {
  double sum = 0;
  for (const double x : work) sum += x;
  return *std::max_element(work.begin(), work.end()) * static_cast<double>(work.size()) / sum;
}

template <class Layout, mask_kind Mask>
void add_work(index_t length) {
  constexpr int processes = 8;
  const std::string name = name_of("work", layout_name<Layout>(), Mask, length, processes);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const Layout layout(length, processes);
    const index_t most = layout.of(0).count;
    const auto q = random_tensor<float>(heads * most * depth, 1);
    const auto k = random_tensor<float>(heads * most * depth, 2);
    const auto out = random_tensor<float>(heads * most * depth, 3);
    std::vector<double> tiles(processes), times(processes), steps(processes);
    double seconds = 0;
    for ([[maybe_unused]] auto _ : state) {
      for (int step = 0; step < processes; ++step) {
        double longest = 0;
        for (int rank = 0; rank < processes; ++rank) {
          const auto own = layout.of(rank), held = layout.of((rank - step + processes) % processes);
          heed::tile_counts counts;
          const double time = cpu_seconds_of([&] {
            if constexpr (Mask == mask_kind::causal) {
              heed::attention<Backend>(share(q, own.count), share(k, held.count),
                                       share(k, held.count), share(out, own.count),
                                       heed::count_tiles{counts},
                                       distributed::placed_mask<heed::causal, Layout::consecutive>{
                                           heed::causal{}, {own, held, length, length}});
            } else {
              heed::attention<Backend>(share(q, own.count), share(k, held.count),
                                       share(k, held.count), share(out, own.count),
                                       heed::count_tiles{counts});
            }
          });
          tiles[static_cast<std::size_t>(rank)] += static_cast<double>(counts.visited());
          times[static_cast<std::size_t>(rank)] += time;
          longest = std::max(longest, time);
          seconds += time;
        }
        steps[static_cast<std::size_t>(step)] += longest;
      }
    }
    double ring = 0;
    for (const double x : steps) ring += x;
    const double rate = useful_flops(prefill(heads, length, depth), Mask) *
                        static_cast<double>(state.iterations()) / seconds * 1e-9;
    state.counters["gflops"] = rate;
    state.counters["of_ceiling"] = rate / fma_gflops<float>();
    state.counters["most_work"] = busiest_over_mean(tiles);
    state.counters["most_time"] = busiest_over_mean(times);
    state.counters["ring_share"] = seconds / processes / ring;
  });
}

// Every process runs the same number of calls.
template <class Layout, mask_kind Mask>
void add_ring(index_t length, int rank, int processes) {
  const std::string name = name_of("ring", layout_name<Layout>(), Mask, length, processes);
  benchmark::RegisterBenchmark(
      name.c_str(),
      [=](benchmark::State& state) {
        const Layout layout(length, processes);
        const index_t own = layout.of(rank).count;
        const auto q = random_tensor<float>(heads * own * depth, 1);
        const auto k = random_tensor<float>(heads * own * depth, 2);
        const auto out = random_tensor<float>(heads * own * depth, 3);
        heed::tile_counts counts;
        double work[2] = {}, wall = 0;
        for ([[maybe_unused]] auto _ : state) {
          MPI_Barrier(MPI_COMM_WORLD);
          const double start = MPI_Wtime();
          work[1] += cpu_seconds_of([&] {
            if constexpr (Mask == mask_kind::causal) {
              distributed::ring_attention<Backend>(MPI_COMM_WORLD, layout, share(q, own),
                                                   share(k, own), share(k, own), share(out, own),
                                                   heed::causal{}, heed::count_tiles{counts});
            } else {
              distributed::ring_attention<Backend>(MPI_COMM_WORLD, layout, share(q, own),
                                                   share(k, own), share(k, own), share(out, own),
                                                   heed::count_tiles{counts});
            }
          });
          MPI_Barrier(MPI_COMM_WORLD);
          wall += MPI_Wtime() - start;
        }
        work[0] = static_cast<double>(counts.visited());
        std::vector<double> all(2 * static_cast<std::size_t>(processes));
        MPI_Allgather(work, 2, MPI_DOUBLE, all.data(), 2, MPI_DOUBLE, MPI_COMM_WORLD);
        std::vector<double> tiles, times;
        for (std::size_t i = 0; i < all.size(); i += 2) {
          tiles.push_back(all[i]);
          times.push_back(all[i + 1]);
        }
        const double rate = useful_flops(prefill(heads, length, depth), Mask) *
                            static_cast<double>(state.iterations()) / wall * 1e-9;
        state.counters["gflops"] = rate;
        state.counters["of_ceiling"] = rate / fma_gflops<float>() / processes;
        state.counters["most_work"] = busiest_over_mean(tiles);
        state.counters["most_time"] = busiest_over_mean(times);
      })
      ->Iterations(5)
      ->UseRealTime();
}

template <class Layout>
void add_layout(int rank, int processes) {
  // Work without messages is the same on every process: one is enough.
  if (processes == 1) {
    add_work<Layout, mask_kind::full>(4096);
    add_work<Layout, mask_kind::causal>(4096);
  }
  add_ring<Layout, mask_kind::full>(4096, rank, processes);
  add_ring<Layout, mask_kind::causal>(4096, rank, processes);
}

// What processes other than 0 print.
class silence : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>&) override {}
};

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, processes = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &processes);
  benchmark::Initialize(&argc, argv);
  add_layout<distributed::blocks>(rank, processes);
  add_layout<distributed::striped>(rank, processes);
  add_layout<distributed::zigzag>(rank, processes);
  if (rank == 0) {
    benchmark::RunSpecifiedBenchmarks();
  } else {
    silence nothing;
    benchmark::RunSpecifiedBenchmarks(&nothing);
  }
  MPI_Finalize();
}
