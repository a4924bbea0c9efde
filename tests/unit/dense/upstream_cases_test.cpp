// heed::attention against cases that other projects' code produced (tests/vectors: dense, flex,
// lowp).
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/reference/dense.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/relative_table.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed_test::npy_array;
using heed_test::vector_case;

// An array of a case as a rank-4 view that owns its numbers.
template <class T>
struct array {
  std::vector<T> numbers;
  std::vector<std::int64_t> shape;

  explicit array(const npy_array& from) : shape(from.shape) {
    if constexpr (sizeof(T) == 2) {
      for (std::uint16_t bits : from.as<std::uint16_t>()) {
        numbers.push_back(std::bit_cast<T>(bits));
      }
    } else {
      numbers = from.as<T>();
    }
  }
  template <int Rank = 4>
  heed::tensor_view<const T, Rank> view() const {
    std::array<index_t, static_cast<std::size_t>(Rank)> extents{};
    std::copy(shape.begin(), shape.end(), extents.begin());
    return {numbers.data(), extents};
  }
  // [B, L, H, D] seen as [B, H, L, D]
  heed::tensor_view<const T, 4> by_token() const { return view().permuted({0, 2, 1, 3}); }
};

// The float rule: |got − wanted| ≤ 1e-5 + 5e-6·|wanted| everywhere.
void expect_close(const heed::tensor_view<const float, 4>& got,
                  const heed::tensor_view<const double, 4>& wanted, double absolute = 1e-5) {
  EXPECT_LE(heed_test::worst_error(got, wanted, 5e-6), absolute);
}

template <class Backend>
class upstream_cases : public ::testing::Test {};
TYPED_TEST_SUITE(upstream_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(upstream_cases, dense) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("dense")) {
    const vector_case c(folder);
    SCOPED_TRACE(c.name);
    const auto& attributes = c.meta.at("attrs");
    const array<float> q(c.input("q")), k(c.input("k")), v(c.input("v"));
    const array<double> wanted(c.output("o"));
    std::vector<float> out_data(wanted.numbers.size(), NAN);
    const auto out = heed::tensor_view<float, 4>(out_data.data(), wanted.view().extents())
                         .permuted({0, 2, 1, 3});
    const heed::tensor_view<const float, 4> got = out;
    const auto causal = [&] { return attributes.value("causal", false); };

    if (c.name == "decode_varlen_len0") {
      // One query per sequence; keys one sequence after the other.
      const std::vector<index_t> keys = c.input("cu_seqlens").template as<std::int64_t>();
      std::vector<index_t> queries(keys.size());
      for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = static_cast<index_t>(i);
      heed::attention<TypeParam>(q.by_token(), k.by_token(), v.by_token(), out,
                                 heed::ragged{queries, keys});
    } else if (c.name == "forgetting_wNone") {
      // score + Σ_{j < t ≤ i} g_t, by the running sum of the log gates.
      const array<float> gate(c.input("g"));
      const index_t length = gate.shape[1], heads = gate.shape[2];
      std::vector<double> sums(gate.numbers.begin(), gate.numbers.end());
      for (std::size_t i = static_cast<std::size_t>(heads); i < sums.size(); ++i) {
        if (i / static_cast<std::size_t>(heads) % static_cast<std::size_t>(length) != 0) {
          sums[i] += sums[i - static_cast<std::size_t>(heads)];
        }
      }
      const heed::score forget{[&](float s, const heed::position& p) {
        const double* of_head = sums.data() + p.batch * length * heads + p.head;
        return s + static_cast<float>(of_head[p.q * heads] - of_head[p.k * heads]);
      }};
      heed::attention<TypeParam>(q.by_token(), k.by_token(), v.by_token(), out, heed::causal{},
                                 forget);
    } else if (c.name == "flash_attn_padded_q_k_causal") {
      const auto lengths = [&](const char* name) {
        const array<std::uint8_t> mask(c.input(name));
        std::vector<index_t> counts;
        for (index_t b = 0; b < mask.shape[0]; ++b) {
          const auto row = mask.numbers.begin() + b * mask.shape[1];
          counts.push_back(std::count(row, row + mask.shape[1], 1));
        }
        return counts;
      };
      const auto keys = lengths("key_padding_mask"), queries = lengths("query_padding_mask");
      heed::attention<TypeParam>(q.by_token(), k.by_token(), v.by_token(), out, heed::causal{},
                                 heed::key_lengths{keys}, heed::query_lengths{queries});
    } else if (attributes.contains("window_size") && attributes["window_size"].is_array()) {
      const heed::window window(attributes["window_size"][0].template get<index_t>(),
                                attributes["window_size"][1].template get<index_t>());
      heed::attention<TypeParam>(q.by_token(), k.by_token(), v.by_token(), out, window);
    } else {
      // window_size w: keys i − w < j; null: no window.
      const bool windowed =
          attributes.contains("window_size") && !attributes["window_size"].is_null();
      const index_t left = windowed ? attributes["window_size"].template get<index_t>() - 1
                                    : heed::window::unlimited;
      const heed::window window(left, causal() ? 0 : heed::window::unlimited);
      std::vector<float> largest(static_cast<std::size_t>(q.shape[0] * q.shape[1] * q.shape[2]),
                                 -INFINITY);
      const heed::score note_largest{[&](float s, const heed::position& p) {
        if (window(p)) {
          float& row =
              largest[static_cast<std::size_t>((p.batch * q.shape[1] + p.q) * q.shape[2] + p.head)];
          row = std::max(row, s);
        }
        return s;
      }};
      if (c.has_input("sink_bias")) {
        const array<float> logits(c.input("sink_bias"));
        heed::attention<TypeParam>(q.by_token(), k.by_token(), v.by_token(), out, window,
                                   heed::sink{logits.template view<1>()}, note_largest);
        // Upstream's largest score includes the sink.
        for (std::size_t i = 0; i < largest.size(); ++i) {
          largest[i] = std::max(largest[i], logits.numbers[i % logits.numbers.size()]);
        }
      } else {
        heed::attention<TypeParam>(q.by_token(), k.by_token(), v.by_token(), out, window,
                                   note_largest);
      }
      if (c.has_output("max_logits")) {
        const std::vector<double> logits = c.output("max_logits").template as<double>();
        for (std::size_t i = 0; i < logits.size(); ++i) {
          EXPECT_NEAR(static_cast<double>(largest[i]), logits[i], 1e-5) << i;
        }
      }
    }
    if (c.name == "flash_attn_large_logits") {
      // Scores reach far beyond what float products keep exactly: the bound is the one that
      // flash-attention itself uses, twice a plain float computation's error.
      heed_test::tensor<double> plain(q.shape[0], q.shape[2], q.shape[1], v.shape[3]);
      heed::reference::options how;
      how.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
      heed::reference::plain<float>(q.by_token(), k.by_token(), v.by_token(), plain.view(), how);
      expect_close(got, wanted.by_token(),
                   2 * heed_test::worst_error(plain.read(), wanted.by_token()) + 1e-5);
    } else {
      expect_close(got, wanted.by_token());
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 12u);
}

TYPED_TEST(upstream_cases, flex) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("flex")) {
    const vector_case c(folder);
    SCOPED_TRACE(c.name);
    const array<float> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
    const array<double> wanted(c.output("O"));
    const std::vector<double> wanted_lse = c.output("lse").template as<double>();
    std::vector<float> out_data(wanted.numbers.size(), NAN), lse_data(wanted_lse.size(), NAN);
    const heed::tensor_view<float, 4> out(out_data.data(), wanted.view().extents());
    const heed::lse_to lse{heed::tensor_view<float, 3>(
        lse_data.data(), {out.extent(0), out.extent(1), out.extent(2)})};
    const heed::scale scale(c.meta.at("attrs").at("scale").template get<double>());
    std::vector<std::uint8_t> everything = {1};
    std::vector<std::int64_t> mask_shape = {1, 1, 1, 1};
    if (c.has_input("mask")) {
      const array<std::uint8_t> mask(c.input("mask"));
      everything = mask.numbers;
      mask_shape = mask.shape;
    }
    // The case's own mask as an array; the named masks are tested against the same arrays in
    // tests/unit/mask.
    const heed::array_mask mask{heed::tensor_view<const std::uint8_t, 4>(
        everything.data(), {mask_shape[0], mask_shape[1], mask_shape[2], mask_shape[3]})};

    const bool has_scores = c.has_output("scores");
    std::vector<double> noted;
    std::vector<std::int64_t> noted_shape = {1, 1, 1, 1};
    if (has_scores) {
      const array<double> scores(c.output("scores"));
      noted_shape = scores.shape;
      noted.assign(scores.numbers.size(), NAN);
    }
    const heed::score note{[&](float s, const heed::position& p) {
      if (has_scores && p.q < noted_shape[2]) {
        noted[static_cast<std::size_t>(
            ((p.batch * noted_shape[1] + p.head) * noted_shape[2] + p.q) * noted_shape[3] + p.k)] =
            static_cast<double>(s);
      }
      return s;
    }};
    const auto run = [&](const auto& score) {
      heed::attention<TypeParam>(q.view(), k.view(), v.view(), out, mask, scale, lse, score, note);
    };
    if (c.name == "alibi_causal") {
      const array<float> slopes(c.input("slopes"));
      run(heed::alibi{slopes.template view<1>()});
    } else if (c.name == "bias_table") {
      const array<float> table(c.input("table"));
      run(heed::relative_table{table.template view<2>(), 64});
    } else if (c.name == "dense_bias") {
      const array<float> bias(c.input("bias"));
      run(heed::bias{bias.template view<3>()});
    } else if (c.name == "relative_position") {
      run(heed::score{[](auto s, auto p) { return s + (p.q - p.k); }});
    } else if (c.name == "score_multiply") {
      run(heed::score{[](auto s, auto p) { return s * static_cast<float>(1 + p.head); }});
    } else {
      heed::attention<TypeParam>(q.view(), k.view(), v.view(), out, mask, scale, lse);
    }
    expect_close(out, wanted.view());
    for (std::size_t i = 0; i < wanted_lse.size(); ++i) {
      const double got = static_cast<double>(lse_data[i]);
      if (got == wanted_lse[i]) continue;  // −∞ of a dead row
      EXPECT_NEAR(got, wanted_lse[i], 1e-5 + 5e-6 * std::abs(wanted_lse[i])) << "lse " << i;
    }
    if (has_scores) {
      const std::vector<double> scores = c.output("scores").template as<double>();
      // Scores of keys that are masked are of no account: every visible one must be right.
      std::size_t seen = 0;
      for (std::size_t i = 0; i < scores.size(); ++i) {
        heed::position p;
        p.k = static_cast<index_t>(i) % noted_shape[3];
        p.q = static_cast<index_t>(i) / noted_shape[3] % noted_shape[2];
        p.head = static_cast<index_t>(i) / noted_shape[3] / noted_shape[2] % noted_shape[1];
        if (!mask(p)) continue;
        ++seen;
        EXPECT_NEAR(noted[i], scores[i], 1e-5 + 5e-6 * std::abs(scores[i])) << "score " << i;
      }
      EXPECT_GT(seen, 0u);
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 15u);
}

// An output in 16 bits may be twice as far from the truth as the plain 16-bit implementation.
template <class Backend, class T>
void check_low_precision(const vector_case& c) {
  const array<T> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
  for (const char* kind : {"full", "causal_lr"}) {
    SCOPED_TRACE(kind);
    const std::string name = kind;
    const array<double> truth(c.output(name + "_truth"));
    const array<T> plain(c.output(name + "_plain"));
    const std::vector<double> lse_truth = c.output(name + "_lse_truth").template as<double>();
    std::vector<T> out_data(truth.numbers.size());
    std::vector<float> lse_data(lse_truth.size());
    const heed::tensor_view<T, 4> out(out_data.data(), truth.view().extents());
    const heed::lse_to lse{heed::tensor_view<float, 3>(
        lse_data.data(), {out.extent(0), out.extent(1), out.extent(2)})};
    if (name == "full") {
      heed::attention<Backend>(q.view(), k.view(), v.view(), out, lse);
    } else {
      heed::attention<Backend>(q.view(), k.view(), v.view(), out, lse, heed::causal{});
    }
    EXPECT_LE(heed_test::worst_error<T>(out, truth.view()),
              2 * heed_test::worst_error<T>(plain.view(), truth.view()));
    for (std::size_t i = 0; i < lse_truth.size(); ++i) {
      const double got = static_cast<double>(lse_data[i]);
      if (got != lse_truth[i]) {
        EXPECT_NEAR(got, lse_truth[i], (heed_test::lse_tolerance<Backend, T, float>(lse_truth[i])))
            << i;
      }
    }
  }
}

TYPED_TEST(upstream_cases, low_precision) {
  int done = 0;
  for (const auto& folder : heed_test::list_cases("lowp")) {
    const vector_case c(folder);
    SCOPED_TRACE(c.name);
    if (c.meta.at("attrs").at("dtype").template get<std::string>() == "bfloat16") {
      check_low_precision<TypeParam, Eigen::bfloat16>(c);
    } else {
      check_low_precision<TypeParam, Eigen::half>(c);
    }
    ++done;
  }
  EXPECT_EQ(done, 14);
}

}  // namespace
