#include "support/mask_checks.hpp"

#include <algorithm>
#include <cstddef>
#include <sstream>
#include <string>

namespace heed_test {

namespace {

class mask_checker {
 public:
  mask_checker(const asked_mask& mask_under_test, const mask_truth& truth, const mask_shape& shape)
      : mask_(mask_under_test), shape_(shape) {
    const auto count = static_cast<std::size_t>(shape.batches * shape.heads * shape.queries);
    visible_.resize(count * static_cast<std::size_t>(shape.keys));
    for_each_position([&](const heed::position& p) { at(p) = truth(p); });
  }

  void check_positions() const {
    for_each_position([&](const heed::position& p) {
      const bool answer = mask_.at(p);
      if (answer != (at(p) != 0)) fail("position") << "answers " << answer << where(p);
    });
  }

  void check_packs() const {
    for (const asked_mask::pack& pack : mask_.packs) {
      for_each_position([&](const heed::position& first) {
        const auto valid = static_cast<int>(std::min<index_t>(pack.lanes, first.keys - first.k));
        const std::uint64_t answer = pack.bits(mask_.mask, first, valid);
        heed::position one = first;
        for (int lane = 0; lane < valid; ++lane, ++one.k) {
          const bool of_lane = (answer >> lane & 1) != 0;
          if (of_lane != (at(one) != 0)) {
            fail("pack") << pack.lanes << " lanes from key " << first.k << " answer " << of_lane
                         << where(one);
          }
        }
      });
    }
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
      mask_.tile(empty);
      EXPECT_EQ(mask_.keys(empty).size(), 0) << shape_;
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
    const heed::visibility answer = mask_.tile(t);
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
    for (const auto& range : mask_.keys(t)) {
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

  const asked_mask& mask_;
  mask_shape shape_;
  std::vector<char> visible_;
};

}  // namespace

void check_mask(const asked_mask& mask, const mask_truth& truth, const mask_shape& shape,
                tiles promise_of_tiles, keys promise_of_keys) {
  const mask_checker checker(mask, truth, shape);
  checker.check_positions();
  checker.check_tiles(promise_of_tiles, promise_of_keys);
  checker.check_packs();
}

}  // namespace heed_test
