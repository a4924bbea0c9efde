// gathered_quantized_view: attention over rows of codes by their numbers equals attention over the
// numbers that those rows stand for.
#include "heed/core/gathered_quantized.hpp"

#include <string>

#include "heed/core/quantize.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::tensor;

constexpr index_t batches = 2, key_heads = 4, length = 170, depth = 24;

// Codes with scales and zeros for groups of 5 tokens and 7 channels.
template <class Code>
struct coded {
  static constexpr index_t width = depth / heed::codes_per_element<Code>;
  std::vector<Code> codes = std::vector<Code>(batches * key_heads * length * width);
  std::vector<float> scales = std::vector<float>(batches * key_heads * 34 * 4), zeros = scales;

  explicit coded(unsigned seed) {
    const auto x = tensor<float>(batches, key_heads, length, depth).fill(seed);
    heed::quantize(x.view(),
                   tensor_view<Code, 4>(codes.data(), {batches, key_heads, length, width}),
                   view_of(scales), view_of(zeros), {5, 7});
  }
  heed::quantized_view<Code, 4> view() const {
    return {tensor_view<const Code, 4>(codes.data(), {batches, key_heads, length, width}),
            tensor_view<const float, 4>(scales.data(), {batches, key_heads, 34, 4}),
            tensor_view<const float, 4>(zeros.data(), {batches, key_heads, 34, 4}),
            {5, 7}};
  }
  static tensor_view<float, 4> view_of(std::vector<float>& x) {
    return {x.data(), {batches, key_heads, 34, 4}};
  }
};

template <class Backend>
class gathered_quantized : public ::testing::Test {};
TYPED_TEST_SUITE(gathered_quantized, heed_test::method_backends, heed_test::backend_name);

// Three lists for each of the 2 · 2 pairs of a batch entry and a group of two KV heads, of its own
// for every head; entries behind a list's length are no row numbers.
template <class Backend, class Code>
void expect_rows_of_lists(index_t queries) {
  constexpr index_t folded = 2, lists = 3, sequences = batches * folded * lists;
  constexpr index_t heads = key_heads / folded, count = 133;
  const std::vector<index_t> lengths{133, 0, 1, 64, 65, 130, 7, 133, 90, 128, 3, 100};
  std::mt19937 random(3);
  std::vector<index_t> numbers;
  for (index_t list = 0; list < sequences * heads; ++list) {
    const index_t kept = lengths[static_cast<std::size_t>(list / heads)];
    for (index_t i = 0; i < count; ++i) {
      const auto any = static_cast<index_t>(random() % static_cast<unsigned>(length));
      numbers.push_back(i < kept ? any : index_t{1} << 50);
    }
  }
  const tensor_view<const index_t, 3> rows(numbers.data(), {sequences, heads, count});
  const coded<Code> k(1), v(2);
  const auto q = tensor<float>(sequences, 3 * heads, queries, depth).fill(4);
  tensor<float> out(sequences, 3 * heads, queries, depth);
  heed::attention<Backend>(q.view(), heed::gathered_quantized_view(k.view(), rows, folded),
                           heed::gathered_quantized_view(v.view(), rows, folded), out.view(),
                           heed::key_lengths{lengths}, heed::causal{});
  const auto copied = [&](const coded<Code>& from) {
    tensor<double> x(sequences, heads, count, depth);
    x.fill(5);
    for (index_t s = 0; s < sequences; ++s) {
      const index_t b = s / (folded * lists), of_group = s / lists % folded;
      for (index_t h = 0; h < heads; ++h) {
        for (index_t i = 0; i < lengths[static_cast<std::size_t>(s)]; ++i) {
          for (index_t d = 0; d < depth; ++d) {
            x.view()(s, h, i, d) = from.view().value(b, of_group * heads + h, rows(s, h, i), d);
          }
        }
      }
    }
    return x;
  };
  const tensor<double> plain_k = copied(k), plain_v = copied(v);
  tensor<double> wanted(sequences, 3 * heads, queries, depth);
  heed::reference::options how;
  how.visible = [&](const heed::position& p) {
    const index_t keys = lengths[static_cast<std::size_t>(p.batch)];
    return p.k < keys && p.k <= p.q + keys - queries;
  };
  heed::reference::attention(q.view(), plain_k.view(), plain_v.view(), wanted.view(), how);
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 2e-5);
}

TYPED_TEST(gathered_quantized, equals_the_numbers_of_its_rows) {
  for (const index_t queries : {1, 40}) {
    expect_rows_of_lists<TypeParam, std::int8_t>(queries);
    expect_rows_of_lists<TypeParam, heed::int4_pair>(queries);
  }
}

TEST(gathered_quantized_errors, name_the_row) {
  const coded<std::int8_t> k(1);
  std::vector<index_t> numbers{0, 3, 169, 170};
  const tensor_view<const index_t, 3> rows(numbers.data(), {2, 1, 2});
  const auto q = tensor<float>(2, key_heads, 1, depth).fill(1);
  tensor<float> out(2, key_heads, 1, depth);
  out.fill(2);
  const auto before = out.read()(0, 0, 0, 0);
  const auto attend = [&] {
    heed::attention(q.view(), heed::gathered_quantized_view(k.view(), rows),
                    heed::gathered_quantized_view(k.view(), rows), out.view());
  };
  EXPECT_EQ(error_of(attend), "k: entry 1 of sequence 1 is row 170, must lie in [0, 170)");
  EXPECT_EQ(out.read()(0, 0, 0, 0), before);
  numbers[3] = 1;
  EXPECT_EQ(error_of(attend), "accepted");
  EXPECT_EQ(error_of([&] { heed::gathered_quantized_view(k.view(), rows, 3); }),
            "gathered_view: folded_heads 3 does not divide head count 4");
}

}  // namespace
