// heed::attention_backward against the double-precision oracle: shapes, layouts, masks, backends.
#include "heed/dense/backward.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/global_tokens.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "support/backends.hpp"
#include "support/backward_call.hpp"

namespace {

using heed::index_t;
using heed::position;
using heed_test::backward_call;
using heed_test::backward_shape;
using heed_test::layout;
namespace reference = heed::reference;

// Lengths around the borders of tiles and blocks, groups, empty axes.
const std::vector<backward_shape> shapes = {
    {1, 1, 1, 1, 1, 1, 1},       {2, 4, 2, 127, 513, 40, 40}, {1, 2, 1, 1, 239, 59, 59},
    {2, 2, 2, 113, 203, 111, 9}, {1, 3, 1, 96, 33, 64, 80},   {1, 2, 2, 65, 64, 256, 24},
    {1, 1, 1, 200, 200, 1, 3},   {1, 1, 1, 7, 0, 8, 8},       {1, 2, 1, 0, 9, 8, 8},
    {0, 2, 1, 3, 9, 8, 8},       {2, 0, 0, 3, 9, 8, 8},       {1, 2, 2, 9, 65, 16, 0},
    {1, 2, 2, 9, 65, 0, 16},     {1, 16, 1, 2, 129, 20, 20},  {1, 2, 1, 64, 1100, 32, 32},
    {1, 2, 1, 61, 1, 32, 32},    {1, 2, 1, 300, 128, 16, 16},
};

template <class Backend>
class backward : public ::testing::Test {};
TYPED_TEST_SUITE(backward, heed_test::method_backends, heed_test::backend_name);

reference::options visible_where(reference::predicate visible) {
  reference::options how;
  how.visible = std::move(visible);
  return how;
}
bool causally(const position& p) { return p.k <= p.aligned_q(); }

TYPED_TEST(backward, matches_the_oracle_in_every_shape_and_layout) {
  unsigned seed = 1;
  std::size_t at = 0;
  for (const backward_shape& s : shapes) {
    // Layouts in turn: each shape in two, each layout with many shapes.
    for (const layout how : {heed_test::layouts[at % 4], heed_test::layouts[(at + 1) % 4]}) {
      SCOPED_TRACE(static_cast<int>(how));
      // Weights of one key alone are 1 whatever its score: what is left of d_k is rounding.
      const double allowed = s.keys == 1 ? 2e-4 : 1e-5;
      backward_call<float> call(s, seed += 7, how);
      call.template check<TypeParam>(allowed, {}, {});
      call.template check<TypeParam>(allowed, visible_where(causally), {}, heed::causal{});
    }
    ++at;
  }
}

// Every other block of 64 keys, told by a list of runs, of which some lie outside of the tile.
struct every_other_block {
  bool operator()(const position& p) const { return (p.q / 64 + p.k / 64) % 2 == 0; }
  template <class Visit>
  void for_each_key_run(const heed::tile_extent& t, Visit visit) const {
    for (index_t block = 0; block * 64 < t.keys; ++block) {
      const index_t first = t.q_begin / 64, last = (t.q_end - 1) / 64;
      if (first != last || (first + block) % 2 == 0) visit(block * 64, block * 64 + 64);
    }
  }
};
static_assert(heed::key_run_mask<every_other_block>);

TYPED_TEST(backward, masks) {
  const backward_shape s{2, 4, 2, 150, 210, 24, 40};
  backward_call<float> call(s, 5, layout::padded);
  call.template check<TypeParam>(1e-5, visible_where([](const position& p) { return p.k <= p.q; }),
                                 {}, heed::causal_upper_left{});
  // Wide masks know their tiles; the lambda in the middle of the algebra knows nothing.
  const auto third = [](const position& p) { return (p.q + p.k) % 3 != 0; };
  call.template check<TypeParam>(
      1e-5, visible_where([&](const position& p) {
        const index_t far = p.k - p.aligned_q();
        return ((far >= -20 && far <= 5) || p.k < 3) && third(p);
      }),
      {},
      (heed::window{20, 5} | heed::mask{[](const auto& p) { return p.k < 3; }}) &
          heed::mask{third});
  // Rows and keys without partner, by an array.
  std::vector<std::uint8_t> allowed(static_cast<std::size_t>(s.queries * s.keys));
  for (index_t i = 0; i < s.queries; ++i) {
    for (index_t j = 0; j < s.keys; ++j) {
      allowed[static_cast<std::size_t>(i * s.keys + j)] =
          i % 7 != 3 && j % 5 != 2 && (i < 70 || i > 140) && (i * 31 + j * 17) % 11 < 6;
    }
  }
  const heed::array_mask given{
      heed::tensor_view<const std::uint8_t, 2>(allowed.data(), {s.queries, s.keys})};
  call.template check<TypeParam>(1e-5, visible_where([&](const position& p) {
                                   return allowed[static_cast<std::size_t>(p.q * s.keys + p.k)] !=
                                          0;
                                 }),
                                 {}, given);
  for (index_t d = 0; d < s.depth; ++d) EXPECT_EQ(call.d_q.read()(0, 0, 3, d), 0.f);
  for (index_t d = 0; d < s.depth; ++d) EXPECT_EQ(call.d_k.read()(1, 1, 2, d), 0.f);
}

// More runs than a list of ranges holds.
TYPED_TEST(backward, key_runs) {
  backward_call<float> call({1, 2, 1, 130, 1500, 8, 8}, 41);
  call.template check<TypeParam>(1e-5, visible_where(every_other_block{}), {}, every_other_block{});
  heed::tile_counts counts;
  call.template backward<TypeParam>(every_other_block{}, heed::count_tiles{counts});
  EXPECT_EQ(counts.visited(), 2 * (12 + 12 + 12));
  EXPECT_EQ(counts.none, 0);
}

// The tiles that are computed are those with a visible score.
TYPED_TEST(backward, skips_tiles) {
  backward_call<float> call({1, 1, 1, 640, 640, 8, 8});
  call.template forward<TypeParam>(heed::causal{});
  heed::tile_counts counts;
  call.template backward<TypeParam>(heed::causal{}, heed::count_tiles{counts});
  EXPECT_EQ(counts.visited(), 55);  // of 100 tiles, those on and below the diagonal
  EXPECT_EQ(counts.some, 10);
}

TYPED_TEST(backward, lengths_and_padding) {
  const backward_shape s{3, 2, 1, 70, 100, 16, 24};
  backward_call<float> call(s, 9);
  const std::vector<index_t> keys = {40, 0, 90}, queries = {70, 20, 0}, padding = {60, 10, 3};
  reference::options how = visible_where(causally);
  how.key_lengths = keys, how.query_lengths = queries, how.left_padding = padding;
  call.template check<TypeParam>(1e-5, how, {}, heed::causal{}, heed::key_lengths{keys},
                                 heed::query_lengths{queries}, heed::left_padding{padding});
  how = visible_where({});
  how.key_lengths = {100, 1, 64};
  call.template check<TypeParam>(1e-5, how, {}, heed::key_lengths{how.key_lengths});
}

TYPED_TEST(backward, ragged_batches) {
  backward_call<float> call({1, 4, 2, 200, 333, 20, 36}, 11, layout::by_token);
  reference::backward_options more;
  more.cu_q = {0, 3, 3, 130, 200}, more.cu_k = {0, 70, 101, 101, 333};
  call.template check<TypeParam>(1e-5, visible_where(causally), more, heed::causal{},
                                 heed::ragged{more.cu_q, more.cu_k});
}

TYPED_TEST(backward, scales) {
  backward_call<float> call({1, 2, 2, 33, 47, 20, 20}, 3);
  for (const double factor : {0.37, -0.5, 0.0}) {
    reference::options how;
    how.scale = factor;
    call.template check<TypeParam>(1e-5, how, {}, heed::scale{factor});
  }
}

// Memory is linear in the length: a call of twice the length takes twice as much.
TYPED_TEST(backward, memory) {
  const auto bytes_of = [](index_t length) {
    backward_call<float> call({1, 1, 1, length, length, 4, 4});
    call.template forward<TypeParam>(heed::window{16});
    heed::workspace memory;
    call.template backward<TypeParam>(heed::window{16}, heed::scratch{memory});
    return static_cast<double>(memory.size());
  };
  const double once = bytes_of(8192), twice = bytes_of(16384);
  EXPECT_LE(twice, 2.1 * once);
  EXPECT_LE(twice, 0.02 * 16384 * 16384 * sizeof(float));  // a share of the matrix of scores
}

// NaN and infinity behind a mask leave no trace; what is visible and NaN does.
TYPED_TEST(backward, poison_behind_a_mask) {
#if defined(__FAST_MATH__)
  GTEST_SKIP() << "-ffast-math: there is no NaN to pass on";
#endif
  const backward_shape s{1, 1, 1, 130, 150, 12, 12};
  backward_call<float> call(s, 21);
  const auto seen = [](const position& p) { return p.q != 5 && p.k != 140 && p.k % 70 != 3; };
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = HUGE_VALF;
  for (index_t d = 0; d < 12; ++d) {
    call.q.view()(0, 0, 5, d) = nan, call.d_out.view()(0, 0, 5, d) = inf;
    call.k.view()(0, 0, 140, d) = inf, call.v.view()(0, 0, 140, d) = nan;
    call.k.view()(0, 0, 3, d) = nan, call.v.view()(0, 0, 73, d) = inf;
  }
  call.template check<TypeParam>(1e-5, visible_where(seen), {}, heed::mask{seen});

  backward_call<float> open({1, 1, 1, 20, 30, 8, 8}, 22);
  open.d_out.view()(0, 0, 4, 1) = nan;
  open.template forward<TypeParam>(heed::causal{});
  open.template backward<TypeParam>(heed::causal{});
  EXPECT_TRUE(std::isnan(open.d_q.read()(0, 0, 4, 0)));
  EXPECT_TRUE(std::isnan(open.d_v.read()(0, 0, 14, 1)));
  EXPECT_FALSE(std::isnan(open.d_v.read()(0, 0, 15, 1)));
  EXPECT_FALSE(std::isnan(open.d_q.read()(0, 0, 5, 0)));
}

TYPED_TEST(backward, same_bits_for_any_number_of_threads) {
  backward_call<float> call({1, 4, 2, 190, 1700, 24, 16}, 31);
  call.template forward<TypeParam>(heed::causal{});
  call.template backward<TypeParam>(heed::causal{});
  const backward_call<float> alone = call;
  for (const int workers : {2, 3, 7}) {
    heed::thread_pool pool(workers);
    heed::workspace memory;
    for (auto* x : {&call.d_q, &call.d_k, &call.d_v}) x->fill(1);
    call.template backward<TypeParam>(heed::causal{}, heed::on{pool}, heed::scratch{memory});
    const auto same = [](const heed_test::tensor<float>& a, const heed_test::tensor<float>& b) {
      return heed_test::gradient_bits(a) == heed_test::gradient_bits(b);
    };
    EXPECT_TRUE(same(call.d_q, alone.d_q)) << workers;
    EXPECT_TRUE(same(call.d_k, alone.d_k)) << workers;
    EXPECT_TRUE(same(call.d_v, alone.d_v)) << workers;
  }
}

}  // namespace
