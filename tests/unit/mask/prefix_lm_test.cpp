// prefix_lm: one length or one for every sequence, wrong lengths.
#include <heed/mask/prefix_lm.hpp>
#include <vector>

#include "support/mask_checks.hpp"

namespace {

using heed::position;
using heed::prefix_lm;
using heed::tensor_view;
using heed_test::expect_error;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::mask_shapes;

auto definition(index_t prefix) {
  return [=](const position& p) { return p.k < prefix || p.k <= p.q + p.keys - p.queries; };
}

TEST(prefix_lm, one_length) {
  for (const index_t prefix : {0, 1, 5, 12, 100}) {
    for (const auto& shape : mask_shapes()) {
      expect_mask(prefix_lm{prefix}, definition(prefix), shape);
    }
  }
}

TEST(prefix_lm, a_length_for_every_sequence) {
  const std::vector<int> lengths{3, 0, 40};
  for (const auto& shape : mask_shapes(3, 2)) {
    expect_mask(
        prefix_lm{tensor_view<const int, 1>(lengths.data(), {3})},
        [&](const position& p) {
          return definition(lengths[static_cast<std::size_t>(p.batch)])(p);
        },
        shape);
  }
}

TEST(prefix_lm, one_element_serves_all_sequences) {
  std::vector<index_t> length{6};
  const prefix_lm by_array{tensor_view<index_t, 1>(length.data(), {1})};
  for (const auto& shape : mask_shapes(3, 1)) expect_mask(by_array, definition(6), shape);
}

TEST(prefix_lm, wrong_lengths) {
  expect_error("prefix_lm: prefix length -1 is negative", [] { prefix_lm{-1}; });
  const std::vector<int> lengths{3, -2};
  const prefix_lm by_array{tensor_view<const int, 1>(lengths.data(), {2})};
  expect_error("prefix_lm: prefix length -2 of sequence 1 is negative", [&] {
    by_array.check({2, 1, 5, 5});
  });
  expect_error("prefix_lm: batch axis has extent 2, call has 3 batches", [&] {
    by_array.check({3, 1, 5, 5});
  });
}

}  // namespace
