// Checks that every mask must pass: its answers, for one position and for packs of keys, its tiles
// and its key ranges against a predicate that is written from the mask's definition.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <heed/core/position.hpp>
#include <ostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "support/errors.hpp"

namespace heed_test {

using heed::index_t;

struct mask_shape {
  index_t batches, heads, queries, keys;

  heed::call_shape as_call() const { return {batches, heads, queries, keys}; }
};

inline std::ostream& operator<<(std::ostream& out, const mask_shape& s) {
  return out << "[batches " << s.batches << ", heads " << s.heads << ", queries " << s.queries
             << ", keys " << s.keys << "]";
}

inline std::vector<mask_shape> mask_shapes(index_t batches = 1, index_t heads = 1) {
  std::vector<mask_shape> shapes;
  for (const index_t queries : {0, 1, 2, 7, 13, 33}) {
    for (const index_t keys : {0, 1, 2, 5, 13, 32, 41}) {
      shapes.push_back({batches, heads, queries, keys});
    }
  }
  return shapes;
}

// What a mask promises about its tiles and its keys, beyond being right.
enum class tiles { right, exact };
enum class keys { right, hull, exact };

template <class Mask, class P>
concept answers = std::invocable<const Mask&, const P&>;

template <class Mask, class Truth>
class mask_checker {
 public:
  mask_checker(const Mask& mask_under_test, const Truth& truth, const mask_shape& shape)
      : mask_(mask_under_test), shape_(shape) {
    const auto count = static_cast<std::size_t>(shape.batches * shape.heads * shape.queries);
    visible_.resize(count * static_cast<std::size_t>(shape.keys));
    for_each_position([&](const heed::position& p) { at(p) = truth(p); });
  }

  void check_positions() const {
    for_each_position([&](const heed::position& p) {
      const bool answer = mask_(p);
      if (answer != (at(p) != 0)) fail("position") << "answers " << answer << where(p);
    });
  }

  template <class Real, int N>
  void check_packs() const {
    using pack_position = heed::pack_position<Real, N>;
    static_assert(answers<Mask, pack_position>);
    for_each_position([&](const heed::position& first) {
      pack_position p;
      p.batch = first.batch;
      p.head = first.head;
      p.q = first.q;
      p.queries = first.queries;
      p.keys = first.keys;
      p.first_key = first.k;
      p.valid = static_cast<int>(std::min<index_t>(N, first.keys - first.k));
      for (int lane = 0; lane < N; ++lane) {
        p.k.v[lane] = static_cast<heed::integer_of<Real>>(first.k + std::min(lane, p.valid - 1));
      }
      const typename heed::pack<Real, N>::mask answer = mask_(p);
      heed::position one = first;
      for (int lane = 0; lane < p.valid; ++lane, ++one.k) {
        if (answer[lane] != (at(one) != 0)) {
          fail("pack") << N << " lanes from key " << first.k << " answer " << answer[lane]
                       << where(one);
        }
      }
    });
  }

  void check_tiles(tiles promise_of_tiles, keys promise_of_keys) const {
    for (const index_t rows : {1, 3, 8, 64}) {
      for (const index_t columns : {1, 5, 16, 64}) {
        for (index_t batch = 0; batch < shape_.batches; ++batch) {
          for (index_t head = 0; head < shape_.heads; ++head) {
            for (index_t q = 0; q < shape_.queries; q += rows) {
              for (index_t k = 0; k < shape_.keys; k += columns) {
                heed::tile_extent t;
                t.batch = batch;
                t.head = head;
                t.q_begin = q;
                t.q_end = std::min(shape_.queries, q + rows);
                t.k_begin = k;
                t.k_end = std::min(shape_.keys, k + columns);
                t.queries = shape_.queries;
                t.keys = shape_.keys;
                check_tile(t, promise_of_tiles);
                check_keys(t, promise_of_keys);
              }
            }
          }
        }
      }
    }
    // Empty ranges ask for nothing, but may be asked about.
    heed::tile_extent empty;
    empty.queries = shape_.queries;
    empty.keys = shape_.keys;
    if (shape_.batches > 0 && shape_.heads > 0) {
      heed::tile_visibility(mask_, empty);
      EXPECT_EQ(heed::visible_keys(mask_, empty).size(), 0) << shape_;
    }
  }

 private:
  template <class Action>
  void for_each_position(const Action& action) const {
    heed::position p;
    p.queries = shape_.queries;
    p.keys = shape_.keys;
    for (p.batch = 0; p.batch < shape_.batches; ++p.batch) {
      for (p.head = 0; p.head < shape_.heads; ++p.head) {
        for (p.q = 0; p.q < shape_.queries; ++p.q) {
          for (p.k = 0; p.k < shape_.keys; ++p.k) action(p);
        }
      }
    }
  }

  void check_tile(const heed::tile_extent& t, tiles promise) const {
    bool any = false, every = true;
    for_each_pair(t, [&](const heed::position& p) {
      any |= at(p) != 0;
      every &= at(p) != 0;
    });
    const heed::visibility answer = heed::tile_visibility(mask_, t);
    const heed::visibility truth = !any    ? heed::visibility::none
                                   : every ? heed::visibility::all
                                           : heed::visibility::some;
    const bool right = answer == truth || answer == heed::visibility::some;
    if (!right || (promise == tiles::exact && answer != truth)) {
      fail("tile") << "answers " << static_cast<int>(answer) << ", is " << static_cast<int>(truth)
                   << where(t);
    }
  }

  void check_keys(const heed::tile_extent& t, keys promise) const {
    std::vector<char> needed(static_cast<std::size_t>(t.k_end - t.k_begin), 0);
    for_each_pair(t, [&](const heed::position& p) {
      if (at(p) != 0) needed[static_cast<std::size_t>(p.k - t.k_begin)] = 1;
    });
    std::vector<char> given(needed.size(), 0);
    for (const auto& range : heed::visible_keys(mask_, t)) {
      ASSERT_LE(t.k_begin, range.begin);
      ASSERT_LT(range.begin, range.end);
      ASSERT_LE(range.end, t.k_end);
      for (index_t k = range.begin; k < range.end; ++k) {
        given[static_cast<std::size_t>(k - t.k_begin)] = 1;
      }
    }
    std::size_t first = 0, end = needed.size();
    while (first < end && needed[first] == 0) ++first;
    while (end > first && needed[end - 1] == 0) --end;
    for (std::size_t i = 0; i < needed.size(); ++i) {
      const bool extra = given[i] != 0 && needed[i] == 0;
      const bool allowed =
          promise == keys::right || (promise == keys::hull && first <= i && i < end);
      if ((needed[i] != 0 && given[i] == 0) || (extra && !allowed)) {
        fail("keys") << "key " << t.k_begin + static_cast<index_t>(i) << " is given "
                     << bool(given[i]) << ", needed " << bool(needed[i]) << where(t);
      }
    }
  }

  template <class Action>
  void for_each_pair(const heed::tile_extent& t, const Action& action) const {
    heed::position p{t.batch, t.head, 0, 0, t.queries, t.keys};
    for (p.q = t.q_begin; p.q < t.q_end; ++p.q) {
      for (p.k = t.k_begin; p.k < t.k_end; ++p.k) action(p);
    }
  }

  std::size_t index(const heed::position& p) const {
    return static_cast<std::size_t>(
        ((p.batch * shape_.heads + p.head) * shape_.queries + p.q) * shape_.keys + p.k);
  }
  char at(const heed::position& p) const { return visible_[index(p)]; }
  auto at(const heed::position& p) -> std::vector<char>::reference { return visible_[index(p)]; }

  // A stream for one failure.
  struct failure {
    std::ostringstream text;
    failure() = default;
    failure(failure&&) = default;
    ~failure() { ADD_FAILURE() << text.str(); }
    template <class T>
    failure& operator<<(const T& value) {
      text << value;
      return *this;
    }
  };
  failure fail(const char* what) const {
    failure result;
    result << what << " of " << shape_ << ": ";
    return result;
  }
  static std::string where(const heed::position& p) {
    return " at batch " + std::to_string(p.batch) + ", head " + std::to_string(p.head) +
           ", query " + std::to_string(p.q) + ", key " + std::to_string(p.k);
  }
  static std::string where(const heed::tile_extent& t) {
    return " in batch " + std::to_string(t.batch) + ", head " + std::to_string(t.head) +
           ", queries [" + std::to_string(t.q_begin) + ", " + std::to_string(t.q_end) +
           "), keys [" + std::to_string(t.k_begin) + ", " + std::to_string(t.k_end) + ")";
  }

  const Mask& mask_;
  mask_shape shape_;
  std::vector<char> visible_;
};

// Everything, for one shape. truth(const heed::position&) is the definition.
template <class Mask, class Truth>
void expect_mask(const Mask& mask_under_test, const Truth& truth, const mask_shape& shape,
                 tiles promise_of_tiles = tiles::exact, keys promise_of_keys = keys::exact) {
  static_assert(heed::mask_function<Mask>);
  SCOPED_TRACE(shape);
  EXPECT_NO_THROW(heed::check_modifier(mask_under_test, shape.as_call()));
  const mask_checker<Mask, Truth> checker(mask_under_test, truth, shape);
  checker.check_positions();
  checker.check_tiles(promise_of_tiles, promise_of_keys);
  if constexpr (answers<Mask, heed::pack_position<float, 4>>) {
    checker.template check_packs<float, 4>();
    checker.template check_packs<double, 2>();
#if defined(__AVX2__)
    checker.template check_packs<float, 8>();
    checker.template check_packs<double, 4>();
#endif
#if defined(__AVX512F__)
    checker.template check_packs<float, 16>();
    checker.template check_packs<double, 8>();
#endif
  }
}

// Random flags, one of `period` set on average.
template <class T = std::uint8_t>
std::vector<T> random_flags(index_t count, unsigned seed, unsigned period = 2) {
  std::mt19937 generator(seed);
  std::vector<T> flags(static_cast<std::size_t>(count));
  for (auto& flag : flags) flag = static_cast<T>(generator() % period == 0);
  return flags;
}

}  // namespace heed_test
