// The ceilings of one core: arithmetic, exponentials, reading. They are what the shares in all
// other benchmarks refer to.
//
// Registers itself and has no main, so it can be linked into the binary of any family.
#include "support/ceilings.hpp"

#include <benchmark/benchmark.h>

#include <string>

namespace {

using heed_bench::burst;
using heed_bench::memory_level;

void add(const std::string& name, const char* unit, burst (*make)()) {
  benchmark::RegisterBenchmark(("ceilings/" + name).c_str(), [unit, make](benchmark::State& state) {
    const burst piece = make();
    if (!piece) {
      state.SkipWithError(piece.missing.c_str());
      return;
    }
    for ([[maybe_unused]] auto _ : state) piece.run();
    state.counters[unit] =
        benchmark::Counter(piece.work * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  });
}

[[maybe_unused]] const bool registered = [] {
  namespace hb = heed_bench;
  add("fma/float", "gflops", [] { return hb::fma_burst<float>(); });
  add("fma/double", "gflops", [] { return hb::fma_burst<double>(); });
  add("fma_broadcast/float", "gflops", [] { return hb::fma_broadcast_burst(); });
  add("matrix/bf16", "gflops", [] { return hb::matrix_burst(hb::bf16); });
  add("matrix/bf16/L2", "gflops", [] { return hb::matrix_burst(hb::bf16, memory_level::l2); });
  add("vector/bf16", "gflops", [] { return hb::vector_burst(hb::bf16); });
  add("vector/f16", "gflops", [] { return hb::vector_burst(hb::f16); });
  add("exp/float", "gexps", [] { return hb::exp_burst(); });
  add("read/L1", "gbs", [] { return hb::read_burst(memory_level::l1); });
  add("read/L2", "gbs", [] { return hb::read_burst(memory_level::l2); });
  add("read/L3", "gbs", [] { return hb::read_burst(memory_level::l3); });
  add("read/DRAM", "gbs", [] { return hb::read_burst(memory_level::dram); });
  return true;
}();

}  // namespace
