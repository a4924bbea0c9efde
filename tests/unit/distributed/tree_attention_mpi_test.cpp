// Tree attention gives every process, bit for bit alike, what one process computes over all keys.
#include <cstring>

#include "heed/distributed/tree_attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/sink.hpp"
#include "unit/distributed/mpi_main.hpp"
#include "unit/distributed/support.hpp"

namespace {

using namespace distributed_test;
namespace distributed = heed::distributed;

const std::vector<shape> shapes = {
    {2, 8, 2, 1, 700, 64, 64}, {1, 4, 1, 5, 203, 40, 24}, {1, 2, 2, 1, 3, 8, 8},
    {1, 2, 1, 20, 0, 8, 8},    {1, 2, 2, 9, 4, 16, 16},
};

template <class Layout, class T, class... Modifiers>
double error_of(const whole_call<T>& x, int processes, MPI_Comm communicator,
                const Modifiers&... modifiers) {
  using Real = heed::accumulator<T>;
  int rank = 0;
  MPI_Comm_rank(communicator, &rank);
  const Layout dealt(x.s.keys, processes);
  const auto held = dealt.of(rank);
  const tensor<T> k = share_of(x.k, held, layout::padded), v = share_of(x.v, held);
  tensor<T> out(x.s.batches, x.s.heads, x.s.queries, x.s.value_depth, layout::padded);
  std::vector<Real> lse(x.lse.size(), Real(42));
  distributed::tree_attention(
      communicator, dealt, x.q.read(), k.read(), v.read(), out.view(),
      heed::lse_to{heed::tensor_view<Real, 3>(lse.data(), {x.s.batches, x.s.heads, x.s.queries})},
      modifiers...);
  EXPECT_EQ(out.overwritten_around(), 0);
  // Bits of process 0.
  std::vector<Real> first = lse;
  MPI_Bcast(first.data(), static_cast<int>(first.size() * sizeof(Real)), MPI_BYTE, 0, communicator);
  EXPECT_EQ(std::memcmp(first.data(), lse.data(), lse.size() * sizeof(Real)), 0);
  const heed::distributed::token_places all{x.s.queries, x.s.queries, 0, 0, 1};
  return std::max(heed_test::worst_error(out.read(), x.out.read(), 5e-6),
                  x.lse_error(lse, all) - 1e-5);
}

TEST(tree_attention, is_attention_over_all_keys) {
  unsigned seed = 60;
  int count = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &count);
  for (const shape& s : shapes) {
    SCOPED_TRACE("queries " + std::to_string(s.queries) + " keys " + std::to_string(s.keys));
    const whole_call<float> full(s, seed += 7), causal(s, seed, visible_where(causally));
    EXPECT_LE(error_of<distributed::blocks>(full, count, MPI_COMM_WORLD), 1e-5);
    EXPECT_LE(error_of<distributed::striped>(causal, count, MPI_COMM_WORLD, heed::causal{}), 1e-5);
    const whole_call<Eigen::bfloat16> narrow(s, seed);
    EXPECT_LE(error_of<distributed::blocks>(narrow, count, MPI_COMM_WORLD), 2e-2);
  }
}

// A tree that is not a power of two, in a communicator of its own.
TEST(tree_attention, of_three_processes) {
  int rank = 0, count = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &count);
  if (count < 3) GTEST_SKIP() << "needs 3 processes";
  MPI_Comm three = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank < 3 ? 0 : MPI_UNDEFINED, rank, &three);
  if (rank >= 3) return;
  const whole_call<float> x({1, 4, 2, 2, 333, 32, 32}, 5);
  EXPECT_LE(error_of<distributed::zigzag>(x, 3, three), 1e-5);
  MPI_Comm_free(&three);
}

TEST(tree_attention, scores_see_the_whole_sequence_and_sinks_count_once) {
  int count = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &count);
  const std::vector<float> slopes{0.5f, 0.1f}, logits{1.f, -1.f};
  reference::options how = visible_where(causally);
  how.scores = {[&](double x, const heed::position& p) {
    return x + static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                   static_cast<double>(p.k - p.aligned_q());
  }};
  how.sinks.assign(logits.begin(), logits.end());
  const whole_call<float> x({2, 2, 1, 3, 150, 16, 16}, 8, how);
  const heed::alibi alibi{heed::tensor_view<const float, 1>(slopes.data(), {2})};
  const heed::sink sink{heed::tensor_view<const float, 1>(logits.data(), {2})};
  EXPECT_LE(error_of<distributed::blocks>(x, count, MPI_COMM_WORLD, heed::causal{}, alibi, sink),
            1e-5);
}

// Counts the batches of items that it is given.
struct counting_executor {
  int runs = 0;
  int workers() const { return 1; }
  template <class Body>
  void run(index_t count, const Body& body) {
    ++runs;
    for (index_t item = 0; item < count; ++item) body(item, 0);
  }
};

// The attention of every process runs on the call's executor, not only what merges the results.
TEST(tree_attention, runs_on_the_executor) {
  int count = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &count);
  const whole_call<float> x({1, 2, 2, 3, 40 * count, 16, 16}, 9);
  counting_executor of_tree, of_one, of_merge;
  EXPECT_LE(error_of<distributed::blocks>(x, count, MPI_COMM_WORLD, heed::on{of_tree}), 1e-5);
  tensor<float> out(1, 2, 3, 16);
  std::vector<float> lse(6);
  const heed::tensor_view<float, 3> rows(lse.data(), {1, 2, 3});
  heed::attention(x.q.read(), x.k.read(), x.v.read(), out.view(), heed::lse_to{rows},
                  heed::on{of_one});
  tensor<float> merged(1, 2, 3, 16);
  heed::merge({heed::part(out.view(), rows)}, merged.view(), heed::on{of_merge});
  EXPECT_GE(of_tree.runs, of_one.runs + of_merge.runs);
}

TEST(tree_attention_errors, are_the_same_on_every_process) {
  int rank = 0, count = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &count);
  if (count < 2) GTEST_SKIP() << "needs process 1";
  const auto expect = [&](const std::string& text, index_t queries, index_t keys,
                          const distributed::blocks& dealt) {
    std::vector<float> in(1024, 0.5f), result(1024, 42.f);
    const heed::tensor_view<const float, 3> q(in.data(), {2, queries, 8}),
        k(in.data(), {2, keys, 8});
    try {
      distributed::tree_attention(MPI_COMM_WORLD, dealt, q, k, k,
                                  heed::tensor_view<float, 3>(result.data(), {2, queries, 8}));
      ADD_FAILURE() << "accepted, expected: " << text;
    } catch (const heed::invalid_argument& error) {
      EXPECT_EQ(std::string(error.what()), text);
    }
    for (float x : result) EXPECT_EQ(x, 42.f);
  };
  const distributed::blocks dealt(4 * count, count);
  expect("query count 3 on process 1 differs from 2 on process 0", rank == 1 ? 3 : 2, 4, dealt);
  expect("process 1: k: length 5, of " + std::to_string(4 * count) +
             " tokens this process's share is 4",
         2, rank == 1 ? 5 : 4, dealt);
  expect("process 0: k: dealt to " + std::to_string(count + 1) +
             " processes, the communicator has " + std::to_string(count),
         2, 4, distributed::blocks(4 * count + 4, count + 1));
}

}  // namespace
