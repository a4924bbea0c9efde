// What one core of this machine can do at most: arithmetic, exponentials, reading.
//
// Figures of different machines, or of one machine at different hours, say little; a share of the
// ceiling that binds, measured in the same process, says how much is left. Everything here runs on
// the calling thread, with the instructions that the compiler's target allows, on random data
// (matrix units are faster on zeros than on numbers).
//
//   fma_gflops<float>()                  the ceiling, measured at the first call and remembered
//   remeasure(fma_burst<float>())        measured now
//   measure_interleaved({kernel, fma_burst<float>().run}, …)    measured in turn with a kernel
//
// A *burst* is a short piece of work of known size (a fraction of a millisecond, a few for DRAM),
// and a ceiling is the best of the bursts of some 50 ms: short pieces slip in between disturbances.
//
// The functions are inline and depend on the target's macros: in one program, include this file
// only in translation units that are compiled for the same target.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "timing.hpp"

#if defined(__x86_64__) || defined(__i386__)
// g++ 12 warns of uninitialised variables in its own AVX-512 intrinsics. What counts is the setting
// at the place of their definition.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#endif

// clang 14 writes the macros without the underscore.
#if defined(__linux__) && defined(__x86_64__) &&         \
    ((defined(__AMX_TILE__) && defined(__AMX_BF16__)) || \
     (defined(__AMXTILE__) && defined(__AMXBF16__)))
#define HEED_BENCH_AMX_BF16 1
#endif

namespace heed_bench {

// ---------------------------------------------------------------------------------- basic pieces

/// Forces `value` to be computed, and all memory to be as the program says.
template <class Value>
inline void keep(const Value& value) {
  asm volatile("" : : "m"(value) : "memory");
}

/// Bytes at cache-line alignment. Large ones ask for huge pages: the ceiling is what the memory
/// gives, not what the walks of the page table leave of it (from DRAM, half on some machines). A
/// kernel whose reading is compared with the ceiling should get its operands from here too.
inline std::shared_ptr<std::byte> allocate(std::size_t bytes) {
  constexpr std::size_t line = 64, huge_page = std::size_t{1} << 21;
  const std::size_t alignment = bytes >= huge_page ? huge_page : line;
  bytes = std::max((bytes + alignment - 1) / alignment, std::size_t{1}) * alignment;
  void* memory = std::aligned_alloc(alignment, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (alignment == huge_page) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return {static_cast<std::byte*>(memory), [](std::byte* start) { std::free(start); }};
}

/// A repeatable piece of work. `run` is empty if the target lacks what is to be measured, and
/// `missing` then says why.
struct burst {
  double work = 0;  ///< of one call: floating-point operations, exponentials, or bytes
  std::function<void()> run;
  std::string missing;

  explicit operator bool() const { return static_cast<bool>(run); }
};

/// The rate of a burst now, in 1e9 units of work per second: the best of at least five calls within
/// at least `seconds`.
inline double remeasure(const burst& piece, double seconds = 0.05) {
  if (!piece) throw std::runtime_error(piece.missing);
  double best = std::numeric_limits<double>::infinity();
  double elapsed = 0;
  for (int calls = 0; calls < 5 || elapsed < seconds; ++calls) {
    const double call = seconds_of(piece.run);
    best = std::min(best, call);
    elapsed += call;
  }
  return piece.work / best * 1e-9;
}

namespace ceilings_detail {

// The widest vectors of the target, and how many of them to keep in flight: enough to hide the
// latency of a multiply-add on every port, few enough to stay in registers beside their operands.
#if defined(__AVX512F__)
inline constexpr std::size_t vector_bytes = 64, accumulators = 20;
#elif defined(__AVX__)
inline constexpr std::size_t vector_bytes = 32, accumulators = 12;
#elif defined(__aarch64__)
inline constexpr std::size_t vector_bytes = 16, accumulators = 20;
#else
inline constexpr std::size_t vector_bytes = 16, accumulators = 13;
#endif

template <class T>
struct vector_of {
  using type [[gnu::vector_size(vector_bytes)]] = T;
};
template <class T>
using vector = typename vector_of<T>::type;
template <class T>
inline constexpr std::size_t lanes = vector_bytes / sizeof(T);

template <class Value>
inline Value load(const void* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// `value`, whose origin the compiler then does not know. Without it, sums that start alike and are
/// treated alike are found to be one. It takes a copy, so that a loop's own variables, which are
/// passed to it before and after, can stay in registers.
template <class Value>
inline Value hidden(Value value) {
  asm volatile("" : "+m"(value));
  return value;
}

/// `value` in every lane. Subtracting zero changes nothing, and so is left out by compilers; adding
/// it to nothing would turn −0 into 0, and so is kept.
template <class T>
inline vector<T> broadcast(T value) {
  return value - vector<T>{};
}

/// a·b + c. Intrinsics rather than operators, so that -ffp-contract=off does not lower the ceiling;
/// a target without a fused form gets two instructions, as its kernels do.
template <class T>
inline vector<T> multiply_add(vector<T> a, vector<T> b, vector<T> c) {
  [[maybe_unused]] constexpr bool is_float = std::is_same_v<T, float>;
#if defined(__AVX512F__)
  if constexpr (is_float) {
    return _mm512_fmadd_ps(a, b, c);
  } else {
    return _mm512_fmadd_pd(a, b, c);
  }
#elif defined(__AVX__) && defined(__FMA__)
  if constexpr (is_float) {
    return _mm256_fmadd_ps(a, b, c);
  } else {
    return _mm256_fmadd_pd(a, b, c);
  }
#elif defined(__aarch64__) && defined(__ARM_NEON)
  if constexpr (is_float) {
    return vfmaq_f32(c, a, b);
  } else {
    return vfmaq_f64(c, a, b);
  }
#else
  return a * b + c;
#endif
}

/// The larger of two, lane by lane. Comparing and choosing costs an instruction more than this.
inline vector<float> maximum(vector<float> a, vector<float> b) {
#if defined(__AVX512F__)
  // Not _mm512_max_ps, for which g++ 12 warns of an uninitialised variable in its own header.
  return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(__AVX__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE__)
  return _mm_max_ps(a, b);
#elif defined(__aarch64__) && defined(__ARM_NEON)
  return vmaxq_f32(a, b);
#else
  return a > b ? a : b;
#endif
}

/// `count` values of either sign, of magnitude 1/2 to 1, in random order.
template <class T>
std::shared_ptr<T> random_numbers(std::size_t count) {
  const auto bytes = allocate(count * sizeof(T));
  T* const values = reinterpret_cast<T*>(bytes.get());
  std::uint32_t state = 12345;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const double magnitude = 0.5 + 0.5 * static_cast<double>(state & 0x7fffffffu) / 0x80000000u;
    new (values + i) T(static_cast<T>(state >> 31 == 0 ? magnitude : -magnitude));
  }
  return {bytes, values};
}

/// The same as 16-bit patterns: bf16 has 8 exponent bits, f16 has 5.
inline std::shared_ptr<std::uint16_t> random_patterns(std::size_t count, int exponent_bits) {
  const auto floats = random_numbers<float>(count);
  const auto bytes = allocate(count * sizeof(std::uint16_t));
  auto* const patterns = reinterpret_cast<std::uint16_t*>(bytes.get());
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, floats.get() + i, sizeof bits);
    const std::uint32_t sign = bits >> 31, exponent = (bits >> 23) & 255,
                        fraction = bits & 0x7fffff;
    const auto fraction_bits = static_cast<std::uint32_t>(15 - exponent_bits);
    const std::uint32_t bias = 127 - ((1u << (exponent_bits - 1)) - 1);
    patterns[i] = static_cast<std::uint16_t>(sign << 15 | (exponent - bias) << fraction_bits |
                                             fraction >> (23 - fraction_bits));
  }
  return {bytes, patterns};
}

// ------------------------------------------------------------------- arithmetic from registers

/// Multiply-add of one vector, as a type that `register_burst` takes: `step` is what is measured,
/// and `operations` are the floating-point operations of one.
template <class T>
struct fma_step {
  using accumulator = vector<T>;
  using operand = vector<T>;
  static constexpr double operations = 2.0 * static_cast<double>(lanes<T>);
  static accumulator step(accumulator sum, operand a, operand b) {
    return multiply_add<T>(sum, a, b);
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
struct bf16_dot_step {
  using accumulator = __m512;
  using operand = __m512bh;
  static constexpr double operations = 2.0 * 32;
  static accumulator step(accumulator sum, operand a, operand b) {
    return _mm512_dpbf16_ps(sum, a, b);
  }
};
#endif

#if defined(__AVX512FP16__)
struct f16_fma_step {
  using accumulator = __m512h;
  using operand = __m512h;
  static constexpr double operations = 2.0 * 32;
  static accumulator step(accumulator sum, operand a, operand b) {
    return _mm512_fmadd_ph(sum, a, b);
  }
};
#endif

template <class Step, std::size_t... Index>
[[gnu::noinline]] void register_loop(const std::byte* data, std::size_t rounds,
                                     std::index_sequence<Index...>) {
  using Operand = typename Step::operand;
  const auto positive = hidden(load<Operand>(data));
  const auto negative = hidden(load<Operand>(data + sizeof(Operand)));
  const auto other = hidden(load<Operand>(data + 2 * sizeof(Operand)));
  typename Step::accumulator sums[] = {
      (static_cast<void>(Index),
       hidden(load<typename Step::accumulator>(data + 3 * sizeof(Operand))))...};
  for (std::size_t round = 0; round < rounds; ++round) {
    ((sums[Index] = Step::step(sums[Index], positive, other)), ...);
    ((sums[Index] = Step::step(sums[Index], negative, other)), ...);
  }
  (static_cast<void>(hidden(sums[Index])), ...);
}

/// `data` holds an operand of magnitude below 1, the same with the opposite sign, and two more:
/// with the signs in alternation no sum overflows, be it `sum·a + b` or `sum + a·b`.
template <class Step>
burst register_burst(std::shared_ptr<const std::byte> data) {
  static constexpr std::size_t rounds = 8192;  // static: a lambda then need not capture it
  return {Step::operations * 2 * accumulators * rounds,
          [data = std::move(data)] {
            register_loop<Step>(data.get(), rounds, std::make_index_sequence<accumulators>());
          },
          {}};
}

template <class T>
std::shared_ptr<const std::byte> with_opposite(std::shared_ptr<T> values, std::size_t per_operand,
                                               T (*change)(T)) {
  for (std::size_t i = 0; i < per_operand; ++i) {
    values.get()[per_operand + i] = change(values.get()[i]);
  }
  return {values, reinterpret_cast<const std::byte*>(values.get())};
}

inline std::shared_ptr<const std::byte> pattern_operands(int exponent_bits) {
  return with_opposite<std::uint16_t>(
      random_patterns(4 * 32, exponent_bits), 32,
      [](std::uint16_t pattern) { return static_cast<std::uint16_t>(pattern ^ 0x8000u); });
}

// ------------------------------------------------------- multiply-add with a broadcast operand

template <std::size_t... Index>
[[gnu::noinline]] inline void broadcast_loop(const float* panel, std::size_t steps,
                                             std::size_t rounds, std::index_sequence<Index...>) {
  const auto other = load<vector<float>>(panel);
  vector<float> sums[sizeof...(Index)] = {};
  for (std::size_t round = 0; round < rounds; ++round) {
    const float* row = panel;
    for (std::size_t step = 0; step < steps; ++step, row += sizeof...(Index)) {
      ((sums[Index] = multiply_add<float>(other, broadcast(row[Index]), sums[Index])), ...);
    }
    asm volatile("" : : : "memory");  // the panel is to be read again, not remembered
  }
  (static_cast<void>(hidden(sums[Index])), ...);
}

// -------------------------------------------------------------------------------- exponentials

/// 2^x for x ≤ 0, within 2.5e-7 above −126 and held at 2^−126 below: nearest whole number, a
/// polynomial of degree 5 for the rest (minimax on [−1/2, 1/2]), and an addition to the exponent.
inline vector<float> exp2_not_positive(vector<float> x) {
  x = maximum(x, broadcast(-126.f));
  // Truncation rounds towards zero, so half less is the nearest. It is one instruction everywhere,
  // and unlike the addition of a large number it survives -ffast-math.
  const auto whole = __builtin_convertvector(x - 0.5f, vector<std::int32_t>);
  const vector<float> rest = x - __builtin_convertvector(whole, vector<float>);
  vector<float> power = broadcast(1.3276472e-3f);
  power = multiply_add<float>(power, rest, broadcast(9.6755413e-3f));
  power = multiply_add<float>(power, rest, broadcast(5.5507133e-2f));
  power = multiply_add<float>(power, rest, broadcast(2.4022120e-1f));
  power = multiply_add<float>(power, rest, broadcast(6.9314697e-1f));
  power = multiply_add<float>(power, rest, broadcast(1.f));
  return reinterpret_cast<vector<float>>(reinterpret_cast<vector<std::int32_t>>(power) +
                                         (whole << 23));
}

[[gnu::noinline]] inline void exp_loop(const float* values, std::size_t count, std::size_t rounds) {
  constexpr std::size_t step = lanes<float>;
  vector<float> even = {}, odd = {};
  for (std::size_t round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < count; i += 2 * step) {
      even += exp2_not_positive(load<vector<float>>(values + i));
      odd += exp2_not_positive(load<vector<float>>(values + i + step));
    }
    asm volatile("" : : : "memory");
  }
  hidden(even);
  hidden(odd);
}

// --------------------------------------------------------------------------------- matrix unit

#if defined(HEED_BENCH_AMX_BF16)

/// Linux keeps the tile registers switched off until a process asks for them.
inline bool amx_permitted() {
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;               // XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}

struct alignas(64) tile_configuration {
  std::uint8_t palette = 0;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(tile_configuration) == 64);

inline constexpr std::size_t amx_tile = 16 * 32;  // bf16 values
inline constexpr std::size_t amx_panels = 8;      // of two left tiles: 16 KiB in all, in L1

/// Two by two tiles of sums, of two left and two right tiles at a time. The left ones come from L1;
/// so do the right ones, rarely enough for the loads to vanish behind `Repeats` products, or, where
/// there are many panels of them, they stream from where these lie. The sums start anew in every
/// round.
template <int Repeats>
[[gnu::noinline]] inline void amx_loop(const std::uint16_t* left, const std::uint16_t* right,
                                       std::size_t panels, float* sums, std::size_t rounds) {
  // The library under test may keep its own configuration on this thread: put it back afterwards.
  // The compiler takes the operand of these instructions for a few bytes or for none at all, hence
  // the barriers, without which stores to the configuration can be dropped.
  tile_configuration previous;
  asm volatile("" : "+m"(previous) : : "memory");
  _tile_storeconfig(&previous);
  asm volatile("" : "+m"(previous) : : "memory");

  tile_configuration ours;
  ours.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    ours.row_bytes[tile] = 64;
    ours.rows[tile] = 16;
  }
  asm volatile("" : "+m"(ours) : : "memory");
  _tile_loadconfig(&ours);
  for (std::size_t round = 0; round < rounds; ++round) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::size_t panel = 0; panel < panels; ++panel) {
      const std::uint16_t* const a = left + panel % amx_panels * 2 * amx_tile;
      const std::uint16_t* const b = right + panel * 2 * amx_tile;
      _tile_loadd(4, a, 64);
      _tile_loadd(5, a + amx_tile, 64);
      _tile_stream_loadd(6, b, 64);
      _tile_stream_loadd(7, b + amx_tile, 64);
      for (int repeat = 0; repeat < Repeats; ++repeat) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }
  _tile_loadconfig(&previous);
  asm volatile("" : : "m"(previous) : "memory");
}

#endif

// --------------------------------------------------------------------------------------- reading

/// Vectors that one turn of the loop reads. Each has a sum of its own: of two loads that go to one
/// sum, g++ adds the loads first, and so reads in steps back and forth, which cost two thirds of
/// the rate from DRAM.
inline constexpr std::size_t vectors_per_turn = vector_bytes >= 32 ? 16 : 8;

template <std::size_t... Index>
[[gnu::noinline]] inline void read_loop(const std::byte* data, std::size_t bytes,
                                        std::size_t passes, std::index_sequence<Index...>) {
  using word = vector<std::uint64_t>;
  word sums[sizeof...(Index)] = {};
  for (std::size_t pass = 0; pass < passes; ++pass) {
    for (std::size_t i = 0; i < bytes; i += sizeof...(Index) * sizeof(word)) {
      ((sums[Index] += load<word>(data + i + Index * sizeof(word))), ...);
    }
    asm volatile("" : : : "memory");
  }
  (static_cast<void>(hidden(sums[Index])), ...);
}

// ----------------------------------------------------------------------------------- cache sizes

/// A number as /sys writes it, "32K" or "1024K" or "16M"; 0 if it is none.
inline std::size_t parse_size(const std::string& text) {
  char* unit = nullptr;
  const std::size_t number = std::strtoull(text.c_str(), &unit, 10);
  return number << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : *unit == 'G' ? 30 : 0);
}

/// The length of a list of processors such as "0-3,8,10-11".
inline std::size_t parse_list_length(const std::string& text) {
  std::size_t length = 0;
  for (const char* position = text.c_str(); *position != '\0';) {
    char* end = nullptr;
    const unsigned long first = std::strtoul(position, &end, 10);
    if (end == position) break;
    unsigned long last = first;
    if (*end == '-') last = std::strtoul(end + 1, &end, 10);
    length += last - first + 1;
    position = *end == ',' ? end + 1 : end;
  }
  return length;
}

}  // namespace ceilings_detail

// ----------------------------------------------------------------------------------- cache sizes

struct cache_table {
  std::size_t l1 = 0, l2 = 0, l3 = 0;  ///< bytes of one instance
  std::size_t l3_cores = 1;            ///< that share the instance
};

/// The data caches of the first processor. /sys is asked first, since it knows who shares what, and
/// since sysconf multiplies the L3 of some processors (10 × on an AMD Zen 4 in a virtual machine).
/// What neither tells gets a common size, so no entry is zero.
inline const cache_table& cache_sizes() {
  static const cache_table table = [] {
    cache_table found;
    std::size_t threads_per_core = 1, l3_threads = 1;
    for (int index = 0; index < 10; ++index) {
      const auto line = [&](const char* name) {
        std::string text;
        std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) +
                           "/" + name);
        std::getline(file, text);
        return text;
      };
      const std::string type = line("type"), level = line("level");
      if (type != "Data" && type != "Unified") continue;
      const std::size_t bytes = ceilings_detail::parse_size(line("size"));
      const std::size_t sharers =
          std::max<std::size_t>(ceilings_detail::parse_list_length(line("shared_cpu_list")), 1);
      if (level == "1") {
        found.l1 = bytes;
        threads_per_core = sharers;
      } else if (level == "2") {
        found.l2 = bytes;
      } else if (level == "3") {
        found.l3 = bytes;
        l3_threads = sharers;
      }
    }
    found.l3_cores = std::max<std::size_t>(l3_threads / threads_per_core, 1);
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const auto ask = [](std::size_t& size, int name) {
      if (const long bytes = sysconf(name); size == 0 && bytes > 0) {
        size = static_cast<std::size_t>(bytes);
      }
    };
    ask(found.l1, _SC_LEVEL1_DCACHE_SIZE);
    ask(found.l2, _SC_LEVEL2_CACHE_SIZE);
    ask(found.l3, _SC_LEVEL3_CACHE_SIZE);
#endif
    if (found.l1 == 0) found.l1 = std::size_t{32} << 10;
    if (found.l2 == 0) found.l2 = std::size_t{1} << 20;
    if (found.l3 == 0) found.l3 = std::size_t{8} << 20;
    return found;
  }();
  return table;
}

enum class memory_level { l1, l2, l3, dram };

/// The bytes that `read_burst` walks over: half of L1 or L2; half of one core's share of L3, but at
/// least twice L2 and at most 64 MiB; four times L3, but at most 512 MiB, for DRAM.
inline std::size_t working_set(memory_level level) {
  constexpr std::size_t mebibyte = std::size_t{1} << 20;
  const cache_table& caches = cache_sizes();
  std::size_t bytes = 0, multiple = 4096;
  switch (level) {
    case memory_level::l1:
      bytes = caches.l1 / 2;
      break;
    case memory_level::l2:
      bytes = caches.l2 / 2;
      break;
    case memory_level::l3:
      bytes = std::min(std::max(caches.l3 / caches.l3_cores / 2, 2 * caches.l2), 64 * mebibyte);
      break;
    case memory_level::dram:
      bytes = std::min(4 * caches.l3, 512 * mebibyte);
      multiple = 16 * mebibyte;
      break;
  }
  return std::max((bytes + multiple - 1) / multiple, std::size_t{1}) * multiple;
}

// ---------------------------------------------------------------------------------------- bursts

/// Multiply-add from registers. `T` is float or double.
template <class T>
burst fma_burst() {
  using namespace ceilings_detail;
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
  return register_burst<fma_step<T>>(
      with_opposite<T>(random_numbers<T>(4 * lanes<T>), lanes<T>, [](T value) { return -value; }));
}

/// Multiply-add of floats with one operand broadcast from memory (L1), a new one each time: the
/// inner loop of a matrix product.
inline burst fma_broadcast_burst() {
  using namespace ceilings_detail;
  constexpr std::size_t steps = 64, rounds = 256;
  return {2.0 * static_cast<double>(lanes<float> * accumulators * steps * rounds),
          [panel = random_numbers<float>(steps * accumulators)] {
            broadcast_loop(panel.get(), steps, rounds, std::make_index_sequence<accumulators>());
          },
          {}};
}

/// Names of 16-bit types, to choose an overload with.
struct bf16_name {};
struct f16_name {};
inline constexpr bf16_name bf16{};
inline constexpr f16_name f16{};

/// Products of bf16 tiles, summed in float: AMX. Either the rate of the unit itself (l1), or with
/// right operands that stream from half of the second-level cache (l2), as keys and values do past
/// the queries and weights of a strip.
inline burst matrix_burst(bf16_name, [[maybe_unused]] memory_level level = memory_level::l1) {
#if defined(HEED_BENCH_AMX_BF16)
  using namespace ceilings_detail;
  if (!amx_permitted()) return {0, {}, "the kernel or the processor refuses AMX"};
  constexpr double operations_per_tile = 2.0 * 16 * 16 * 32;
  const bool streams = level == memory_level::l2;
  const std::size_t panels =
      streams ? working_set(memory_level::l2) / (2 * amx_tile * sizeof(std::uint16_t)) : amx_panels;
  const std::size_t rounds = streams ? 4096 / panels + 1 : 128, repeats = streams ? 1 : 8;
  return {operations_per_tile * 4 * static_cast<double>(repeats * panels * rounds),
          [left = random_patterns(amx_panels * 2 * amx_tile, 8),
           right = random_patterns(panels * 2 * amx_tile, 8), sums = random_numbers<float>(4 * 256),
           panels, rounds, streams] {
            if (streams) {
              amx_loop<1>(left.get(), right.get(), panels, sums.get(), rounds);
            } else {
              amx_loop<8>(left.get(), right.get(), panels, sums.get(), rounds);
            }
          },
          {}};
#else
  return {0, {}, "compiled for a target without AMX-BF16 on Linux"};
#endif
}

/// Dot products of pairs of bf16 in vectors, summed in float: AVX512-BF16.
inline burst vector_burst(bf16_name) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  return ceilings_detail::register_burst<ceilings_detail::bf16_dot_step>(
      ceilings_detail::pattern_operands(8));
#else
  return {0, {}, "compiled for a target without AVX512-BF16"};
#endif
}

/// Multiply-add of vectors of f16: AVX512-FP16.
inline burst vector_burst(f16_name) {
#if defined(__AVX512FP16__)
  return ceilings_detail::register_burst<ceilings_detail::f16_fma_step>(
      ceilings_detail::pattern_operands(5));
#else
  return {0, {}, "compiled for a target without AVX512-FP16"};
#endif
}

/// Exponentials of floats in L1, summed, to float accuracy.
inline burst exp_burst() {
  using namespace ceilings_detail;
  constexpr std::size_t count = 2048, rounds = 256;
  auto values = random_numbers<float>(count);
  for (std::size_t i = 0; i < count; ++i) {
    // The range of a softmax in units of log2: from −30 to 0.
    values.get()[i] = 60.f * (std::fabs(values.get()[i]) - 1.f);
  }
  return {
      static_cast<double>(count * rounds), [values] { exp_loop(values.get(), count, rounds); }, {}};
}

/// Reading `set` bytes, a multiple of 4096, over and over in sequence. A call reads 16 MiB: a small
/// working set several times, and the next part of a large one, so that a call stays short and
/// finds in a cache what a loop over the whole set would find there.
inline burst read_burst(std::size_t set) {
  using namespace ceilings_detail;
  constexpr std::size_t bytes_per_call = std::size_t{16} << 20;
  const auto data = allocate(set);
  auto* const words = reinterpret_cast<std::uint64_t*>(data.get());
  for (std::size_t i = 0; i < set / sizeof(std::uint64_t); ++i) {
    words[i] = (i + 1) * 0x9e3779b97f4a7c15u;  // an odd factor: none is zero, no two alike
  }
  const std::size_t pieces = (set + bytes_per_call - 1) / bytes_per_call;
  const std::size_t window = set / pieces / 4096 * 4096;
  const std::size_t passes = bytes_per_call / window;
  return {static_cast<double>(window * passes),
          [data, set, window, passes, start = std::size_t{0}]() mutable {
            read_loop(data.get() + start, window, passes,
                      std::make_index_sequence<vectors_per_turn>());
            start = start + 2 * window <= set ? start + window : 0;
          },
          {}};
}
/// Reading from one level of the memory.
inline burst read_burst(memory_level level) { return read_burst(working_set(level)); }

// -------------------------------------------------------------------------------------- ceilings
// Measured at the first call and remembered. Those that a target may lack are optional.

template <class T>
double fma_gflops() {
  static const double rate = remeasure(fma_burst<T>());
  return rate;
}

inline double fma_broadcast_gflops() {
  static const double rate = remeasure(fma_broadcast_burst());
  return rate;
}

/// The ceiling of a burst that the target may lack.
inline std::optional<double> remeasure_if_present(const burst& piece) {
  return piece ? std::optional<double>(remeasure(piece)) : std::nullopt;
}

inline std::optional<double> matrix_gflops(bf16_name) {
  static const std::optional<double> rate = remeasure_if_present(matrix_burst(bf16));
  return rate;
}

inline std::optional<double> vector_gflops(bf16_name) {
  static const std::optional<double> rate = remeasure_if_present(vector_burst(bf16));
  return rate;
}

inline std::optional<double> vector_gflops(f16_name) {
  static const std::optional<double> rate = remeasure_if_present(vector_burst(f16));
  return rate;
}

inline double exp_gexps() {
  static const double rate = remeasure(exp_burst());
  return rate;
}

inline double read_gbs(memory_level level) {
  const auto measure = [](memory_level from) { return remeasure(read_burst(from)); };
  switch (level) {
    case memory_level::l1: {
      static const double rate = measure(memory_level::l1);
      return rate;
    }
    case memory_level::l2: {
      static const double rate = measure(memory_level::l2);
      return rate;
    }
    case memory_level::l3: {
      static const double rate = measure(memory_level::l3);
      return rate;
    }
    case memory_level::dram:
      break;
  }
  static const double rate = measure(memory_level::dram);
  return rate;
}

}  // namespace heed_bench
