// Every argument of low-rank attention that does not fit gives one error that names the operand and
// both values, and nothing is written.
#include "support/errors.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "heed/lowrank/agent.hpp"
#include "heed/lowrank/agent_bias.hpp"
#include "heed/lowrank/linformer.hpp"
#include "heed/lowrank/nystrom.hpp"

namespace {

using heed::index_t;
using view = heed::tensor_view<float, 4>;
using maps = heed::tensor_view<const float, 3>;
namespace lowrank = heed::lowrank;

struct call {
  std::vector<float> in = std::vector<float>(4096, 0.5f);
  std::vector<float> out_data = std::vector<float>(4096, 42.f);
  heed::tensor_view<const float, 4> q{in.data(), {2, 4, 12, 8}}, k{in.data(), {2, 2, 15, 8}},
      v{in.data(), {2, 2, 15, 6}};
  view out{out_data.data(), {2, 4, 12, 6}};

  void expect(const std::string& text, const std::function<void()>& body) const {
    heed_test::expect_error(text, body);
    for (float x : out_data) ASSERT_EQ(x, 42.f) << text;
  }
  template <class... Modifiers>
  void expect_nystrom(const std::string& text, const lowrank::landmarks& how,
                      const Modifiers&... modifiers) const {
    expect(text, [&] { lowrank::nystrom<heed::backend::vec>(q, k, v, out, how, modifiers...); });
  }
};

TEST(nystrom_errors, operands_and_options) {
  call c;
  c.expect_nystrom("landmarks: count 0 is not positive", {0});
  c.expect_nystrom("landmarks: iterations -1 is negative", {4, {-1}});
  const std::vector<index_t> long_keys{15, 16}, few{3};
  c.expect_nystrom("key_lengths: entry 1 is 16, must lie in [0, 15]", {4},
                   heed::key_lengths{long_keys});
  c.expect_nystrom("query_lengths: count 1 differs from the batch's 2", {4},
                   heed::query_lengths{few});
  c.expect_nystrom("scale: value is not finite", {4}, heed::scale{HUGE_VAL});
  c.k = heed::tensor_view<const float, 4>(c.in.data(), {2, 3, 15, 8});
  c.v = heed::tensor_view<const float, 4>(c.in.data(), {2, 3, 15, 6});
  c.expect_nystrom("k: head count 3 does not divide query head count 4", {4});
  c = call();
  c.v = heed::tensor_view<const float, 4>(c.in.data(), {2, 2, 14, 6});
  c.expect_nystrom("v: length 14 differs from k's 15", {4});
  c = call();
  c.out = view(c.out_data.data(), {2, 4, 12, 5});
  c.expect_nystrom("out: depth 5 differs from v's 6", {4});
  c = call();
  c.q = heed::tensor_view<const float, 4>(c.out_data.data() + 6, {2, 4, 12, 8});
  c.expect_nystrom("out: overlaps q, in the row at its byte 0", {4});
}

TEST(depthwise_errors, filters) {
  call c;
  const auto filters = [&](index_t h, index_t d, index_t r, index_t w) {
    return heed::tensor_view<const float, 4>(c.in.data(), {h, d, r, w});
  };
  c.expect_nystrom("depthwise: q: length 12 differs from v's 15", {4},
                   lowrank::depthwise{filters(4, 1, 3, 1)});
  c.q = heed::tensor_view<const float, 4>(c.in.data(), {2, 4, 15, 8});
  c.out = view(c.out_data.data(), {2, 4, 15, 6});
  c.expect_nystrom("depthwise weights: head count 2 differs from q's 4", {4},
                   lowrank::depthwise{filters(2, 1, 3, 1)});
  c.expect_nystrom("depthwise weights: channel count 5 is neither 1 nor v's depth 6", {4},
                   lowrank::depthwise{filters(4, 5, 3, 1)});
  c.expect_nystrom("depthwise weights: extent 4 of axis 2 is even, only odd filters have a middle",
                   {4}, lowrank::depthwise{filters(4, 1, 4, 1)});
  c.expect_nystrom("depthwise weights: data is null, extents are [4, 1, 3, 1]", {4},
                   lowrank::depthwise{heed::tensor_view<const float, 2>(nullptr, {4, 3})});
  c.expect_nystrom("depthwise bias: data is null, extents are [4, 1, 1, 1]", {4},
                   lowrank::depthwise{filters(4, 1, 3, 3), lowrank::grid{3, 5},
                                      heed::tensor_view<const float, 2>(nullptr, {4, 1})});
  c.expect_nystrom("depthwise: v: length 15 is not a grid of 4 rows and 4 columns", {4},
                   lowrank::depthwise{filters(4, 1, 3, 3), lowrank::grid{4, 4}});
  c.expect_nystrom("depthwise bias: channel count 2 is neither 1 nor v's depth 6", {4},
                   lowrank::depthwise{filters(4, 1, 3, 3), lowrank::grid{3, 5},
                                      heed::tensor_view<const float, 2>(c.in.data(), {4, 2})});
}

TEST(linformer_errors, operands_and_maps) {
  call c;
  const auto run = [&](const maps& e, const maps& f) {
    return [&c, e, f] { lowrank::linformer<heed::backend::vec>(c.q, c.k, c.v, e, f, c.out); };
  };
  const auto map = [&](index_t heads, index_t rows, index_t rank) {
    return maps(c.in.data(), {heads, rows, rank});
  };
  c.expect("e: head count 4 is neither 1 nor k's 2", run(map(4, 15, 4), map(1, 15, 4)));
  c.expect("e: 14 rows are fewer than k's length 15", run(map(1, 14, 4), map(1, 15, 4)));
  c.expect("f: 14 rows are fewer than v's length 15", run(map(1, 15, 4), map(1, 14, 4)));
  c.expect("e: data is null, extents are [1, 15, 4, 1]",
           run(maps(nullptr, {1, 15, 4}), map(1, 15, 4)));
  c.expect("f: data is null, extents are [1, 15, 4, 1]",
           run(map(1, 15, 4), maps(nullptr, {1, 15, 4})));
  c.expect("f: rank 5 differs from e's 4", run(map(1, 15, 4), map(2, 15, 5)));
  c.q = heed::tensor_view<const float, 4>(c.in.data(), {2, 4, 12, 7});
  c.expect("k: depth 8 differs from q's 7", run(map(1, 15, 4), map(1, 15, 4)));
  c = call();
  c.expect("out: length 12 differs from e's rank's 4", [&] {
    lowrank::project_sequence(c.k, map(1, 15, 4), view(c.out_data.data(), {2, 2, 12, 8}));
  });
}

TEST(agent_errors, agents_and_biases) {
  call c;
  const auto agents = [&](index_t h, index_t n, index_t d) {
    return heed::tensor_view<const float, 4>(c.in.data(), {2, h, n, d});
  };
  const auto run = [&](const auto& a, const auto&... modifiers) {
    return [=, &c] { lowrank::agent<heed::backend::vec>(c.q, c.k, c.v, c.out, a, modifiers...); };
  };
  c.expect("agents: head count 2 differs from q's 4", run(agents(2, 3, 8)));
  c.expect("agents: depth 7 differs from q's 8", run(agents(4, 3, 7)));
  c.expect("bias: key axis has extent 14, call has 15 keys",
           run(agents(4, 3, 8), lowrank::gather_bias{maps(c.in.data(), {4, 3, 14})}));
  c.expect("bias: query axis has extent 3, call has 12 queries",
           run(agents(4, 3, 8), lowrank::spread_bias{maps(c.in.data(), {4, 3, 3})}));
  c.expect("q: length 12 is not a grid of 3 rows and 3 columns",
           run(lowrank::pooled_agents{{3, 3}, {2, 2}}));
  c.expect("agents: grid of 0 rows and 2 columns, both must be positive",
           run(lowrank::pooled_agents{{3, 4}, {0, 2}}));
  c.expect("out: overlaps agents, in the row at its byte 0",
           run(heed::tensor_view<const float, 4>(c.out_data.data(), {2, 4, 3, 8})));
}

TEST(primitive_errors, pools_inverses_and_tables) {
  call c;
  c.expect("out: head count 3 is not a multiple of x's 2", [&] {
    lowrank::segment_means(c.k, view(c.out_data.data(), {2, 3, 4, 8}));
  });
  c.expect("x: length 15 is not a grid of 4 rows and 4 columns", [&] {
    lowrank::mean_pool(c.k, {4, 4}, view(c.out_data.data(), {2, 2, 4, 8}), {2, 2});
  });
  c.expect("a: row count 15 differs from its column count's 8", [&] {
    lowrank::pseudo_inverse(c.k, view(c.out_data.data(), {2, 2, 15, 8}));
  });
  c.expect("iterations: -2 is negative", [&] {
    lowrank::pseudo_inverse(heed::tensor_view<const float, 4>(c.in.data(), {1, 1, 3, 3}),
                            view(c.out_data.data(), {1, 1, 3, 3}), {-2});
  });
  const heed::tensor_view<const float, 4> picture(c.in.data(), {2, 3, 7, 7});
  const heed::tensor_view<float, 3> bias(c.out_data.data(), {2, 3, 20});
  c.expect("row_terms: row count 5 differs from the grid's 4", [&] {
    lowrank::make_gather_bias(picture, maps(c.in.data(), {2, 3, 5}), maps(c.in.data(), {2, 3, 5}),
                              {4, 5}, bias);
  });
  c.expect("bias: length 20 is not a grid of 4 rows and 4 columns", [&] {
    lowrank::make_gather_bias(picture, maps(c.in.data(), {2, 3, 4}), maps(c.in.data(), {2, 3, 4}),
                              {4, 4}, bias);
  });
  c.expect("column_terms: agent count 5 differs from picture's 3", [&] {
    lowrank::make_spread_bias(picture, maps(c.in.data(), {2, 4, 3}), maps(c.in.data(), {2, 5, 5}),
                              {4, 5}, heed::tensor_view<float, 3>(c.out_data.data(), {2, 20, 3}));
  });
  const auto gather = [&](const heed::tensor_view<const float, 4>& from,
                          const heed::tensor_view<float, 3>& to) {
    return [&c, from, to] {
      lowrank::make_gather_bias(from, maps(c.in.data(), {2, 3, 4}), maps(c.in.data(), {2, 3, 5}),
                                {4, 5}, to);
    };
  };
  c.expect("picture: data is null, extents are [2, 3, 7, 7]",
           gather(heed::tensor_view<const float, 4>(nullptr, {2, 3, 7, 7}), bias));
  c.expect("bias: data is null, extents are [2, 3, 20, 1]",
           gather(picture, heed::tensor_view<float, 3>(nullptr, {2, 3, 20})));
  c.expect("bias: overlaps picture, in the row at its byte 0",
           gather(heed::tensor_view<const float, 4>(c.out_data.data(), {2, 3, 7, 7}), bias));
}

TEST(primitive_errors, memory_of_outputs) {
  call c;
  c.expect("out: axis 1 of extent 2 has stride 0, its rows would overwrite each other", [&] {
    lowrank::segment_means(c.k, view(c.out_data.data(), {2, 2, 4, 8}, {64, 0, 8, 1}));
  });
  c.expect("out: overlaps e, in the row at its byte 0", [&] {
    lowrank::project_sequence(c.k, maps(c.out_data.data(), {1, 15, 4}),
                              view(c.out_data.data(), {2, 2, 4, 8}));
  });
}

}  // namespace
