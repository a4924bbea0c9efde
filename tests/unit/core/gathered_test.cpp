// gathered_view: attention over rows by their numbers equals attention over copies of the rows, and
// leaves every other row alone. And masks that list their runs of keys.
#include "heed/core/gathered.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "support/backends.hpp"
#include "support/errors.hpp"
#include "support/tensor.hpp"

namespace {

using heed::gathered_view;
using heed::index_t;
using heed::tensor_view;
using heed_test::error_of;
using heed_test::tensor;

// Lists [S, h, n] of distinct row numbers below `rows`, entries from lengths[s] on out of range.
struct lists {
  lists(index_t sequences, index_t heads, index_t count, index_t rows, unsigned seed,
        const std::vector<index_t>& lengths = {})
      : extents{sequences, heads, count} {
    std::mt19937 generator(seed);
    std::vector<index_t> all(static_cast<std::size_t>(rows));
    std::iota(all.begin(), all.end(), index_t{0});
    for (index_t s = 0; s < sequences; ++s) {
      for (index_t h = 0; h < heads; ++h) {
        std::shuffle(all.begin(), all.end(), generator);
        const index_t kept = lengths.empty() ? count : lengths[static_cast<std::size_t>(s)];
        for (index_t i = 0; i < count; ++i) {
          numbers.push_back(i < kept ? all[static_cast<std::size_t>(i)]
                                     : std::numeric_limits<index_t>::max() - 7);
        }
      }
    }
  }
  tensor_view<const index_t, 3> view() const { return {numbers.data(), extents}; }
  std::vector<index_t> numbers;
  tensor_view<const index_t, 3>::shape extents;
};

// The rows of a view, copied.
template <class T>
tensor<T> copied(const gathered_view<const T>& x, const std::vector<index_t>& lengths = {}) {
  tensor<T> result(x.extent(0), x.extent(1), x.extent(2), x.extent(3));
  for (index_t s = 0; s < x.extent(0); ++s) {
    const index_t kept = lengths.empty() ? x.extent(2) : lengths[static_cast<std::size_t>(s)];
    for (index_t h = 0; h < x.extent(1); ++h) {
      for (index_t i = 0; i < kept; ++i) {
        std::copy_n(x.row(s, h, i), x.extent(3), result.view().row(s, h, i));
      }
    }
  }
  return result;
}

template <class Backend>
class gathered : public ::testing::Test {};
TYPED_TEST_SUITE(gathered, heed_test::all_backends, heed_test::backend_name);

// Keys and values by lists, for packed and for few queries, each head group with its own lists.
template <class Backend, class T>
void expect_keys_equal_copies(index_t queries, heed_test::layout how) {
  const index_t batches = 2, heads = 6, key_heads = 3, count = 133, rows = 170, depth = 40;
  const std::vector<index_t> lengths{133, 0, 1, 64, 65, 130, 7, 133, 90, 128, 3, 100};
  tensor<T> k(batches, key_heads, rows, depth, how), v(batches, key_heads, rows, 24, how);
  k.fill(1), v.fill(2);
  // Two lists for each of the 2 · 3 pairs of batch and KV head.
  const lists numbers(12, 1, count, rows, 3, lengths);
  tensor<T> q(12, heads / key_heads, queries, depth);
  q.fill(4);
  const gathered_view<const T> keys(k.read(), numbers.view(), 3);
  const gathered_view<const T> values(v.read(), numbers.view(), 3);
  tensor<T> got(12, 2, queries, 24), wanted(12, 2, queries, 24);
  heed::attention<Backend>(q.read(), keys, values, got.view(), heed::key_lengths{lengths});
  const tensor<T> plain_k = copied(keys, lengths), plain_v = copied(values, lengths);
  heed::attention<Backend>(q.read(), plain_k.read(), plain_v.read(), wanted.view(),
                           heed::key_lengths{lengths});
  wanted.for_each([&, at = index_t{0}](T& x) mutable {
    const auto view = got.view();
    const T mine = view.data()[at++];
    ASSERT_EQ(std::memcmp(&mine, &x, sizeof(T)), 0) << "element " << at - 1;
  });
}

TYPED_TEST(gathered, keys_equal_copies) {
  for (const auto how : {heed_test::layout::dense, heed_test::layout::padded}) {
    expect_keys_equal_copies<TypeParam, float>(1, how);
    expect_keys_equal_copies<TypeParam, float>(70, how);
    expect_keys_equal_copies<TypeParam, Eigen::bfloat16>(3, how);
    expect_keys_equal_copies<TypeParam, Eigen::bfloat16>(70, how);
  }
}

// Queries and outputs by lists, one for all heads; rows that no list names keep their poison.
TYPED_TEST(gathered, queries_and_outputs_equal_copies) {
  const index_t rows = 150, depth = 33;
  const std::vector<index_t> lengths{90, 1, 0, 37};
  tensor<float> q(2, 2, rows, depth, heed_test::layout::by_token), k(4, 1, 77, depth),
      v(4, 1, 77, depth);
  q.fill(1), k.fill(2), v.fill(3);
  // The two lists of a batch entry share no row.
  lists numbers(4, 1, 90, 100, 5, lengths);
  for (index_t s : {1, 3}) {
    for (index_t i = 0; i < 90; ++i) {
      index_t& row = numbers.numbers[static_cast<std::size_t>(s * 90 + i)];
      if (row < rows) row = 100 + i % 50;
    }
  }
  tensor<float> got(2, 2, rows, depth, heed_test::layout::padded), wanted(4, 2, 90, depth);
  std::vector<float> got_lse(4 * 2 * 90), wanted_lse(4 * 2 * 90);
  const auto lse = [](std::vector<float>& x) {
    return heed::lse_to{tensor_view<float, 3>(x.data(), {4, 2, 90})};
  };
  const gathered_view<const float> queries(q.read(), numbers.view());
  const gathered_view<float> out(got.view(), numbers.view());
  heed::attention<TypeParam>(queries, k.read(), v.read(), out, heed::query_lengths{lengths},
                             lse(got_lse));
  const tensor<float> plain_q = copied(queries, lengths);
  heed::attention<TypeParam>(plain_q.read(), k.read(), v.read(), wanted.view(),
                             heed::query_lengths{lengths}, lse(wanted_lse));
  EXPECT_EQ(got_lse, wanted_lse);
  EXPECT_EQ(got.overwritten_around(), 0);
  index_t written = 0;
  got.for_each([&](float& x) { written += heed_test::is_nan(static_cast<double>(x)) ? 0 : 1; });
  EXPECT_EQ(written, (90 + 1 + 0 + 37) * 2 * depth);
  for (index_t s = 0; s < 4; ++s) {
    for (index_t h = 0; h < 2; ++h) {
      for (index_t i = 0; i < lengths[static_cast<std::size_t>(s)]; ++i) {
        ASSERT_TRUE(
            std::equal(out.row(s, h, i), out.row(s, h, i) + depth, wanted.view().row(s, h, i)))
            << s << " " << h << " " << i;
      }
    }
  }
}

// Every third block of 32 keys, listed as runs; the ranges say nothing.
struct listed {
  index_t* calls;
  bool operator()(const heed::position& p) const { return p.k / 32 % 3 == p.q / 70 % 3; }
  template <class Visit>
  void for_each_key_run(const heed::tile_extent& t, Visit visit) const {
    ++*calls;
    for (index_t block = t.k_begin / 32; block * 32 < t.k_end; ++block) {
      for (index_t q = t.q_begin; q < t.q_end; ++q) {
        if (block % 3 == q / 70 % 3) {
          visit(std::max(t.k_begin, block * 32), std::min(t.k_end, block * 32 + 32));
          break;
        }
      }
    }
  }
};

TYPED_TEST(gathered, listed_runs_equal_the_predicate) {
  tensor<float> q(1, 2, 300, 24), k(1, 1, 1501, 24), v(1, 1, 1501, 24);
  q.fill(1), k.fill(2), v.fill(3);
  tensor<float> got(1, 2, 300, 24), wanted(1, 2, 300, 24);
  index_t calls = 0;
  const listed runs{&calls};
  const auto predicate = heed::mask{[&](const heed::position& p) { return runs(p); }};
  heed::tile_counts listed_tiles, all_tiles;
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), got.view(), runs & heed::causal{},
                             heed::count_tiles{listed_tiles});
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), wanted.view(),
                             predicate & heed::causal{}, heed::count_tiles{all_tiles});
  tensor<double> truth(1, 2, 300, 24);
  std::copy_n(wanted.read().data(), wanted.read().size(), truth.view().data());
  EXPECT_LE(heed_test::worst_error<float>(got.read(), truth.read(), 2e-6), 1e-6);
  EXPECT_GT(calls, 0);
  EXPECT_EQ(listed_tiles.visited(), all_tiles.visited());
  EXPECT_LE(listed_tiles.none, all_tiles.none);
}

TEST(gathered, errors) {
  tensor<float> x(2, 4, 10, 8);
  x.fill(1);
  lists numbers(4, 1, 3, 10, 1);
  const auto read = [&](const tensor_view<const index_t, 3>& rows, index_t folded) {
    return error_of([&] { gathered_view<const float>(x.read(), rows, folded); });
  };
  EXPECT_EQ(read(numbers.view(), 3), "gathered_view: folded_heads 3 does not divide head count 4");
  EXPECT_EQ(read(numbers.view(), 0), "gathered_view: folded_heads 0 does not divide head count 4");
  EXPECT_EQ(read(lists(2, 3, 3, 10, 1).view(), 1),
            "gathered_view: rows have 3 lists for 4 heads, must be 1 or as many");
  EXPECT_EQ(read(lists(3, 1, 3, 10, 1).view(), 1),
            "gathered_view: rows have 3 sequences, not a multiple of batch 2 times folded_heads 1");

  tensor<float> q(4, 4, 3, 8), out(4, 4, 3, 8);
  q.fill(2);
  const auto call = [&](const auto& keys, const auto& target) {
    return error_of([&] { heed::attention(q.read(), keys, keys, target); });
  };
  numbers.numbers[7] = 10;
  EXPECT_EQ(call(gathered_view<const float>(x.read(), numbers.view()), out.view()),
            "k: entry 1 of sequence 2 is row 10, must lie in [0, 10)");
  numbers.numbers[7] = -1;
  EXPECT_EQ(call(gathered_view<const float>(x.read(), numbers.view()), out.view()),
            "k: entry 1 of sequence 2 is row -1, must lie in [0, 10)");
  tensor<float> k(4, 4, 5, 8), target(2, 4, 10, 8);
  k.fill(3);
  lists twice(4, 1, 3, 10, 1);
  std::copy_n(twice.numbers.begin(), 3, twice.numbers.begin() + 3);
  EXPECT_EQ(call(k.read(), gathered_view<float>(target.view(), twice.view())),
            "out: entry 0 of sequence 1 writes row " + std::to_string(twice.numbers[0]) +
                " a second time");
  EXPECT_EQ(call(k.read(), gathered_view<float>(x.view(), lists(2, 1, 3, 10, 1).view())),
            "out: batch 2 differs from q's 4");
  using row_numbers = tensor_view<const index_t, 3>;
  EXPECT_EQ(call(gathered_view<const float>(x.read(), row_numbers(nullptr, {4, 1, 3})), out.view()),
            "k: row numbers are null, extents are [4, 1, 3]");
  EXPECT_EQ(call(k.read(), gathered_view<float>(target.view(), row_numbers(nullptr, {4, 1, 3}))),
            "out: row numbers are null, extents are [4, 1, 3]");
  std::vector<float> lse(4 * 4 * 3, 42.0f);
  const lists rows_of_out(4, 1, 3, 10, 5);
  const auto with_lse = [&](const tensor_view<float, 3>::shape& strides) {
    return error_of([&] {
      heed::attention(q.read(), k.read(), k.read(),
                      gathered_view<float>(target.view(), rows_of_out.view()),
                      heed::lse_to{tensor_view<float, 3>(lse.data(), {4, 4, 3}, strides)});
    });
  };
  EXPECT_EQ(with_lse({12, 0, 1}),
            "lse: axis 1 of extent 4 has stride 0, its rows would overwrite each other");
  EXPECT_EQ(with_lse({12, 2, 1}),
            "lse: rows of 4 bytes at its bytes 8 and 8 would overwrite each other");
  for (const float number : lse) EXPECT_EQ(number, 42.0f);
  // Nothing was written.
  target.for_each([](float& value) { EXPECT_TRUE(heed_test::is_nan(static_cast<double>(value))); });
}

}  // namespace
