// Checks that every mask must pass: its answers, for one position and for packs of keys, its tiles
// and its key ranges against a predicate that is written from the mask's definition.
#pragma once

#include <gtest/gtest.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <heed/core/position.hpp>
#include <ostream>
#include <random>
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

// What can be asked of a mask, whatever its type: the checks are compiled once for all masks.
class asked_mask {
 public:
  virtual ~asked_mask() = default;
  virtual bool at(const heed::position& p) const = 0;
  virtual heed::visibility tile(const heed::tile_extent& t) const = 0;
  virtual heed::key_ranges keys(const heed::tile_extent& t) const = 0;

  // The answers for `valid` keys from `first` on, as bits, of a pack with so many lanes.
  struct pack {
    int lanes;
    std::uint64_t (*bits)(const void* mask, const heed::position& first, int valid);
  };
  const void* mask = nullptr;
  std::vector<pack> packs;  // none where the mask is for single positions
};

template <class Mask>
class asked_mask_of final : public asked_mask {
 public:
  explicit asked_mask_of(const Mask& of) : mask_(of) {
    mask = &of;
    if constexpr (answers<Mask, heed::pack_position<float, 4>>) {
      add_pack<float, 4>();
      add_pack<double, 2>();
#if defined(__AVX2__)
      add_pack<float, 8>();
      add_pack<double, 4>();
#endif
#if defined(__AVX512F__)
      add_pack<float, 16>();
      add_pack<double, 8>();
#endif
    }
  }
  bool at(const heed::position& p) const override { return mask_(p); }
  heed::visibility tile(const heed::tile_extent& t) const override {
    return heed::tile_visibility(mask_, t);
  }
  heed::key_ranges keys(const heed::tile_extent& t) const override {
    return heed::visible_keys(mask_, t);
  }

 private:
  template <class Real, int N>
  void add_pack() {
    static_assert(answers<Mask, heed::pack_position<Real, N>>);
    packs.push_back({N, [](const void* of, const heed::position& first, int valid) {
                       const auto p = heed::pack_at<Real, N>(first, first.k + valid);
                       const typename heed::pack<Real, N>::mask answer =
                           (*static_cast<const Mask*>(of))(p);
                       std::uint64_t bits = 0;
                       for (int lane = 0; lane < valid; ++lane) {
                         bits |= std::uint64_t{answer[lane] != 0} << lane;
                       }
                       return bits;
                     }});
  }

  const Mask& mask_;
};

using mask_truth = std::function<bool(const heed::position&)>;

// Everything but what check() refuses, for one shape.
void check_mask(const asked_mask& mask, const mask_truth& truth, const mask_shape& shape,
                tiles promise_of_tiles, keys promise_of_keys);

// Everything, for one shape. truth(const heed::position&) is the definition.
template <class Mask>
void expect_mask(const Mask& mask_under_test, const mask_truth& truth, const mask_shape& shape,
                 tiles promise_of_tiles = tiles::exact, keys promise_of_keys = keys::exact) {
  static_assert(heed::mask_function<Mask>);
  SCOPED_TRACE(shape);
  EXPECT_NO_THROW(heed::check_modifier(mask_under_test, shape.as_call()));
  check_mask(asked_mask_of<Mask>(mask_under_test), truth, shape, promise_of_tiles, promise_of_keys);
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
