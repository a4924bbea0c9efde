// What register tiles do with vectors of lanes beside arithmetic: load elements of any type,
// transpose a tile of vectors, sum many of them at once, ask for memory ahead of its use.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "../../config.hpp"
#include "../../core/element.hpp"
#include "../../core/pack.hpp"
#include "../../core/quantized.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// One vector from elements of any type.
template <class Pack, class T>
HEED_INLINE Pack load_widened(const T* from) {
  using Real = typename Pack::value_type;
  constexpr int n = Pack::size;
  if constexpr (std::is_same_v<T, Real>) {
    return load_pack<Pack>(from);
  } else if constexpr (is_bfloat16<T> && sizeof(Real) == 4) {
    using raw_vector = typename heed::detail::vector_of<std::uint16_t, n>::type;
    using wide_vector = typename heed::detail::vector_of<std::uint32_t, n>::type;
    raw_vector raw;
    __builtin_memcpy(&raw, from, sizeof(raw));
    const wide_vector wide = __builtin_convertvector(raw, wide_vector) << 16;
    return Pack(std::bit_cast<typename Pack::vector>(wide));
  } else if constexpr (is_half<T> && sizeof(Real) == 4) {
    using raw_vector = typename heed::detail::vector_of<std::uint16_t, n>::type;
    using wide_vector = typename heed::detail::vector_of<std::int32_t, n>::type;
    using real_vector = typename Pack::vector;
    raw_vector raw;
    __builtin_memcpy(&raw, from, sizeof(raw));
    const wide_vector wide = __builtin_convertvector(raw, wide_vector);
    const wide_vector magnitude = wide & 0x7fff;
    const wide_vector sign = (wide & 0x8000) << 16;
    const wide_vector normal = (magnitude << 13) + 0x38000000;
    const wide_vector special = (magnitude << 13) | 0x7f800000;
    const wide_vector subnormal =
        std::bit_cast<wide_vector>(__builtin_convertvector(magnitude, real_vector) * 0x1p-24f);
    const wide_vector finite = magnitude < 0x400 ? subnormal : normal;
    return Pack(std::bit_cast<real_vector>((magnitude < 0x7c00 ? finite : special) | sign));
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    using byte_vector = typename heed::detail::vector_of<std::int8_t, n>::type;
    byte_vector bytes;
    __builtin_memcpy(&bytes, from, sizeof(bytes));
    return Pack(__builtin_convertvector(bytes, typename Pack::vector));
  } else {
    Pack result;
    for (int lane = 0; lane < n; ++lane) result.v[lane] = widen<Real>(from[lane]);
    return result;
  }
}

// The vector at a cursor, from elements in the caller's memory.
template <class Lanes, class T>
HEED_INLINE typename Lanes::pack_type load(const T* from) {
  return Lanes::template load<T>(from);
}

// Two vectors of elements in bfloat16, those of even places apart from the odd ones: that takes one
// instruction per vector, where widening them in order takes two.
template <class Pack>
HEED_INLINE void load_even_and_odd(const Eigen::bfloat16* from, Pack& even, Pack& odd) {
  using word_vector = typename heed::detail::vector_of<std::uint32_t, Pack::size>::type;
  word_vector words;
  __builtin_memcpy(&words, from, sizeof(words));
  const word_vector low = words << 16, high = words & 0xffff0000u;
  constexpr bool little = std::endian::native == std::endian::little;
  even.v = std::bit_cast<typename Pack::vector>(little ? low : high);
  odd.v = std::bit_cast<typename Pack::vector>(little ? high : low);
}
// Two neighbouring vectors of floats as even and odd places, and back.
template <class T, int N>
HEED_INLINE void to_even_and_odd(pack<T, N>& a, pack<T, N>& b) {
  [&]<std::size_t... L>(std::index_sequence<L...>) HEED_LAMBDA_INLINE {
    const auto even = __builtin_shufflevector(a.v, b.v, static_cast<int>(2 * L)...);
    b.v = __builtin_shufflevector(a.v, b.v, static_cast<int>(2 * L + 1)...);
    a.v = even;
  }
  (std::make_index_sequence<static_cast<std::size_t>(N)>{});
}
template <class T, int N>
HEED_INLINE void from_even_and_odd(pack<T, N>& even, pack<T, N>& odd) {
  [&]<std::size_t... L>(std::index_sequence<L...>) HEED_LAMBDA_INLINE {
    constexpr std::size_t n = static_cast<std::size_t>(N);
    const auto first =
        __builtin_shufflevector(even.v, odd.v, static_cast<int>(L / 2 + L % 2 * n)...);
    odd.v = __builtin_shufflevector(even.v, odd.v, static_cast<int>((L + n) / 2 + L % 2 * n)...);
    even.v = first;
  }
  (std::make_index_sequence<static_cast<std::size_t>(N)>{});
}

// Codes of Pack::size channels, one of which lies at the beginning of a byte.
template <class Lanes>
HEED_INLINE typename Lanes::pack_type load_codes(const std::int8_t* codes) {
  return Lanes::template load<std::int8_t>(codes);
}
template <class Lanes>
HEED_INLINE typename Lanes::pack_type load_codes(const int4_pair* pairs) {
  constexpr int n = Lanes::pack_type::size;
  using byte_vector = typename heed::detail::vector_of<std::int8_t, n>::type;
  using pair_vector = typename heed::detail::vector_of<std::uint8_t, n / 2>::type;
  pair_vector packed;
  __builtin_memcpy(&packed, pairs, sizeof(packed));
  const pair_vector even = packed & 15, odd = packed >> 4;
  const auto codes = [&]<std::size_t... L>(std::index_sequence<L...>) HEED_LAMBDA_INLINE {
    return std::bit_cast<byte_vector>(__builtin_shufflevector(
        even, odd, static_cast<int>(L % 2 == 0 ? L / 2 : n / 2 + L / 2)...));
  }
  (std::make_index_sequence<static_cast<std::size_t>(n)>{}) - 8;
  std::int8_t bytes[n];
  __builtin_memcpy(bytes, &codes, sizeof(bytes));
  return Lanes::template load<std::int8_t>(bytes);
}

// The scales (or zeros) of Pack::size channels.
template <class Lanes, class Code>
HEED_INLINE typename Lanes::pack_type load_groups(const float* of_groups,
                                                  const quantized_cursor<Code>& from) {
  using pack_type = typename Lanes::pack_type;
  using real = typename pack_type::value_type;
  if (from.channels == scale_groups::whole) return pack_type(static_cast<real>(*of_groups));
  if (from.channels == 1) return Lanes::template load<float>(of_groups + from.channel);
  const index_t first = from.group(), last = from.group(pack_type::size - 1);
  pack_type result(static_cast<real>(of_groups[first]));
  for (int lane = 1; first != last && lane < pack_type::size; ++lane) {
    result.v[lane] = static_cast<real>(of_groups[from.group(lane)]);
  }
  return result;
}

template <class Lanes, class Code>
HEED_INLINE typename Lanes::pack_type load(const quantized_cursor<Code>& from) {
  auto codes = load_codes<Lanes>(from.codes + from.channel / codes_per_element<Code>);
  if (from.zeros != nullptr) codes = codes - load_groups<Lanes>(from.zeros, from);
  return codes * load_groups<Lanes>(from.scales, from);
}

// The first `count` lanes from memory, the others 0.
template <class Pack, class Cursor>
HEED_INLINE Pack load_partial(const Cursor& from, int count) {
  using real = typename Pack::value_type;
  real lanes[Pack::size] = {};
  for (int lane = 0; lane < count; ++lane) lanes[lane] = read_at<real>(from + lane);
  return load_pack<Pack>(lanes);
}

// Lanes of 128 bits, which most shuffles do not leave.
template <class T, int N>
inline constexpr int lanes_of_group = N < static_cast<int>(16 / sizeof(T))
                                          ? N
                                          : static_cast<int>(16 / sizeof(T));

// Lanes of a and b in the order that source(lane) says: those of b follow those of a.
template <class T, int N, class Source>
HEED_INLINE pack<T, N> pick(pack<T, N> a, pack<T, N> b, Source) {
  return [&]<std::size_t... L>(std::index_sequence<L...>) HEED_LAMBDA_INLINE {
    return pack<T, N>(__builtin_shufflevector(a.v, b.v, Source{}(static_cast<int>(L))...));
  }
  (std::make_index_sequence<static_cast<std::size_t>(N)>{});
}

// Blocks of Distance lanes of a and b in turn, from the lower (Half 0) or upper half of every
// Width lanes.
template <int Width, int Distance, int Half, class T, int N>
HEED_INLINE pack<T, N> interleave(pack<T, N> a, pack<T, N> b) {
  return pick(a, b, [](int lane) {
    const int block = lane % Width / Distance;
    return lane / Width * Width + (block / 2 + Half * Width / (2 * Distance)) * Distance +
           lane % Distance + block % 2 * N;
  });
}

// The even (Half 0) or odd groups of a, then those of b.
template <int Half, class T, int N>
HEED_INLINE pack<T, N> every_other_group(pack<T, N> a, pack<T, N> b) {
  return pick(a, b, [](int lane) {
    constexpr int group = lanes_of_group<T, N>;
    return (lane / group * 2 + Half) * group + lane % group;
  });
}

// Rows of a register tile become its columns. First within groups of lanes, then the groups trade
// places: one instruction per row and round, none of which needs a vector of indices.
template <class T, int N>
HEED_INLINE void transpose(pack<T, N> (&rows)[static_cast<std::size_t>(N)]) {
  constexpr int group = lanes_of_group<T, N>, groups = N / group;
  if constexpr (group == 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N; i += 2) {
      const auto a = rows[i], b = rows[i + 1];
      rows[i] = interleave<2, 1, 0>(a, b);
      rows[i + 1] = interleave<2, 1, 1>(a, b);
    }
  } else if constexpr (group == 4) {
#pragma GCC unroll 16
    for (int i = 0; i < N; i += 4) {
      const auto even = interleave<4, 1, 0>(rows[i], rows[i + 1]);
      const auto odd = interleave<4, 1, 1>(rows[i], rows[i + 1]);
      const auto even_below = interleave<4, 1, 0>(rows[i + 2], rows[i + 3]);
      const auto odd_below = interleave<4, 1, 1>(rows[i + 2], rows[i + 3]);
      rows[i] = interleave<4, 2, 0>(even, even_below);
      rows[i + 1] = interleave<4, 2, 1>(even, even_below);
      rows[i + 2] = interleave<4, 2, 0>(odd, odd_below);
      rows[i + 3] = interleave<4, 2, 1>(odd, odd_below);
    }
  }
  if constexpr (groups == 2) {
#pragma GCC unroll 16
    for (int i = 0; i < group; ++i) {
      const auto a = rows[i], b = rows[i + group];
      rows[i] = interleave<N, group, 0>(a, b);
      rows[i + group] = interleave<N, group, 1>(a, b);
    }
  } else if constexpr (groups == 4) {
#pragma GCC unroll 16
    for (int i = 0; i < group; ++i) {
      const auto a = interleave<N, N / 2, 0>(rows[i], rows[i + group]);
      const auto b = interleave<N, N / 2, 1>(rows[i], rows[i + group]);
      const auto c = interleave<N, N / 2, 0>(rows[i + 2 * group], rows[i + 3 * group]);
      const auto d = interleave<N, N / 2, 1>(rows[i + 2 * group], rows[i + 3 * group]);
      rows[i] = every_other_group<0>(a, c);
      rows[i + group] = every_other_group<1>(a, c);
      rows[i + 2 * group] = every_other_group<0>(b, d);
      rows[i + 3 * group] = every_other_group<1>(b, d);
    }
  }
  static_assert(groups <= 4);
}

// Lane i of the result is what `join` makes of the lanes of v[i], 2·Distance vectors of them: a
// tree that halves the number of vectors in each round, where taking them one by one would take a
// shuffle per join. First within groups of 128 bits, by unpacking, which processors do faster than
// other shuffles; a round more brings neighbouring groups together. With fewer vectors than lanes,
// lanes i, i + 2·Distance, … hold parts of v[i].
template <int Distance, class T, int N, class Join>
HEED_INLINE pack<T, N> join_each(const pack<T, N>* v, const Join& join) {
  if constexpr (Distance == 0) {
    return *v;
  } else {
    const auto a = join_each<Distance / 2>(v, join);
    const auto b = join_each<Distance / 2>(v + Distance, join);
    constexpr int group = lanes_of_group<T, N>;
    if constexpr (Distance < group) {
      return join(interleave<group, Distance, 0>(a, b), interleave<group, Distance, 1>(a, b));
    } else {
      // Neighbouring groups meet.
      return join(every_other_group<0>(a, b), every_other_group<1>(a, b));
    }
  }
}
template <class T, int N>
HEED_INLINE pack<T, N> sum_each(const pack<T, N>* v) {
  return join_each<N / 2>(v, [](pack<T, N> a, pack<T, N> b) HEED_LAMBDA_INLINE { return a + b; });
}

// Every group of the result is what `join` makes of all groups of a; from Distance lanes on.
template <int Distance, class T, int N, class Join>
HEED_INLINE pack<T, N> join_groups(pack<T, N> a, const Join& join) {
  if constexpr (Distance >= N) {
    return a;
  } else {
    constexpr auto other = [](int lane) { return lane ^ Distance; };
    return join_groups<2 * Distance>(join(a, pick(a, a, other)), join);
  }
}
// As join_each, of as many vectors as a group has lanes: lane i of every group is that of v[i].
template <class T, int N, class Join>
HEED_INLINE pack<T, N> join_group_each(const pack<T, N>* v, const Join& join) {
  constexpr int group = lanes_of_group<T, N>;
  return join_groups<group>(join_each<group / 2>(v, join), join);
}

// Keeps a vector that was loaded in a register: g++ may otherwise load it again for each of its
// uses, which then wait for the load ports.
template <class Vector>
HEED_INLINE void hold([[maybe_unused]] Vector& v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Vector) == 64) __asm__("" : "+v"(v));
#elif defined(__AVX__)
  if constexpr (sizeof(Vector) == 32) __asm__("" : "+x"(v));
#elif defined(__SSE2__)
  if constexpr (sizeof(Vector) == 16) __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  if constexpr (sizeof(Vector) == 16) __asm__("" : "+w"(v));
#endif
}
template <class T, int N>
HEED_INLINE void hold(pack<T, N>& v) {
  hold(v.v);
}

// Asks a level of cache for the memory `bytes` behind an element. Whether it exists does not
// matter, and the address is computed in integers.
template <int Level, class Cursor>
HEED_INLINE void prefetch(const Cursor& from, std::uintptr_t bytes) {
  constexpr int to_read = 0;
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(address_at(from)) + bytes),
      to_read, 4 - Level);
}
// Whether to ask the second-level cache first, and the first-level cache closer to the use. The
// first level of some CPUs (Zen 4) can wait for so few lines at a time that asking it alone halves
// the rate of reading from memory. On those with AMX, and on Zen 5, which AVX-VNNI tells from Zen
// 4, it does not, and asking twice costs a tenth of the rate of reading from a cache. Zen 5 wants
// to be asked earlier: 16 KiB ahead instead of 8, float from the third level 43 -> 49 GB/s; on
// those with AMX that takes a tenth.
#if defined(HEED_TARGET_AMX)
inline constexpr bool asks_second_level = false;
inline constexpr index_t bytes_ahead = 8192;
#elif defined(HEED_TARGET_AVXVNNI)
inline constexpr bool asks_second_level = false;
inline constexpr index_t bytes_ahead = 16384;
#else
inline constexpr bool asks_second_level = true;
inline constexpr index_t bytes_ahead = 8192;
#endif

// Rows of the caller's that make up as many bytes.
template <class Rows>
HEED_INLINE index_t rows_ahead(const Rows&, index_t depth) {
  const index_t rows = bytes_ahead / (Rows::row_bytes(depth) + 1);
  return rows < 4 ? 4 : rows;
}

// How many bytes ahead of its use memory is asked for.
struct read_ahead {
  std::uintptr_t first_level = 0;
  std::uintptr_t second_level = 0;

  // For the line of an element of the caller's keys or values.
  template <class Cursor>
  HEED_INLINE void ask(const Cursor& from) const {
    if constexpr (asks_second_level) prefetch<2>(from, second_level);
    prefetch<1>(from, first_level);
  }
};
template <class Rows>
HEED_INLINE read_ahead read_ahead_of(const Rows& rows, index_t depth) {
  // Unsigned, since the stride of a single row may be anything.
  const auto count = static_cast<std::uintptr_t>(rows_ahead(rows, depth));
  const auto stride = static_cast<std::uintptr_t>(rows.stride_bytes());
  return {(asks_second_level ? count / 4 : count) * stride, 4 * count * stride};
}
// The same of one row, where rows that follow each other may lie anywhere.
template <class Rows>
HEED_INLINE read_ahead read_ahead_from(const Rows& rows, index_t row, index_t depth,
                                       const read_ahead& usual) {
  if constexpr (requires { rows.bytes_to(row, row); }) {
    const index_t count = rows_ahead(rows, depth);
    return {rows.bytes_to(row, asks_second_level ? count / 4 : count),
            asks_second_level ? rows.bytes_to(row, 4 * count) : 0};
  } else {
    return usual;
  }
}

// Asks for all of the row that is `count` entries behind one of a list, whose rows may lie
// anywhere; rows that follow each other in memory, processors ask for by themselves.
template <class Rows>
HEED_INLINE void ask_for_row(const Rows& rows, index_t row, index_t count, index_t depth) {
  if constexpr (requires { rows.bytes_to(row, row); }) {
    constexpr index_t line = 64;
    const std::uintptr_t bytes = rows.bytes_to(row, count);
    for (index_t at = 0; at < Rows::row_bytes(depth); at += line) {
      prefetch<1>(rows[row], bytes + static_cast<std::uintptr_t>(at));
    }
  }
}

}  // namespace backend::detail
HEED_NAMESPACE_END
