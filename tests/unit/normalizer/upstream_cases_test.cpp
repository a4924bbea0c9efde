// Normalisers and observers against cases that other projects' code produced
// (tests/vectors: backward, dense).
#include <algorithm>
#include <cmath>

#include "heed/dense/attention.hpp"
#include "heed/mask/window.hpp"
#include "heed/normalizer/entmax15.hpp"
#include "heed/normalizer/relu.hpp"
#include "heed/normalizer/rms_norm.hpp"
#include "heed/normalizer/sigmoid.hpp"
#include "heed/normalizer/softmax_off_by_one.hpp"
#include "heed/normalizer/sparsemax.hpp"
#include "heed/observer/scores.hpp"
#include "heed/observer/weights.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed_test::npy_array;
using heed_test::vector_case;

vector_case open(const char* name) {
  return vector_case(std::filesystem::path(HEED_TEST_VECTORS) / name);
}

// An array that owns its numbers.
template <class T>
struct array {
  std::vector<T> numbers;
  std::vector<std::int64_t> shape;
  explicit array(const npy_array& from) : numbers(from.as<T>()), shape(from.shape) {}
  template <int Rank = 4>
  heed::tensor_view<const T, Rank> view() const {
    std::array<index_t, static_cast<std::size_t>(Rank)> extents{};
    std::copy(shape.begin(), shape.end(), extents.begin());
    return {numbers.data(), extents};
  }
};

// Relative root mean square of the difference.
double relative_error(const std::vector<float>& got, const std::vector<double>& wanted) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - wanted[i], 2);
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / size);
}

template <class Backend>
class normalizer_cases : public ::testing::Test {
 public:
  // Output O of a case of backward/ under these modifiers; weights where the caller wants them.
  template <class... Modifiers>
  static void check(const vector_case& c, const Modifiers&... modifiers) {
    const array<float> q(c.input("Q")), k(c.input("K")), v(c.input("V"));
    const array<double> wanted(c.output("O"));
    std::vector<float> out(wanted.numbers.size(), NAN);
    heed::attention<Backend>(q.view(), k.view(), v.view(),
                             heed::tensor_view<float, 4>(out.data(), wanted.view().extents()),
                             heed::scale{c.meta.at("attrs").at("scale").template get<double>()},
                             modifiers...);
    EXPECT_LE(relative_error(out, wanted.numbers), 1e-6) << c.name;
  }
};
TYPED_TEST_SUITE(normalizer_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(normalizer_cases, backward_sigmoid) {
  const vector_case c = open("backward/sigmoid");
  const array<float> biases(c.input("b"));
  this->check(c, heed::sigmoid_weights{biases.template view<1>()});
}

TYPED_TEST(normalizer_cases, backward_relu_rmsnorm) {
  const vector_case c = open("backward/relu_rmsnorm");
  const array<float> gain(c.input("gain"));
  this->check(
      c, heed::relu_weights{},
      heed::rms_norm{gain.template view<2>(), c.meta.at("attrs").at("eps").template get<double>()});
}

TYPED_TEST(normalizer_cases, backward_softmax_off_by_one) {
  const vector_case c = open("backward/softmax_off_by_one");
  const array<double> wanted(c.output("lse"));
  std::vector<float> lse(wanted.numbers.size(), NAN);
  const heed::tensor_view<float, 3> view(lse.data(), wanted.template view<3>().extents());
  this->check(c, heed::softmax_off_by_one{}, heed::lse_to{view});
  EXPECT_LE(relative_error(lse, wanted.numbers), 1e-6);
}

TYPED_TEST(normalizer_cases, backward_sparsemax_and_entmax15) {
  const auto check_support = [&](const char* name, const auto& normalizer) {
    const vector_case c = open(name);
    const std::vector<std::int64_t> support = c.output("support").template as<std::int64_t>();
    const array<float> k(c.input("K")), q(c.input("Q"));
    const auto keys = static_cast<std::size_t>(k.shape[2]);
    std::vector<float> weights(support.size() * keys, NAN);
    const heed::tensor_view<float, 4> view(weights.data(),
                                           {q.shape[0], q.shape[1], q.shape[2], k.shape[2]});
    this->check(c, normalizer, heed::weights_to{view});
    for (std::size_t row = 0; row < support.size(); ++row) {
      const auto* first = weights.data() + row * keys;
      EXPECT_EQ(std::count_if(first, first + keys, [](float w) { return w > 0; }), support[row])
          << name << " row " << row;
    }
  };
  check_support("backward/sparsemax", heed::sparsemax{});
  check_support("backward/entmax15", heed::entmax15{});
}

// Largest logits of cases without a sink (upstream counts the sink as a logit).
TYPED_TEST(normalizer_cases, dense_max_logits) {
  int done = 0;
  for (const auto& folder : heed_test::list_cases("dense")) {
    const vector_case c(folder);
    if (!c.has_output("max_logits") || c.has_input("sink_bias")) continue;
    SCOPED_TRACE(c.name);
    const array<float> q(c.input("q")), k(c.input("k")), v(c.input("v"));
    const auto& attributes = c.meta.at("attrs");
    const bool windowed =
        attributes.contains("window_size") && !attributes["window_size"].is_null();
    const index_t left =
        windowed ? attributes["window_size"].template get<index_t>() - 1 : heed::window::unlimited;
    const heed::window window(left,
                              attributes.value("causal", false) ? 0 : heed::window::unlimited);
    const array<double> wanted(c.output("max_logits"));
    const auto by_token = [](const auto& x) { return x.view().permuted({0, 2, 1, 3}); };
    std::vector<float> out(q.numbers.size() / static_cast<std::size_t>(q.shape[3]) *
                           static_cast<std::size_t>(v.shape[3]));
    std::vector<float> largest(wanted.numbers.size(), NAN);
    heed::attention<TypeParam>(
        by_token(q), by_token(k), by_token(v),
        heed::tensor_view<float, 4>(out.data(), {q.shape[0], q.shape[2], q.shape[1], v.shape[3]}),
        window,
        heed::largest_scores_to{
            heed::tensor_view<float, 3>(largest.data(), {q.shape[0], q.shape[2], q.shape[1]})});
    // Upstream's axes are [B, L, H] or [B, H, L].
    const bool heads_last = wanted.shape[1] == q.shape[1];
    for (index_t b = 0; b < q.shape[0]; ++b) {
      for (index_t h = 0; h < q.shape[2]; ++h) {
        for (index_t i = 0; i < q.shape[1]; ++i) {
          const index_t at = heads_last ? (b * q.shape[1] + i) * q.shape[2] + h
                                        : (b * q.shape[2] + h) * q.shape[1] + i;
          const index_t ours = (b * q.shape[2] + h) * q.shape[1] + i;
          EXPECT_NEAR(static_cast<double>(largest[static_cast<std::size_t>(ours)]),
                      wanted.numbers[static_cast<std::size_t>(at)], 1e-5);
        }
      }
    }
    ++done;
  }
  EXPECT_EQ(done, 3);
}

}  // namespace
