// Argument checks of attention calls: each failure is one message that names the operand, the axis
// and both values, before anything is written. The checks see operands without their element types,
// so that they are compiled once and not once per call.
#pragma once

#include <cstdlib>
#include <span>
#include <utility>

#include "../../core/error.hpp"
#include "../../core/gathered.hpp"
#include "../../core/gathered_quantized.hpp"
#include "../options.hpp"

HEED_NAMESPACE_BEGIN
namespace detail {

// An operand [batch, head, length, depth] (or [batch, head, length] with depth 1) by its bytes.
struct operand {
  const char* name;
  const char* data;
  index_t extents[4];
  index_t strides[3];  // bytes
  index_t row_bytes;

  bool empty() const {
    return extents[0] == 0 || extents[1] == 0 || extents[2] == 0 || extents[3] == 0;
  }
};

template <class T, int Rank>
operand erase(const char* name, const tensor_view<T, Rank>& x) {
  operand result{name, reinterpret_cast<const char*>(x.data()), {1, 1, 1, 1}, {}, 0};
  constexpr auto size = static_cast<index_t>(sizeof(T));
  for (int axis = 0; axis < Rank; ++axis) {
    result.extents[axis] = x.extent(axis);
    if (axis < 3) result.strides[axis] = x.stride(axis) * size;
  }
  result.row_bytes = result.extents[3] * size;
  return result;
}
// Codes with their depth, which may be more than their number.
template <class Code>
operand erase(const char* name, const quantized_view<Code, 4>& x) {
  operand result = erase(name, x.codes());
  result.extents[3] = x.extent(3);
  return result;
}

template <listed_rows X>
operand erase(const char* name, const X& x) {
  operand result = erase(name, x.base());
  for (int axis = 0; axis < 4; ++axis) result.extents[axis] = x.extent(axis);
  // Between neighbours of an axis anything may lie: check() of the view looks at the rows. Here
  // they stand one after the other.
  index_t stride = result.row_bytes;
  for (int axis = 2; axis >= 0; stride *= result.extents[axis--]) result.strides[axis] = stride;
  return result;
}

// An operand as the memory that it lies in.
template <class T>
operand memory_of(const char* name, const tensor_view<T, 4>& x) {
  return erase(name, x);
}
template <class T>
operand memory_of(const char* name, const gathered_view<T>& x) {
  return erase(name, x.base());
}

// The row numbers of an operand, where it has lists of them.
template <class X>
void check_lists(const char* name, const X& x, const engine::batch_layout& rows) {
  if constexpr (listed_rows<X>) {
    x.check(name, rows.padding == nullptr ? rows.lengths : nullptr,
            !std::is_const_v<typename X::element_type>);
  }
}

// Calls use(operand) for every array that an operand consists of.
template <class T, class Use>
void for_each_array(const char* name, const tensor_view<T, 4>& x, const Use& use) {
  use(erase(name, x));
}
template <class Code, class Use>
void for_each_array(const char* name, const quantized_view<Code, 4>& x, const Use& use) {
  use(erase(name, x));
  use(erase("scales", x.scales()));
  if (x.has_zeros()) use(erase("zeros", x.zeros()));
}
template <listed_rows X, class Use>
void for_each_array(const char* name, const X& x, const Use& use) {
  for_each_array(name, x.base(), use);
}

HEED_NOINLINE inline void require_equal(const char* name, const char* what, index_t value,
                                        const char* other, index_t expected) {
  if (value != expected) {
    raise(message(name) << ": " << what << " " << value << " differs from " << other << "'s "
                        << expected);
  }
}

HEED_NOINLINE inline void check_operand(const operand& x) {
  if (x.data == nullptr && !x.empty()) {
    raise(message(x.name) << ": data is null, extents are [" << x.extents[0] << ", " << x.extents[1]
                          << ", " << x.extents[2] << ", " << x.extents[3] << "]");
  }
}

HEED_NOINLINE inline void check_keys_and_values(const operand& k, const operand& v) {
  check_operand(k);
  check_operand(v);
  require_equal(v.name, "batch", v.extents[0], k.name, k.extents[0]);
  require_equal(v.name, "head count", v.extents[1], k.name, k.extents[1]);
  require_equal(v.name, "length", v.extents[2], k.name, k.extents[2]);
  // Positions are 32-bit in the vector lanes.
  if (k.extents[2] > index_t{0x7fffff00}) {
    raise(message(k.name) << ": length " << k.extents[2] << " is over the limit of 2147483392");
  }
}

// What the keys and values of a source have to share with q and out, whatever their batch is.
HEED_NOINLINE inline void check_depths_and_heads(const operand& q, const operand& out,
                                                 const operand& k, const operand& v) {
  require_equal(k.name, "depth", k.extents[3], "q", q.extents[3]);
  require_equal(out.name, "depth", out.extents[3], v.name, v.extents[3]);
  const index_t heads = q.extents[1], key_heads = k.extents[1];
  if (heads != 0 && (key_heads == 0 || heads % key_heads != 0)) {
    raise(message(k.name) << ": head count " << key_heads << " does not divide query head count "
                          << heads);
  }
}

HEED_NOINLINE inline void check_source(const operand& q, const operand& out, const operand& k,
                                       const operand& v) {
  require_equal(k.name, "batch", k.extents[0], "q", q.extents[0]);
  check_depths_and_heads(q, out, k, v);
}

// Bytes of one innermost row.
struct byte_range {
  const char* begin;
  const char* end;
};

// The rows of an operand in order of their addresses; the caller frees them.
HEED_NOINLINE inline byte_range* sorted_rows(const operand& x, index_t& count) {
  count = x.extents[0] * x.extents[1] * x.extents[2];
  auto* rows =
      static_cast<byte_range*>(std::malloc(static_cast<std::size_t>(count) * sizeof(byte_range)));
  if (rows == nullptr) raise(message(x.name) << ": no memory to compare " << count << " rows");
  index_t at = 0;
  for (index_t b = 0; b < x.extents[0]; ++b) {
    for (index_t h = 0; h < x.extents[1]; ++h) {
      for (index_t l = 0; l < x.extents[2]; ++l) {
        const char* row = x.data + b * x.strides[0] + h * x.strides[1] + l * x.strides[2];
        rows[at++] = {row, row + x.row_bytes};
      }
    }
  }
  std::qsort(rows, static_cast<std::size_t>(count), sizeof(byte_range),
             [](const void* a, const void* b) {
               const char* first = static_cast<const byte_range*>(a)->begin;
               const char* second = static_cast<const byte_range*>(b)->begin;
               return first < second ? -1 : first > second ? 1 : 0;
             });
  return rows;
}

inline byte_range reach_of(const operand& x) {
  index_t low = 0, high = x.row_bytes;
  for (int axis = 0; axis < 3; ++axis) {
    const index_t reach = (x.extents[axis] - 1) * x.strides[axis];
    (reach < 0 ? low : high) += reach;
  }
  return {x.data + low, x.data + high};
}

// Refuses an output that shares memory with an input. Views may be interleaved in one buffer (q, k,
// v and out of one projection); only rows that really meet are an error.
HEED_NOINLINE inline void check_disjoint(const operand& out, const operand& in) {
  if (out.empty() || in.empty()) return;
  const byte_range written = reach_of(out), read = reach_of(in);
  if (!(written.begin < read.end && read.begin < written.end)) return;
  index_t ours_count = 0, theirs_count = 0;
  byte_range* ours = sorted_rows(out, ours_count);
  byte_range* theirs = sorted_rows(in, theirs_count);
  index_t i = 0, j = 0, overlap = -1;
  while (overlap < 0 && i < ours_count && j < theirs_count) {
    if (ours[i].begin < theirs[j].end && theirs[j].begin < ours[i].end) {
      overlap = theirs[j].begin - read.begin;
    }
    ours[i].end <= theirs[j].end ? ++i : ++j;
  }
  std::free(ours);
  std::free(theirs);
  if (overlap >= 0) {
    raise(message(out.name) << ": overlaps " << in.name << ", in the row at its byte " << overlap);
  }
}

// The two have the same batch, heads and length.
HEED_NOINLINE inline void check_rows(const operand& x, const operand& like) {
  check_operand(x);
  require_equal(x.name, "batch", x.extents[0], like.name, like.extents[0]);
  require_equal(x.name, "head count", x.extents[1], like.name, like.extents[1]);
  require_equal(x.name, "length", x.extents[2], like.name, like.extents[2]);
}

// No two rows of an output share memory.
HEED_NOINLINE inline void check_distinct_rows(const operand& out) {
  if (out.empty()) return;
  for (int axis = 0; axis < 3; ++axis) {
    if (out.extents[axis] > 1 && out.strides[axis] == 0) {
      raise(message(out.name) << ": axis " << axis << " of extent " << out.extents[axis]
                              << " has stride 0, its rows would overwrite each other");
    }
  }
  // Rows are apart where every axis steps over all that the axes of shorter steps reach.
  const auto step = [&](int axis) {
    return out.strides[axis] < 0 ? -out.strides[axis] : out.strides[axis];
  };
  int axes[3] = {2, 1, 0};
  for (const int at : {0, 1, 0}) {
    if (step(axes[at + 1]) < step(axes[at])) std::swap(axes[at], axes[at + 1]);
  }
  index_t reach = out.row_bytes;
  bool apart = true;
  for (const int axis : axes) {
    if (out.extents[axis] == 1) continue;
    apart = apart && step(axis) >= reach;
    reach += (out.extents[axis] - 1) * step(axis);
  }
  if (apart) return;
  // And elsewhere where no two of them meet.
  index_t count = 0, meet = 0;
  byte_range* const rows = sorted_rows(out, count);
  while (meet + 1 < count && rows[meet].end <= rows[meet + 1].begin) ++meet;
  const char* const first = reach_of(out).begin;
  const index_t one = rows[meet].begin - first;
  const index_t other = meet + 1 < count ? rows[meet + 1].begin - first : -1;
  std::free(rows);
  if (other >= 0) {
    raise(message(out.name) << ": rows of " << out.row_bytes << " bytes at its bytes " << one
                            << " and " << other << " would overwrite each other");
  }
}

HEED_NOINLINE inline void check_output(const operand& q, const operand& out) {
  check_rows(out, q);
  check_distinct_rows(out);
}

HEED_NOINLINE inline void check_lengths(const char* name, std::span<const index_t> lengths,
                                        index_t batches, index_t longest, const index_t* padding) {
  require_equal(name, "count", static_cast<index_t>(lengths.size()), "the batch", batches);
  for (index_t b = 0; b < batches; ++b) {
    const index_t length = lengths[static_cast<std::size_t>(b)];
    const index_t most = longest - (padding != nullptr ? padding[b] : 0);
    if (length < 0 || length > most) {
      raise(message(name) << ": entry " << b << " is " << length << ", must lie in [0, " << most
                          << "]");
    }
  }
}

HEED_NOINLINE inline void check_cumulative(const char* name, std::span<const index_t> cumulative,
                                           const char* operand, index_t total) {
  if (cumulative.empty()) raise(message(name) << ": is empty, must start with 0");
  if (cumulative[0] != 0) {
    raise(message(name) << ": starts with " << cumulative[0] << ", must start with 0");
  }
  for (std::size_t i = 1; i < cumulative.size(); ++i) {
    if (cumulative[i] < cumulative[i - 1]) {
      raise(message(name) << ": entry " << i << " is " << cumulative[i] << ", less than "
                          << cumulative[i - 1] << " before it");
    }
  }
  require_equal(name, "total", cumulative.back(), operand, total);
}

HEED_NOINLINE inline void check_ragged(const ragged& rows, index_t batches) {
  if (batches != 1) {
    raise(message("q: batch ") << batches
                               << ", a ragged batch has its sequences along one batch of 1");
  }
  require_equal("cumulative_keys", "count", static_cast<index_t>(rows.cumulative_keys.size()),
                "cumulative_queries", static_cast<index_t>(rows.cumulative_queries.size()));
}

// The log-sum-exp's view with leading axes, or one without data where none was asked for.
template <class Real, int QueryRank, class... Modifiers>
tensor_view<Real, 3> log_sum_exp_view(const Modifiers&... modifiers) {
  if constexpr ((... || is_lse_to<Modifiers>)) {
    const lse_to<Real, 1> none{};
    const auto& target = pick<picks_lse>(none, modifiers...);
    using view = std::remove_cvref_t<decltype(target.view)>;
    static_assert(std::is_same_v<typename view::element_type, Real>,
                  "heed: lse_to needs float elements, or double ones where an operand is double");
    static_assert(view::rank == QueryRank - 1 || view::rank == 3,
                  "heed: lse_to needs a view with the axes of q but the last");
    return target.view.template lifted<3>();
  } else {
    return {};
  }
}

}  // namespace detail
HEED_NAMESPACE_END
