// Every argument that does not fit gives one error that names the operand and both values, and
// nothing is written.
#include "support/errors.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/sink.hpp"

namespace {

using heed::index_t;
using view = heed::tensor_view<float, 4>;
using const_view = heed::tensor_view<const float, 4>;

struct call {
  std::vector<float> q_data = std::vector<float>(4096, 0.5f);
  std::vector<float> k_data = std::vector<float>(4096, 0.25f);
  std::vector<float> v_data = std::vector<float>(4096, 0.125f);
  std::vector<float> out_data = std::vector<float>(4096, 42.f);
  std::vector<float> lse_data = std::vector<float>(4096, 42.f);
  const_view q{q_data.data(), {2, 4, 5, 8}};
  const_view k{k_data.data(), {2, 2, 7, 8}};
  const_view v{v_data.data(), {2, 2, 7, 6}};
  view out{out_data.data(), {2, 4, 5, 6}};
  heed::tensor_view<float, 3> lse{lse_data.data(), {2, 4, 5}};

  // Runs the body, which must raise exactly this text and must not have written anything.
  void expect(const std::string& text, const std::function<void()>& body) const {
    heed_test::expect_error(text, body);
    for (float x : out_data) ASSERT_EQ(x, 42.f) << text;
    for (float x : lse_data) ASSERT_EQ(x, 42.f) << text;
  }
  void expect_plain(const std::string& text) const {
    expect(text, [&] { heed::attention(q, k, v, out, heed::lse_to{lse}); });
  }
};

TEST(dense_errors, shapes) {
  call c;
  c.k = const_view(c.k_data.data(), {3, 2, 7, 8});
  c.expect_plain("v: batch 2 differs from k's 3");
  c = call();
  c.v = const_view(c.v_data.data(), {2, 1, 7, 6});
  c.expect_plain("v: head count 1 differs from k's 2");
  c = call();
  c.v = const_view(c.v_data.data(), {2, 2, 8, 6});
  c.expect_plain("v: length 8 differs from k's 7");
  c = call();
  c.k = const_view(c.k_data.data(), {1, 2, 7, 8});
  c.v = const_view(c.v_data.data(), {1, 2, 7, 6});
  c.expect_plain("k: batch 1 differs from q's 2");
  c = call();
  c.k = const_view(c.k_data.data(), {2, 2, 7, 9});
  c.expect_plain("k: depth 9 differs from q's 8");
  c = call();
  c.out = view(c.out_data.data(), {2, 4, 5, 8});
  c.expect_plain("out: depth 8 differs from v's 6");
  c = call();
  c.out = view(c.out_data.data(), {1, 4, 5, 6});
  c.expect_plain("out: batch 1 differs from q's 2");
  c = call();
  c.out = view(c.out_data.data(), {2, 2, 5, 6});
  c.expect_plain("out: head count 2 differs from q's 4");
  c = call();
  c.out = view(c.out_data.data(), {2, 4, 6, 6});
  c.expect_plain("out: length 6 differs from q's 5");
  c = call();
  c.lse = heed::tensor_view<float, 3>(c.lse_data.data(), {2, 4, 6});
  c.expect_plain("lse: length 6 differs from q's 5");
}

TEST(dense_errors, head_ratio) {
  call c;
  c.k = const_view(c.k_data.data(), {2, 3, 7, 8});
  c.v = const_view(c.v_data.data(), {2, 3, 7, 6});
  c.expect_plain("k: head count 3 does not divide query head count 4");
  c.k = const_view(c.k_data.data(), {2, 0, 7, 8});
  c.v = const_view(c.v_data.data(), {2, 0, 7, 6});
  c.expect_plain("k: head count 0 does not divide query head count 4");
  c.k = const_view(c.k_data.data(), {2, 8, 7, 8});
  c.v = const_view(c.v_data.data(), {2, 8, 7, 6});
  c.expect_plain("k: head count 8 does not divide query head count 4");
}

TEST(dense_errors, strides) {
  call c;
  c.expect("tensor_view: last axis has stride 2, it must be contiguous (stride 1)", [&] {
    heed::attention(const_view(c.q_data.data(), {2, 4, 5, 8}, {320, 80, 16, 2}), c.k, c.v, c.out);
  });
  c.expect("tensor_view: axis 1 has negative extent -4", [&] {
    heed::attention(const_view(c.q_data.data(), {2, -4, 5, 8}), c.k, c.v, c.out);
  });
  c.expect(
      "tensor_view: element count overflows 64 bits at axis 0 of extent 4611686018427387904", [&] {
        heed::attention(const_view(c.q_data.data(), {index_t{1} << 62, 4, 5, 8}), c.k, c.v, c.out);
      });
  c.expect(
      "tensor_view: axis 0 of extent 3 and stride 4611686018427387904 overflows 64-bit offsets",
      [&] {
        heed::attention(const_view(c.q_data.data(), {3, 4, 5, 8}, {index_t{1} << 62, 40, 8, 1}),
                        c.k, c.v, c.out);
      });
  c.out = view(c.out_data.data(), {2, 4, 5, 6}, {0, 30, 6, 1});
  c.expect_plain("out: axis 0 of extent 2 has stride 0, its rows would overwrite each other");
}

TEST(dense_errors, rows_that_overlap_each_other) {
  call c;
  c.out = view(c.out_data.data(), {2, 4, 5, 6}, {120, 30, 5, 1});
  c.expect_plain("out: rows of 24 bytes at its bytes 0 and 20 would overwrite each other");
  c.out = view(c.out_data.data(), {2, 4, 5, 6}, {120, 24, 6, 1});
  c.expect_plain("out: rows of 24 bytes at its bytes 96 and 96 would overwrite each other");
  c.out = view(c.out_data.data() + 300, {2, 4, 5, 6}, {120, -24, 6, 1});
  c.expect_plain("out: rows of 24 bytes at its bytes 96 and 96 would overwrite each other");
  c = call();
  c.lse = heed::tensor_view<float, 3>(c.lse_data.data(), {2, 4, 5}, {20, 4, 1});
  c.expect_plain("lse: rows of 4 bytes at its bytes 16 and 16 would overwrite each other");
  // Steps of 2 and 3 rows reach past each other, and meet nowhere.
  std::vector<float> rows(8 * 6, -1.f);
  heed::attention(
      const_view(c.q_data.data(), {1, 2, 2, 8}), const_view(c.k_data.data(), {1, 2, 7, 8}),
      const_view(c.v_data.data(), {1, 2, 7, 6}), view(rows.data(), {1, 2, 2, 6}, {0, 18, 12, 1}));
  EXPECT_EQ(rows[6], -1.f);
  EXPECT_NE(rows[12], -1.f);
}

TEST(dense_errors, null_data) {
  call c;
  c.q = const_view(nullptr, {2, 4, 5, 8});
  c.expect_plain("q: data is null, extents are [2, 4, 5, 8]");
  c = call();
  c.k = const_view(nullptr, {2, 2, 7, 8});
  c.expect_plain("k: data is null, extents are [2, 2, 7, 8]");
  c = call();
  c.v = const_view(nullptr, {2, 2, 7, 6});
  c.expect_plain("v: data is null, extents are [2, 2, 7, 6]");
  c = call();
  c.out = view(nullptr, {2, 4, 5, 6});
  c.expect_plain("out: data is null, extents are [2, 4, 5, 6]");
  c = call();
  c.lse = heed::tensor_view<float, 3>(nullptr, {2, 4, 5});
  c.expect_plain("lse: data is null, extents are [2, 4, 5, 1]");
}

TEST(dense_errors, overlap_of_an_output_with_an_operand) {
  call c;
  // Row (0, 0, 1) of q starts at byte 32; out begins in its middle.
  c.expect("out: overlaps q, in the row at its byte 32", [&] {
    heed::attention(const_view(c.out_data.data(), {2, 4, 5, 8}), c.k, c.v,
                    view(c.out_data.data() + 10, {2, 4, 5, 6}));
  });
  c.expect("out: overlaps k, in the row at its byte 0", [&] {
    heed::attention(c.q, const_view(c.out_data.data(), {2, 2, 7, 8}), c.v, c.out);
  });
  c.expect("out: overlaps v, in the row at its byte 0", [&] {
    heed::attention(c.q, c.k, const_view(c.out_data.data(), {2, 2, 7, 6}), c.out);
  });
  c.expect("lse: overlaps out, in the row at its byte 0", [&] {
    heed::attention(c.q, c.k, c.v, c.out,
                    heed::lse_to{heed::tensor_view<float, 3>(c.out_data.data(), {2, 4, 5})});
  });
  // q, k, v and out interleaved in one buffer meet nowhere: that is allowed.
  std::vector<float> all(2 * 5 * 4 * 8, 1.f);
  const auto part = [&](int i) {
    return const_view(all.data() + 8 * i, {1, 2, 5, 8}, {320, 160, 32, 1});
  };
  heed::attention(part(0), part(1), part(2),
                  view(all.data() + 24, {1, 2, 5, 8}, {320, 160, 32, 1}));
  EXPECT_FLOAT_EQ(all[24], 1.f);
}

TEST(dense_errors, masks_and_scores) {
  call c;
  const std::vector<std::uint8_t> bits(64, 1);
  const heed::array_mask mask{heed::tensor_view<const std::uint8_t, 2>(bits.data(), {5, 6})};
  c.expect("array_mask: key axis has extent 6, call has 7 keys",
           [&] { heed::attention(c.q, c.k, c.v, c.out, mask); });
  const std::vector<float> numbers(64, 0.f);
  c.expect("bias: query axis has extent 4, call has 5 queries", [&] {
    heed::attention(c.q, c.k, c.v, c.out,
                    heed::bias{heed::tensor_view<const float, 2>(numbers.data(), {4, 7})});
  });
  c.expect("sink: logits have extent 3, call has 4 heads", [&] {
    heed::attention(c.q, c.k, c.v, c.out,
                    heed::sink{heed::tensor_view<const float, 1>(numbers.data(), {3})});
  });
  EXPECT_THROW(heed::window(-2, 0), heed::invalid_argument);
}

TEST(dense_errors, lengths) {
  call c;
  const auto with = [&](auto option) {
    return [&c, option] { heed::attention(c.q, c.k, c.v, c.out, option); };
  };
  const std::vector<index_t> one = {7}, negative = {7, -1}, over = {8, 7}, queries = {5, 6};
  c.expect("key_lengths: count 1 differs from the batch's 2", with(heed::key_lengths{one}));
  c.expect("key_lengths: entry 1 is -1, must lie in [0, 7]", with(heed::key_lengths{negative}));
  c.expect("key_lengths: entry 0 is 8, must lie in [0, 7]", with(heed::key_lengths{over}));
  c.expect("left_padding: entry 0 is 8, must lie in [0, 7]", with(heed::left_padding{over}));
  c.expect("query_lengths: entry 1 is 6, must lie in [0, 5]", with(heed::query_lengths{queries}));
  const std::vector<index_t> skipped = {3, 0}, full = {5, 7};
  c.expect("key_lengths: entry 0 is 5, must lie in [0, 4]", [&] {
    heed::attention(c.q, c.k, c.v, c.out, heed::left_padding{skipped}, heed::key_lengths{full});
  });
}

TEST(dense_errors, ragged) {
  call c;
  c.q = const_view(c.q_data.data(), {1, 4, 5, 8});
  c.k = const_view(c.k_data.data(), {1, 2, 7, 8});
  c.v = const_view(c.v_data.data(), {1, 2, 7, 6});
  c.out = view(c.out_data.data(), {1, 4, 5, 6});
  using list = std::vector<index_t>;
  const auto with = [&](const list& queries, const list& keys) {
    return [&c, queries, keys] {
      heed::attention(c.q, c.k, c.v, c.out, heed::ragged{queries, keys});
    };
  };
  c.expect("cumulative_queries: starts with 1, must start with 0", with({1, 5}, {0, 7}));
  c.expect("cumulative_queries: entry 2 is 3, less than 4 before it",
           with({0, 4, 3, 5}, {0, 1, 2, 7}));
  c.expect("cumulative_keys: entry 2 is 1, less than 6 before it",
           with({0, 2, 3, 5}, {0, 6, 1, 7}));
  c.expect("cumulative_queries: total 4 differs from q's 5", with({0, 4}, {0, 7}));
  c.expect("cumulative_keys: total 9 differs from k's 7", with({0, 5}, {0, 9}));
  c.expect("cumulative_keys: count 3 differs from cumulative_queries's 2", with({0, 5}, {0, 2, 7}));
  const list queries = {0, 5}, keys = {0, 7}, one = {7}, five = {5};
  c.expect("ragged: key_lengths and left_padding are for batches that are not ragged", [&] {
    heed::attention(c.q, c.k, c.v, c.out, heed::ragged{queries, keys}, heed::key_lengths{one});
  });
  c.expect("ragged: query_lengths is for batches that are not ragged", [&] {
    heed::attention(c.q, c.k, c.v, c.out, heed::ragged{queries, keys}, heed::query_lengths{five});
  });
  call batch;
  batch.expect("q: batch 2, a ragged batch has its sequences along one batch of 1", [&] {
    heed::attention(batch.q, batch.k, batch.v, batch.out, heed::ragged{queries, keys});
  });
}

TEST(dense_errors, scale_that_is_not_a_number) {
#if defined(__FAST_MATH__)
  GTEST_SKIP() << "-ffast-math assumes that there are no infinities: the check has no meaning";
#endif
  call c;
  c.expect("scale: value is not finite", [&] {
    heed::attention(c.q, c.k, c.v, c.out, heed::scale{std::numeric_limits<double>::infinity()});
  });
}

TEST(dense_errors, sources) {
  call c;
  const const_view other(c.k_data.data(), {2, 4, 7, 8});
  const const_view other_values(c.v_data.data(), {2, 4, 7, 6});
  c.expect("k: head count 4 differs from the first source's 2", [&] {
    heed::attention(c.q, heed::sources{heed::source{c.k, c.v}, heed::source{other, other_values}},
                    c.out);
  });
}

}  // namespace
