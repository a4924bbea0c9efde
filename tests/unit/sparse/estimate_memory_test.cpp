// Estimators that reduce scores of every query and key on the way: what they keep beside their
// result is linear in the lengths, and the result has the bits of the whole table's reduction.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

#include "heed/core/thread_pool.hpp"
#include "heed/sparse/estimate.hpp"
#include "support/tensor.hpp"

namespace {

// Bytes that are allocated by `new`, now and at most.
std::size_t held = 0, most = 0;

}  // namespace

// Sanitizers have operators of their own, some of which meet these.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HEED_TEST_COUNTS_BYTES 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HEED_TEST_COUNTS_BYTES 0
#endif
#endif
#if !defined(HEED_TEST_COUNTS_BYTES)
#define HEED_TEST_COUNTS_BYTES 1
// Every block begins with its size.
static constexpr std::size_t head = 64;
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* const block = std::malloc(size + head);
  if (block == nullptr) std::abort();
  *static_cast<std::size_t*>(block) = size;
  held += size;
  most = std::max(most, held);
  return static_cast<char*>(block) + head;
}
[[gnu::noinline]] void operator delete(void* data) noexcept {
  if (data == nullptr) return;
  void* const block = static_cast<char*>(data) - head;
  held -= *static_cast<std::size_t*>(block);
  std::free(block);
}
void operator delete(void* data, std::size_t) noexcept { operator delete(data); }
#endif

namespace {

using heed::index_t;
using heed_test::tensor;
namespace sparse = heed::sparse;

// Bytes beside the result that an estimator needs for L queries and keys.
template <class Estimate>
double bytes_beside(index_t length, const Estimate& estimate) {
  const auto q = tensor<float>(1, 2, length, 4).fill(1), k = tensor<float>(1, 1, length, 4).fill(2);
  const std::size_t before = held;
  most = held;
  const sparse::table result = estimate(q.read(), k.read());
  return static_cast<double>(most - before - result.values.size() * sizeof(float));
}

TEST(estimate_memory, grows_with_the_length_only) {
  if (HEED_TEST_COUNTS_BYTES == 0) GTEST_SKIP() << "a sanitizer allocates by its own operators";
  const auto maximum = [](const auto& q, const auto& k) {
    return sparse::maximum_scores(q, k, 64, 0.5, true);
  };
  const auto sampled = [](const auto& q, const auto& k) {
    return sparse::sampled_mass(q, k, 0, 2, 0.5, true);
  };
  EXPECT_LE(bytes_beside(2000, maximum), 2.1 * bytes_beside(1000, maximum));
  EXPECT_LE(bytes_beside(2000, sampled), 2.1 * bytes_beside(1000, sampled));
  EXPECT_LE(bytes_beside(2000, maximum), 100 * 2000);
}

TEST(estimate_memory, bits_are_those_of_the_table) {
  for (const index_t keys : {5, 64, 150}) {
    for (const bool causal : {false, true}) {
      const auto q = tensor<float>(2, 4, 70, 19).fill(1), k = tensor<float>(2, 2, keys, 19).fill(2);
      const sparse::table all = sparse::product_scores(q.read(), k.read(), 0.3);
      const index_t blocks = (keys + 15) / 16;
      sparse::table wanted({2, 4, 70, blocks}, heed::minus_infinity<float>());
      for (index_t b = 0; b < 2; ++b) {
        for (index_t h = 0; h < 4; ++h) {
          for (index_t i = 0; i < 70; ++i) {
            for (index_t j = 0; j < keys && (!causal || j <= i + keys - 70); ++j) {
              float& to = wanted.view()(b, h, i, j / 16);
              to = std::max(to, all.view()(b, h, i, j));
            }
          }
        }
      }
      EXPECT_EQ(sparse::maximum_scores(q.read(), k.read(), 16, 0.3, causal).values, wanted.values);
    }
  }
}

}  // namespace
