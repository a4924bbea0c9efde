// Relative scores against what transformers' modules gave (tests/vectors/hf).
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/mask.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/transformer_xl.hpp"
#include "support/backends.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed_test::vector_case;

template <class T, int Rank>
struct array {
  std::vector<T> numbers;
  std::array<index_t, static_cast<std::size_t>(Rank)> shape{};
  explicit array(const heed_test::npy_array& from) : numbers(from.as<T>()) {
    std::copy(from.shape.begin(), from.shape.end(), shape.begin());
  }
  heed::tensor_view<const T, Rank> view() const { return {numbers.data(), shape}; }
};

double relative_rms(const std::vector<float>& got, const std::vector<double>& wanted) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - wanted[i];
    error += difference * difference;
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(error / size);
}

template <class Backend>
class hf_cases : public ::testing::Test {};
TYPED_TEST_SUITE(hf_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(hf_cases, xlnet_relative_mems) {
  const vector_case c(std::filesystem::path(HEED_TEST_VECTORS) / "hf/xlnet_relative_mems");
  const array<float, 4> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
  const array<float, 3> r(c.input("R"));
  const array<float, 2> w(c.input("r_w_bias")), b(c.input("r_r_bias"));
  const array<double, 4> wanted(c.output("O"));
  std::vector<float> out(wanted.numbers.size(), NAN);
  // Row p of R is for the distance Lk − p.
  heed::attention<TypeParam>(q.view(), k.view(), v.view(),
                             heed::tensor_view<float, 4>(out.data(), wanted.shape),
                             heed::scale{c.meta.at("attrs").at("scale").template get<double>()},
                             heed::transformer_xl(r.view(), w.view(), b.view(), -k.shape[2]));
  EXPECT_LE(relative_rms(out, wanted.numbers), 1e-6);
}

// Content to position is a relative embedding whose table holds the row of each distance's bucket;
// position to content, which multiplies the key, comes as a dense bias here.
TYPED_TEST(hf_cases, deberta_v2_c2p_p2c_shared) {
  const vector_case c(std::filesystem::path(HEED_TEST_VECTORS) / "hf/deberta_v2_c2p_p2c_shared");
  const array<float, 4> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
  const array<float, 3> pos_key(c.input("pos_key")), pos_query(c.input("pos_query"));
  const array<std::int64_t, 2> relative(c.input("relative_position"));
  const array<std::uint8_t, 2> key_mask(c.input("key_mask"));
  const array<double, 4> wanted(c.output("O"));
  const index_t span = c.meta.at("attrs").at("span").template get<index_t>();
  const double scale = c.meta.at("attrs").at("scale").template get<double>();
  const index_t batches = q.shape[0], heads = q.shape[1], length = q.shape[2], depth = q.shape[3];
  const auto bucket = [&](index_t i, index_t j, index_t sign) {
    return std::clamp<index_t>(sign * relative.view()(i, j) + span, 0, 2 * span - 1);
  };
  std::vector<float> table(static_cast<std::size_t>(heads * (2 * length - 1) * depth));
  std::vector<float> bias(static_cast<std::size_t>(batches * heads * length * length));
  const heed::tensor_view<float, 3> entries(table.data(), {heads, 2 * length - 1, depth});
  const heed::tensor_view<float, 4> to_content(bias.data(), {batches, heads, length, length});
  for (index_t h = 0; h < heads; ++h) {
    for (index_t t = 0; t < 2 * length - 1; ++t) {
      const index_t distance = t - (length - 1), i = distance < 0 ? -distance : 0;
      for (index_t d = 0; d < depth; ++d) {
        entries(h, t, d) = pos_key.view()(h, bucket(i, i + distance, 1), d);
      }
    }
    for (index_t b = 0; b < batches; ++b) {
      for (index_t i = 0; i < length; ++i) {
        for (index_t j = 0; j < length; ++j) {
          double sum = 0;
          for (index_t d = 0; d < depth; ++d) {
            sum += static_cast<double>(k.view()(b, h, j, d)) *
                   static_cast<double>(pos_query.view()(h, bucket(j, i, -1), d));
          }
          to_content(b, h, i, j) = static_cast<float>(scale * sum);
        }
      }
    }
  }
  std::vector<float> out(wanted.numbers.size(), NAN);
  heed::attention<TypeParam>(
      q.view(), k.view(), v.view(), heed::tensor_view<float, 4>(out.data(), wanted.shape),
      heed::scale{scale}, heed::relative_embedding(entries, 1 - length), heed::bias{to_content},
      heed::mask{[&](const heed::position& p) { return key_mask.view()(p.batch, p.k) != 0; }});
  EXPECT_LE(relative_rms(out, wanted.numbers), 1e-6);
}

}  // namespace
