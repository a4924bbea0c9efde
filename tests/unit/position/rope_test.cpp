#include <gtest/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <heed/position/rope.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed::rope_cache;
using heed::rope_options;
using heed::rope_pairing;
using heed::rope_positions;
using heed::tensor_view;

using shape4 = std::array<index_t, 4>;

// A tensor with its own memory and any strides; gaps hold a marker that must survive.
template <class T>
struct tensor {
  shape4 extents, strides;
  std::vector<T> memory;

  tensor(const shape4& e, const shape4& s, unsigned seed) : extents(e), strides(s) {
    index_t reach = 1;
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (e[axis] > 0) reach += (e[axis] - 1) * s[axis];
    }
    memory.assign(static_cast<std::size_t>(reach), T(77.f));
    std::mt19937 generator(seed);
    std::uniform_real_distribution<float> distribution(-2.f, 2.f);
    each([&](index_t b, index_t h, index_t l, index_t d) {
      view()(b, h, l, d) = T(distribution(generator));
    });
  }

  tensor_view<T, 4> view() { return {memory.data(), extents, strides}; }
  double at(index_t b, index_t h, index_t l, index_t d) const {
    return static_cast<double>(memory[static_cast<std::size_t>(b * strides[0] + h * strides[1] +
                                                               l * strides[2] + d * strides[3])]);
  }

  template <class Visit>
  void each(const Visit& visit) const {
    for (index_t b = 0; b < extents[0]; ++b) {
      for (index_t h = 0; h < extents[1]; ++h) {
        for (index_t l = 0; l < extents[2]; ++l) {
          for (index_t d = 0; d < extents[3]; ++d) visit(b, h, l, d);
        }
      }
    }
  }
};

shape4 dense(const shape4& e) { return {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}; }
// [B, L, H, D] in memory, with a gap behind every row.
shape4 transposed_with_gaps(const shape4& e) {
  const index_t row = e[3] + 3;
  return {e[2] * e[1] * row + 5, row, e[1] * row, 1};
}

// The formula, from position and options, in double.
template <class T>
double formula(const tensor<T>& x, const rope_options& options, double position, index_t b,
               index_t h, index_t l, index_t d) {
  const index_t dimension = options.dimension == 0 ? x.extents[3] : options.dimension;
  if (d >= dimension) return x.at(b, h, l, d);
  const index_t half = dimension / 2;
  const bool interleaved = options.pairing == rope_pairing::interleaved;
  const index_t pair = interleaved ? d / 2 : d % half;
  const bool is_second = interleaved ? d % 2 != 0 : d >= half;
  const index_t other =
      interleaved ? (is_second ? d - 1 : d + 1) : (is_second ? d - half : d + half);
  const double size = static_cast<double>(dimension);
  const double theta =
      dimension == 2 ? 1 : options.theta * std::pow(options.ntk_factor, size / (size - 2));
  const double angle = position / options.linear_factor *
                       std::pow(theta, -2.0 * static_cast<double>(pair) / size) *
                       (options.inverse ? -1 : 1);
  const double own = x.at(b, h, l, d), partner = x.at(b, h, l, other);
  return own * std::cos(angle) + (is_second ? partner : -partner) * std::sin(angle);
}

template <class T>
double unit_roundoff() {
  if constexpr (std::is_same_v<T, double>) return 0x1p-53;
  if constexpr (std::is_same_v<T, float>) return 0x1p-24;
  if constexpr (std::is_same_v<T, Eigen::half>) return 0x1p-11;
  return 0x1p-8;
}

// position(b, l) is what the options mean by the position of a row.
template <class T, class U, class Position>
void expect_formula(const tensor<T>& x, const tensor<U>& out, const rope_options& options,
                    const Position& position, double slack = 0) {
  const double roundoff = std::max(unit_roundoff<U>(), 4 * unit_roundoff<double>());
  index_t wrong = 0;
  out.each([&](index_t b, index_t h, index_t l, index_t d) {
    const double want = formula(x, options, position(b, l), b, h, l, d);
    // Elements are below 2: products and cosines round in the arithmetic's precision, the result in
    // its own, and the angle, in both computations, in double.
    const bool in_double = std::is_same_v<T, double> || std::is_same_v<U, double>;
    const double limit = roundoff * std::abs(want) + 24 * (in_double ? 0x1p-53 : 0x1p-24) +
                         8 * std::abs(position(b, l)) * 0x1p-53 + slack;
    if (!(std::abs(out.at(b, h, l, d) - want) <= limit) && wrong++ < 3) {
      ADD_FAILURE() << "at " << b << ' ' << h << ' ' << l << ' ' << d << " got "
                    << out.at(b, h, l, d) << " want " << want << " limit " << limit;
    }
  });
  EXPECT_EQ(wrong, 0);
}

template <class T>
void expect_gaps_untouched(const tensor<T>& out) {
  std::vector<bool> used(out.memory.size());
  out.each([&](index_t b, index_t h, index_t l, index_t d) {
    used[static_cast<std::size_t>(b * out.strides[0] + h * out.strides[1] + l * out.strides[2] +
                                  d * out.strides[3])] = true;
  });
  for (std::size_t i = 0; i < used.size(); ++i) {
    ASSERT_TRUE(used[i] || static_cast<double>(out.memory[i]) == 77.0) << i;
  }
}

const std::vector<shape4> shapes{{1, 1, 1, 2},  {2, 3, 5, 8},   {1, 2, 7, 40}, {3, 1, 4, 64},
                                 {1, 4, 3, 72}, {2, 2, 2, 128}, {1, 1, 9, 6},  {1, 1, 2, 258}};

std::vector<rope_options> option_list(index_t depth) {
  std::vector<rope_options> list;
  for (const rope_pairing pairing : {rope_pairing::rotate_half, rope_pairing::interleaved}) {
    for (const index_t dimension : {index_t{0}, index_t{2}, depth / 2 / 2 * 2, depth}) {
      list.push_back({.pairing = pairing, .dimension = dimension});
      list.push_back({.pairing = pairing, .dimension = dimension, .offset = 1000});
      list.push_back({.pairing = pairing, .dimension = dimension, .theta = 500000, .offset = 9});
      list.push_back({.pairing = pairing, .dimension = dimension, .linear_factor = 4, .offset = 3});
      list.push_back({.pairing = pairing, .dimension = dimension, .ntk_factor = 8, .offset = -20});
      list.push_back({.pairing = pairing, .dimension = dimension, .offset = 31, .inverse = true});
    }
  }
  return list;
}

template <class T>
class rope : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(rope, element_types);

TYPED_TEST(rope, is_the_formula_in_place_and_out_of_place) {
  for (const shape4& e : shapes) {
    for (const shape4& strides : {dense(e), transposed_with_gaps(e)}) {
      for (const rope_options& options : option_list(e[3])) {
        const auto position = [&](index_t, index_t l) {
          return static_cast<double>(options.offset + l);
        };
        tensor<TypeParam> x(e, strides, 1), out(e, transposed_with_gaps(e), 2);
        const tensor<TypeParam> before = x;
        apply_rope(x.view(), out.view(), options);
        EXPECT_TRUE(std::equal(x.memory.begin(), x.memory.end(), before.memory.begin()));
        expect_formula(before, out, options, position);
        expect_gaps_untouched(out);

        apply_rope(x.view(), options);
        expect_gaps_untouched(x);
        x.each([&](index_t b, index_t h, index_t l, index_t d) {
          ASSERT_EQ(x.at(b, h, l, d), out.at(b, h, l, d));
        });
      }
    }
  }
}

TYPED_TEST(rope, takes_position_ids) {
  const shape4 e{3, 2, 5, 12};
  const std::vector<std::int64_t> wide{4, 4, 0, 1000000, 17, 3, 9, 2, 1, 0, 7, 7, 7, -5, 8};
  const std::vector<std::int32_t> narrow(wide.begin(), wide.end());
  // Every batch entry has ids of its own, in memory with a gap; one id for all batches; rank 1.
  std::vector<std::int32_t> padded(3 * 7, -999);
  for (std::size_t b = 0; b < 3; ++b) {
    std::copy_n(narrow.begin() + static_cast<std::ptrdiff_t>(5 * b), 5,
                padded.begin() + static_cast<std::ptrdiff_t>(7 * b));
  }
  const std::vector<std::pair<rope_positions, bool>> forms{
      {tensor_view<const std::int64_t, 2>(wide.data(), {3, 5}), true},
      {tensor_view<const std::int32_t, 2>(narrow.data(), {3, 5}), true},
      {tensor_view<std::int32_t, 2>(padded.data(), {3, 5}, {7, 1}), true},
      {tensor_view<const std::int64_t, 2>(wide.data(), {1, 5}), false},
      {tensor_view<const std::int64_t, 1>(wide.data(), {5}), false},
      {tensor_view<const std::int32_t, 1>(narrow.data(), {5}), false},
  };
  for (const auto& [ids, per_batch] : forms) {
    const bool by_batch = per_batch;
    for (rope_options options : option_list(12)) {
      options.offset = 0;
      options.positions = ids;
      tensor<TypeParam> x(e, dense(e), 3), out(e, dense(e), 4);
      apply_rope(x.view(), out.view(), options);
      expect_formula(x, out, options, [&](index_t b, index_t l) {
        return static_cast<double>(wide[static_cast<std::size_t>((by_batch ? b * 5 : 0) + l)]);
      });
    }
  }
}

TYPED_TEST(rope, inverse_turns_back) {
  const shape4 e{2, 3, 6, 40};
  for (rope_options options : option_list(40)) {
    tensor<TypeParam> x(e, transposed_with_gaps(e), 5);
    const tensor<TypeParam> before = x;
    options.inverse = false;
    apply_rope(x.view(), options);
    options.inverse = true;
    apply_rope(x.view(), options);
    x.each([&](index_t b, index_t h, index_t l, index_t d) {
      ASSERT_NEAR(x.at(b, h, l, d), before.at(b, h, l, d), 2 * 4 * unit_roundoff<TypeParam>());
    });
  }
}

TYPED_TEST(rope, reads_caches) {
  const shape4 e{2, 2, 6, 16};
  const std::vector<std::int64_t> ids{5, 0, 3, 3, 9, 1, 2, 2, 8, 7, 6, 5};
  for (const rope_pairing pairing : {rope_pairing::rotate_half, rope_pairing::interleaved}) {
    for (const index_t dimension : {16, 10, 2}) {
      const index_t half = dimension / 2, positions = 10;
      const auto size = static_cast<std::size_t>(positions * half);
      std::vector<TypeParam> cosines(size), sines(size);
      const tensor_view<TypeParam, 2> cosine_view(cosines.data(), {positions, half});
      const tensor_view<TypeParam, 2> sine_view(sines.data(), {positions, half});
      fill_rope_cache(cosine_view, sine_view, {.theta = 100});
      for (index_t p = 0; p < positions; ++p) {
        for (index_t i = 0; i < half; ++i) {
          const double angle =
              static_cast<double>(p) *
              std::pow(100.0, -2.0 * static_cast<double>(i) / static_cast<double>(dimension));
          EXPECT_NEAR(static_cast<double>(cosine_view(p, i)), std::cos(angle),
                      unit_roundoff<TypeParam>() + 0x1p-50);
          EXPECT_NEAR(static_cast<double>(sine_view(p, i)), std::sin(angle),
                      unit_roundoff<TypeParam>() + 0x1p-50);
        }
      }
      // Cosines and sines of `ids`, row by row.
      std::vector<TypeParam> row_cosines, row_sines;
      for (const std::int64_t id : ids) {
        for (index_t i = 0; i < half; ++i) {
          row_cosines.push_back(cosine_view(id, i));
          row_sines.push_back(sine_view(id, i));
        }
      }
      const tensor_view<const TypeParam, 3> row_cosine_view(row_cosines.data(), {2, 6, half});
      const tensor_view<const TypeParam, 3> row_sine_view(row_sines.data(), {2, 6, half});
      const tensor_view<const std::int64_t, 2> id_view(ids.data(), {2, 6});

      const rope_options formula{.pairing = pairing, .dimension = dimension, .theta = 100};
      const double slack = 4 * unit_roundoff<TypeParam>();  // of the cache
      const auto expect = [&](rope_options options, const auto& position) {
        options.pairing = pairing;
        options.dimension = dimension;
        tensor<TypeParam> x(e, dense(e), 6), out(e, dense(e), 7);
        apply_rope(x.view(), out.view(), options);
        expect_formula(x, out, formula, position, slack);
      };
      const auto by_id = [&](index_t b, index_t l) {
        return static_cast<double>(ids[static_cast<std::size_t>(6 * b + l)]);
      };
      expect({.positions = id_view, .cache = {cosine_view, sine_view}}, by_id);
      expect({.cache = {row_cosine_view, row_sine_view}}, by_id);
      expect({.offset = 4, .cache = {cosine_view, sine_view}},
             [](index_t, index_t l) { return static_cast<double>(4 + l); });
      expect({.cache = {row_cosine_view.slice(0, 0, 1), row_sine_view.slice(0, 0, 1)}},
             [&](index_t, index_t l) { return by_id(0, l); });
      expect({.positions = tensor_view<const std::int64_t, 1>(ids.data(), {6}),
              .cache = {cosine_view, sine_view}},
             [&](index_t, index_t l) { return by_id(0, l); });
    }
  }
}

TEST(rope, converts_between_element_types) {
  const shape4 e{1, 2, 5, 38};
  for (const rope_options& options : option_list(38)) {
    tensor<Eigen::bfloat16> x(e, dense(e), 8);
    tensor<float> wide(e, dense(e), 9);
    tensor<Eigen::half> narrow(e, dense(e), 9);
    apply_rope(x.view(), wide.view(), options);
    apply_rope(x.view(), narrow.view(), options);
    const auto position = [&](index_t, index_t l) {
      return static_cast<double>(options.offset + l);
    };
    expect_formula(x, wide, options, position);
    expect_formula(x, narrow, options, position);
  }
}

TEST(rope, copies_what_it_does_not_turn_bit_by_bit) {
  const std::uint32_t bits[] = {0x7fc12345u, 0xff800000u, 0x80000000u, 0x00000001u};
  std::vector<float> x{1.f, 2.f}, out(6);
  for (const std::uint32_t b : bits) x.push_back(std::bit_cast<float>(b));
  apply_rope(tensor_view<const float, 2>(x.data(), {1, 6}),
             tensor_view<float, 2>(out.data(), {1, 6}), {.dimension = 2, .offset = 1});
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<std::uint32_t>(out[2 + i]), bits[i]);
}

TEST(rope, products_depend_on_the_distance_only) {
  const index_t depth = 64;
  for (const rope_pairing pairing : {rope_pairing::rotate_half, rope_pairing::interleaved}) {
    for (const index_t distance : {0, 1, 5, 300}) {
      std::vector<double> products;
      for (const index_t at : {0, 1, 77, 4096, 1000000}) {
        tensor<double> q({1, 1, 1, depth}, dense({1, 1, 1, depth}), 10);
        tensor<double> k({1, 1, 1, depth}, dense({1, 1, 1, depth}), 11);
        apply_rope(q.view(), {.pairing = pairing, .offset = at + distance});
        apply_rope(k.view(), {.pairing = pairing, .offset = at});
        products.push_back(
            std::inner_product(q.memory.begin(), q.memory.end(), k.memory.begin(), 0.0));
      }
      for (const double product : products) EXPECT_NEAR(product, products[0], 2e-8);
    }
  }
}

// At position 10^6, angles in float would be off by 0.03.
TEST(rope, is_right_at_position_one_million) {
  const shape4 e{1, 1, 2, 128};
  for (const rope_pairing pairing : {rope_pairing::rotate_half, rope_pairing::interleaved}) {
    const rope_options options{.pairing = pairing, .offset = 1000000};
    tensor<float> x(e, dense(e), 12), out(e, dense(e), 13);
    apply_rope(x.view(), out.view(), options);
    expect_formula(x, out, options,
                   [](index_t, index_t l) { return static_cast<double>(1000000 + l); });
  }
}

// Runs items from the last to the first, on workers in turn.
struct backwards {
  int workers() const { return 3; }
  template <class Body>
  void run(index_t count, const Body& body) const {
    for (index_t i = count; i-- > 0;) body(i, static_cast<int>(i % 3));
  }
};

TEST(rope, does_not_depend_on_the_executor) {
  const shape4 e{2, 3, 17, 40};
  const std::vector<std::int32_t> ids = [] {
    std::vector<std::int32_t> values(34);
    std::iota(values.begin(), values.end(), 5);
    return values;
  }();
  for (rope_options options : option_list(40)) {
    for (const bool with_ids : {false, true}) {
      if (with_ids) {
        options.offset = 0;
        options.positions = tensor_view<const std::int32_t, 2>(ids.data(), {2, 17});
      }
      tensor<float> x(e, dense(e), 14), one(e, dense(e), 15), three(e, dense(e), 16);
      apply_rope(x.view(), one.view(), options);
      const backwards pool;
      apply_rope(x.view(), three.view(), options, pool);
      EXPECT_EQ(one.memory, three.memory);
      apply_rope(x.view(), options, backwards{});
      EXPECT_EQ(one.memory, x.memory);
    }
  }
}

TEST(rope, takes_lower_ranks_and_broadcast_inputs) {
  const shape4 e{1, 3, 4, 6};
  tensor<float> x(e, dense(e), 17), want(e, dense(e), 18);
  apply_rope(x.view(), want.view());
  std::vector<float> out(x.memory.size());
  apply_rope(tensor_view<const float, 3>(x.memory.data(), {3, 4, 6}),
             tensor_view<float, 3>(out.data(), {3, 4, 6}));
  EXPECT_EQ(out, want.memory);
  apply_rope(tensor_view<float, 2>(x.memory.data(), {4, 6}));
  EXPECT_TRUE(std::equal(x.memory.begin(), x.memory.begin() + 24, want.memory.begin()));

  // One row for all heads and rows.
  const std::vector<float> row{1, 2, 3, 4, 5, 6};
  apply_rope(tensor_view<const float, 3>(row.data(), {3, 4, 6}, {0, 0, 1}),
             tensor_view<float, 3>(out.data(), {3, 4, 6}));
  for (int head = 0; head < 3; ++head) EXPECT_EQ(out[static_cast<std::size_t>(24 * head)], 1.f);
}

TEST(rope, takes_eigen_matrices) {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix x = matrix::Random(5, 8);
  matrix out(5, 8), in_place = x;
  heed::apply_rope(x, out, {.offset = 3});
  heed::apply_rope(in_place, {.offset = 3});
  EXPECT_EQ(out, in_place);
  std::vector<float> want(40);
  apply_rope(tensor_view<const float, 2>(x.data(), {5, 8}),
             tensor_view<float, 2>(want.data(), {5, 8}), {.offset = 3});
  EXPECT_TRUE(std::equal(want.begin(), want.end(), out.data()));
}

TEST(rope, accepts_empty_tensors) {
  apply_rope(tensor_view<float, 4>(nullptr, {0, 2, 3, 4}));
  apply_rope(tensor_view<float, 4>(nullptr, {2, 2, 0, 4}));
  apply_rope(tensor_view<float, 4>(nullptr, {2, 2, 3, 0}));
  apply_rope(tensor_view<float, 4>(nullptr, {1, 1, 0, 4}),
             tensor_view<float, 4>(nullptr, {1, 1, 0, 4}),
             {.positions = tensor_view<const std::int32_t, 1>(nullptr, {0})});
}

TEST(rope, refuses_an_out_that_overlaps) {
  std::vector<float> memory(1000, 1.f);
  const auto view = [&](index_t offset, const shape4& extents, const shape4& strides) {
    return tensor_view<float, 4>(memory.data() + offset, extents, strides);
  };
  const auto error = [](auto x, auto out) -> std::string {
    try {
      apply_rope(x, out);
    } catch (const heed::invalid_argument& refused) {
      return refused.what();
    }
    return "no error";
  };
  const std::string overlaps = "out: overlaps x without being the same view";
  const shape4 e{1, 2, 3, 8}, s = dense(e);
  EXPECT_EQ(error(view(0, e, s), view(0, e, s)), "no error");
  EXPECT_EQ(error(view(0, e, s), view(48, e, s)), "no error");
  EXPECT_EQ(error(view(48, e, s), view(0, e, s)), "no error");
  EXPECT_EQ(error(view(0, e, s), view(47, e, s)), overlaps);
  EXPECT_EQ(error(view(0, e, s), view(1, e, s)), overlaps);
  EXPECT_EQ(error(view(8, e, s), view(0, e, s)), overlaps);
  EXPECT_EQ(error(view(0, e, s), view(0, e, {0, 8, 16, 1})), overlaps);
  // Queries, keys and values side by side in one array [L, 3, H, D]: apart, though interleaved.
  const shape4 fused{0, 8, 48, 1};
  EXPECT_EQ(error(view(0, e, fused), view(0, e, fused)), "no error");
  EXPECT_EQ(error(view(0, e, fused), view(16, e, fused)), "no error");
  EXPECT_EQ(error(view(32, e, fused), view(16, e, fused)), "no error");
  EXPECT_EQ(error(view(0, e, fused), view(12, e, fused)), overlaps);
  EXPECT_EQ(error(view(0, e, fused), view(8, e, fused)), overlaps);
  EXPECT_EQ(error(view(0, e, fused), view(48, e, fused)), overlaps);
  EXPECT_EQ(error(view(0, e, fused), view(96 + 16, e, fused)), "no error");
  // The end of one row in the beginning of the next one.
  const shape4 rows{1, 1, 3, 8}, spaced{0, 0, 48, 1};
  EXPECT_EQ(error(view(0, rows, spaced), view(40, rows, spaced)), "no error");
  EXPECT_EQ(error(view(0, rows, spaced), view(41, rows, spaced)), overlaps);
  EXPECT_EQ(error(view(44, rows, spaced), view(0, rows, spaced)), overlaps);
  // Reversed rows.
  EXPECT_EQ(error(view(100, e, {0, 24, -8, 1}), view(100, e, {0, 24, -8, 1})), "no error");
  EXPECT_EQ(error(view(0, {1, 1, 3, 8}, {0, 0, 8, 1}), view(16, {1, 1, 3, 8}, {0, 0, -8, 1})),
            overlaps);
  // An out that is written twice, in place or not.
  const std::string twice = "out: its strides let elements overlap";
  EXPECT_EQ(error(view(0, e, s), view(500, e, {0, 0, 8, 1})), twice);
  EXPECT_EQ(error(view(0, e, {0, 24, 7, 1}), view(0, e, {0, 24, 7, 1})), twice);
  // Another element type in the same memory.
  EXPECT_EQ(
      error(view(0, e, s), tensor_view<double, 4>(reinterpret_cast<double*>(memory.data()), e, s)),
      overlaps);
}

// Every message, and that nothing was written.
TEST(rope, refuses_what_does_not_fit) {
  const auto error_for = [](const shape4& e, const rope_options& options,
                            const shape4& out_extents = {0, 0, 0, 0}) -> std::string {
    tensor<float> x(e, dense(e), 19);
    const shape4 other = out_extents[3] == 0 ? e : out_extents;
    tensor<float> out(other, dense(other), 20);
    const std::vector<float> before = out.memory;
    try {
      apply_rope(x.view(), out.view(), options);
    } catch (const heed::invalid_argument& refused) {
      EXPECT_EQ(out.memory, before);
      return refused.what();
    }
    return "no error";
  };
  const shape4 e{2, 3, 5, 8};
  EXPECT_EQ(error_for(e, {}, {1, 3, 5, 8}), "out: batch axis has extent 1, x has 2");
  EXPECT_EQ(error_for(e, {}, {2, 4, 5, 8}), "out: head axis has extent 4, x has 3");
  EXPECT_EQ(error_for(e, {}, {2, 3, 6, 8}), "out: length axis has extent 6, x has 5");
  EXPECT_EQ(error_for(e, {}, {2, 3, 5, 9}), "out: depth axis has extent 9, x has 8");
  EXPECT_EQ(error_for(e, {.dimension = 7}), "rope: rotary dimension 7 is odd");
  EXPECT_EQ(error_for({2, 3, 5, 9}, {}), "rope: rotary dimension 9 is odd");
  EXPECT_EQ(error_for(e, {.dimension = 10}), "rope: rotary dimension 10 exceeds the depth 8 of x");
  EXPECT_EQ(error_for(e, {.dimension = -2}), "rope: rotary dimension -2 is negative");
  EXPECT_EQ(error_for(e, {.theta = 0}), "rope: theta 0 is not in [1e-100, 1e100]");
  EXPECT_EQ(error_for(e, {.linear_factor = -1}),
            "rope: linear_factor -1 is not in [1e-100, 1e100]");
  EXPECT_EQ(error_for(e, {.ntk_factor = 0}), "rope: ntk_factor 0 is not in [1e-100, 1e100]");
  EXPECT_EQ(error_for(e, {.offset = 0x7fffffffffffffff}),
            "rope: offset 9223372036854775807 overflows with 5 rows");

  const std::vector<std::int64_t> ids{0, 1, 2, 3, 4, 5, 6, 7, 8, 12};
  const auto id_view = [&](index_t batches, index_t length) {
    return tensor_view<const std::int64_t, 2>(ids.data(), {batches, length});
  };
  EXPECT_EQ(error_for(e, {.positions = id_view(2, 4)}),
            "position ids: length axis has extent 4, x has 5 rows");
  EXPECT_EQ(error_for({3, 3, 5, 8}, {.positions = id_view(2, 5)}),
            "position ids: batch axis has extent 2, x has 3 batches");
  EXPECT_EQ(error_for(e, {.offset = 3, .positions = id_view(2, 5)}),
            "rope: offset 3 has no effect beside position ids");

  std::vector<float> values(400);
  const auto cache = [&](index_t rows, index_t columns) {
    const tensor_view<const float, 2> view(values.data(), {rows, columns});
    return rope_cache(view, view);
  };
  const auto row_cache = [&](index_t batches, index_t rows, index_t columns) {
    const tensor_view<const float, 3> view(values.data(), {batches, rows, columns});
    return rope_cache(view, view);
  };
  EXPECT_EQ(error_for(e, {.positions = id_view(2, 5), .cache = cache(13, 4)}), "no error");
  EXPECT_EQ(error_for(e, {.positions = id_view(2, 5), .cache = cache(12, 4)}),
            "rope cache: position 12 of row 4 is outside its 12 positions");
  EXPECT_EQ(error_for(e, {.offset = -1, .cache = cache(12, 4)}),
            "rope cache: position -1 of row 0 is outside its 12 positions");
  EXPECT_EQ(error_for(e, {.offset = 8, .cache = cache(12, 4)}),
            "rope cache: position 12 of row 4 is outside its 12 positions");
  EXPECT_EQ(error_for(e, {.cache = cache(12, 2)}),
            "rope cache: column count 2, rotary dimension 8 needs 4");
  EXPECT_EQ(error_for(e, {.dimension = 4, .cache = cache(12, 4)}),
            "rope cache: column count 4, rotary dimension 4 needs 2");
  EXPECT_EQ(error_for(e, {.theta = 500, .cache = cache(12, 4)}),
            "rope: theta and scaling factors have no effect beside a cache");
  EXPECT_EQ(error_for(e, {.cache = row_cache(3, 5, 4)}),
            "rope cache: batch axis has extent 3, x has 2 batches");
  EXPECT_EQ(error_for(e, {.cache = row_cache(2, 6, 4)}),
            "rope cache: length axis has extent 6, x has 5 rows");
  const std::string by_row =
      "rope: positions have no effect beside a cache of rank 3, which is indexed by row";
  EXPECT_EQ(error_for(e, {.positions = id_view(2, 5), .cache = row_cache(2, 5, 4)}), by_row);
  EXPECT_EQ(error_for(e, {.offset = 1, .cache = row_cache(2, 5, 4)}), by_row);

  const auto error_of = [](const auto& body) -> std::string {
    try {
      body();
    } catch (const heed::invalid_argument& refused) {
      return refused.what();
    }
    return "no error";
  };
  const tensor_view<float, 2> four(values.data(), {3, 4}), five(values.data(), {3, 5});
  EXPECT_EQ(error_of([&] { rope_cache(four, five); }), "sines: extent 5 of axis 1, cosines have 4");
  EXPECT_EQ(error_of([&] { fill_rope_cache(four, five); }),
            "sines: extents 3 x 5, cosines have 3 x 4");
  EXPECT_EQ(error_of([&] { fill_rope_cache(four, four, {.dimension = 10}); }),
            "cosines: column count 4, rotary dimension 10 needs 5");
  EXPECT_EQ(error_of([&] { fill_rope_cache(four, four, {.cache = cache(12, 4)}); }),
            "rope: a cache is filled from positions, not from a cache");
  EXPECT_EQ(error_of([&] { fill_rope_cache(four, four, {.positions = id_view(1, 4)}); }),
            "position ids: length axis has extent 4, the cache has 3 rows");
}

// The ONNX node tests of RotaryEmbedding.
TEST(rope, agrees_with_onnx) {
  int cases = 0;
  for (const auto& folder : heed_test::list_cases("onnx")) {
    if (!folder.filename().string().starts_with("test_rotary_embedding_")) continue;
    ++cases;
    const heed_test::vector_case test(folder);
    SCOPED_TRACE(test.name);
    const auto attributes = test.meta.at("node").at("attributes");
    const auto input = test.input("input"), output = test.output("output");
    const auto values = input.as<float>(), want = output.as<float>();

    // [B, H, L, D], or [B, L, H·D].
    tensor_view<const float, 4> x;
    if (input.shape.size() == 4) {
      x = {values.data(), {input.shape[0], input.shape[1], input.shape[2], input.shape[3]}};
    } else {
      const index_t heads = attributes.at("num_heads").get<index_t>();
      x = tensor_view<const float, 4>(
              values.data(), {input.shape[0], input.shape[1], heads, input.shape[2] / heads})
              .permuted({0, 2, 1, 3});
    }
    rope_options options;
    options.dimension = attributes.value("rotary_embedding_dim", index_t{0});
    if (attributes.value("interleaved", 0) != 0) options.pairing = rope_pairing::interleaved;
    const auto cosines = test.input("cos_cache"), sines = test.input("sin_cache");
    const auto cosine_values = cosines.as<float>(), sine_values = sines.as<float>();
    std::vector<std::int64_t> ids;
    if (test.has_input("position_ids")) {
      ids = test.input("position_ids").as<std::int64_t>();
      options.positions =
          tensor_view<const std::int64_t, 2>(ids.data(), {x.extent(0), x.extent(2)});
      const std::array<index_t, 2> shape{cosines.shape[0], cosines.shape[1]};
      options.cache = {tensor_view<const float, 2>(cosine_values.data(), shape),
                       tensor_view<const float, 2>(sine_values.data(), shape)};
    } else {
      const std::array<index_t, 3> shape{cosines.shape[0], cosines.shape[1], cosines.shape[2]};
      options.cache = {tensor_view<const float, 3>(cosine_values.data(), shape),
                       tensor_view<const float, 3>(sine_values.data(), shape)};
    }
    std::vector<float> out(values.size());
    apply_rope(x, tensor_view<float, 4>(out.data(), x.extents(), x.strides()), options);
    ASSERT_EQ(out.size(), want.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_NEAR(out[i], want[i], 1e-6 + 1e-5 * std::abs(want[i])) << i;
    }
  }
  EXPECT_EQ(cases, 4);
}

}  // namespace
