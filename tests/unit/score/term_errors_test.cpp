// Every argument of score terms and additive calls that does not fit gives one error, before
// anything is written.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "heed/additive/attention.hpp"
#include "heed/additive/luong.hpp"
#include "heed/additive/pointer.hpp"
#include "heed/score/music_transformer.hpp"
#include "heed/score/shaw.hpp"
#include "heed/score/transformer_xl.hpp"
#include "support/errors.hpp"

namespace {

using heed::index_t;
template <int Rank>
using view = heed::tensor_view<const float, Rank>;

struct term_errors : ::testing::Test {
  std::vector<float> numbers = std::vector<float>(4096, 0.5f);
  std::vector<float> written = std::vector<float>(4096, 42.f);
  view<4> q{numbers.data(), {2, 4, 5, 8}}, k{numbers.data(), {2, 2, 7, 8}},
      v{numbers.data(), {2, 2, 7, 6}};
  heed::tensor_view<float, 4> out{written.data(), {2, 4, 5, 6}};

  view<2> matrix(index_t rows, index_t columns) const { return {numbers.data(), {rows, columns}}; }
  view<3> cube(index_t heads, index_t rows, index_t columns) const {
    return {numbers.data(), {heads, rows, columns}};
  }
  void expect(const std::string& text, const std::function<void()>& body) const {
    heed_test::expect_error(text, body);
    for (float x : written) ASSERT_EQ(x, 42.f) << text;
  }
  template <class Term>
  void expect_refused(const std::string& text, const Term& term) const {
    expect(text, [&] { heed::attention(q, k, v, out, term); });
  }
};

TEST_F(term_errors, tables_of_relative_embeddings) {
  expect("relative_embedding: the table has no entries",
         [&] { heed::relative_embedding(matrix(0, 8), 0); });
  expect("relative_embedding: data of the table is null", [&] {
    heed::relative_embedding(view<2>(nullptr, {3, 8}), 0);
  });
  expect("relative_embedding: 3 distances from 1099511627777 on are out of range",
         [&] { heed::relative_embedding(matrix(3, 8), (index_t{1} << 40) + 1); });
  expect_refused("relative_embedding: table has 3 heads, call has 4",
                 heed::relative_embedding(cube(3, 5, 8), -2));
  expect_refused("relative_embedding: table has depth 7, queries have 8",
                 heed::relative_embedding(cube(4, 5, 7), -2));
  expect_refused("relative_embedding: bias of 2 heads, call has 4",
                 heed::relative_embedding(matrix(5, 8), -2, matrix(2, 8)));
  expect_refused("relative_embedding: bias of depth 9, queries have 8",
                 heed::relative_embedding(matrix(5, 8), -2, matrix(4, 9)));
  expect("relative_embedding: data of the bias is null",
         [&] { heed::relative_embedding(matrix(5, 8), -2, view<1>(nullptr, {8})); });
}

TEST_F(term_errors, named_tables) {
  expect("shaw: radius -1 is negative", [&] { heed::shaw(matrix(3, 8), -1); });
  expect("shaw: table has 6 distances, radius 3 needs 2·3 + 1",
         [&] { heed::shaw(matrix(6, 8), 3); });
  expect("shaw: table has 9 distances, radius 3 needs 2·3 + 1",
         [&] { heed::shaw(matrix(9, 8), 3); });
  expect_refused("relative_embedding: table has depth 9, queries have 8",
                 heed::shaw(matrix(7, 9), 3));
  expect_refused("music_transformer: table has 6 distances, call has 7 keys",
                 heed::music_transformer(matrix(6, 8)));
  expect_refused("relative_embedding: table has 2 heads, call has 4",
                 heed::music_transformer(cube(2, 7, 8)));
  expect_refused("content_bias: bias of depth 7, queries have 8", heed::content_bias(matrix(4, 7)));
  expect("content_bias: data of the bias is null",
         [&] { heed::content_bias(view<1>(nullptr, {8})); });
  expect_refused("content_bias: bias of 3 heads, call has 4",
                 heed::transformer_xl(matrix(7, 8), matrix(3, 8), matrix(4, 8)));
  expect_refused("relative_embedding: bias of 3 heads, call has 4",
                 heed::transformer_xl(matrix(7, 8), matrix(4, 8), matrix(3, 8)));
}

TEST_F(term_errors, weights_of_pairs) {
  expect("pairwise: weights of 3 heads, call has 4",
         [&] { heed::additive_attention(q, k, v, matrix(3, 8), out); });
  expect("pairwise: weights of depth 6, queries have 8",
         [&] { heed::additive_attention(q, k, v, matrix(4, 6), out); });
  expect("pairwise: data of the weights is null",
         [&] { heed::additive_attention(q, k, v, view<1>(nullptr, {8}), out); });
  expect("k: depth 6 differs from q's 8",
         [&] { heed::additive_attention(q, v, v, matrix(4, 8), out); });
}

TEST_F(term_errors, pointers) {
  const auto refused = [&](const std::string& text, const std::array<index_t, 4>& shape) {
    expect(text, [&] {
      heed::pointer_log_probabilities(q, k, heed::tensor_view<float, 4>(written.data(), shape));
    });
  };
  refused("scores_to: batch 3 differs from the call's 2", {3, 4, 5, 7});
  refused("scores_to: length 4 differs from the call's 5", {2, 4, 4, 7});
  refused("scores_to: key count 6 differs from the call's 7", {2, 4, 5, 6});
  expect("scores_to: overlaps q, in the row at its byte 0", [&] {
    heed::pointer_log_probabilities(view<4>(written.data(), {2, 4, 5, 8}), k,
                                    heed::tensor_view<float, 4>(written.data(), {2, 4, 5, 7}));
  });
  const std::vector<index_t> lengths = {8, 2};
  expect("key_lengths: entry 0 is 8, must lie in [0, 7]", [&] {
    heed::pointer_log_probabilities(q, k, heed::tensor_view<float, 4>(written.data(), {2, 4, 5, 7}),
                                    heed::key_lengths{lengths});
  });
  std::vector<std::int64_t> best(64, 5);
  expect("best: length 6 differs from log_probabilities's 5", [&] {
    heed::pointer_argmax(q, heed::tensor_view<std::int64_t, 3>(best.data(), {2, 4, 6}));
  });
}

TEST_F(term_errors, luong) {
  expect("w: depth of queries 7 differs from q's 8",
         [&] { heed::luong_attention(q, matrix(7, 8), k, v, out); });
  expect("w: depth of keys 7 differs from k's 8",
         [&] { heed::luong_attention(q, matrix(8, 7), k, v, out); });
  expect("w: data is null, extents are [1, 8, 8, 1]", [&] {
    heed::luong_attention(q, view<2>(nullptr, {8, 8}), k, v, out);
  });
  expect("w: head count 3 differs from q's 4",
         [&] { heed::luong_attention(q, cube(3, 8, 8), k, v, out); });
}

}  // namespace
