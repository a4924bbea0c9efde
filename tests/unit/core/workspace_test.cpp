// The scratch arena and the arrays carved out of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <heed/core/workspace.hpp>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "support/errors.hpp"

namespace {

using heed::index_t;
using heed::workspace;
using heed::detail::bump;
using heed_test::error_of;

static_assert(!std::is_copy_constructible_v<workspace> && !std::is_copy_assignable_v<workspace>);
static_assert(std::is_nothrow_move_constructible_v<workspace>);
static_assert(std::is_nothrow_move_assignable_v<workspace>);

bool aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % workspace::alignment == 0;
}

TEST(workspace, is_empty_at_first) {
  workspace memory;
  EXPECT_EQ(memory.size(), 0);
  EXPECT_NO_THROW(memory.reserve(0));
  EXPECT_EQ(memory.size(), 0);
  memory.release();
}

TEST(workspace, keeps_its_memory) {
  workspace memory;
  std::byte* const first = memory.reserve(1000);
  ASSERT_NE(first, nullptr);
  EXPECT_TRUE(aligned(first));
  EXPECT_GE(memory.size(), 1000);
  std::memset(first, 1, 1000);
  for (index_t size : {0, 1, 500, 1000}) EXPECT_EQ(memory.reserve(size), first);
}

TEST(workspace, grows_in_few_steps) {
  workspace memory;
  int steps = 0;
  for (index_t size = 1; size <= 100000; ++size) {
    const index_t before = memory.size();
    std::byte* const data = memory.reserve(size);
    ASSERT_TRUE(aligned(data));
    ASSERT_GE(memory.size(), size);
    data[size - 1] = std::byte{1};
    if (memory.size() != before) ++steps;
  }
  EXPECT_LT(steps, 40);
  EXPECT_LT(memory.size(), 150001);
}

TEST(workspace, gives_its_memory_back) {
  workspace memory;
  memory.reserve(1000);
  memory.release();
  EXPECT_EQ(memory.size(), 0);
  memory.release();
  EXPECT_NE(memory.reserve(10), nullptr);
}

TEST(workspace, moves) {
  workspace a;
  std::byte* const data = a.reserve(100);
  workspace b = std::move(a);
  EXPECT_EQ(a.size(), 0);  // NOLINT: empty after the move, and usable
  EXPECT_EQ(b.reserve(100), data);
  workspace c;
  c.reserve(7);
  c = std::move(b);
  EXPECT_EQ(c.reserve(100), data);
  EXPECT_NE(a.reserve(10), nullptr);
}

TEST(workspace, keeps_another_one_for_calls_while_it_is_in_use) {
  workspace memory;
  std::byte* const outer = memory.reserve(1000);
  std::byte* const inner = memory.inner().reserve(500);
  std::memset(outer, 1, 1000);
  std::memset(inner, 2, 500);
  EXPECT_EQ(outer[999], std::byte{1});
  EXPECT_GE(memory.size(), 1500);
  EXPECT_EQ(memory.inner().reserve(500), inner);
  memory.reserve(100000);  // growing leaves the inner one alone
  EXPECT_EQ(memory.inner().reserve(500), inner);
  workspace moved = std::move(memory);
  EXPECT_EQ(moved.inner().reserve(500), inner);
  moved.release();
  EXPECT_EQ(moved.size(), 0);
}

TEST(workspace, refuses_sizes_that_cannot_be) {
  workspace memory;
  EXPECT_EQ(error_of([&] { memory.reserve(-1); }),
            "workspace: -1 bytes are outside [0, 4611686018427387903]");
  EXPECT_EQ(error_of([&] { memory.reserve(std::numeric_limits<index_t>::max()); }),
            "workspace: 9223372036854775807 bytes are outside [0, 4611686018427387903]");
  EXPECT_EQ(memory.size(), 0);
}

struct plain_pair {
  float score;
  int index;
};

TEST(bump, counts_and_hands_out_the_same) {
  float* scores = nullptr;
  char* flags = nullptr;
  double* sums = nullptr;
  plain_pair* pairs = nullptr;
  double* none = nullptr;
  const auto lay_out = [&](bump& memory) {
    scores = memory.take<float>(17);
    flags = memory.take<char>(3);
    none = memory.take<double>(0);
    sums = memory.take<double>(8);
    pairs = memory.take<plain_pair>(9);
  };
  bump counted;
  lay_out(counted);
  EXPECT_EQ(scores, nullptr);
  EXPECT_EQ(counted.bytes(), 128 + 64 + 0 + 64 + 128);

  workspace memory;
  bump taken(memory.reserve(counted.bytes()));
  lay_out(taken);
  EXPECT_EQ(taken.bytes(), counted.bytes());
  for (const void* array : {static_cast<const void*>(scores), static_cast<const void*>(flags),
                            static_cast<const void*>(sums), static_cast<const void*>(pairs)}) {
    EXPECT_TRUE(aligned(array));
  }
  // No two overlap, and the last one ends within the block.
  std::fill_n(scores, 17, 1.f);
  std::fill_n(flags, 3, 'x');
  std::fill_n(sums, 8, 2.0);
  std::fill_n(pairs, 9, plain_pair{3.f, 4});
  EXPECT_EQ(scores[16], 1.f);
  EXPECT_EQ(flags[2], 'x');
  EXPECT_EQ(sums[7], 2.0);
  EXPECT_LE(reinterpret_cast<std::byte*>(pairs + 9), memory.reserve(0) + counted.bytes());
}

TEST(bump, refuses_counts_that_overflow) {
  bump counted;
  EXPECT_EQ(
      error_of([&] { counted.take<double>(index_t{1} << 61); }),
      "workspace: an array of 2305843009213693952 elements of 8 bytes overflows 64-bit sizes");
  EXPECT_EQ(error_of([&] { counted.take<float>(-1); }),
            "workspace: an array of -1 elements of 4 bytes overflows 64-bit sizes");
  counted.take<char>((index_t{1} << 62) + 1);
  EXPECT_EQ(
      error_of([&] { counted.take<char>(index_t{1} << 62); }),
      "workspace: an array of 4611686018427387904 elements of 1 bytes overflows 64-bit sizes");
}

}  // namespace
