// Ring attention over all layouts gives every process what one process computes for its queries.
#include <cstring>

#include "heed/core/thread_pool.hpp"
#include "heed/distributed/ring_attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/sink.hpp"
#include "unit/distributed/mpi_main.hpp"
#include "unit/distributed/support.hpp"

namespace {

using namespace distributed_test;
namespace distributed = heed::distributed;

struct world {
  int rank = 0, count = 1;
  world() {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &count);
  }
};

// Lengths that N divides and that it does not, fewer tokens than processes, groups, cross
// attention.
const std::vector<shape> shapes = {
    {2, 4, 2, 256, 256, 40, 24}, {1, 6, 2, 203, 203, 64, 64}, {1, 2, 1, 130, 257, 16, 20},
    {1, 2, 2, 3, 3, 8, 8},       {2, 2, 2, 1, 90, 32, 32},    {1, 3, 1, 257, 65, 8, 5},
    {1, 2, 1, 5, 0, 8, 8},       {0, 2, 1, 5, 9, 8, 8},
};

// One distributed call against the whole one; the largest error, of lse too.
template <class Layout, class T, class... Modifiers>
double error_of(const whole_call<T>& x, layout how, const Modifiers&... modifiers) {
  using Real = heed::accumulator<T>;
  const world self;
  const Layout q_layout(x.s.queries, self.count), k_layout(x.s.keys, self.count);
  const auto own = q_layout.of(self.rank), held = k_layout.of(self.rank);
  const tensor<T> q = share_of(x.q, own, how), k = share_of(x.k, held, how);
  const tensor<T> v = share_of(x.v, held, how);
  tensor<T> out(x.s.batches, x.s.heads, own.count, x.s.value_depth, how);
  std::vector<Real> lse(static_cast<std::size_t>(x.s.batches * x.s.heads * own.count), Real(42));
  distributed::ring_attention(
      MPI_COMM_WORLD, q_layout, k_layout, q.read(), k.read(), v.read(), out.view(),
      heed::lse_to{heed::tensor_view<Real, 3>(lse.data(), {x.s.batches, x.s.heads, own.count})},
      modifiers...);
  EXPECT_EQ(out.overwritten_around(), 0);
  const tensor<double> wanted = share_of(x.out, own);
  return std::max(heed_test::worst_error(out.read(), wanted.read(), 5e-6),
                  x.lse_error(lse, own) - 1e-5);
}

template <class Layout>
void check_shapes() {
  unsigned seed = 50;
  for (const shape& s : shapes) {
    SCOPED_TRACE("queries " + std::to_string(s.queries) + " keys " + std::to_string(s.keys));
    const whole_call<float> full(s, seed += 7), causal(s, seed, visible_where(causally));
    EXPECT_LE(error_of<Layout>(full, layout::dense), 1e-5);
    EXPECT_LE(error_of<Layout>(causal, layout::interleaved, heed::causal{}), 1e-5);
  }
}
TEST(ring_attention, blocks) { check_shapes<distributed::blocks>(); }
TEST(ring_attention, striped) { check_shapes<distributed::striped>(); }
TEST(ring_attention, zigzag) { check_shapes<distributed::zigzag>(); }

TEST(ring_attention, element_types) {
  unsigned seed = 400;
  for (const shape& s : {shapes[1], shapes[2]}) {
    // A bfloat16 result may be a rounding of 2⁻⁸ off, twice where it is rounded in between.
    const whole_call<Eigen::bfloat16> narrow(s, seed += 7, visible_where(causally));
    EXPECT_LE(error_of<distributed::blocks>(narrow, layout::padded, heed::causal{}), 2e-2);
    EXPECT_LE(error_of<distributed::striped>(narrow, layout::by_token, heed::causal{}), 2e-2);
    const whole_call<double> wide(s, seed, visible_where(causally));
    EXPECT_LE(error_of<distributed::striped>(wide, layout::dense, heed::causal{}), 1e-13);
  }
}

// Scores and masks see positions in the whole sequence; sinks count once.
template <class Layout>
void check_modifiers() {
  const shape s{2, 4, 2, 150, 190, 24, 24};
  const std::vector<float> slopes{0.5f, 0.25f, 0.125f, 0.0625f}, logits{0.5f, -2.f, 3.f, 0.f};
  tensor<float> values(1, 1, s.queries, s.keys);
  values.fill(77);
  for (index_t i = 0; i < s.queries; ++i) {
    for (index_t j = i % 5; j < s.keys; j += 5) {
      values.view()(0, 0, i, j) = -std::numeric_limits<float>::infinity();
    }
  }
  reference::options how = visible_where(
      [](const heed::position& p) { return p.k <= p.aligned_q() && p.k >= p.aligned_q() - 60; });
  how.scores = {[&](double x, const heed::position& p) {
                  return x + static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                                 static_cast<double>(p.k - p.aligned_q());
                },
                [view = values.view()](double x, const heed::position& p) {
                  return x + static_cast<double>(view(0, 0, p.q, p.k));
                }};
  how.sinks.assign(logits.begin(), logits.end());
  how.scale = 0.3;
  const whole_call<float> x(s, 900, how);
  heed::thread_pool pool(2);
  EXPECT_LE(error_of<Layout>(x, layout::dense, heed::window{60, 0},
                             heed::alibi{heed::tensor_view<const float, 1>(slopes.data(), {4})},
                             heed::bias{values.read()}, heed::scale{0.3}, heed::on{pool},
                             heed::sink{heed::tensor_view<const float, 1>(logits.data(), {4})}),
            1e-5);
}
TEST(ring_attention, modifiers_of_blocks) { check_modifiers<distributed::blocks>(); }
TEST(ring_attention, modifiers_of_stripes) { check_modifiers<distributed::striped>(); }
TEST(ring_attention, modifiers_of_zigzags) { check_modifiers<distributed::zigzag>(); }

// Work of a causal call: tiles that each process computes.
template <class Layout>
double imbalance() {
  const world self;
  const index_t length = 256 * self.count;
  const Layout layout(length, self.count);
  const auto own = layout.of(self.rank);
  tensor<float> q(1, 1, own.count, 16), k(1, 1, own.count, 16), out(1, 1, own.count, 16);
  q.fill(1), k.fill(2);
  heed::tile_counts counts;
  distributed::ring_attention(MPI_COMM_WORLD, layout, q.read(), k.read(), k.read(), out.view(),
                              heed::causal{}, heed::count_tiles{counts});
  const auto visited = static_cast<double>(counts.visited());
  double most = 0, sum = 0;
  MPI_Allreduce(&visited, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(&visited, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  return most * self.count / sum;
}
TEST(ring_attention, stripes_and_zigzags_balance_a_causal_call) {
  if (world().count < 4) GTEST_SKIP() << "balance is asked of 4 processes";
  EXPECT_GT(imbalance<distributed::blocks>(), 1.5);
  EXPECT_LT(imbalance<distributed::striped>(), 1.1);
  EXPECT_LT(imbalance<distributed::zigzag>(), 1.1);
}

TEST(ring_attention, is_bit_identical_on_any_executor) {
  const world self;
  const distributed::striped layout(301, self.count);
  const whole_call<float> x({1, 4, 2, 301, 301, 32, 32}, 33);
  const auto own = layout.of(self.rank);
  const tensor<float> q = share_of(x.q, own), k = share_of(x.k, own), v = share_of(x.v, own);
  tensor<float> out(1, 4, own.count, 32);
  const auto run = [&](auto& executor) {
    distributed::ring_attention(MPI_COMM_WORLD, layout, q.read(), k.read(), v.read(), out.view(),
                                heed::causal{}, heed::on{executor});
    return std::vector<float>(out.view().data(), out.view().data() + out.view().size());
  };
  heed::serial serial;
  heed::thread_pool pool(3);
  const std::vector<float> wanted = run(serial), got = run(pool);
  EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)), 0);
}

// What does not fit on one process is the same error on all, and nothing is written or left behind.
struct refused {
  world self;
  std::vector<float> in = std::vector<float>(4096, 0.5f), out = std::vector<float>(4096, 42.f);
  index_t tokens = 8, heads = 2, depth = 16, value_depth = 16;
  distributed::blocks layout{8 * world().count, world().count};

  template <class... Modifiers>
  void expect(const std::string& text, const Modifiers&... modifiers) const {
    const heed::tensor_view<const float, 4> q(in.data(), {1, 4, 8, depth}),
        k(in.data(), {1, heads, tokens, depth}), v(in.data(), {1, heads, tokens, value_depth});
    const heed::tensor_view<float, 4> result(const_cast<float*>(out.data()),
                                             {1, 4, 8, value_depth});
    try {
      distributed::ring_attention(MPI_COMM_WORLD, layout, q, k, v, result, modifiers...);
      ADD_FAILURE() << "accepted, expected: " << text;
    } catch (const heed::invalid_argument& error) {
      EXPECT_EQ(std::string(error.what()), text);
    }
    for (float x : out) EXPECT_EQ(x, 42.f);
  }
};
TEST(ring_attention_errors, are_the_same_on_every_process) {
  const world self;
  if (self.count < 3) GTEST_SKIP() << "needs process 2";
  const bool spoils = self.rank == 2;
  const std::string processes = std::to_string(self.count);
  {
    refused c;
    c.layout = distributed::blocks(24, 3 * self.count);
    c.expect("process 0: q: dealt to " + std::to_string(3 * self.count) +
             " processes, the communicator has " + processes);
  }
  {
    refused c;
    if (spoils) c.tokens = 7;
    c.expect("process 2: k: length 7, of " + std::to_string(8 * self.count) +
             " tokens this process's share is 8");
  }
  {
    refused c;
    if (spoils) c.heads = 3;
    c.expect("process 2: k: head count 3 does not divide query head count 4");
  }
  {
    refused c;
    if (spoils) c.heads = 1;
    c.expect("k: head count 1 on process 2 differs from 2 on process 0");
  }
  {
    refused c;
    if (spoils) c.depth = 12;
    c.expect("q: depth 12 on process 2 differs from 16 on process 0");
  }
  {
    refused c;
    if (spoils) c.value_depth = 12;
    c.expect("v: depth 12 on process 2 differs from 16 on process 0");
  }
  {
    refused c;
    c.expect("process 2: scale: value is not finite", heed::scale{spoils ? HUGE_VAL : 1.0});
    const std::vector<float> table(100, 0.f);
    c.expect("process 0: bias: key axis has extent 8, call has " + std::to_string(8 * self.count) +
                 " keys",
             heed::bias{heed::tensor_view<const float, 2>(table.data(), {1, 8})});
  }
}

}  // namespace
