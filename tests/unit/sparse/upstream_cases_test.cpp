// Sparse methods against cases that other projects' code produced (tests/vectors: sparse, hf).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "heed/mask/causal.hpp"
#include "heed/mask/mask.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/relative_table.hpp"
#include "heed/sparse/bigbird.hpp"
#include "heed/sparse/local.hpp"
#include "heed/sparse/longformer.hpp"
#include "heed/sparse/lsh.hpp"
#include "heed/sparse/select.hpp"
#include "support/backends.hpp"
#include "support/case_array.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::call_shape;
using heed::index_t;
using heed::position;
using heed::tensor_view;
using heed_test::case_array;
using heed_test::relative_error;
using heed_test::vector_case;
namespace sparse = heed::sparse;

constexpr double bound = 1e-5;  // relative, root mean square

vector_case open(const std::string& path) {
  return vector_case(std::filesystem::path(HEED_TEST_VECTORS) / path);
}

// q, k, v, and an output to compare with the case's.
struct operands {
  explicit operands(const vector_case& c, const char* out_name = "O", const char* q_name = "Q",
                    const char* k_name = "K", const char* v_name = "V")
      : q(c.input(q_name)),
        k(c.input(k_name)),
        v(c.input(v_name)),
        wanted(c.output(out_name)),
        numbers(wanted.numbers.size(), NAN),
        scale(c.meta.at("attrs").value("scale", 0.0)) {}
  tensor_view<float, 4> out() { return {numbers.data(), wanted.view().extents()}; }
  call_shape call() const { return {q.extent(0), q.extent(1), q.extent(2), k.extent(2)}; }
  double error() { return relative_error(out(), wanted.view()); }

  case_array<float> q, k, v;
  case_array<double> wanted;
  std::vector<float> numbers;
  double scale;
};

template <class Backend>
class sparse_cases : public ::testing::Test {};
TYPED_TEST_SUITE(sparse_cases, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(sparse_cases, local_attention) {
  for (const char* name :
       {"local_attention_autopad", "local_attention_causal_blocks", "local_attention_noncausal"}) {
    const vector_case c = open(std::string("sparse/") + name);
    SCOPED_TRACE(name);
    operands x(c, "o", "q", "k", "v");
    const index_t window = c.meta.at("attrs").at("window_size").template get<index_t>();
    if (c.meta.at("attrs").at("causal").template get<bool>()) {
      sparse::attention<TypeParam>(x.q.view(), x.k.view(), x.v.view(), x.out(),
                                   sparse::local(x.call(), window, 1, 0), heed::causal{});
    } else {
      sparse::attention<TypeParam>(x.q.view(), x.k.view(), x.v.view(), x.out(),
                                   sparse::local(x.call(), window, 1, 1));
    }
    EXPECT_LE(x.error(), bound);
  }
}

TYPED_TEST(sparse_cases, chunked_and_local_heads) {
  for (const char* name : {"llama4_chunked", "reformer_local_causal"}) {
    const vector_case c = open(std::string("hf/") + name);
    SCOPED_TRACE(name);
    operands x(c);
    const auto& a = c.meta.at("attrs");
    const auto list = sparse::local(x.call(), a.at("chunk").template get<index_t>(),
                                    a.value("before", index_t{0}), 0);
    sparse::attention<TypeParam>(x.q.view(), x.k.view(), x.v.view(), x.out(), list, heed::causal{},
                                 heed::scale(x.scale));
    EXPECT_LE(x.error(), bound);
    const case_array<std::uint8_t> mask(c.input("mask"));
    const auto seen = list.view() & heed::causal{};
    for (index_t q = 0; q < x.call().queries; ++q) {
      for (index_t k = 0; k < x.call().keys; ++k) {
        ASSERT_EQ(seen(position{0, 0, q, k, x.call().queries, x.call().keys}),
                  mask.template view<2>()(q, k) != 0);
      }
    }
  }
}

TYPED_TEST(sparse_cases, long_t5_local) {
  const vector_case c = open("hf/longt5_local");
  operands x(c);
  const auto& a = c.meta.at("attrs");
  const case_array<float> table(c.input("table"));
  const case_array<std::int64_t> bucket(c.output("bucket_of_relative_position"));
  const case_array<std::int64_t> kept(c.input("key_mask"));
  const index_t heads = x.call().heads, span = bucket.extent(0), radius = a.at("radius");
  std::vector<float> bias;
  for (index_t h = 0; h < heads; ++h) {
    for (index_t r = 0; r < span; ++r) {
      bias.push_back(table.view<2>()(bucket.numbers[static_cast<std::size_t>(r)], h));
    }
  }
  const heed::mask real{[&](const position& p) {
    return kept.view<2>()(p.batch, p.q) != 0 && kept.view<2>()(p.batch, p.k) != 0;
  }};
  sparse::attention<TypeParam>(
      x.q.view(), x.k.view(), x.v.view(), x.out(),
      sparse::local(x.call(), a.at("block_len").template get<index_t>(), 1, 1),
      heed::window{radius, radius}, real, heed::scale(x.scale),
      heed::relative_table{tensor_view<const float, 2>(bias.data(), {heads, span}), span / 2});
  EXPECT_LE(x.error(), bound);
}

TYPED_TEST(sparse_cases, bigbird) {
  for (const char* name : {"bigbird_block_sparse", "bigbird_block_sparse_random"}) {
    const vector_case c = open(std::string("hf/") + name);
    SCOPED_TRACE(name);
    operands x(c);
    const case_array<std::int64_t> random(c.input("rand_blocks"));
    const case_array<float> kept(c.input("attention_mask"));
    const index_t block = c.meta.at("attrs").at("block_size");
    const auto counts = sparse::bigbird_counts(x.call().queries / block, random.view<3>());
    const case_array<double> wanted(c.output("multiplicity"));
    for (std::size_t i = 0; i < wanted.numbers.size(); ++i) {
      ASSERT_EQ(static_cast<double>(counts.values[i]), wanted.numbers[i]) << i;
    }
    const heed::mask real{[&](const position& p) {
      return kept.view<2>()(p.batch, p.q) != 0 && kept.view<2>()(p.batch, p.k) != 0;
    }};
    sparse::bigbird<TypeParam>(x.q.view(), x.k.view(), x.v.view(), x.out(), block, random.view<3>(),
                               real, heed::scale(x.scale));
    EXPECT_LE(x.error(), bound);
  }
}

TYPED_TEST(sparse_cases, longformer) {
  const vector_case c = open("hf/longformer_global");
  operands x(c);
  const case_array<float> qg(c.input("Qg")), kg(c.input("Kg")), vg(c.input("Vg"));
  const case_array<std::int64_t> state(c.input("state"));
  const index_t window = c.meta.at("attrs").at("attention_window");
  sparse::longformer<TypeParam>(x.q.view(), x.k.view(), x.v.view(), qg.view(), kg.view(), vg.view(),
                                state.view<2>(), window / 2, x.out(), heed::scale(x.scale));
  EXPECT_LE(x.error(), bound);
}

TYPED_TEST(sparse_cases, block_indexer) {
  const vector_case c = open("hf/minimax_m3_block_indexer");
  operands x(c);
  const auto& a = c.meta.at("attrs");
  const index_t block = a.at("block_size"), count = a.at("topk_blocks");
  const case_array<float> index_q(c.input("index_q")), index_k(c.input("index_k"));
  const tensor_view<const float, 4> index_keys(
      index_k.numbers.data(), {index_k.extent(0), 1, index_k.extent(1), index_k.extent(2)});
  sparse::table scores = sparse::maximum_scores(index_q.view(), index_keys, block, 1.0, true);
  const index_t length = x.call().keys;
  sparse::make_causal(scores.view(), {1, block, length, length}, true);
  const sparse::table& final_scores = scores;
  const auto list = sparse::select(final_scores.view(), sparse::top_k(count), 1, block);
  const case_array<std::int64_t> wanted(c.output("blocks"));
  const case_array<std::uint8_t> mask(c.output("mask"));
  const auto seen = list.view() & heed::causal{};
  for (index_t h = 0; h < 2; ++h) {
    for (index_t q = 0; q < length; ++q) {
      std::vector<index_t> blocks;
      for (index_t n = 0; n < count; ++n) {
        if (wanted.view()(0, h, q, n) >= 0) blocks.push_back(wanted.view()(0, h, q, n));
      }
      std::sort(blocks.begin(), blocks.end());
      const auto row = list.view().row(0, h, q);
      EXPECT_EQ(std::vector<index_t>(row.begin(), row.end()), blocks) << h << " " << q;
      for (index_t k = 0; k < length; ++k) {
        ASSERT_EQ(seen(position{0, h, q, k, length, length}), mask.view()(0, h, q, k) != 0);
      }
    }
  }
  const std::vector<double> wanted_lse = c.output("lse").template as<double>();
  std::vector<float> lse(wanted_lse.size(), NAN);
  sparse::attention<TypeParam>(
      x.q.view(), x.k.view(), x.v.view(), x.out(), list, heed::causal{}, heed::scale(x.scale),
      heed::lse_to{tensor_view<float, 3>(lse.data(), {1, x.call().heads, length})});
  EXPECT_LE(x.error(), bound);
  for (std::size_t i = 0; i < lse.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(lse[i]), wanted_lse[i], 1e-5) << i;
  }
}

TYPED_TEST(sparse_cases, reformer_pytorch) {
  for (const char* name : {"reformer_lsh_causal", "reformer_lsh_noncausal_nodup"}) {
    const vector_case c = open(std::string("sparse/") + name);
    SCOPED_TRACE(name);
    const auto& a = c.meta.at("attrs");
    const case_array<float> qk(c.input("qk")), v(c.input("v")), rotations(c.input("rotations"));
    const case_array<double> wanted(c.output("o"));
    const index_t batches = qk.extent(0), length = qk.extent(1), depth = qk.extent(2);
    const index_t rounds = a.at("n_hashes"), half = rotations.extent(3);
    const auto as_heads = [&](const auto& x) {
      return tensor_view<const float, 4>(x.numbers.data(), {batches, 1, length, depth});
    };
    const auto buckets = sparse::lsh_buckets(
        as_heads(qk), tensor_view<const float, 3>(rotations.numbers.data(), {depth, rounds, half}));
    std::vector<std::int64_t> numbered;
    for (std::size_t i = 0; i < buckets.size(); ++i) {
      const index_t round = static_cast<index_t>(i) / length % rounds;
      numbered.push_back(buckets[i] + round * 2 * half);
    }
    EXPECT_EQ(numbered, c.output("buckets").template as<std::int64_t>());
    sparse::lsh_options how;
    how.chunk = a.at("bucket_size");
    how.causal = a.at("causal");
    how.duplicates = a.at("allow_duplicate_attention");
    how.across_buckets = a.at("attend_across_buckets");
    std::vector<float> numbers(wanted.numbers.size(), NAN);
    const tensor_view<float, 4> out(numbers.data(), {batches, 1, length, depth});
    sparse::lsh_attention<TypeParam>(
        as_heads(qk), as_heads(v), out,
        tensor_view<const index_t, 4>(buckets.data(), {batches, 1, rounds, length}), how);
    EXPECT_LE(relative_error(out, tensor_view<const double, 4>(wanted.numbers.data(),
                                                               {batches, 1, length, depth})),
              bound);
  }
}

TYPED_TEST(sparse_cases, reformer_of_transformers) {
  const vector_case c = open("hf/reformer_lsh");
  const auto& a = c.meta.at("attrs");
  operands x(c, "O", "QK", "QK", "V");
  const case_array<std::int64_t> buckets(c.input("buckets"));
  sparse::lsh_options how;
  how.chunk = a.at("chunk");
  how.causal = a.at("causal").template get<int>() != 0;
  how.self_score = -1e5;
  sparse::lsh_attention<TypeParam>(x.q.view(), x.v.view(), x.out(), buckets.view(), how,
                                   heed::scale(1.0));
  EXPECT_LE(x.error(), bound);
}

}  // namespace
