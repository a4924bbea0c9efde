// Streams that have seen more tokens than 32 bits count: positions stay exact in the ledger, and
// attention over a store far into a stream is what it is at its beginning.
#include <vector>

#include "heed/cache/attention.hpp"
#include "heed/cache/ring.hpp"
#include "heed/mask/causal.hpp"
#include "heed/score/alibi.hpp"
#include "support/backends.hpp"
#include "support/cache_checks.hpp"

namespace {

namespace cache = heed::cache;
using heed::index_t;
using heed::tensor_view;
using heed_test::tensor;

constexpr index_t heads = 4, key_heads = 2, depth = 16;

// The tokens of a ring as they would stand in a stream that is `past` tokens further on.
template <class T>
class further_on {
 public:
  further_on(const cache::ring<T>& ring, index_t past) : ring_(ring) {
    const auto kept = ring.kept();
    for (std::size_t b = 0; b < kept.seen.size(); ++b) {
      for (index_t h = 0; h < kept.key_heads; ++h) {
        for (const auto position : kept.at(static_cast<index_t>(b), h)) {
          positions_.push_back(static_cast<cache::token_position>(position + past));
        }
      }
      seen_.push_back(kept.seen[b] + past);
      lengths_.push_back(kept.lengths[b]);
    }
    const std::size_t slots = static_cast<std::size_t>(ring.size());
    for (std::size_t i = 0; i < positions_.size(); i += slots) {
      lists_.emplace_back(positions_.data() + i, slots);
    }
  }
  auto keys() const { return ring_.keys(); }
  auto values() const { return ring_.values(); }
  auto mask() const { return ring_.mask(); }
  cache::kept_view<false> kept() const { return {lists_.data(), 1, key_heads, lengths_, seen_}; }

 private:
  const cache::ring<T>& ring_;
  std::vector<cache::token_position> positions_;
  std::vector<std::span<const cache::token_position>> lists_;
  std::vector<index_t> lengths_, seen_;
};

// A score of absolute places, too small to matter unless they jump.
struct rise_with_place {
  template <class S, class P>
  S operator()(S s, const P& p) const {
    return s + S(p.k) * S(1e-9f);
  }
};

template <class Backend>
class long_streams : public testing::Test {};
TYPED_TEST_SUITE(long_streams, heed_test::method_backends, heed_test::backend_name);

// Windows and distances do not depend on how many tokens went by: also where the ring's tokens lie
// on both sides of 2³¹, and far behind.
TYPED_TEST(long_streams, attention_depends_on_distances_only) {
  constexpr index_t length = 150, window = 90, queries = 7;
  const auto q = tensor<float>(2, heads, queries, depth).fill(1);
  const auto k = tensor<float>(2, key_heads, length, depth).fill(2);
  cache::ring<float> ring(2, key_heads, 0, window, depth, depth, queries);
  for (index_t at = 0; at < length; at += 5) {
    ring.append(k.view().slice(2, at, 5), k.view().slice(2, at, 5));
  }
  ASSERT_EQ(ring.size(), window + queries - 1);
  tensor<float> near(2, heads, queries, depth), out(2, heads, queries, depth);
  tensor<double> wanted(2, heads, queries, depth);
  const auto attend = [&](const auto& store, tensor<float>& to) {
    heed::attention<TypeParam>(q.view(), store, to.view(), heed::causal{},
                               heed::alibi_for_heads(heads));
  };
  attend(ring, near);
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      for (index_t i = 0; i < queries; ++i) {
        for (index_t d = 0; d < depth; ++d) wanted.view()(b, h, i, d) = near.read()(b, h, i, d);
      }
    }
  }
  for (const index_t past :
       {(index_t{1} << 31) - 100, index_t{1} << 31, index_t{1} << 40, index_t{1} << 60}) {
    SCOPED_TRACE(past);
    attend(further_on(ring, past), out);
    EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 1e-6);
  }
  heed::attention<TypeParam>(q.view(), further_on(ring, (index_t{1} << 31) - 100), out.view(),
                             heed::causal{}, heed::alibi_for_heads(heads), rise_with_place{});
  EXPECT_LE(heed_test::worst_error(out.read(), wanted.read()), 1e-5);
}

// The token that comes after 2³¹ others, and the one after more than memory will ever hold.
TEST(long_streams, positions_are_exact) {
  cache::detail::ledger ledger(1, key_heads);
  const index_t first[] = {2147483646, 2147483647, 2147483648, index_t{1} << 62};
  for (index_t slot = 0; slot < 4; ++slot) {
    ledger.put(slot, first[slot]);
    EXPECT_EQ(ledger.seen(), first[slot] + 1);
  }
  ledger.publish();
  for (std::size_t slot = 0; slot < 4; ++slot) {
    EXPECT_EQ(index_t{ledger.kept<false>().at(0, 1)[slot]}, first[slot]);
  }
  // What grows behind a long past, is cut and shortened, keeps its places too.
  ledger.append(2);
  EXPECT_EQ(index_t{ledger.kept().at(0, 0)[5]}, (index_t{1} << 62) + 2);
  ledger.truncate(3);
  EXPECT_EQ(ledger.seen(), index_t{1} << 62);
  ledger.truncate(2);
  EXPECT_EQ(ledger.seen(), 2147483648);
}

}  // namespace
