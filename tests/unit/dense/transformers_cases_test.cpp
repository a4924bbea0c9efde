// heed::attention against attention modules of the transformers library (tests/vectors/hf): what a
// user of those models would call.
#include <Eigen/Core>
#include <cmath>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "heed/score/t5_bias.hpp"
#include "support/backends.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::vector_case;

vector_case open(const std::string& name) {
  return vector_case(std::filesystem::path(HEED_TEST_VECTORS) / "hf" / name);
}

// An array of a case, and views of it.
template <class T>
struct array {
  std::vector<T> numbers;
  std::vector<std::int64_t> shape;
  explicit array(const heed_test::npy_array& from) : numbers(from.as<T>()), shape(from.shape) {}
  template <int Rank = 4>
  tensor_view<const T, Rank> view() const {
    std::array<index_t, static_cast<std::size_t>(Rank)> extents{};
    std::copy(shape.begin(), shape.end(), extents.begin());
    return {numbers.data(), extents};
  }
};

// ‖got − wanted‖ / ‖wanted‖
double relative_rms(const std::vector<float>& got, const std::vector<double>& wanted) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - wanted[i];
    error += difference * difference, norm += wanted[i] * wanted[i];
  }
  return got.size() == wanted.size() ? std::sqrt(error / norm) : HUGE_VAL;
}

template <class Backend>
class transformers_cases : public ::testing::Test {
 protected:
  // Output of attention over a case's Q, K and V.
  template <class... Modifiers>
  void expect_output(const vector_case& c, const Modifiers&... modifiers) {
    const array<float> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
    const array<double> wanted(c.output("O"));
    std::vector<float> out(wanted.numbers.size(), NAN);
    heed::attention<Backend>(
        q.view(), k.view(), v.view(), tensor_view<float, 4>(out.data(), wanted.view().extents()),
        heed::scale{c.meta.at("attrs").at("scale").template get<double>()}, modifiers...);
    EXPECT_LE(relative_rms(out, wanted.numbers), 1e-6) << c.name;
  }
};
TYPED_TEST_SUITE(transformers_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(transformers_cases, gpt_oss_sinks) {
  const vector_case c = open("gpt_oss_sinks_full");
  const array<float> logits(c.input("sinks"));
  this->expect_output(c, heed::causal{}, heed::sink{logits.view<1>()});
}

TYPED_TEST(transformers_cases, gemma2_softcap) {
  const vector_case c = open("gemma2_softcap_full");
  this->expect_output(c, heed::causal{},
                      heed::softcap{c.meta.at("attrs").at("softcap").template get<float>()});
}

TYPED_TEST(transformers_cases, t5_bias) {
  const vector_case c = open("t5_encoder_bias");
  const array<float> table(c.input("table"));
  this->expect_output(c, heed::t5_relative_bias{table.view<2>(), 64, true});
}

TYPED_TEST(transformers_cases, llama4_chunks) {
  const vector_case c = open("llama4_chunked");
  const array<std::uint8_t> stored(c.input("mask"));
  const heed::mask chunk{[](const heed::position& p) { return p.k / 24 == p.q / 24; }};
  const auto mask = chunk & heed::causal{};
  for (index_t i = 0; i < 67; ++i) {
    for (index_t j = 0; j < 67; ++j) {
      ASSERT_EQ(mask(heed::position{0, 0, i, j, 67, 67}), (stored.view<2>()(i, j) != 0));
    }
  }
  this->expect_output(c, mask);
}

// Two softmaxes of a head pair over one value of double width; their difference is normalised.
TYPED_TEST(transformers_cases, differential) {
  const vector_case c = open("diffllama");
  const array<float> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
  const array<double> wanted(c.output("O")), lambda(c.output("lam"));
  const index_t length = q.shape[2], width = 2 * v.shape[3];
  std::vector<float> values;  // [L, 2 D]
  for (index_t i = 0; i < length; ++i) {
    for (index_t h = 0; h < 2; ++h) {
      const float* row = v.view().row(0, h, i);
      values.insert(values.end(), row, row + width / 2);
    }
  }
  // One value for both KV heads.
  const tensor_view<const float, 4> shared(values.data(), {1, 2, length, width}, {0, 0, width, 1});
  std::vector<float> maps(static_cast<std::size_t>(4 * length * width));
  heed::attention<TypeParam>(q.view(), k.view(), shared,
                             tensor_view<float, 4>(maps.data(), {1, 4, length, width}),
                             heed::causal{});
  const double rest = 1 - c.meta.at("attrs").at("lambda_init").template get<double>();
  std::vector<float> out;
  for (index_t h = 0; h < 2; ++h) {
    for (index_t i = 0; i < length; ++i) {
      const float* first = maps.data() + (h * length + i) * width;
      const float* second = first + 2 * length * width;
      std::vector<double> row;
      double square = 0;
      for (index_t d = 0; d < width; ++d) {
        row.push_back(static_cast<double>(first[d]) -
                      lambda.numbers[0] * static_cast<double>(second[d]));
        square += row.back() * row.back();
      }
      for (double x : row) {
        out.push_back(
            static_cast<float>(rest * x / std::sqrt(square / static_cast<double>(width) + 1e-5)));
      }
    }
  }
  EXPECT_LE(relative_rms(out, wanted.numbers), 1e-5);
}

// Multi-head latent attention with the projections absorbed: one KV head, keys [latent, rotary],
// values a view of their first part.
TYPED_TEST(transformers_cases, latent_attention) {
  const vector_case c = open("deepseek_v3_mla");
  const index_t heads = 3, length = 50, nope = 16, rotary = 8, rank = 32, value = 20;
  const array<float> q(c.input("Q")), projection(c.input("kv_b_proj"));
  const array<double> latent(c.output("latent")), k_rope(c.output("k_rope")),
      q_rope(c.output("q_rope")), wanted(c.output("O")), wanted_lse(c.output("lse"));
  std::vector<float> queries, keys;
  for (index_t h = 0; h < heads; ++h) {
    for (index_t i = 0; i < length; ++i) {
      for (index_t r = 0; r < rank; ++r) {
        double sum = 0;
        for (index_t d = 0; d < nope; ++d) {
          sum += static_cast<double>(q.view()(0, h, i, d)) *
                 static_cast<double>(projection.view<2>()(h * (nope + value) + d, r));
        }
        queries.push_back(static_cast<float>(sum));
      }
      for (index_t d = 0; d < rotary; ++d) {
        queries.push_back(static_cast<float>(q_rope.view()(0, h, i, d)));
      }
    }
  }
  for (index_t i = 0; i < length; ++i) {
    for (index_t r = 0; r < rank; ++r) {
      keys.push_back(static_cast<float>(latent.view<3>()(0, i, r)));
    }
    for (index_t d = 0; d < rotary; ++d) {
      keys.push_back(static_cast<float>(k_rope.view<3>()(0, i, d)));
    }
  }
  const index_t depth = rank + rotary;
  std::vector<float> mixed(static_cast<std::size_t>(heads * length * rank)),
      lse(static_cast<std::size_t>(heads * length));
  heed::attention<TypeParam>(
      tensor_view<const float, 4>(queries.data(), {1, heads, length, depth}),
      tensor_view<const float, 4>(keys.data(), {1, 1, length, depth}),
      tensor_view<const float, 4>(keys.data(), {1, 1, length, rank}, {0, 0, depth, 1}),
      tensor_view<float, 4>(mixed.data(), {1, heads, length, rank}), heed::causal{},
      heed::scale{c.meta.at("attrs").at("scale").template get<double>()},
      heed::lse_to{tensor_view<float, 3>(lse.data(), {1, heads, length})});
  std::vector<float> out;
  for (index_t h = 0; h < heads; ++h) {
    for (index_t i = 0; i < length; ++i) {
      for (index_t d = 0; d < value; ++d) {
        double sum = 0;
        for (index_t r = 0; r < rank; ++r) {
          sum += static_cast<double>(mixed[static_cast<std::size_t>((h * length + i) * rank + r)]) *
                 static_cast<double>(projection.view<2>()(h * (nope + value) + nope + d, r));
        }
        out.push_back(static_cast<float>(sum));
      }
    }
  }
  EXPECT_LE(relative_rms(out, wanted.numbers), 1e-5);
  EXPECT_LE(relative_rms(lse, wanted_lse.numbers), 1e-5);
}

}  // namespace
