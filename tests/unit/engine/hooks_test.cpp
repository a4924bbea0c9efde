// The hooks of the tile loop, apart from it: masks as words of bits, and scores, on rows of up to
// 64 keys, a pack at a time or key by key.
#include "heed/engine/hooks.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using heed::index_t;
using heed::position;
namespace engine = heed::engine;

template <class Real, int Lanes>
struct lanes {
  using real = Real;
  static constexpr int count = Lanes;
};
struct lanes_name {
  template <class L>
  static std::string GetName(int) {
    return std::string(heed::element_name<typename L::real>()) + "_" + std::to_string(L::count);
  }
};

template <class L>
class hooks : public ::testing::Test {};
using all_lanes =
    ::testing::Types<lanes<float, 1>, lanes<float, 4>, lanes<float, 8>, lanes<float, 16>,
                     lanes<double, 1>, lanes<double, 4>, lanes<double, 8>>;
TYPED_TEST_SUITE(hooks, all_lanes, lanes_name);

// A step that starts at key `first` of 1000, in the middle of everything else.
position at_key(index_t first) { return {3, 2, 70, first, 90, 1000}; }

// The bits that a predicate of one position gives.
template <class Predicate>
std::uint64_t expected_bits(const Predicate& visible, position p, int count) {
  std::uint64_t bits = 0;
  for (int c = 0; c < count; ++c, ++p.k) {
    if (visible(p)) bits |= std::uint64_t{1} << c;
  }
  return bits;
}
constexpr std::array<index_t, 3> starts = {0, 64, 513};

bool same_place(const position& a, const position& b) {
  return a.batch == b.batch && a.head == b.head && a.q == b.q && a.queries == b.queries &&
         a.keys == b.keys;
}

// Scattered over a step: a hash of the key.
bool scattered(index_t k) { return (k * 2654435761 >> 7) % 3 == 0; }

TYPED_TEST(hooks, bits_of_a_mask_of_single_positions) {
  for (const index_t start : starts) {
    for (int count = 1; count <= 64; ++count) {
      const position first = at_key(start);
      int calls = 0;
      const auto mask = [&](const position& p) {
        ++calls;
        EXPECT_TRUE(same_place(p, first));
        EXPECT_TRUE(p.k >= start && p.k < start + count);
        return scattered(p.k);
      };
      const std::uint64_t bits =
          engine::visible_bits<typename TypeParam::real, TypeParam::count>(mask, first, count);
      EXPECT_EQ(calls, count);
      EXPECT_EQ(bits,
                expected_bits([](const position& p) { return scattered(p.k); }, first, count));
    }
  }
}

// Answers for packs alone besides single positions, and writes down how often it was asked.
template <class Real, int N>
struct pack_mask {
  index_t begin, end;
  int* packs;
  int* singles;
  bool operator()(const position& p) const {
    ++*singles;
    return scattered(p.k);
  }
  typename heed::pack<Real, N>::mask operator()(const heed::pack_position<Real, N>& p) const {
    ++*packs;
    EXPECT_TRUE(p.batch == 3 && p.head == 2 && p.q == 70 && p.queries == 90 && p.keys == 1000);
    const index_t left = end - p.first_key;
    EXPECT_EQ(p.valid, left < N ? left : N);
    EXPECT_EQ((p.first_key - begin) % N, 0);
    heed::pack<Real, N> seen(Real(0));
    for (int lane = 0; lane < N; ++lane) {
      // Lanes behind the last key repeat it.
      EXPECT_EQ(p.k[lane], p.first_key + (lane < p.valid ? lane : p.valid - 1));
      seen.v[lane] = scattered(p.k[lane]) ? Real(1) : Real(0);
    }
    return seen != heed::pack<Real, N>(Real(0));
  }
};

TYPED_TEST(hooks, bits_of_a_mask_of_packs) {
  constexpr int n = TypeParam::count;
  for (const index_t start : starts) {
    for (int count = 1; count <= 64; ++count) {
      int packs = 0, singles = 0;
      const auto expected =
          expected_bits([](const position& p) { return scattered(p.k); }, at_key(start), count);
      if constexpr (n > 1) {
        const pack_mask<typename TypeParam::real, n> mask{start, start + count, &packs, &singles};
        EXPECT_EQ((engine::visible_bits<typename TypeParam::real, n>(mask, at_key(start), count)),
                  expected);
        EXPECT_EQ(packs, (count + n - 1) / n);
        EXPECT_EQ(singles, 0);
      } else {
        // One lane: never a pack, even where the mask would take one.
        const pack_mask<typename TypeParam::real, 4> mask{start, start + count, &packs, &singles};
        EXPECT_EQ((engine::visible_bits<typename TypeParam::real, 1>(mask, at_key(start), count)),
                  expected);
        EXPECT_EQ(packs, 0);
        EXPECT_EQ(singles, count);
      }
    }
  }
}

struct interval_of {
  heed::key_interval seen;
  bool operator()(const position&) const {
    ADD_FAILURE() << "a mask with an interval is asked key by key";
    return false;
  }
  heed::key_interval interval(const position& p) const {
    EXPECT_TRUE(same_place(p, at_key(0)));
    return seen;
  }
};

TYPED_TEST(hooks, bits_of_an_interval) {
  constexpr index_t far = index_t{1} << 40;
  for (const index_t start : starts) {
    for (int count = 1; count <= 64; ++count) {
      const std::vector<index_t> ends = {-far,
                                         -1,
                                         0,
                                         start - 1,
                                         start,
                                         start + 1,
                                         start + count / 2,
                                         start + count - 1,
                                         start + count,
                                         start + count + 1,
                                         start + 64,
                                         start + 65,
                                         far};
      for (const index_t begin : ends) {
        for (const index_t end : ends) {  // empty and reversed ones too
          const auto inside = [&](const position& p) { return p.k >= begin && p.k < end; };
          EXPECT_EQ((engine::visible_bits<typename TypeParam::real, TypeParam::count>(
                        interval_of{{begin, end}}, at_key(start), count)),
                    expected_bits(inside, at_key(start), count))
              << "keys [" << begin << ", " << end << ") of " << count << " from " << start;
        }
      }
    }
  }
}

TYPED_TEST(hooks, masked_scores_are_those_with_a_clear_bit) {
  using real = typename TypeParam::real;
  std::mt19937_64 random(7);
  std::vector<std::uint64_t> words = {
      0, ~std::uint64_t{0}, 1, std::uint64_t{1} << 63, 0xaaaaaaaaaaaaaaaa, 0x00ff00ff00ff00ff};
  for (int bit = 1; bit < 64; ++bit) words.push_back(~std::uint64_t{0} >> bit);
  for (int i = 0; i < 50; ++i) words.push_back(random());
  for (const std::uint64_t bits : words) {
    std::array<real, 66> row;  // one number before and behind that must stay
    for (std::size_t c = 0; c < 66; ++c) row[c] = real(0.5) + static_cast<real>(c);
    // What is masked may be anything.
    for (std::size_t c = 0; c < 64; c += 5) {
      if ((bits >> c & 1) == 0) row[c + 1] = std::numeric_limits<real>::quiet_NaN();
    }
    engine::mask_scores<real, TypeParam::count>(row.data() + 1, bits);
    for (std::size_t c = 0; c < 64; ++c) {
      const real kept = real(1.5) + static_cast<real>(c);
      EXPECT_EQ(row[c + 1], (bits >> c & 1) != 0 ? kept : heed::masked_score<real>) << c;
    }
    EXPECT_EQ(row[0], real(0.5));
    EXPECT_EQ(row[65], real(65.5));
  }
}

// Scores of a row and what a functor of single positions makes of them, in its own type.
template <class Real>
struct score_row {
  std::array<Real, 66> before{}, after{};
  score_row() {
    for (std::size_t c = 0; c < 66; ++c) {
      before[c] = after[c] = static_cast<Real>(c) * Real(0.25) - Real(7);
    }
  }
  template <class Function>
  void expect(int count, index_t start, const Function& f) const {
    for (int c = 0; c < count; ++c) {
      const auto at = static_cast<std::size_t>(c) + 1;
      EXPECT_EQ(after[at], f(before[at], start + c)) << "key " << c << " of " << count;
    }
    EXPECT_EQ(after[0], before[0]);
    EXPECT_EQ(after[65], before[65]);
  }
};

// All numbers are small multiples of powers of two, so that every order of operations is exact.
TYPED_TEST(hooks, scores_are_scaled_where_there_is_no_functor) {
  using real = typename TypeParam::real;
  for (int count = 1; count <= 64; ++count) {
    score_row<real> row;
    engine::apply_scores<real, TypeParam::count>(std::tuple<>(), row.after.data() + 1, real(0.5),
                                                 at_key(64), count);
    row.expect(count, 64, [](real s, index_t) { return s * real(0.5); });
  }
}

TYPED_TEST(hooks, scores_of_packs_and_of_single_positions_apply_in_order) {
  using real = typename TypeParam::real;
  constexpr int n = TypeParam::count;
  for (const index_t start : starts) {
    for (int count = 1; count <= 64; ++count) {
      int singles = 0;
      const auto add_key = [&](auto s, const auto& p) {
        using S = decltype(s);
        EXPECT_TRUE(p.batch == 3 && p.head == 2 && p.q == 70 && p.queries == 90 && p.keys == 1000);
        if constexpr (heed::is_pack<S>) {
          EXPECT_EQ(p.first_key + p.valid <= start + count, true);
          for (int lane = 0; lane < n; ++lane) EXPECT_LT(p.k[lane], start + count);
        }
        return s + S(p.k);
      };
      const auto twice = [&](real s, const position& p) {
        ++singles;
        EXPECT_TRUE(same_place(p, at_key(0)));
        EXPECT_TRUE(p.k >= start && p.k < start + count);
        return p.k % 2 == 0 ? s * 2 : s;
      };
      const auto doubled = [](real s, index_t k) { return k % 2 == 0 ? s * 2 : s; };
      {
        score_row<real> row;
        engine::apply_scores<real, n>(std::tuple(add_key, twice), row.after.data() + 1, real(0.5),
                                      at_key(start), count);
        row.expect(count, start, [&](real s, index_t k) {
          return doubled(s * real(0.5) + static_cast<real>(k), k);
        });
        EXPECT_EQ(singles, count);
      }
      {
        score_row<real> row;
        engine::apply_scores<real, n>(std::tuple(twice, add_key), row.after.data() + 1, real(0.5),
                                      at_key(start), count);
        row.expect(count, start, [&](real s, index_t k) {
          return doubled(s * real(0.5), k) + static_cast<real>(k);
        });
      }
    }
  }
}

TYPED_TEST(hooks, a_functor_of_packs_is_called_once_per_pack) {
  using real = typename TypeParam::real;
  constexpr int n = TypeParam::count;
  for (int count = 1; count <= 64; ++count) {
    int calls = 0;
    score_row<real> row;
    const auto negate = [&](auto s, const auto&) {
      ++calls;
      return -s;
    };
    engine::apply_scores<real, n>(std::tuple(negate), row.after.data() + 1, real(1), at_key(0),
                                  count);
    EXPECT_EQ(calls, (count + n - 1) / n);
    row.expect(count, 0, [](real s, index_t) { return -s; });
  }
}

}  // namespace
