// lowrank::linformer and project_sequence against the double-precision oracle.
#include "heed/lowrank/linformer.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "heed/core/thread_pool.hpp"
#include "heed/score/softcap.hpp"
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
  index_t batches, heads, key_heads, queries, keys, depth, value_depth, map_heads, rows, rank;
};
// Runs of tokens that end within 128, maps with spare rows, with and without heads, empty axes.
const std::vector<shape> shapes = {
    {2, 4, 2, 70, 300, 40, 24, 2, 310, 33}, {1, 3, 3, 5, 128, 64, 64, 1, 128, 64},
    {1, 6, 1, 33, 129, 8, 5, 1, 129, 1},    {2, 2, 2, 1, 1, 16, 17, 2, 5, 80},
    {1, 2, 1, 9, 40, 16, 16, 1, 40, 0},     {1, 2, 1, 9, 0, 16, 16, 1, 4, 4},
    {0, 2, 1, 9, 4, 16, 16, 1, 4, 4},
};

template <class Backend>
class linformer : public ::testing::Test {};
TYPED_TEST_SUITE(linformer, heed_test::method_backends, heed_test::backend_name);

template <class Backend, class T, class Map>
void check_shapes(layout how, double tolerance) {
  unsigned seed = 100;
  for (const shape& s : shapes) {
    SCOPED_TRACE("keys " + std::to_string(s.keys) + " rank " + std::to_string(s.rank));
    tensor<T> q(s.batches, s.heads, s.queries, s.depth, how);
    tensor<T> k(s.batches, s.key_heads, s.keys, s.depth, how);
    tensor<T> v(s.batches, s.key_heads, s.keys, s.value_depth, how);
    tensor<T> out(s.batches, s.heads, s.queries, s.value_depth, how);
    tensor<Map> e(1, s.map_heads, s.rows, s.rank, how), f(1, s.map_heads, s.rows, s.rank, how);
    q.fill(seed += 5), k.fill(seed + 1), v.fill(seed + 2), e.fill(seed + 3, 0.2),
        f.fill(seed + 4, 0.2);
    const auto map = [](const tensor<Map>& x) {
      const auto view = x.view();
      return heed::tensor_view<const Map, 3>(view.data(),
                                             {view.extent(1), view.extent(2), view.extent(3)},
                                             {view.stride(1), view.stride(2), 1});
    };
    lowrank::linformer<Backend>(q.read(), k.read(), v.read(), map(e), map(f), out.view());
    EXPECT_LE(relative_rms(out.read(),
                           reference::linformer(q.read(), k.read(), v.read(), e.read(), f.read())),
              tolerance);
    EXPECT_EQ(out.overwritten_around(), 0);
  }
}
TYPED_TEST(linformer, matches_the_oracle_in_every_shape) {
  check_shapes<TypeParam, float, float>(layout::dense, 1e-5);
  check_shapes<TypeParam, float, float>(layout::padded, 1e-5);
}
TYPED_TEST(linformer, double_operands_are_summed_in_double) {
  check_shapes<TypeParam, double, float>(layout::interleaved, 1e-12);
}
TYPED_TEST(linformer, sixteen_bits) {
  check_shapes<TypeParam, Eigen::bfloat16, Eigen::half>(layout::by_token, 5e-3);
}

TYPED_TEST(linformer, lengths_scores_and_lse) {
  const index_t length = 90, rank = 12;
  const std::vector<index_t> lengths{90, 37, 0};
  tensor<float> q(3, 2, 40, 16), k(3, 2, length, 16), v(3, 2, length, 16), out(3, 2, 40, 16);
  tensor<float> e(1, 1, length, rank), f(1, 1, length, rank);
  q.fill(1), k.fill(2), v.fill(3), e.fill(4), f.fill(5);
  for (auto* t : {&k, &v}) {
    for (index_t b = 0; b < 3; ++b) {
      for (index_t i = lengths[static_cast<std::size_t>(b)]; i < length; ++i) {
        for (index_t d = 0; d < 16; ++d) t->view()(b, 1, i, d) = NAN;
      }
    }
  }
  const auto map = [&](const tensor<float>& x) {
    return heed::tensor_view<const float, 2>(x.view().data(), {length, rank});
  };
  reference::low_rank_options options;
  options.key_lengths = lengths;
  const std::vector<double> wanted =
      reference::linformer(q.read(), k.read(), v.read(), e.read(), f.read(), options);
  std::vector<float> lse(3 * 2 * 40, NAN);
  lowrank::linformer<TypeParam>(q.read(), k.read(), v.read(), map(e), map(f), out.view(),
                                heed::key_lengths{lengths},
                                heed::lse_to{heed::tensor_view<float, 3>(lse.data(), {3, 2, 40})});
  EXPECT_LE(relative_rms(out.read(), wanted), 1e-5);
  // No tokens: r keys of zeros, whose scores are 0.
  EXPECT_NEAR(static_cast<double>(lse.back()), std::log(static_cast<double>(rank)), 1e-5);

  // Scores see the projected keys: a cap far above them changes nothing, one of 1 does.
  const auto capped = [&](float cap) {
    lowrank::linformer<TypeParam>(q.read(), k.read(), v.read(), map(e), map(f), out.view(),
                                  heed::key_lengths{lengths}, heed::softcap{cap});
    return relative_rms(out.read(), wanted);
  };
  EXPECT_LE(capped(1e4f), 1e-4);
  EXPECT_GT(capped(1.f), 1e-2);
}

TEST(linformer_call, is_bit_identical_on_any_executor) {
  tensor<float> q(2, 4, 64, 32), k(2, 4, 500, 32), v(2, 4, 500, 32), out(2, 4, 64, 32);
  tensor<float> e(1, 1, 500, 40);
  q.fill(1), k.fill(2), v.fill(3), e.fill(4, 0.1);
  const heed::tensor_view<const float, 2> map(e.view().data(), {500, 40});
  const auto run = [&](auto& executor) {
    lowrank::linformer(q.read(), k.read(), v.read(), map, map, out.view(), heed::on{executor});
    return std::vector<float>(out.view().data(), out.view().data() + out.view().size());
  };
  heed::serial serial;
  const std::vector<float> wanted = run(serial);
  heed::thread_pool pool(3);
  EXPECT_EQ(std::memcmp(run(pool).data(), wanted.data(), wanted.size() * sizeof(float)), 0);
}

TEST(project_sequence, is_the_transposed_map_times_the_tokens) {
  tensor<float> x(1, 2, 3, 2), e(1, 2, 4, 2), out(1, 2, 2, 2, layout::padded);
  float next = 1;
  x.for_each([&](float& value) { value = next++; });
  next = 1;
  e.for_each([&](float& value) { value = next++; });
  const heed::tensor_view<const float, 3> map(e.view().data(), {2, 4, 2});
  heed::lowrank::project_sequence(x.read(), map, out.view());
  // Head 0: columns (1 3 5) and (2 4 6) of the map over rows (1 2) (3 4) (5 6) of the tokens.
  const auto got = out.read();
  EXPECT_EQ(got(0, 0, 0, 0), 1.f * 1 + 3 * 3 + 5 * 5);
  EXPECT_EQ(got(0, 0, 1, 1), 2.f * 2 + 4 * 4 + 6 * 6);
  EXPECT_EQ(got(0, 1, 0, 1), 9.f * 8 + 11 * 10 + 13 * 12);
  EXPECT_EQ(out.overwritten_around(), 0);
  const std::vector<index_t> one{1};
  heed::lowrank::project_sequence(x.read(), map, out.view(), heed::key_lengths{one});
  EXPECT_EQ(out.read()(0, 0, 1, 1), 2.f * 2);
}

}  // namespace
