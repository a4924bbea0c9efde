// Every observer, transform and normaliser that does not fit the call gives one error that names
// what does not fit and both values, and nothing is written.
#include "support/errors.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/normalizer/redistribute.hpp"
#include "heed/normalizer/relaxed.hpp"
#include "heed/normalizer/relu.hpp"
#include "heed/normalizer/rms_norm.hpp"
#include "heed/normalizer/sigmoid.hpp"
#include "heed/normalizer/urpe.hpp"
#include "heed/observer/block_maxima.hpp"
#include "heed/observer/column_sums.hpp"
#include "heed/observer/row_entropy.hpp"
#include "heed/observer/scores.hpp"
#include "heed/observer/top_keys.hpp"
#include "heed/observer/weights.hpp"

namespace {

using heed::index_t;
template <class T, int Rank>
using view = heed::tensor_view<T, Rank>;

// q [2, 4, 5, 8], k [2, 2, 7, 8], v [2, 2, 7, 6]
struct call {
  std::vector<float> in = std::vector<float>(1024, 0.5f);
  std::vector<float> out = std::vector<float>(1024, 42.f);
  std::vector<float> seen = std::vector<float>(1024, 42.f);
  std::vector<int> keys = std::vector<int>(1024, 42);
  std::vector<std::uint8_t> marks = std::vector<std::uint8_t>(64, 1);

  template <int Rank>
  view<float, Rank> target(const std::array<index_t, Rank>& extents) {
    return {seen.data(), extents};
  }
  void expect(const std::string& text, const std::function<void()>& body) const {
    heed_test::expect_error(text, body);
    for (float x : out) ASSERT_EQ(x, 42.f) << text;
    for (float x : seen) ASSERT_EQ(x, 42.f) << text;
    for (int x : keys) ASSERT_EQ(x, 42) << text;
  }
  template <class... Modifiers>
  void expect_modifier(const std::string& text, const Modifiers&... modifiers) {
    expect(text, [&] {
      heed::attention(view<const float, 4>(in.data(), {2, 4, 5, 8}),
                      view<const float, 4>(in.data(), {2, 2, 7, 8}),
                      view<const float, 4>(in.data(), {2, 2, 7, 6}),
                      view<float, 4>(out.data(), {2, 4, 5, 6}), modifiers...);
    });
  }
};

TEST(observer_errors, extents) {
  call c;
  c.expect_modifier("column_sums_to: batch 1 differs from the call's 2",
                    heed::column_sums_to{c.target<3>({1, 4, 7})});
  c.expect_modifier("column_sums_to: head count 2 differs from the call's 4",
                    heed::column_sums_to{c.target<3>({2, 2, 7})});
  c.expect_modifier("column_sums_to: key count 5 differs from the call's 7",
                    heed::column_sums_to{c.target<3>({2, 4, 5})});
  c.expect_modifier("row_entropy_to: length 7 differs from the call's 5",
                    heed::row_entropy_to{c.target<3>({2, 4, 7})});
  c.expect_modifier("largest_scores_to: length 7 differs from the call's 5",
                    heed::largest_scores_to{c.target<3>({2, 4, 7})});
  c.expect_modifier("weights_to: key count 6 differs from the call's 7",
                    heed::weights_to{c.target<4>({2, 4, 5, 6})});
  c.expect_modifier("scores_to: length 6 differs from the call's 5",
                    heed::scores_to{c.target<4>({2, 4, 6, 7})});
  c.expect_modifier("block_maxima_to: query block count 2 differs from the call's 3",
                    heed::block_maxima_to{c.target<4>({2, 4, 2, 2}), 2, 4});
  c.expect_modifier("block_maxima_to: key block count 1 differs from the call's 2",
                    heed::block_maxima_to{c.target<4>({2, 4, 3, 1}), 2, 4});
  c.expect_modifier("top_keys_to: length 6 differs from the call's 5",
                    heed::top_keys_to{view<int, 4>(c.keys.data(), {2, 4, 6, 3})});
  c.expect_modifier(
      "top_keys_to: weights: key count 2 differs from the call's 3",
      heed::top_keys_to{view<int, 4>(c.keys.data(), {2, 4, 5, 3}), c.target<4>({2, 4, 5, 2})});
  c.expect_modifier("top_keys_to: 0 keys are asked for, must be 1 or more",
                    heed::top_keys_to{view<int, 4>(c.keys.data(), {2, 4, 5, 0})});
}

TEST(observer_errors, memory) {
  call c;
  c.expect_modifier("column_sums_to: data is null, extents are [2, 4, 7, 1]",
                    heed::column_sums_to{view<float, 3>(nullptr, {2, 4, 7})});
  c.expect_modifier(
      "weights_to: axis 1 of extent 4 has stride 0, its rows would overwrite each other",
      heed::weights_to{view<float, 4>(c.seen.data(), {2, 4, 5, 7}, {35, 0, 7, 1})});
  c.expect_modifier("column_sums_to: overlaps out, in the row at its byte 0",
                    heed::column_sums_to{view<float, 3>(c.out.data(), {2, 4, 7})});
  c.expect_modifier("row_entropy_to: overlaps q, in the row at its byte 0",
                    heed::row_entropy_to{view<float, 3>(c.in.data(), {2, 4, 5})});
  c.expect_modifier("column_sums_to: overlaps row_entropy_to, in the row at its byte 0",
                    heed::column_sums_to{view<float, 3>(c.seen.data(), {2, 4, 7})},
                    heed::row_entropy_to{view<float, 3>(c.seen.data(), {2, 4, 5})});
}

TEST(observer_errors, values) {
  call c;
  c.expect("block_maxima_to: blocks of 0 queries and 4 keys, must be 1 or more", [&] {
    heed::block_maxima_to(c.target<4>({2, 4, 3, 1}), 0, 4);
  });
  c.expect("relaxed: gamma must lie in [0, 1]", [&] { heed::relaxed(1.5); });
  c.expect("relu_weights: power is 3, must be 1 or 2", [&] { heed::relu_weights(3); });
  c.expect("rms_norm: epsilon is negative or not a number", [&] { heed::rms_norm<>(-1.0); });
  c.expect("relative_table: table has 4 distances, radius 2 needs 2·2 + 1",
           [&] { heed::urpe(view<const float, 1>(c.in.data(), {4}), 2); });
  const auto gain = [&](index_t heads, index_t depth) {
    return heed::rms_norm(view<const float, 2>(c.in.data(), {heads, depth}));
  };
  c.expect_modifier("rms_norm: gain has 2 heads, call has 4", gain(2, 6));
  c.expect_modifier("rms_norm: gain has depth 8, out has 6", gain(4, 8));
  c.expect_modifier("sigmoid_weights: biases have extent 3, call has 4 heads",
                    heed::sigmoid_weights{view<const float, 1>(c.in.data(), {3})});
  c.expect_modifier("relative_table: head axis has extent 2, call has 4 heads",
                    heed::urpe(view<const float, 2>(c.in.data(), {2, 5}), 2));
  const auto marks = [&](index_t batch, index_t keys) {
    return view<const std::uint8_t, 2>(c.marks.data(), {batch, keys});
  };
  c.expect_modifier("redistribute: sinks has batch 3, call has 2", heed::redistribute{marks(3, 7)});
  c.expect_modifier("redistribute: takers has 6 keys, call has 7",
                    heed::redistribute{marks(1, 7), marks(1, 6)});
  c.expect_modifier("redistribute: keep must lie in [0, 1]",
                    heed::redistribute{.sinks = marks(1, 7), .keep = 2});
  heed::redistribute heads{marks(1, 7)};
  heads.enabled_heads = {c.marks.data(), 3};
  c.expect_modifier("redistribute: enabled_heads has 3 entries, call has 4 heads", heads);
}

// Positions in a row have to fit the index type.
TEST(observer_errors, too_many_keys_for_the_index_type) {
  std::vector<float> in(70000, 0.5f), out(8, 42.f);
  std::vector<std::int16_t> keys(4);
  try {
    heed::attention(view<const float, 4>(in.data(), {1, 1, 1, 1}),
                    view<const float, 4>(in.data(), {1, 1, 17000, 1}),
                    view<const float, 4>(in.data(), {1, 1, 17000, 1}),
                    view<float, 4>(out.data(), {1, 1, 1, 1}),
                    heed::top_keys_to{view<std::int16_t, 4>(keys.data(), {1, 1, 1, 4})});
    ADD_FAILURE();
  } catch (const heed::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()), "top_keys_to: 17000 keys are too many for its index type");
  }
  EXPECT_EQ(out[0], 42.f);
}

}  // namespace
