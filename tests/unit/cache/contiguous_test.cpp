// The contiguous cache against a plain copy of the tokens.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <heed/cache/contiguous.hpp>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/errors.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed::cache::contiguous;
using heed_test::error_of;

static_assert(std::is_nothrow_move_constructible_v<contiguous<float>>);
static_assert(!std::is_copy_constructible_v<contiguous<float>>);

template <class T>
struct tensor {
  std::array<index_t, 4> shape;
  std::vector<T> values;

  tensor(std::array<index_t, 4> extents, unsigned seed) : shape(extents) {
    std::mt19937 bits(seed);
    std::uniform_real_distribution<float> uniform(-3, 3);
    values.resize(static_cast<std::size_t>(extents[0] * extents[1] * extents[2] * extents[3]));
    for (T& value : values) value = heed::narrow<T>(uniform(bits));
  }
  tensor_view<const T, 4> view() const { return {values.data(), shape}; }
};

template <class A, class B>
void expect_equal(tensor_view<A, 4> actual, tensor_view<B, 4> expected) {
  ASSERT_EQ(actual.extents(), expected.extents());
  for (index_t b = 0; b < actual.extent(0); ++b) {
    for (index_t h = 0; h < actual.extent(1); ++h) {
      for (index_t i = 0; i < actual.extent(2); ++i) {
        for (index_t d = 0; d < actual.extent(3); ++d) {
          ASSERT_EQ(heed::widen<double>(actual(b, h, i, d)),
                    heed::widen<double>(expected(b, h, i, d)))
              << b << ' ' << h << ' ' << i << ' ' << d;
        }
      }
    }
  }
}

TEST(contiguous_cache, begins_empty_and_without_memory) {
  contiguous<float> cache(2, 3, 32, 8, 5);
  EXPECT_EQ(cache.size(), 0);
  EXPECT_EQ(cache.capacity(), 32);
  EXPECT_EQ(cache.bytes(), 0);
  EXPECT_EQ(cache.keys().extents(), (std::array<index_t, 4>{2, 3, 0, 8}));
  EXPECT_EQ(cache.values().extents(), (std::array<index_t, 4>{2, 3, 0, 5}));
}

TEST(contiguous_cache, appends) {
  const tensor<float> k({2, 3, 10, 8}, 1), v({2, 3, 10, 5}, 2);
  contiguous<float> cache(2, 3, 32, 8, 5);
  cache.append(k.view().slice(2, 0, 7), v.view().slice(2, 0, 7));
  const auto early = cache.keys();
  cache.append(k.view().slice(2, 7, 1), v.view().slice(2, 7, 1));
  cache.append(k.view().slice(2, 8, 0), v.view().slice(2, 8, 0));
  cache.append(k.view().slice(2, 8, 2), v.view().slice(2, 8, 2));
  EXPECT_EQ(cache.size(), 10);
  expect_equal(cache.keys(), k.view());
  expect_equal(cache.values(), v.view());
  EXPECT_EQ(cache.keys().strides(), (std::array<index_t, 4>{3 * 32 * 8, 32 * 8, 8, 1}));
  EXPECT_EQ(cache.values().strides(), (std::array<index_t, 4>{3 * 32 * 5, 32 * 5, 5, 1}));
  EXPECT_GE(cache.bytes(), 2 * 3 * 32 * (8 + 5) * 4);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(cache.keys().data()) % 64, 0u);
  EXPECT_EQ(early.data(), cache.keys().data());
  expect_equal(early, k.view().slice(2, 0, 7));
}

// Large stores begin with a huge page; what that costs is not held against them.
TEST(contiguous_cache, aligns_what_is_large) {
  constexpr index_t tokens = 9000, huge_page = index_t{1} << 21;
  const tensor<float> k({1, 1, tokens, 64}, 1), v({1, 1, tokens, 3}, 2);
  contiguous<float> cache(1, 1, tokens, 64, 3);
  cache.append(k.view(), v.view());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(cache.keys().data()) % huge_page, 0u);
  const contiguous<float> moved = std::move(cache);
  expect_equal(moved.keys(), k.view());
  expect_equal(moved.values(), v.view());
  const index_t positions = tokens * 8, rows = tokens * (64 + 3) * 4;
  EXPECT_GE(moved.bytes(), rows + positions);
  EXPECT_LT(moved.bytes(), rows + 2 * positions + 1000);
}

TEST(contiguous_cache, fills_up_to_the_last_token) {
  const tensor<float> k({1, 1, 4, 2}, 1);
  contiguous<float> cache(1, 1, 4, 2);
  cache.append(k.view(), k.view());
  expect_equal(cache.keys(), k.view());
  EXPECT_EQ(error_of([&] { cache.append(k.view().slice(2, 0, 1), k.view().slice(2, 0, 1)); }),
            "cache: appending 1 tokens to 4 of capacity 4");
}

template <class T>
class contiguous_cache_of : public testing::Test {};
using element_types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(contiguous_cache_of, element_types);

TYPED_TEST(contiguous_cache_of, converts_from_every_type) {
  const auto check = [](auto zero) {
    using From = decltype(zero);
    const tensor<From> k({1, 2, 5, 8}, 1), v({1, 2, 5, 8}, 2);
    contiguous<TypeParam> cache(1, 2, 5, 8);
    cache.append(k.view(), v.view());
    for (std::size_t i = 0; i < k.values.size(); ++i) {
      const double exact = static_cast<double>(k.values[i]);
      const double expected = static_cast<double>(static_cast<TypeParam>(exact));
      ASSERT_EQ(static_cast<double>(cache.keys().data()[i]), expected);
    }
  };
  check(0.f);
  check(0.0);
  check(Eigen::half());
  check(Eigen::bfloat16());
}

TEST(contiguous_cache, keeps_the_bits_of_its_own_type) {
  // A NaN's payload would not survive arithmetic.
  const auto odd = std::bit_cast<Eigen::half>(std::uint16_t{0x7d01});
  const std::vector<Eigen::half> memory(4, odd);
  const tensor_view<const Eigen::half, 4> view(memory.data(), {1, 1, 1, 4});
  contiguous<Eigen::half> cache(1, 1, 2, 4);
  cache.append(view, view);
  EXPECT_EQ(std::bit_cast<std::uint16_t>(cache.keys()(0, 0, 0, 3)), 0x7d01);
}

TEST(contiguous_cache, takes_any_strides_and_lower_ranks) {
  const tensor<float> k({2, 6, 3, 8}, 1);  // [B, L, H, D]
  contiguous<float> cache(2, 3, 12, 8);
  cache.append(k.view().permuted({0, 2, 1, 3}), k.view().permuted({0, 2, 1, 3}));
  expect_equal(cache.keys(), k.view().permuted({0, 2, 1, 3}));
  // One token for both batch entries.
  const tensor_view<const float, 4> broadcast(k.values.data(), {2, 3, 1, 8}, {0, 8, 0, 1});
  cache.append(broadcast, broadcast);
  expect_equal(cache.keys().slice(2, 6, 1), broadcast);

  using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix m = matrix::Random(5, 4);
  contiguous<double> single(1, 1, 9, 4);
  single.append(m, m.middleRows(0, 5));
  expect_equal(single.values(), heed::view_of(m).lifted<4>());
  const tensor_view<const float, 3> heads(k.values.data(), {3, 2, 8});
  contiguous<float> one_batch(1, 3, 9, 8);
  one_batch.append(heads, heads);
  expect_equal(one_batch.keys(), heads.lifted<4>());
}

TEST(contiguous_cache, truncates_and_clears) {
  const tensor<float> k({1, 2, 8, 4}, 1), other({1, 2, 3, 4}, 2);
  contiguous<float> cache(1, 2, 8, 4);
  cache.append(k.view(), k.view());
  const index_t bytes = cache.bytes();
  cache.truncate(8);
  cache.truncate(5);
  expect_equal(cache.keys(), k.view().slice(2, 0, 5));
  cache.append(other.view(), other.view());
  expect_equal(cache.values().slice(2, 0, 5), k.view().slice(2, 0, 5));
  expect_equal(cache.values().slice(2, 5, 3), other.view());
  EXPECT_EQ(error_of([&] { cache.truncate(9); }), "cache: truncating 8 tokens to 9");
  EXPECT_EQ(error_of([&] { cache.truncate(-1); }), "cache: truncating 8 tokens to -1");
  cache.clear();
  EXPECT_EQ(cache.size(), 0);
  EXPECT_EQ(cache.bytes(), bytes);
}

TEST(contiguous_cache, evicts_and_remembers_positions) {
  const tensor<float> k({1, 2, 6, 4}, 1), v({1, 2, 6, 3}, 2), more({1, 2, 2, 4}, 3),
      more_v({1, 2, 2, 3}, 4);
  contiguous<float> cache(1, 2, 6, 4, 3);
  cache.append(k.view(), v.view());
  heed::cache::kept_tokens tokens(1, 2);
  tokens.at(0, 0) = {1, 4};
  tokens.at(0, 1) = {0, 2, 3, 5};
  cache.keep(tokens);
  EXPECT_EQ(cache.size(), 4);
  EXPECT_EQ(cache.seen(), 6);
  cache.append(more.view(), more_v.view());
  EXPECT_EQ(cache.size(), 6);
  const auto positions = [&](index_t h) {
    const auto list = cache.kept().at(0, h);
    return std::vector<index_t>(list.begin(), list.end());
  };
  EXPECT_EQ(positions(0), (std::vector<index_t>{1, 4, 6, 7}));
  EXPECT_EQ(positions(1), (std::vector<index_t>{0, 2, 3, 5, 6, 7}));
  for (index_t d = 0; d < 3; ++d) {
    EXPECT_EQ(cache.values()(0, 0, 1, d), v.view()(0, 0, 4, d));
    EXPECT_EQ(cache.values()(0, 0, 3, d), more_v.view()(0, 0, 1, d));
    EXPECT_EQ(cache.keys()(0, 1, 3, d), k.view()(0, 1, 5, d));
    EXPECT_EQ(cache.keys()(0, 1, 4, d), more.view()(0, 1, 0, d));
  }
  EXPECT_EQ(error_of([&] { cache.append(more.view(), more_v.view()); }),
            "cache: appending 2 tokens to 6 of capacity 6");
  cache.truncate(5);
  EXPECT_EQ(cache.seen(), 8);  // head 0 still holds token 7
  cache.clear();
  EXPECT_EQ(cache.seen(), 0);
  cache.append(k.view(), v.view());
  EXPECT_EQ(positions(1), (std::vector<index_t>{0, 1, 2, 3, 4, 5}));
}

// A draft of tokens that is taken back leaves no trace, whatever was evicted before it came.
TEST(contiguous_cache, truncation_takes_back_the_last_append) {
  const tensor<float> k({1, 1, 6, 4}, 1), draft({1, 1, 2, 4}, 2);
  contiguous<float> cache(1, 1, 8, 4);
  cache.append(k.view(), k.view());
  heed::cache::kept_tokens oldest(1, 1);
  oldest.at(0, 0) = {0, 1, 2};
  cache.keep(oldest);
  cache.truncate(3);
  EXPECT_EQ(cache.seen(), 6);
  cache.append(draft.view(), draft.view());
  EXPECT_EQ(cache.seen(), 8);
  cache.truncate(4);
  EXPECT_EQ(cache.seen(), 7);
  cache.truncate(3);
  EXPECT_EQ(cache.seen(), 6);
  cache.append(draft.view(), draft.view());
  EXPECT_EQ(cache.kept().at(0, 0)[3], 6);
}

TEST(contiguous_cache, random_use_equals_a_plain_copy) {
  constexpr index_t batches = 2, heads = 3, capacity = 24, depth = 5, value_depth = 7;
  std::mt19937 random(7);
  contiguous<float> cache(batches, heads, capacity, depth, value_depth);
  // Per batch entry and head, one row per token.
  using rows = std::vector<std::array<float, value_depth>>;
  std::vector<rows> keys(batches * heads), values(batches * heads);
  for (unsigned step = 0; step < 400; ++step) {
    const index_t size = static_cast<index_t>(keys[0].size());
    const index_t amount = static_cast<index_t>(random() % 6);
    if (random() % 3 != 0) {
      const tensor<float> k({batches, heads, amount, depth}, 2 * step);
      const tensor<float> v({batches, heads, amount, value_depth}, 2 * step + 1);
      if (size + amount > capacity) {
        EXPECT_NE(error_of([&] { cache.append(k.view(), v.view()); }), "accepted");
        continue;
      }
      cache.append(k.view(), v.view());
      for (index_t at = 0; at < batches * heads; ++at) {
        for (index_t i = 0; i < amount; ++i) {
          std::array<float, value_depth> key{}, value{};
          for (index_t d = 0; d < depth; ++d) {
            key[static_cast<std::size_t>(d)] = k.view()(at / heads, at % heads, i, d);
          }
          for (index_t d = 0; d < value_depth; ++d) {
            value[static_cast<std::size_t>(d)] = v.view()(at / heads, at % heads, i, d);
          }
          keys[static_cast<std::size_t>(at)].push_back(key);
          values[static_cast<std::size_t>(at)].push_back(value);
        }
      }
    } else {
      const index_t left = amount == 5 ? 0 : std::max<index_t>(0, size - 2 * amount);
      if (left == 0) {
        cache.clear();
      } else {
        cache.truncate(left);
      }
      for (rows& r : keys) r.resize(static_cast<std::size_t>(left));
      for (rows& r : values) r.resize(static_cast<std::size_t>(left));
    }
    ASSERT_EQ(cache.size(), static_cast<index_t>(keys[0].size()));
    for (index_t at = 0; at < batches * heads; ++at) {
      for (index_t i = 0; i < cache.size(); ++i) {
        const auto& key = keys[static_cast<std::size_t>(at)][static_cast<std::size_t>(i)];
        const auto& value = values[static_cast<std::size_t>(at)][static_cast<std::size_t>(i)];
        for (index_t d = 0; d < depth; ++d) {
          ASSERT_EQ(cache.keys()(at / heads, at % heads, i, d), key[static_cast<std::size_t>(d)]);
        }
        for (index_t d = 0; d < value_depth; ++d) {
          ASSERT_EQ(cache.values()(at / heads, at % heads, i, d),
                    value[static_cast<std::size_t>(d)]);
        }
      }
    }
  }
}

TEST(contiguous_cache, moves) {
  const tensor<float> k({1, 1, 3, 4}, 1);
  contiguous<float> a(1, 1, 8, 4);
  a.append(k.view(), k.view());
  const float* const data = a.keys().data();
  contiguous<float> b = std::move(a);
  EXPECT_EQ(b.keys().data(), data);
  expect_equal(b.keys(), k.view());
  // What is left is an empty cache of the same shape.
  EXPECT_EQ(a.size(), 0);  // NOLINT
  a.append(k.view(), k.view());
  expect_equal(a.keys(), k.view());
  contiguous<float> c(1, 2, 5, 3);
  c = std::move(b);
  expect_equal(c.values(), k.view());
  EXPECT_EQ(c.capacity(), 8);
}

TEST(contiguous_cache, empty_axes) {
  const tensor<float> flat({1, 2, 3, 0}, 1), deep({1, 2, 3, 4}, 2), none({0, 2, 3, 4}, 3);
  contiguous<float> no_depth(1, 2, 5, 0, 4);
  no_depth.append(flat.view(), deep.view());
  expect_equal(no_depth.values(), deep.view());
  contiguous<float> nothing(1, 2, 5, 0);
  nothing.append(flat.view(), flat.view());
  EXPECT_EQ(nothing.size(), 3);
  contiguous<float> no_batch(0, 2, 5, 4);
  no_batch.append(none.view(), none.view());
  EXPECT_EQ(no_batch.size(), 3);
  contiguous<float> no_room(1, 2, 0, 4);
  EXPECT_EQ(error_of([&] { no_room.append(deep.view(), deep.view()); }),
            "cache: appending 3 tokens to 0 of capacity 0");
}

TEST(contiguous_cache, refuses_what_does_not_fit_and_writes_nothing) {
  const tensor<float> k({2, 3, 30, 8}, 1), v({2, 3, 30, 5}, 2);
  contiguous<float> cache(2, 3, 32, 8, 5);
  cache.append(k.view(), v.view());
  const auto message = [&](std::array<index_t, 4> k_shape, std::array<index_t, 4> v_shape) {
    const tensor<float> new_k(k_shape, 3), new_v(v_shape, 4);
    return error_of([&] { cache.append(new_k.view(), new_v.view()); });
  };
  EXPECT_EQ(message({2, 3, 5, 8}, {2, 3, 5, 5}), "cache: appending 5 tokens to 30 of capacity 32");
  EXPECT_EQ(message({1, 3, 1, 8}, {2, 3, 1, 5}), "k: batch count 1 is not the cache's 2");
  EXPECT_EQ(message({2, 6, 1, 8}, {2, 3, 1, 5}), "k: head count 6 is not the cache's 3");
  EXPECT_EQ(message({2, 3, 1, 5}, {2, 3, 1, 5}), "k: depth 5 is not the cache's 8");
  EXPECT_EQ(message({2, 3, 1, 8}, {3, 3, 1, 5}), "v: batch count 3 is not the cache's 2");
  EXPECT_EQ(message({2, 3, 1, 8}, {2, 1, 1, 5}), "v: head count 1 is not the cache's 3");
  EXPECT_EQ(message({2, 3, 1, 8}, {2, 3, 1, 8}), "v: depth 8 is not the cache's 5");
  EXPECT_EQ(message({2, 3, 1, 8}, {2, 3, 2, 5}), "v: length 2 is not k's length 1");
  EXPECT_EQ(cache.size(), 30);
  expect_equal(cache.keys(), k.view());
  expect_equal(cache.values(), v.view());
}

TEST(contiguous_cache, refuses_shapes_that_cannot_be) {
  const auto message = [](index_t batches, index_t heads, index_t capacity, index_t depth,
                          index_t value_depth) {
    return error_of([&] { contiguous<float> cache(batches, heads, capacity, depth, value_depth); });
  };
  EXPECT_EQ(message(-1, 1, 1, 1, 1), "cache: batch count -1 is negative");
  EXPECT_EQ(message(1, -2, 1, 1, 1), "cache: key head count -2 is negative");
  EXPECT_EQ(message(1, 1, -3, 1, 1), "cache: capacity -3 is negative");
  EXPECT_EQ(message(1, 1, 1, -4, 1), "cache: depth -4 is negative");
  EXPECT_EQ(message(1, 1, 1, 1, -5), "cache: value depth -5 is negative");
  EXPECT_EQ(message(1, 8, std::numeric_limits<index_t>::max() / 2, 64, 64),
            "cache: keys of shape [1, 8, 4611686018427387903, 64] are too large");
  EXPECT_EQ(message(1, 8, 1024, 64, index_t{1} << 50),
            "cache: values of shape [1, 8, 1024, 1125899906842624] are too large");
}

}  // namespace
