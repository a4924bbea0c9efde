// What the masks that look things up in the caller's arrays share: broadcast axes, look-ups along
// the keys, scans of a tile, and the check of extents.
#pragma once

#include <cstring>
#include <string>
#include <type_traits>

#include "../../core/error.hpp"
#include "../../core/position.hpp"
#include "../../core/tensor_view.hpp"
#include "answer.hpp"

HEED_NAMESPACE_BEGIN

namespace mask_detail {

// Distance between neighbours of an axis; one element stands for every index of the axis.
template <class T, int Rank>
constexpr index_t step_of(const tensor_view<T, Rank>& view, int axis) {
  return view.extent(axis) == 1 ? 0 : view.stride(axis);
}

// Raises unless an axis has the call's extent, or one element that is used for all of it.
// `array` names the array where the operand has more than one.
inline void check_axis(const char* operand, const char* axis, const char* array, index_t extent,
                       index_t expected, const char* counted) {
  if (extent == expected || extent == 1) return;
  std::string message = std::string(operand) + ": " + axis + " axis";
  if (array != nullptr) message += std::string(" of ") + array;
  raise(message + " has extent " + std::to_string(extent) + ", call has " +
        std::to_string(expected) + " " + counted);
}

// row[k·step] == value for every key of a position. step is 0 or 1.
template <class T>
HEED_INLINE bool key_equals(const T* row, index_t step, T value, const position& p) {
  return row[p.k * step] == value;
}
template <class T, class Real, int N>
HEED_INLINE typename pack<Real, N>::mask key_equals(const T* row, index_t step, T value,
                                                    const pack_position<Real, N>& p) {
  using mask = typename pack<Real, N>::mask;
  // There are no vectors of bool; its bytes hold 0 or 1.
  using stored = std::conditional_t<std::is_same_v<T, bool>, unsigned char, T>;
  using vector = typename detail::vector_of<stored, N>::type;
  // The result of a comparison, whose type is not the same in all compilers.
  using lanes = typename detail::vector_of<std::make_signed_t<stored>, N>::type;
  if (step == 0) return mask(row[0] == value);
  const T* first = row + p.first_key;
  vector values{};
  if (p.valid == N) {
    std::memcpy(&values, first, sizeof(values));
  } else {
    for (int lane = 0; lane < p.valid; ++lane) values[lane] = static_cast<stored>(first[lane]);
  }
  const vector wanted = static_cast<stored>(value) - vector{};
  return mask(__builtin_convertvector((lanes)(values == wanted), typename mask::vector));
}

// Whether any, and whether every, element of row[begin, end) is set.
struct tally {
  bool any = false;
  bool every = true;

  visibility as_visibility() const {
    if (!any) return visibility::none;
    return every ? visibility::all : visibility::some;
  }
};

template <class T>
void count_set(const T* row, index_t step, index_t begin, index_t end, tally& seen) {
  if (step == 0 && end > begin) end = begin + 1;
  bool any = false;
  bool every = true;
  for (index_t i = begin; i < end; ++i) {
    const bool set = row[i * step] != T(0);
    any |= set;
    every &= set;
  }
  seen.any |= any;
  seen.every &= every;
}

// First index of [begin, end) for which a condition holds, else end. Looks at whole chunks first,
// so that the compiler can vectorise the search.
inline constexpr index_t scan_chunk = 64;

template <class Condition>
index_t first_where(index_t begin, index_t end, const Condition& condition) {
  for (; end - begin >= scan_chunk; begin += scan_chunk) {
    bool any = false;
    for (index_t i = begin; i < begin + scan_chunk; ++i) any |= condition(i);
    if (any) break;
  }
  while (begin < end && !condition(begin)) ++begin;
  return begin;
}

// One behind the last index of [begin, end) for which a condition holds, else begin.
template <class Condition>
index_t behind_last_where(index_t begin, index_t end, const Condition& condition) {
  for (; end - begin >= scan_chunk; end -= scan_chunk) {
    bool any = false;
    for (index_t i = end - scan_chunk; i < end; ++i) any |= condition(i);
    if (any) break;
  }
  while (begin < end && !condition(end - 1)) --end;
  return end;
}

// One value per token, [tokens] or [batch, tokens]: one array for queries and keys, which are then
// the same sequence of tokens (query q is token q + keys - queries), or one array for each.
template <class T>
class token_values {
 public:
  // The tokens of a range of queries or keys: row[token·step] for token in [begin, end).
  struct range {
    const T* row;
    index_t step;
    index_t begin, end;
  };

  template <class U, int Rank>
  explicit token_values(const tensor_view<U, Rank>& tokens)
      : queries_(lift(tokens)), keys_(queries_), shared_(true) {}
  template <class U, int QueryRank, class V, int KeyRank>
  token_values(const tensor_view<U, QueryRank>& queries, const tensor_view<V, KeyRank>& keys)
      : queries_(lift(queries)), keys_(lift(keys)), shared_(false) {}

  // Value of the query's token; null where the query comes before the first token of the one array.
  template <class P>
  HEED_INLINE const T* query(const P& p) const {
    const index_t token = shared_ ? p.aligned_q() : p.q;
    return token < 0 ? nullptr : row(queries_, p.batch) + token * step_of(queries_, 1);
  }
  template <class P>
  HEED_INLINE const T* key_row(const P& p) const {
    return row(keys_, p.batch);
  }
  HEED_INLINE index_t key_step() const { return step_of(keys_, 1); }

  range queries_of(const tile_extent& t) const {
    const index_t shift = shared_ ? t.alignment() : 0;
    return {row(queries_, t.batch), step_of(queries_, 1), max(t.q_begin + shift, 0),
            max(t.q_end + shift, 0)};
  }
  range keys_of(const tile_extent& t) const {
    return {row(keys_, t.batch), step_of(keys_, 1), t.k_begin, t.k_end};
  }

  // `array` is what the values are called, such as "ids".
  void check(const char* operand, const char* array, const char* query_array, const char* key_array,
             const call_shape& shape) const {
    if (shared_) {
      check_axis(operand, "batch", array, keys_.extent(0), shape.batches, "batches");
      check_axis(operand, "token", array, keys_.extent(1), shape.keys, "keys");
      if (shape.queries > shape.keys) {
        raise(std::string(operand) + ": call has " + std::to_string(shape.queries) +
              " queries, one array of " + array + " gives them only " + std::to_string(shape.keys) +
              " tokens");
      }
    } else {
      check_axis(operand, "batch", query_array, queries_.extent(0), shape.batches, "batches");
      check_axis(operand, "token", query_array, queries_.extent(1), shape.queries, "queries");
      check_axis(operand, "batch", key_array, keys_.extent(0), shape.batches, "batches");
      check_axis(operand, "token", key_array, keys_.extent(1), shape.keys, "keys");
    }
  }

 private:
  using view = tensor_view<const T, 2>;

  template <class U, int Rank>
  static view lift(const tensor_view<U, Rank>& tokens) {
    static_assert(std::is_same_v<std::remove_const_t<U>, T>,
                  "heed: query and key tokens must have values of one type");
    static_assert(Rank <= 2, "heed: values of tokens have rank 1 [tokens] or 2 [batch, tokens]");
    return tokens.template lifted<2>();
  }
  HEED_INLINE static const T* row(const view& tokens, index_t batch) {
    return tokens.data() + batch * step_of(tokens, 0);
  }

  view queries_;
  view keys_;
  bool shared_;
};

}  // namespace mask_detail

HEED_NAMESPACE_END
