// lowrank::agent, mean_pool and the convolution on a grid against the double-precision oracle.
#include "heed/lowrank/agent.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "heed/core/thread_pool.hpp"
#include "heed/lowrank/agent_bias.hpp"
#include "support/backends.hpp"
#include "unit/lowrank/support.hpp"

namespace {

using heed::index_t;
using heed_test::layout;
using heed_test::tensor;
using lowrank_test::relative_rms;
namespace lowrank = heed::lowrank;
namespace reference = heed::reference;

struct shape {
  index_t batches, heads, key_heads, queries, keys, depth, value_depth, agents;
};
const std::vector<shape> shapes = {
    {2, 4, 2, 70, 130, 40, 24, 9}, {1, 2, 2, 97, 97, 64, 64, 33}, {1, 3, 1, 1, 65, 8, 5, 1},
    {1, 2, 2, 5, 0, 16, 16, 4},    {0, 2, 2, 5, 4, 16, 16, 4},    {1, 2, 1, 5, 9, 16, 16, 0},
};

template <class Backend>
class agent : public ::testing::Test {};
TYPED_TEST_SUITE(agent, heed_test::method_backends, heed_test::backend_name);

template <class Backend, class T>
void check_shapes(layout how, double tolerance) {
  unsigned seed = 300;
  for (const shape& s : shapes) {
    SCOPED_TRACE("keys " + std::to_string(s.keys) + " agents " + std::to_string(s.agents));
    tensor<T> q(s.batches, s.heads, s.queries, s.depth, how);
    tensor<T> k(s.batches, s.key_heads, s.keys, s.depth, how);
    tensor<T> v(s.batches, s.key_heads, s.keys, s.value_depth, how);
    tensor<T> a(s.batches, s.heads, s.agents, s.depth, how);
    tensor<T> out(s.batches, s.heads, s.queries, s.value_depth, how);
    tensor<float> gather(1, s.heads, s.agents, s.keys), spread(1, s.heads, s.queries, s.agents);
    q.fill(seed += 7), k.fill(seed + 1), v.fill(seed + 2), a.fill(seed + 3), gather.fill(seed + 4),
        spread.fill(seed + 5);
    const auto run = [&](const auto&... biases) {
      lowrank::agent<Backend>(q.read(), k.read(), v.read(), out.view(), a.read(), biases...);
      EXPECT_EQ(out.overwritten_around(), 0);
    };
    run();
    EXPECT_LE(relative_rms(out.read(), reference::agent(q.read(), k.read(), v.read(), a.read())),
              tolerance);
    if (s.batches == 0) continue;  // a bias does not fit a call without sequences
    run(lowrank::gather_bias{gather.read()}, lowrank::spread_bias{spread.read()});
    const auto table = [](const tensor<float>& bias) {
      return [view = bias.view()](index_t, index_t h, index_t i, index_t j) {
        return static_cast<double>(view(0, h, i, j));
      };
    };
    EXPECT_LE(relative_rms(out.read(), reference::agent(q.read(), k.read(), v.read(), a.read(),
                                                        table(gather), table(spread))),
              tolerance);
  }
}
TYPED_TEST(agent, matches_the_oracle_in_every_shape) {
  check_shapes<TypeParam, float>(layout::dense, 1e-5);
  check_shapes<TypeParam, float>(layout::padded, 1e-5);
}
TYPED_TEST(agent, double_operands_are_summed_in_double) {
  check_shapes<TypeParam, double>(layout::interleaved, 1e-12);
}
TYPED_TEST(agent, bfloat16) { check_shapes<TypeParam, Eigen::bfloat16>(layout::by_token, 8e-3); }

// Agents from a grid that does not divide, a filter per channel with its bias, ragged lengths.
TYPED_TEST(agent, pooled_on_a_grid_with_convolution_and_lengths) {
  const index_t rows = 7, columns = 10, length = rows * columns, heads = 4, depth = 12;
  const std::vector<index_t> lengths{70, 33};
  tensor<float> q(2, heads, length, depth), k(2, 2, length, depth), v(2, 2, length, depth);
  tensor<float> out(2, heads, length, depth, layout::by_token), taps(heads, depth, 3, 5);
  tensor<float> shift(1, 1, heads, depth), means(2, heads, 6, depth);
  q.fill(1), k.fill(2), v.fill(3), taps.fill(4), shift.fill(5);
  for (index_t d = 0; d < depth; ++d) {
    for (index_t i = lengths[1]; i < length; ++i) {
      q.view()(1, 0, i, d) = k.view()(1, 0, i, d) = v.view()(1, 1, i, d) = NAN;
    }
  }
  reference::low_rank_options options;
  options.query_lengths = options.key_lengths = lengths;
  options.scale = 0.7;
  auto& filter = options.filter;
  filter.filter_rows = 3, filter.filter_columns = 5;
  filter.grid_rows = rows, filter.grid_columns = columns;
  taps.for_each([&](float x) { filter.weights.push_back(static_cast<double>(x)); });
  shift.for_each([&](float x) { filter.bias.push_back(static_cast<double>(x)); });
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      const reference::matrix cells = reference::pooled(
          reference::head_of(q.read(), b, h, lengths[static_cast<std::size_t>(b)]), rows, columns,
          3, 2);
      for (index_t i = 0; i < 6; ++i) {
        for (index_t d = 0; d < depth; ++d) {
          means.view()(b, h, i, d) = static_cast<float>(cells(i, d));
        }
      }
    }
  }
  lowrank::agent<TypeParam>(
      q.read(), k.read(), v.read(), out.view(), lowrank::pooled_agents{{rows, columns}, {3, 2}},
      heed::scale{0.7}, heed::key_lengths{lengths}, heed::query_lengths{lengths},
      lowrank::depthwise{taps.read(), lowrank::grid{rows, columns},
                         heed::tensor_view<const float, 2>(shift.view().data(), {heads, depth})});
  EXPECT_LE(relative_rms(out.read(), reference::agent(q.read(), k.read(), v.read(), means.read(),
                                                      {}, {}, options)),
            1e-5);
}

TEST(agent_call, is_bit_identical_on_any_executor) {
  tensor<float> q(2, 4, 144, 16), k(2, 4, 144, 16), v(2, 4, 144, 16), out(2, 4, 144, 16);
  tensor<float> taps(4, 1, 3, 3);
  q.fill(1), k.fill(2), v.fill(3), taps.fill(4);
  const auto run = [&](auto& executor) {
    lowrank::agent(q.read(), k.read(), v.read(), out.view(),
                   lowrank::pooled_agents{{12, 12}, {4, 4}}, heed::on{executor},
                   lowrank::depthwise{taps.read(), lowrank::grid{12, 12}});
    return std::vector<float>(out.view().data(), out.view().data() + out.view().size());
  };
  heed::serial serial;
  const std::vector<float> wanted = run(serial);
  heed::thread_pool pool(3);
  EXPECT_EQ(std::memcmp(run(pool).data(), wanted.data(), wanted.size() * sizeof(float)), 0);
}

// A key that the bias hides is never read.
TEST(agent_call, bias_of_minus_infinity_hides_keys) {
  tensor<float> q(1, 1, 6, 8), k(1, 1, 9, 8), v(1, 1, 9, 8), a(1, 1, 3, 8), out(1, 1, 6, 8);
  tensor<float> gather(1, 1, 1, 9), shown(1, 1, 6, 8);
  q.fill(1), k.fill(2), v.fill(3), a.fill(4);
  gather.for_each([](float& x) { x = 0; });
  gather.view()(0, 0, 0, 8) = -std::numeric_limits<float>::infinity();
  lowrank::agent(q.read(), k.read().slice(2, 0, 8), v.read().slice(2, 0, 8), shown.view(),
                 a.read());
  for (index_t d = 0; d < 8; ++d) k.view()(0, 0, 8, d) = v.view()(0, 0, 8, d) = NAN;
  lowrank::agent(q.read(), k.read(), v.read(), out.view(), a.read(),
                 lowrank::gather_bias{gather.read()});
  for (index_t i = 0; i < 6; ++i) {
    for (index_t d = 0; d < 8; ++d) {
      EXPECT_NEAR(static_cast<double>(out.view()(0, 0, i, d)),
                  static_cast<double>(shown.view()(0, 0, i, d)), 1e-6);
    }
  }
}

TEST(mean_pool, cells_of_unequal_size_and_repeated_heads) {
  tensor<float> x(1, 1, 5, 300), out(1, 2, 3, 300, layout::padded);
  x.fill(8);
  lowrank::segment_means(x.read(), out.view());
  const index_t begin[] = {0, 1, 3}, end[] = {2, 4, 5};
  for (index_t h = 0; h < 2; ++h) {
    for (index_t i = 0; i < 3; ++i) {
      for (index_t d : {0, 255, 256, 299}) {
        double sum = 0;
        for (index_t t = begin[i]; t < end[i]; ++t) {
          sum += static_cast<double>(x.view()(0, 0, t, d));
        }
        EXPECT_NEAR(static_cast<double>(out.view()(0, h, i, d)),
                    sum / static_cast<double>(end[i] - begin[i]), 1e-6);
      }
    }
  }
  EXPECT_EQ(out.overwritten_around(), 0);
}

TEST(agent_bias, doubling_a_picture_interpolates_between_the_centres) {
  // 1 × 2 picture (0, 1) on a row of 4: 0, 1/4, 3/4, 1.
  const float picture[] = {0, 1}, rows[] = {10}, columns[] = {0, 100, 200, 300};
  float out[4] = {};
  lowrank::make_gather_bias(heed::tensor_view<const float, 4>(picture, {1, 1, 1, 2}),
                            heed::tensor_view<const float, 3>(rows, {1, 1, 1}),
                            heed::tensor_view<const float, 3>(columns, {1, 1, 4}),
                            lowrank::grid{1, 4}, heed::tensor_view<float, 3>(out, {1, 1, 4}));
  EXPECT_FLOAT_EQ(out[0], 10.f);
  EXPECT_FLOAT_EQ(out[1], 110.25f);
  EXPECT_FLOAT_EQ(out[2], 210.75f);
  EXPECT_FLOAT_EQ(out[3], 311.f);
}

}  // namespace
