// Relative scores against what transformers' modules gave (tests/vectors/hf).
#include <cmath>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
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
TYPED_TEST_SUITE(hf_cases, heed_test::all_backends, heed_test::backend_name);

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

}  // namespace
