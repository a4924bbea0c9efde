// Entropy, sink mass, retrieval heads and rollout, from observers of real calls, against the
// definitions over the oracle's matrix of weights.
#include <random>

#include "heed/analysis/entropy.hpp"
#include "heed/analysis/retrieval_head.hpp"
#include "heed/analysis/rollout.hpp"
#include "heed/analysis/sink_mass.hpp"
#include "heed/backend/select.hpp"
#include "heed/mask/causal.hpp"
#include "heed/observer/key_weights.hpp"
#include "support/errors.hpp"
#include "support/rows.hpp"

namespace {

using heed::index_t;
using heed_test::expect_error;
using heed_test::tensor;
template <class T, int Rank>
using view = heed::tensor_view<T, Rank>;

constexpr index_t batches = 2, heads = 3, length = 90;

struct analysis : ::testing::Test {
  tensor<float> q{batches, heads, length, 16}, k{batches, heads, length, 16},
      v{batches, heads, length, 8}, out{batches, heads, length, 8};
  heed::reference::weighted_result truth;
  std::vector<float> of_heads = std::vector<float>(batches * heads, 77);

  void SetUp() override {
    q.fill(1, 3), k.fill(2), v.fill(3);
    find_truth();
  }
  void find_truth() {
    heed::reference::options how;
    how.visible = [](const heed::position& p) { return heed::causal{}(p); };
    truth = heed::reference::weighted_attention(q.read(), k.read(), v.read(),
                                                {heed::reference::softmax()}, how);
  }
  double weight(index_t b, index_t h, index_t i, index_t j) const {
    return truth.weights[static_cast<std::size_t>(((b * heads + h) * length + i) * length + j)];
  }
  view<float, 2> by_head() { return {of_heads.data(), {batches, heads}}; }
  template <class... Modifiers>
  void attend(const Modifiers&... modifiers) {
    heed::attention(q.read(), k.read(), v.read(), out.view(), heed::causal{}, modifiers...);
  }
  // Every head's number against wanted(b, h).
  template <class Wanted>
  void expect(Wanted wanted) const {
    for (index_t b = 0; b < batches; ++b) {
      for (index_t h = 0; h < heads; ++h) {
        EXPECT_NEAR(static_cast<double>(of_heads[static_cast<std::size_t>(b * heads + h)]),
                    wanted(b, h), 1e-5);
      }
    }
  }
};

TEST_F(analysis, entropy) {
  std::vector<float> rows(batches * heads * length);
  const view<float, 3> entropy(rows.data(), {batches, heads, length});
  attend(heed::row_entropy_to{entropy});
  const std::vector<index_t> lengths = {90, 31};
  for (bool whole : {true, false}) {
    heed::analysis::head_entropy(entropy, by_head(),
                                 whole ? std::span<const index_t>() : std::span(lengths));
    expect([&](index_t b, index_t h) {
      const index_t n = whole ? length : lengths[static_cast<std::size_t>(b)];
      double sum = 0;
      for (index_t i = 0; i < n; ++i) {
        for (index_t j = 0; j <= i; ++j) {
          sum -= weight(b, h, i, j) > 0 ? weight(b, h, i, j) * std::log(weight(b, h, i, j)) : 0;
        }
      }
      return sum / static_cast<double>(n);
    });
  }
}

TEST_F(analysis, sink_mass) {
  std::vector<float> columns(batches * heads * length);
  const view<float, 3> sums(columns.data(), {batches, heads, length});
  attend(heed::column_sums_to{sums});
  const std::vector<index_t> padding = {0, 5};
  for (bool padded : {false, true}) {
    heed::analysis::sink_mass(sums, by_head(), 3,
                              padded ? std::span(padding) : std::span<const index_t>());
    expect([&](index_t b, index_t h) {
      double of_sinks = 0;
      const index_t first = padded ? padding[static_cast<std::size_t>(b)] : 0;
      for (index_t i = 0; i < length; ++i) {
        for (index_t j = first; j < first + 3; ++j) of_sinks += weight(b, h, i, j);
      }
      return of_sinks / length;
    });
  }
}

TEST_F(analysis, retrieval_heads) {
  // A period of 40 tokens, so that copies are known; a head of the second entry is made to look.
  std::vector<int> tokens(length), keys(batches * length), induced(length);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int>(i * i % 40);
  const view<const int, 1> of_tokens(tokens.data(), {length});
  heed::analysis::induction_keys(of_tokens, view<int, 1>(induced.data(), {length}));
  for (index_t b = 0; b < batches; ++b) {
    heed::analysis::echo_keys(of_tokens, view<int, 1>(keys.data() + b * length, {length}));
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    int last = -1;
    for (std::size_t j = 0; j < i; ++j) last = tokens[j] == tokens[i] ? static_cast<int>(j) : last;
    ASSERT_EQ(keys[i], last);
    ASSERT_EQ(induced[i], last < 0 ? -1 : last + 1);
  }
  for (index_t i = 0; i < length; ++i) {
    const int key = keys[static_cast<std::size_t>(i)];
    for (index_t d = 0; key >= 0 && d < 16; ++d) {
      q.view()(1, 2, i, d) = 8 * k.view()(1, 2, key, d);
    }
  }
  find_truth();
  std::vector<int> best(batches * heads * length);
  std::vector<float> weights(batches * heads * length, 77);
  const view<int, 4> top(best.data(), {batches, heads, length, 1});
  const view<float, 4> on_keys(weights.data(), {batches, heads, length, 1});
  const view<const int, 2> copied(keys.data(), {batches, length});
  attend(heed::top_keys_to{top},
         heed::key_weights_to{view<const int, 3>(keys.data(), {batches, length, 1}), on_keys});
  const auto mean = [&](auto value) {
    return [=, this](index_t b, index_t h) {
      double sum = 0, count = 0;
      for (index_t i = 0; i < length; ++i) {
        const int key = keys[static_cast<std::size_t>(i)];
        if (key < 0) continue;
        sum += value(b, h, i, key), ++count;
      }
      return sum / count;
    };
  };
  heed::analysis::copied_share(on_keys, copied, by_head());
  expect(mean([&](index_t b, index_t h, index_t i, index_t key) { return weight(b, h, i, key); }));
  heed::analysis::retrieval_score(top, copied, by_head());
  expect(mean([&](index_t b, index_t h, index_t i, index_t key) {
    for (index_t j = 0; j <= i; ++j) {
      if (weight(b, h, i, j) > weight(b, h, i, key)) return 0.0;
    }
    return 1.0;
  }));
  EXPECT_GT(of_heads[5], 0.9f);
  EXPECT_LT(of_heads[4], 0.5f);
}

TEST_F(analysis, rollout) {
  std::vector<float> all(batches * heads * length * length);
  attend(heed::weights_to{view<float, 4>(all.data(), {batches, heads, length, length})});
  heed::analysis::rollout rollout(length);
  // Two layers, those of the two entries.
  std::vector<double> wanted(length * length);
  for (std::size_t i = 0; i < length; ++i) wanted[i * length + i] = 1;
  for (index_t layer = 0; layer < 2; ++layer) {
    rollout.add_layer(view<const float, 3>(all.data() + layer * heads * length * length,
                                           {heads, length, length}));
    std::vector<double> next(wanted.size());
    for (index_t i = 0; i < length; ++i) {
      for (index_t j = 0; j < length; ++j) {
        double mixed = i == j ? 0.5 : 0;
        for (index_t h = 0; h < heads; ++h) mixed += 0.5 * weight(layer, h, i, j) / heads;
        for (index_t d = 0; d < length; ++d) {
          next[static_cast<std::size_t>(i * length + d)] +=
              mixed * wanted[static_cast<std::size_t>(j * length + d)];
        }
      }
    }
    wanted = next;
  }
  for (index_t i = 0; i < length; ++i) {
    double sum = 0;
    for (index_t j = 0; j < length; ++j) {
      const double got = static_cast<double>(rollout.result()(i, j));
      ASSERT_NEAR(got, wanted[static_cast<std::size_t>(i * length + j)], 1e-6);
      sum += got;
    }
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

TEST_F(analysis, errors) {
  std::vector<float> data(1000);
  std::vector<int> keys(1000);
  const view<const float, 3> rows(data.data(), {2, 3, 5});
  const view<const int, 2> copied(keys.data(), {2, 4});
  const std::vector<index_t> short_list = {1}, long_one = {2, 6};
  expect_error("head_entropy: heads are [2, 3], entropy has [2, 4, …]", [&] {
    heed::analysis::head_entropy(view<const float, 3>(data.data(), {2, 4, 5}), by_head());
  });
  expect_error("head_entropy: 1 query lengths for a batch of 2",
               [&] { heed::analysis::head_entropy(rows, by_head(), short_list); });
  by_head()(0, 0) = 42;
  expect_error("head_entropy: query length 6 is outside [0, 5]",
               [&] { heed::analysis::head_entropy(rows, by_head(), long_one); });
  EXPECT_EQ(by_head()(0, 0), 42);  // nothing is written, the entries before the bad one included
  expect_error("sink_mass: heads are [2, 3], sums have [1, 3, …]", [&] {
    heed::analysis::sink_mass(view<const float, 3>(data.data(), {1, 3, 5}), by_head());
  });
  expect_error("sink_mass: 0 sinks, must be 1 or more",
               [&] { heed::analysis::sink_mass(rows, by_head(), 0); });
  expect_error("sink_mass: left_padding has 1 entries for a batch of 2",
               [&] { heed::analysis::sink_mass(rows, by_head(), 4, short_list); });
  expect_error("retrieval_score: heads are [2, 3], the observed rows have [2, 2, …]", [&] {
    heed::analysis::retrieval_score(view<const int, 4>(keys.data(), {2, 2, 4, 1}), copied,
                                    by_head());
  });
  expect_error("copied_share: copied keys are [2, 4], the observed rows have batch 2 and length 5",
               [&] {
                 heed::analysis::copied_share(view<const float, 4>(data.data(), {2, 3, 5, 1}),
                                              copied, by_head());
               });
  expect_error("echo_keys: 3 keys for 4 tokens", [&] {
    heed::analysis::echo_keys(view<const int, 1>(keys.data(), {4}), view<int, 1>(keys.data(), {3}));
  });
  expect_error("rollout: residual must lie in [0, 1]", [&] { heed::analysis::rollout(4, 1.5); });
  expect_error("rollout: weights are [2, 3, 5], must be [H, 5, 5], H at least 1",
               [&] { heed::analysis::rollout(5).add_layer(rows); });
  expect_error("key_weights_to: keys are [2, 4, …], call has batch 2 and length 90", [&] {
    attend(heed::key_weights_to{view<const int, 3>(keys.data(), {2, 4, 1}),
                                view<float, 4>(data.data(), {2, 3, 90, 1})});
  });
}

}  // namespace
