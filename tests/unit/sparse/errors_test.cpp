// What sparse and routed calls refuse: one clear message, and nothing is written.
#include <gtest/gtest.h>

#include <vector>

#include "heed/routed/dispatch.hpp"
#include "heed/sparse/attention.hpp"
#include "heed/sparse/bigbird.hpp"
#include "heed/sparse/local.hpp"
#include "heed/sparse/longformer.hpp"
#include "heed/sparse/lsh.hpp"
#include "heed/sparse/quest.hpp"
#include "heed/sparse/sparge.hpp"
#include "heed/sparse/sparse_transformer.hpp"
#include "support/sparse_lists.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::tensor;
namespace sparse = heed::sparse;

// The message of a call on `out`, which must keep its poison.
template <class Call>
std::string error_of(tensor<float>& out, const Call& call) {
  const std::string text = heed_test::error_of(call);
  out.for_each([](float& x) { EXPECT_TRUE(heed_test::is_nan(static_cast<double>(x))); });
  return text;
}

struct fixture {
  tensor<float> q{2, 4, 16, 8}, k{2, 2, 24, 8}, v{2, 2, 24, 8}, out{2, 4, 16, 8};
  fixture() { q.fill(1), k.fill(2), v.fill(3); }
  template <class List>
  std::string attend(const List& list) {
    return error_of(out,
                    [&] { sparse::attention(q.read(), k.read(), v.read(), out.view(), list); });
  }
  std::string dispatch(const sparse::block_list& list) {
    return error_of(
        out, [&] { heed::routed::attention(q.read(), k.read(), v.read(), out.view(), list); });
  }
};

sparse::block_list blocks(index_t b, index_t h, index_t queries, index_t keys,
                          index_t block_k = 8) {
  return heed_test::random_list(sparse::blocks_of({b, h, queries, keys}, 8, block_k), 0.5, 1);
}
sparse::row_list rows(index_t b, index_t h, index_t queries, index_t keys) {
  return sparse::row_list(blocks(b, h, queries, keys, 1));
}

TEST(errors, lists_of_other_calls) {
  fixture x;
  EXPECT_EQ(x.attend(blocks(3, 1, 16, 24)), "block list: 3 batches, the call has 2");
  EXPECT_EQ(x.attend(blocks(1, 1, 8, 24)), "block list: 1 query blocks, the call has 2");
  EXPECT_EQ(x.attend(blocks(1, 1, 16, 32)), "block list: 4 key blocks, the call has 3");
  EXPECT_EQ(x.attend(blocks(1, 3, 16, 24)),
            "block list: head count 3 does not divide query head count 4");
  EXPECT_EQ(x.attend(rows(3, 1, 16, 24)), "row list: 3 batches, the call has 2");
  EXPECT_EQ(x.attend(rows(1, 1, 16, 25)), "row list: 25 key blocks, the call has 24");
  EXPECT_EQ(x.attend(rows(1, 3, 16, 24)), "row list: head count 3 is neither 1, k's 2 nor q's 4");
  EXPECT_EQ(x.dispatch(blocks(1, 3, 16, 24)),
            "block list: head count 3 is neither 1, k's 2 nor q's 4");
  EXPECT_EQ(x.dispatch(blocks(1, 1, 24, 24)), "block list: 3 query blocks, the call has 2");
}

TEST(errors, lists_that_are_wrong_in_themselves) {
  fixture x;
  auto list = blocks(1, 1, 16, 24);
  list.offsets = {0, 2, 1}, list.blocks = {0, 1};
  EXPECT_EQ(x.attend(list), "block list: offset 2 is 1, less than 2 before it");
  EXPECT_EQ(x.dispatch(list), "block list: offset 2 is 1, less than 2 before it");
  list.offsets = {0, 2, 2}, list.blocks = {1, 0};
  EXPECT_EQ(x.attend(list), "block list: entry 1 of row 0 is 0, not greater than 1 before it");
  EXPECT_EQ(x.dispatch(list), "block list: entry 1 of row 0 is 0, not greater than 1 before it");
  auto numbers = rows(1, 1, 16, 24);
  numbers.blocks[0] = 99;
  EXPECT_EQ(x.attend(numbers), "block list: entry 0 of row 0 is 99, must lie in [0, 24)");
}

TEST(errors, operands_that_gathering_would_hide) {
  fixture x;
  tensor<float> one(1, 2, 24, 8), three(2, 3, 24, 8), less(2, 2, 23, 8), narrow(2, 2, 24, 7),
      out(2, 4, 15, 8), thin(2, 4, 16, 7);
  const auto with = [&](const tensor<float>& k, const tensor<float>& v, tensor<float>& to,
                        index_t keys = 24) {
    const std::string a = error_of(to, [&] {
      sparse::attention(x.q.read(), k.read(), v.read(), to.view(), rows(1, 1, 16, keys));
    });
    const std::string b = error_of(to, [&] {
      heed::routed::attention(x.q.read(), k.read(), v.read(), to.view(), blocks(1, 1, 16, keys));
    });
    EXPECT_EQ(a, b);
    return a;
  };
  EXPECT_EQ(with(one, x.v, x.out), "k: batch 1 differs from q's 2");
  EXPECT_EQ(with(three, x.v, x.out), "k: head count 3 does not divide query head count 4");
  EXPECT_EQ(with(x.k, less, x.out), "v: length 23 differs from k's 24");
  EXPECT_EQ(with(x.k, three, x.out), "v: head count 3 differs from k's 2");
  EXPECT_EQ(with(x.k, x.v, out), "out: length 15 differs from q's 16");
  EXPECT_EQ(with(x.k, x.v, thin), "out: depth 7 differs from v's 8");
  EXPECT_EQ(with(narrow, x.v, x.out), "k: depth 7 differs from q's 8");
  std::vector<float> lse(2 * 4 * 15);
  EXPECT_EQ(error_of(x.out,
                     [&] {
                       sparse::attention(
                           x.q.read(), x.k.read(), x.v.read(), x.out.view(), rows(1, 1, 16, 24),
                           heed::lse_to{tensor_view<float, 3>(lse.data(), {2, 4, 15})});
                     }),
            "lse: length 15 differs from q's 16");
}

// Lists give each query head a call of its own; memory that the operands share is looked for
// before.
TEST(errors, memory_of_outputs) {
  fixture x;
  const auto list = rows(1, 4, 16, 24);
  std::vector<float> numbers(2 * 4 * 16 * 8, 42.0f);
  using lse_view = tensor_view<float, 3>;
  const auto with_lse = [&](const lse_view& lse) {
    return error_of(x.out, [&] {
      sparse::attention(x.q.read(), x.k.read(), x.v.read(), x.out.view(), list, heed::lse_to{lse});
    });
  };
  EXPECT_EQ(with_lse({numbers.data(), {2, 4, 16}, {64, 0, 1}}),
            "lse: axis 1 of extent 4 has stride 0, its rows would overwrite each other");
  EXPECT_EQ(with_lse({numbers.data(), {2, 4, 16}, {64, 8, 1}}),
            "lse: rows of 4 bytes at its bytes 32 and 32 would overwrite each other");
  EXPECT_EQ(with_lse({nullptr, {2, 4, 16}}), "lse: data is null, extents are [2, 4, 16, 1]");
  EXPECT_EQ(with_lse({x.k.view().data(), {2, 4, 16}}), "lse: overlaps k, in the row at its byte 0");
  EXPECT_EQ(with_lse({x.q.view().data() + 8, {2, 4, 16}}),
            "lse: overlaps q, in the row at its byte 32");
  for (const float number : numbers) EXPECT_EQ(number, 42.0f);
  const auto result = [&](const tensor_view<float, 4>& out, const tensor_view<const float, 4>& q) {
    return error_of(x.out, [&] { sparse::attention(q, x.k.read(), x.v.read(), out, list); });
  };
  EXPECT_EQ(result({numbers.data(), {2, 4, 16, 8}, {512, 128, 4, 1}}, x.q.read()),
            "out: rows of 32 bytes at its bytes 0 and 16 would overwrite each other");
  // Head 0 of out is head 1 of q: two heads of one group, which different calls would use.
  std::vector<float> shared(3 * 4 * 16 * 8, 1.0f);
  EXPECT_EQ(result({shared.data() + 128, {2, 4, 16, 8}}, {shared.data(), {2, 4, 16, 8}}),
            "out: overlaps q, in the row at its byte 512");
  for (const float number : shared) EXPECT_EQ(number, 1.0f);
}

TEST(errors, layouts) {
  using heed_test::error_of;
  const std::vector<index_t> random = {0, 7};
  const tensor_view<const index_t, 3> one(random.data(), {1, 2, 1});
  EXPECT_EQ(error_of([&] { sparse::openai_fixed(1, 8, 16, 0); }),
            "layout: stride 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::openai_fixed(1, 8, 16, 4, 1, 3); }),
            "layout: width 3 does not divide stride 4");
  EXPECT_EQ(error_of([&] { sparse::openai_fixed(1, 8, 16, 4, 5, 1); }),
            "layout: verts 5 is more than the 4 versions of stride 4");
  EXPECT_EQ(error_of([&] { sparse::openai_fixed(1, 8, 16, 4, 0); }),
            "layout: verts 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::openai_local(8, 0, 2); }),
            "layout: block size 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::openai_local(-8, 16, 2); }),
            "layout: -8 blocks, must not be negative");
  EXPECT_EQ(error_of([&] { sparse::openai_strided(8, 16, 0); }), "layout: chunk 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::strided_pattern{0}; }),
            "strided_pattern: stride 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::fixed_pattern(0, 0); }),
            "fixed_pattern: stride 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::fixed_pattern(4, 5); }),
            "fixed_pattern: 5 summaries must lie in [0, 4]");
  sparse::deepspeed_fixed how;
  how.heads = 0, how.same_for_all_heads = false;
  EXPECT_EQ(error_of([&] { how.list(8, 16); }), "layout: 0 heads, must be positive");
  how = {};
  how.patterns = 5;
  EXPECT_EQ(error_of([&] { how.list(8, 16); }),
            "layout: 5 patterns of 1 global blocks do not fit a local group of 4");
  how = {};
  how.horizontal = how.unidirectional = true;
  EXPECT_EQ(error_of([&] { how.list(8, 16); }),
            "layout: horizontal global attention looks ahead, unidirectional attention does not");
  EXPECT_EQ(error_of([&] { sparse::local({1, 1, 8, 8}, 0, 1, 0); }), "block_q: 0 is not positive");
  EXPECT_EQ(error_of([&] {
              sparse::local({1, 1, 8, 8}, 4, -1, 0);
            }),
            "local: looks back -1 and ahead 0 blocks, must not be negative");
  EXPECT_EQ(error_of([&] { sparse::sliding_blocks(8, 16, 0, false); }),
            "layout: width 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::bslongformer(8, 16, 0, {}, false); }),
            "layout: width 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::bigbird_layout(8, 16, 0, 1, one, false); }),
            "layout: width 0 is not positive");
  EXPECT_EQ(error_of([&] { sparse::bigbird_layout(8, 16, 3, -1, one, false); }),
            "layout: -1 global blocks, must not be negative");
  EXPECT_EQ(error_of([&] { sparse::bigbird_layout(8, 16, 3, 1, one, false); }),
            "random: rows 2, must be one for each of the 8 blocks");
  EXPECT_EQ(error_of([&] { sparse::bigbird_counts(4, one); }),
            "bigbird: 4 blocks, must be 5 at least");
  EXPECT_EQ(error_of([&] { sparse::bigbird_counts(6, one); }),
            "random: rows 2, must be one for each of the 4 inner blocks");
  const std::vector<index_t> outside = {0, 1, 5};
  EXPECT_EQ(error_of([&] {
              sparse::bigbird_counts(5, tensor_view<const index_t, 3>(outside.data(), {1, 3, 1}));
            }),
            "random: block 5 must lie in [0, 5)");
}

TEST(errors, methods) {
  fixture x;
  tensor<float> same(2, 4, 16, 8);
  same.fill(4);
  const auto on_out = [&](const auto& call) { return error_of(x.out, call); };
  const auto q = x.q.read(), k = x.k.read(), v = x.v.read();
  EXPECT_EQ(on_out([&] { sparse::quest(q, k, v, x.out.view(), 8, 0); }),
            "top_k: count 0 is not positive");
  EXPECT_EQ(on_out([&] { sparse::quest(q, k, v, x.out.view(), 0, 2); }),
            "block: 0 is not positive");
  EXPECT_EQ(
      heed_test::error_of([&] { sparse::quest_list(q, sparse::block_bounds(k, 8), 32, 8, 1); }),
      "bounds: 3 pages, 32 keys have 4 of 8");
  EXPECT_EQ(on_out([&] {
              sparse::sparge(q, k, v, x.out.view(), sparse::top_k(1),
                             sparse::sparge_options{0, 8, 0.1, false, 0});
            }),
            "block_q: 0 is not positive");
  const std::vector<index_t> none;
  EXPECT_EQ(on_out([&] {
              sparse::bigbird(q, q, q, x.out.view(), 3,
                              tensor_view<const index_t, 3>(none.data(), {1, 3, 0}));
            }),
            "bigbird: block 3 does not divide 16 queries and 16 keys alike");

  std::vector<index_t> buckets(2 * 4 * 16);
  const tensor_view<const index_t, 4> one_round(buckets.data(), {2, 4, 1, 16});
  sparse::lsh_options how;
  how.chunk = 5;
  const auto lsh = [&](const tensor<float>& values, const tensor_view<const index_t, 4>& of) {
    return on_out([&] { sparse::lsh_attention(q, values.read(), x.out.view(), of, how); });
  };
  EXPECT_EQ(lsh(same, one_round), "lsh: chunk 5 does not divide length 16");
  how.chunk = 0;
  EXPECT_EQ(lsh(same, one_round), "lsh: chunk 0 does not divide length 16");
  how.chunk = 8;
  EXPECT_EQ(lsh(x.v, one_round), "v: head count 2 differs from x's 4");
  EXPECT_EQ(lsh(same, {buckets.data(), {2, 4, 2, 8}}), "buckets: length 8 differs from x's 16");
  EXPECT_EQ(lsh(same, {buckets.data(), {2, 4, 0, 16}}), "buckets: 0 rounds, must be positive");
  EXPECT_EQ(heed_test::error_of([&] {
              const std::vector<float> turn(7);
              sparse::lsh_buckets(q, tensor_view<const float, 3>(turn.data(), {7, 1, 1}));
            }),
            "rotations: depth 7 differs from x's 8");

  std::vector<index_t> state(2 * 16, 0);
  state[3] = state[5] = 1;
  const tensor_view<const index_t, 2> tokens(state.data(), {2, 16});
  tensor<float> one_global(2, 4, 1, 8);
  const auto longformer = [&](const auto& qg, const auto& kg, index_t window,
                              const tensor_view<const index_t, 2>& of) {
    return on_out([&] { sparse::longformer(q, q, q, qg, kg, q, of, window, x.out.view()); });
  };
  EXPECT_EQ(longformer(one_global.read(), q, 4, tokens),
            "qg: length 1 is less than the 2 global tokens of batch entry 0");
  EXPECT_EQ(longformer(q, q, -1, tokens), "longformer: window -1 is negative");
  EXPECT_EQ(longformer(q, q, 4, {state.data(), {2, 15}}),
            "longformer: state is [2, 15], the call has 2 batches of 16 keys");
  EXPECT_EQ(longformer(q, k, 4, tokens), "kg: extent 2 of axis 1, must be 4");
}

// What selections read before attention could look at it.
TEST(errors, null_data) {
  fixture x;
  const auto q = x.q.read(), k = x.k.read(), v = x.v.read();
  const tensor_view<const float, 4> no_q(nullptr, {2, 4, 16, 8}), no_k(nullptr, {2, 2, 24, 8});
  const std::string of_q = "q: data is null, extents are [2, 4, 16, 8]",
                    of_k = "k: data is null, extents are [2, 2, 24, 8]";
  const auto on_out = [&](const auto& call) { return error_of(x.out, call); };
  EXPECT_EQ(on_out([&] { sparse::quest(no_q, k, v, x.out.view(), 8, 1); }), of_q);
  EXPECT_EQ(on_out([&] { sparse::quest(q, no_k, v, x.out.view(), 8, 1); }), of_k);
  const auto sparge = [&](const auto& queries, const auto& keys) {
    return on_out([&] {
      sparse::sparge(queries, keys, v, x.out.view(), sparse::top_k(1), sparse::sparge_options{});
    });
  };
  EXPECT_EQ(sparge(no_q, k), of_q);
  EXPECT_EQ(sparge(q, no_k), of_k);
  using heed_test::error_of;
  EXPECT_EQ(error_of([&] { sparse::maximum_scores(q, no_k, 8, 1, true); }), of_k);
  EXPECT_EQ(error_of([&] { sparse::sampled_mass(no_q, k, 0, 1, 1, true); }), of_q);
  EXPECT_EQ(error_of([&] { sparse::pooled_means(no_q, 4); }),
            "x: data is null, extents are [2, 4, 16, 8]");

  std::vector<index_t> state(2 * 16, 0);
  const tensor_view<const index_t, 4> buckets(nullptr, {2, 4, 1, 16});
  EXPECT_EQ(on_out([&] { sparse::lsh_attention(q, q, x.out.view(), buckets, {8}); }),
            "buckets: data is null, extents are [2, 4, 1, 16]");
  EXPECT_EQ(error_of([&] {
              sparse::lsh_buckets(q, tensor_view<const float, 3>(nullptr, {8, 1, 1}));
            }),
            "rotations: data is null, extents are [8, 1, 1]");
  EXPECT_EQ(on_out([&] {
              sparse::longformer(q, q, q, q, q, q, tensor_view<const index_t, 2>(nullptr, {2, 16}),
                                 4, x.out.view());
            }),
            "state: data is null, extents are [2, 16]");
  EXPECT_EQ(error_of([&] {
              sparse::bigbird_counts(5, tensor_view<const index_t, 3>(nullptr, {1, 3, 1}));
            }),
            "random: data is null, extents are [1, 3, 1]");
}

}  // namespace
