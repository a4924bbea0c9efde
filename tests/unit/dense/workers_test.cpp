// Results are bit-identical on every executor and for any number of workers, and scratch memory
// is linear in the number of keys.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "heed/core/thread_pool.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/score/score.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;

// Items in reverse order, on alternating workers.
struct backwards {
  int workers() const { return 3; }
  template <class Body>
  void run(index_t count, const Body& body) const {
    for (index_t item = count; item-- > 0;) body(item, static_cast<int>(item % 3));
  }
};

template <class Backend>
class workers : public ::testing::Test {};
TYPED_TEST_SUITE(workers, heed_test::method_backends, heed_test::backend_name);

TYPED_TEST(workers, results_are_bit_identical_on_any_executor) {
  struct call {
    index_t heads, key_heads, queries, keys;
  };
  for (const call& c : {call{8, 2, 1, 3000}, call{2, 1, 130, 700}, call{1, 1, 300, 300}}) {
    tensor<float> q(2, c.heads, c.queries, 40), k(2, c.key_heads, c.keys, 40);
    tensor<float> v(2, c.key_heads, c.keys, 24);
    q.fill(1), k.fill(2), v.fill(3);
    const auto run = [&](auto& executor) {
      tensor<float> out(2, c.heads, c.queries, 24);
      heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), heed::causal{},
                                 heed::on{executor});
      return std::vector<float>(out.view().data(), out.view().data() + out.view().size());
    };
    heed::serial serial;
    const std::vector<float> wanted = run(serial);
    const auto same = [&](const std::vector<float>& got) {
      return std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)) == 0;
    };
    backwards reversed;
    EXPECT_TRUE(same(run(reversed)));
    for (int threads : {1, 2, 3, 7}) {
      heed::thread_pool pool(threads);
      EXPECT_TRUE(same(run(pool))) << threads << " threads";
    }
  }
}

TYPED_TEST(workers, a_workspace_is_reused_and_its_contents_do_not_matter) {
  tensor<float> q(1, 2, 100, 16), k(1, 2, 300, 16), v(1, 2, 300, 16);
  tensor<float> first(1, 2, 100, 16), second(1, 2, 100, 16);
  q.fill(1), k.fill(2), v.fill(3);
  heed::workspace memory;
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), first.view(), heed::scratch{memory});
  const index_t size = memory.size();
  std::memset(memory.reserve(size), 0xff, static_cast<std::size_t>(size));  // NaN everywhere
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), second.view(), heed::scratch{memory});
  EXPECT_EQ(memory.size(), size);
  EXPECT_EQ(std::memcmp(first.view().data(), second.view().data(), 100 * 2 * 16 * sizeof(float)),
            0);
}

TYPED_TEST(workers, a_call_inside_a_score_of_another_call_has_scratch_of_its_own) {
  tensor<float> q(1, 1, 20, 8), k(1, 1, 90, 8), v(1, 1, 90, 8), out(1, 1, 20, 8),
      plain(1, 1, 20, 8);
  tensor<float> inner_q(1, 1, 200, 8), inner_k(1, 1, 900, 8), inner_v(1, 1, 900, 8);
  tensor<float> inner_out(1, 1, 200, 8);
  q.fill(1), k.fill(2), v.fill(3), inner_q.fill(4), inner_k.fill(5), inner_v.fill(6);
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), plain.view());
  bool called = false;
  const heed::score nested{[&](float s, const heed::position&) {
    if (!called) {
      heed::attention<TypeParam>(inner_q.read(), inner_k.read(), inner_v.read(), inner_out.view());
    }
    called = true;
    return s;
  }};
  heed::attention<TypeParam>(q.read(), k.read(), v.read(), out.view(), nested);
  for (index_t d = 0; d < 8; ++d)
    EXPECT_NEAR(out.view()(0, 0, 7, d), plain.view()(0, 0, 7, d), 1e-6f);
}

// Rabe and Staats' point: 16384 queries and keys need no matrix of scores, which would be 1 GiB.
// The window leaves out most of the arithmetic (emulated and sanitized machines run this too) and
// nothing of the memory, which is planned from shapes; the benchmark dense/memory runs it in full.
TYPED_TEST(workers, memory_beside_the_operands_stays_below_ten_mebibytes) {
  constexpr index_t length = 16384, depth = 64;
  tensor<float> q(1, 1, length, depth), k(1, 1, length, depth), v(1, 1, length, depth);
  tensor<float> out(1, 1, length, depth);
  heed::workspace memory;
  heed::attention<TypeParam>(q.fill(1).read(), k.fill(2).read(), v.fill(3).read(), out.view(),
                             heed::window{8}, heed::scratch{memory});
  EXPECT_LE(memory.size(), index_t{10} << 20);
  this->RecordProperty("scratch_bytes", std::to_string(memory.size()));
}

}  // namespace
