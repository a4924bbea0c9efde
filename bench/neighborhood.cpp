// Attention in neighborhoods, windows and blocks of a grid, next to dense attention over all of it,
// call by call in turn.
//
//   neighborhood/<method>/<type>/D:32/grid:56x56/window:7x7/<backend>
//
// method natten (biased: with its table of relative positions), swin (shifted: with shift), halo.
//
// Counters, from the fastest calls:
//   gflops       of the scores that are let through
//   of_ceiling   of the processor's multiply-adds in the operands' type
//   speedup      time of dense attention over all tokens, without a mask, over ours
//   allowed      what visited tiles allow: tiles of the dense call over tiles of ours
//   of_allowed   speedup / allowed
//   full         scores that are let through, of those in visited tiles (64 keys × a strip of rows)
#include <benchmark/benchmark.h>

#include <functional>
#include <heed/neighborhood/attention.hpp>
#include <heed/neighborhood/halo.hpp>
#include <heed/neighborhood/mask.hpp>
#include <heed/neighborhood/swin.hpp>
#include <string>
#include <vector>

#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;
namespace neighborhood = heed::neighborhood;

template <class T>
using view = heed::tensor_view<T, 4>;

// Tokens of some heads of a grid, and the call that is measured on them.
template <class T>
struct grid_case {
  index_t heads, tokens, depth;
  std::shared_ptr<T> q = random_tensor<T>(heads * tokens * depth, 1),
                     k = random_tensor<T>(heads * tokens * depth, 2),
                     v = random_tensor<T>(heads * tokens * depth, 3),
                     out = random_tensor<T>(heads * tokens * depth, 4);
  std::shared_ptr<float> table = random_tensor<float>(1 << 20, 5);

  view<const T> read(const std::shared_ptr<T>& x) const {
    return {x.get(), {1, heads, tokens, depth}};
  }
  view<T> write() const { return {out.get(), {1, heads, tokens, depth}}; }
};

// Measures call(case, options…) next to dense attention. `visible` scores of a head count.
template <class Backend, class T, class Call>
void add(const std::string& method, const std::string& shape, index_t heads, index_t tokens,
         index_t depth, double visible, const Call& call) {
  std::string name = "neighborhood/" + method + "/" + type_name<T>() +
                     "/D:" + std::to_string(depth) + "/" + shape + "/";
  name += Backend::name;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const grid_case<T> c{heads, tokens, depth};
    heed::tile_counts ours_visited, dense_visited;
    call(c, heed::count_tiles(ours_visited));
    heed::attention<Backend>(c.read(c.q), c.read(c.k), c.read(c.v), c.write(),
                             heed::count_tiles(dense_visited));
    const auto ours_once = [&] {
      call(c);
      keep(*c.out);
    };
    const auto dense_once = [&] {
      heed::attention<Backend>(c.read(c.q), c.read(c.k), c.read(c.v), c.write());
      keep(*c.out);
    };
    std::vector<double> ours, dense;
    for ([[maybe_unused]] auto _ : state) {
      ours.push_back(cpu_seconds_of(ours_once));
      state.PauseTiming();
      for (int i = 0; i < 4; ++i) ours.push_back(cpu_seconds_of(ours_once));
      dense.push_back(cpu_seconds_of(dense_once));
      state.ResumeTiming();
    }
    const double speedup = best_of(dense) / best_of(ours);
    const double allowed =
        static_cast<double>(dense_visited.visited()) / static_cast<double>(ours_visited.visited());
    const double flops = 4.0 * static_cast<double>(heads * depth) * visible;
    state.counters["gflops"] = flops / best_of(ours) * 1e-9;
    state.counters["of_ceiling"] = flops / best_of(ours) * 1e-9 / fma_gflops<float>();
    state.counters["speedup"] = speedup;
    state.counters["allowed"] = allowed;
    state.counters["of_allowed"] = speedup / allowed;
    state.counters["full"] = static_cast<double>(heads) * visible * allowed /
                             static_cast<double>(heads * tokens * tokens);
  });
}

template <int N>
std::string text_of(const char* what, const neighborhood::coordinates<N>& x) {
  std::string text = what;
  for (std::size_t a = 0; a < x.size(); ++a) {
    text.append(a == 0 ? ":" : "x").append(std::to_string(x[a]));
  }
  return text;
}

template <class Backend, class T, int N>
void add_natten(const neighborhood::pattern<N>& which, index_t heads, index_t depth, bool biased) {
  double visible = 1;  // not causal: every place sees a whole window
  std::array<index_t, static_cast<std::size_t>(N) + 1> table{heads};
  for (std::size_t a = 0; a < which.grid.size(); ++a) {
    visible *= static_cast<double>(which.grid[a] * which.window[a]);
    table[a + 1] = 2 * which.window[a] - 1;
  }
  std::string shape = text_of<N>("grid", which.grid);
  shape.append("/").append(text_of<N>("window", which.window));
  if (which.stride != neighborhood::pattern<N>{}.stride) {
    shape.append("/").append(text_of<N>("stride", which.stride));
  }
  if (which.dilation != neighborhood::pattern<N>{}.dilation) {
    shape.append("/").append(text_of<N>("dilation", which.dilation));
  }
  add<Backend, T>(biased ? "natten/biased" : "natten", shape, heads, which.tokens(), depth, visible,
                  [=](const grid_case<T>& c, const auto&... options) {
                    if (biased) {
                      neighborhood::attention<N, Backend>(
                          c.read(c.q), c.read(c.k), c.read(c.v), c.write(), which,
                          neighborhood::relative_bias{
                              heed::tensor_view<const float, N + 1>(c.table.get(), table)},
                          options...);
                    } else {
                      neighborhood::attention<N, Backend>(c.read(c.q), c.read(c.k), c.read(c.v),
                                                          c.write(), which, options...);
                    }
                  });
}

template <class Backend, class T>
void add_swin(const neighborhood::windows<2>& which, index_t heads, index_t depth) {
  const index_t window = which.window[0] * which.window[1], tokens = which.grid[0] * which.grid[1];
  const index_t entries = (2 * which.window[0] - 1) * (2 * which.window[1] - 1);
  add<Backend, T>(which.shift[0] > 0 ? "swin/shifted" : "swin",
                  text_of<2>("grid", which.grid) + "/" + text_of<2>("window", which.window), heads,
                  tokens, depth, static_cast<double>(tokens * window),
                  [=](const grid_case<T>& c, const auto&... options) {
                    neighborhood::swin<2, Backend>(
                        c.read(c.q), c.read(c.k), c.read(c.v), c.write(), which,
                        heed::tensor_view<const float, 2>(c.table.get(), {entries, heads}),
                        options...);
                  });
}

template <class Backend, class T>
void add_halo(const neighborhood::halo_blocks& which, index_t heads, index_t depth) {
  const index_t tokens = which.grid[0] * which.grid[1];
  const auto window = which.window();
  add<Backend, T>("halo",
                  text_of<2>("grid", which.grid) + "/" + text_of<2>("block", which.block) + "/" +
                      text_of<2>("halo", which.halo),
                  heads, tokens, depth, static_cast<double>(tokens * window[0] * window[1]),
                  [=](const grid_case<T>& c, const auto&... options) {
                    using table = heed::tensor_view<const float, 2>;
                    neighborhood::halo<Backend>(
                        c.read(c.q), c.read(c.k), c.read(c.v), c.write(), which,
                        table(c.table.get(), {2 * window[0] - 1, depth}),
                        table(c.table.get(), {2 * window[1] - 1, depth}), options...);
                  });
}

template <class Backend>
void add_backend() {
  for (index_t depth : {32, 64}) {
    add_natten<Backend, float, 2>({.grid = {56, 56}, .window = {7, 7}}, 4, depth, false);
    add_natten<Backend, float, 2>({.grid = {56, 56}, .window = {7, 7}}, 4, depth, true);
  }
  add_natten<Backend, float, 2>({.grid = {56, 56}, .window = {13, 13}}, 4, 32, false);
  add_natten<Backend, float, 2>({.grid = {56, 56}, .window = {7, 7}, .dilation = {8, 8}}, 4, 32,
                                true);
  add_natten<Backend, float, 2>({.grid = {64, 64}, .window = {8, 8}, .stride = {8, 8}}, 4, 32,
                                false);
  add_natten<Backend, float, 1>({.grid = {4096}, .window = {63}}, 4, 64, true);
  add_natten<Backend, float, 3>({.grid = {8, 24, 24}, .window = {5, 5, 5}}, 2, 32, true);
  add_swin<Backend, float>({.grid = {56, 56}, .window = {7, 7}}, 4, 32);
  add_swin<Backend, float>({.grid = {56, 56}, .window = {7, 7}, .shift = {3, 3}}, 4, 32);
  add_halo<Backend, float>({.grid = {64, 64}, .block = {8, 8}, .halo = {3, 3}}, 4, 32);
}

[[maybe_unused]] const bool registered = [] {
  add_backend<heed::backend::native>();
  return true;
}();

}  // namespace
