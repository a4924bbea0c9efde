// Masks that PyTorch's flex_attention made (create_block_mask on mask functions), written with the
// masks of this library.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <heed/mask/array_mask.hpp>
#include <heed/mask/block_pattern.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/dilated_window.hpp>
#include <heed/mask/documents.hpp>
#include <heed/mask/global_tokens.hpp>
#include <heed/mask/mask.hpp>
#include <heed/mask/prefix_lm.hpp>
#include <heed/mask/window.hpp>
#include <string>
#include <vector>

#include "support/mask_checks.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::causal;
using heed::position;
using heed::tensor_view;
using heed_test::expect_mask;
using heed_test::index_t;
using heed_test::keys;
using heed_test::mask_shape;
using heed_test::tiles;
using heed_test::vector_case;

struct flex_case {
  explicit flex_case(const std::string& name)
      : source(std::filesystem::path(HEED_TEST_VECTORS) / "flex" / name) {
    const auto file = source.input("mask");
    elements = file.as<std::uint8_t>();
    for (std::size_t axis = 0; axis < 4; ++axis) extents[axis] = file.shape.at(axis);
    const auto& attributes = source.meta.at("attrs");
    shape = {attributes.at("B"), attributes.at("H"), attributes.at("Lq"), attributes.at("Lk")};
  }

  index_t attribute(const char* name) const { return source.meta.at("attrs").at(name); }

  bool operator()(const position& p) const {
    const index_t batch = extents[0] == 1 ? 0 : p.batch, head = extents[1] == 1 ? 0 : p.head;
    const index_t row = (batch * extents[1] + head) * extents[2] + p.q;
    return elements[static_cast<std::size_t>(row * extents[3] + p.k)] != 0;
  }

  vector_case source;
  std::vector<std::uint8_t> elements;
  std::array<index_t, 4> extents{};
  mask_shape shape{};
};

TEST(flex_attention, causal) {
  for (const char* name : {"causal", "causal_gqa_dv", "alibi_causal"}) {
    const flex_case expected(name);
    expect_mask(causal{}, expected, expected.shape);
    expect_mask(heed::causal_upper_left{}, expected, expected.shape);
    expect_mask(heed::prefix_lm{0}, expected, expected.shape);
  }
}

TEST(flex_attention, sliding_window_causal) {
  const flex_case expected("sliding_window_causal");
  expect_mask(heed::window{24} & causal{}, expected, expected.shape);
  expect_mask(heed::window{24, 0}, expected, expected.shape);
}

TEST(flex_attention, dilated_window) {
  const flex_case expected("dilated_window");
  // Upstream counts the query's own key.
  const index_t left = expected.attribute("window") - 1;
  const index_t dilation = expected.attribute("dilation");
  expect_mask(heed::dilated_window{left, 0, dilation}, expected, expected.shape, tiles::exact,
              keys::hull);
  expect_mask(heed::dilated_window{left, dilation} & causal{}, expected, expected.shape,
              tiles::exact, keys::right);
}

TEST(flex_attention, document_causal) {
  const flex_case expected("document_causal");
  const std::vector<index_t> ids = expected.source.input("doc").as<index_t>();
  const tensor_view<const index_t, 1> view(ids.data(), {static_cast<index_t>(ids.size())});
  expect_mask(heed::documents{view} & causal{}, expected, expected.shape, tiles::exact,
              keys::exact);
}

TEST(flex_attention, block_diagonal) {
  const flex_case expected("block_diagonal_16");
  std::vector<std::uint8_t> layout(36, 0);
  for (std::size_t i = 0; i < 6; ++i) layout[i * 6 + i] = 1;
  expect_mask(
      heed::block_pattern{tensor_view<const std::uint8_t, 2>(layout.data(), {6, 6}), 16, 16},
      expected, expected.shape);
  std::vector<int> ids;
  for (index_t i = 0; i < expected.shape.keys; ++i) ids.push_back(static_cast<int>(i / 16));
  expect_mask(heed::documents{tensor_view<const int, 1>(ids.data(), {expected.shape.keys})},
              expected, expected.shape);
}

TEST(flex_attention, strided_sparse) {
  const flex_case expected("strided_sparse");
  const index_t stride = expected.attribute("stride");
  const heed::mask summaries{[=](const auto& p) { return p.k % stride == stride - 1; }};
  expect_mask((heed::window{stride - 1} | summaries) & causal{}, expected, expected.shape,
              tiles::right, keys::right);
}

TEST(flex_attention, neighborhood_2d) {
  const flex_case expected("natten2d_8x16_k7x7");
  const index_t height = expected.attribute("height"), width = expected.attribute("width");
  const auto near = [](index_t q, index_t k, index_t size) {
    const index_t centre = std::min(std::max<index_t>(q, 3), size - 4);
    return k >= centre - 3 && k <= centre + 3;
  };
  const heed::mask neighborhood{[=](const position& p) {
    return near(p.q / width, p.k / width, height) && near(p.q % width, p.k % width, width);
  }};
  expect_mask(neighborhood, expected, expected.shape, tiles::right, keys::right);
}

TEST(flex_attention, every_mask_as_an_array) {
  for (const char* name : {"causal", "sliding_window_causal", "document_causal", "strided_sparse",
                           "key_padding", "natten2d_8x16_k7x7"}) {
    const flex_case expected(name);
    const heed::array_mask array{
        tensor_view<const std::uint8_t, 4>(expected.elements.data(), expected.extents)};
    expect_mask(array, expected, expected.shape, tiles::exact, keys::hull);
  }
}

}  // namespace
