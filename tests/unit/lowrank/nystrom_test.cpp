// lowrank::nystrom against the double-precision oracle.
#include "heed/lowrank/nystrom.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "heed/core/thread_pool.hpp"
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
  index_t batches, heads, key_heads, queries, keys, depth, value_depth, landmarks;
};
// Segments of equal and of unequal lengths, cross attention, groups, more landmarks than keys,
// depths around the width of vectors, empty axes.
const std::vector<shape> shapes = {
    {2, 4, 2, 130, 130, 40, 24, 16}, {1, 2, 2, 97, 203, 64, 64, 31}, {1, 3, 1, 33, 65, 8, 5, 7},
    {2, 2, 2, 50, 20, 17, 16, 32},   {1, 1, 1, 1, 70, 16, 300, 5},   {1, 2, 1, 70, 1, 16, 16, 1},
    {1, 2, 2, 64, 64, 1, 1, 64},     {2, 2, 1, 9, 80, 12, 0, 4},     {0, 2, 1, 9, 9, 8, 8, 4},
    {1, 2, 2, 3, 40, 16, 16, 8},     {1, 1, 1, 20, 0, 8, 8, 4},
};

template <class T>
struct operands {
  tensor<T> q, k, v, out;
  operands(const shape& s, layout how, unsigned seed)
      : q(s.batches, s.heads, s.queries, s.depth, how),
        k(s.batches, s.key_heads, s.keys, s.depth, how),
        v(s.batches, s.key_heads, s.keys, s.value_depth, how),
        out(s.batches, s.heads, s.queries, s.value_depth, how) {
    q.fill(seed), k.fill(seed + 1), v.fill(seed + 2);
  }
};

template <class Backend>
class nystrom : public ::testing::Test {};
TYPED_TEST_SUITE(nystrom, heed_test::method_backends, heed_test::backend_name);

template <class Backend, class T>
void check_shapes(layout how, double tolerance) {
  unsigned seed = 11;
  for (const shape& s : shapes) {
    for (const bool shared : {false, true}) {
      SCOPED_TRACE("queries " + std::to_string(s.queries) + " keys " + std::to_string(s.keys) +
                   " landmarks " + std::to_string(s.landmarks));
      operands<T> x(s, how, seed += 3);
      const lowrank::landmarks landmarks{
          s.landmarks,
          {6, shared ? lowrank::inverse_start::whole_tensor : lowrank::inverse_start::each_matrix}};
      lowrank::nystrom<Backend>(x.q.read(), x.k.read(), x.v.read(), x.out.view(), landmarks);
      reference::low_rank_options options;
      options.shared_start = shared;
      EXPECT_LE(relative_rms(x.out.read(), reference::nystrom(x.q.read(), x.k.read(), x.v.read(),
                                                              s.landmarks, options)),
                tolerance);
      EXPECT_EQ(x.out.overwritten_around(), 0);
    }
  }
}
TYPED_TEST(nystrom, matches_the_oracle_in_every_shape) {
  check_shapes<TypeParam, float>(layout::dense, 1e-4);
  check_shapes<TypeParam, float>(layout::interleaved, 1e-4);
}
TYPED_TEST(nystrom, double_operands_are_summed_in_double) {
  check_shapes<TypeParam, double>(layout::padded, 1e-12);
}
TYPED_TEST(nystrom, bfloat16) { check_shapes<TypeParam, Eigen::bfloat16>(layout::by_token, 8e-3); }

TYPED_TEST(nystrom, scale_and_iterations_of_the_inverse) {
  const shape s{2, 2, 2, 90, 90, 24, 24, 12};
  operands<float> x(s, layout::dense, 5);
  for (int iterations : {0, 1, 3}) {
    for (double scale : {0.02, 0.5}) {
      reference::low_rank_options options;
      options.iterations = iterations;
      options.scale = scale;
      lowrank::nystrom<TypeParam>(x.q.read(), x.k.read(), x.v.read(), x.out.view(),
                                  lowrank::landmarks{12, {iterations}}, heed::scale{scale});
      EXPECT_LE(relative_rms(x.out.read(),
                             reference::nystrom(x.q.read(), x.k.read(), x.v.read(), 12, options)),
                1e-4)
          << iterations << " " << scale;
    }
  }
}

// Rows behind a length hold NaN: in padding of every layout they must not reach a result.
TYPED_TEST(nystrom, lengths_and_convolution) {
  const shape s{3, 4, 2, 60, 60, 16, 20, 8};
  const std::vector<index_t> lengths{60, 41, 0};
  for (const index_t landmarks : {index_t{8}, index_t{100}}) {
    operands<float> x(s, layout::dense, 77);
    for (auto* t : {&x.q, &x.k, &x.v}) {
      const auto view = t->view();
      for (index_t b = 0; b < 3; ++b) {
        for (index_t h = 0; h < view.extent(1); ++h) {
          for (index_t i = lengths[static_cast<std::size_t>(b)]; i < 60; ++i) {
            for (index_t d = 0; d < view.extent(3); ++d) view(b, h, i, d) = NAN;
          }
        }
      }
    }
    tensor<float> filter(1, 1, 4, 7);
    filter.fill(3);
    reference::low_rank_options options;
    options.query_lengths = options.key_lengths = lengths;
    options.filter.filter_rows = 7, options.filter.filter_columns = 1;
    options.filter.grid_rows = 60, options.filter.grid_columns = 1;
    for (index_t h = 0; h < 4; ++h) {
      for (index_t d = 0; d < 20; ++d) {
        for (index_t r = 0; r < 7; ++r) {
          options.filter.weights.push_back(static_cast<double>(filter.view()(0, 0, h, r)));
        }
      }
    }
    const std::vector<double> wanted =
        reference::nystrom(x.q.read(), x.k.read(), x.v.read(), landmarks, options);
    const lowrank::depthwise convolution{
        heed::tensor_view<const float, 2>(filter.view().data(), {4, 7})};
    const auto run = [&](const auto& out) {
      lowrank::nystrom<TypeParam>(x.q.read(), x.k.read(), x.v.read(), out,
                                  lowrank::landmarks{landmarks}, convolution,
                                  heed::key_lengths{lengths}, heed::query_lengths{lengths});
    };
    run(x.out.view());
    EXPECT_LE(relative_rms(x.out.read(), wanted), 1e-4) << landmarks;
    // An output that cannot hold the sums in between.
    tensor<Eigen::half> narrow(3, 4, 60, 20, layout::padded);
    run(narrow.view());
    EXPECT_LE(relative_rms(narrow.read(), wanted), 1e-3) << landmarks;
    EXPECT_EQ(narrow.overwritten_around(), 0);
  }
}

TEST(nystrom_call, is_bit_identical_on_any_executor_and_linear_in_memory) {
  const shape s{2, 4, 2, 300, 300, 24, 24, 16};
  operands<float> x(s, layout::dense, 9);
  const auto run = [&](auto& executor) {
    lowrank::nystrom(x.q.read(), x.k.read(), x.v.read(), x.out.view(), lowrank::landmarks{16},
                     heed::on{executor});
    return std::vector<float>(x.out.view().data(), x.out.view().data() + x.out.view().size());
  };
  heed::serial serial;
  const std::vector<float> wanted = run(serial);
  for (int threads : {2, 3}) {
    heed::thread_pool pool(threads);
    const std::vector<float> got = run(pool);
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)), 0);
  }
  // Scratch memory of eight times the tokens: less than eight times, where L × L is 64 times.
  const auto bytes_for = [](index_t length) {
    operands<float> y({1, 1, 1, length, length, 16, 16, 16}, layout::dense, 1);
    heed::workspace memory;
    lowrank::nystrom(y.q.read(), y.k.read(), y.v.read(), y.out.view(), lowrank::landmarks{16},
                     heed::scratch{memory});
    return memory.size();
  };
  EXPECT_GT(bytes_for(512), 0);
  EXPECT_LE(bytes_for(4096), 8 * bytes_for(512));
}

}  // namespace
