// Instructions on AMX tile registers, and the permission and configuration that they need.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "../../core/error.hpp"

HEED_NAMESPACE_BEGIN
namespace backend::detail {

// The tile registers' shapes: what `ldtilecfg` reads.
struct alignas(64) tile_shapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Linux gives a process the tile registers when it asks, once; every thread then has them.
HEED_NOINLINE inline void ask_for_tiles() {
  static const bool granted = [] {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  if (!granted) {
    raise(
        "backend::amx: the operating system refuses the tile registers (arch_prctl "
        "ARCH_REQ_XCOMP_PERM for feature 18); choose backend::avx512");
  }
}

// Tile instructions by number. Memory is a clobber since compilers move stores across loads that
// they do not know as such.
template <int Tile>
HEED_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
HEED_INLINE void tile_load(const void* from, index_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(Tile)
                   : "memory");
}
// The same, with the hint that the first-level cache need not keep it.
template <int Tile>
HEED_INLINE void tile_stream(const void* from, index_t stride_bytes) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(Tile)
                   : "memory");
}
template <int Tile>
HEED_INLINE void tile_store(void* to, index_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(Tile)
                   : "memory");
}
// C[m][n] += Σ_k A[m][k]·B[k][n], in pairs of k
template <int C, int A, int B>
HEED_INLINE void tile_multiply_bfloat16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// tdpfp16ps by its bytes, since assemblers before binutils 2.41 do not know it.
template <int C, int A, int B>
HEED_INLINE void tile_multiply_half() {
  __asm__ volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1" ::"i"((~B & 15) << 3 | 3),
                   "i"(0xc0 | C << 3 | A));
}

// A tile is 16 rows of 64 bytes: 16 × 32 bfloat16 of A, 32 × 16 of B with rows in pairs, 16 × 16
// float of C; or as many halves.
inline constexpr index_t tile_words = 512;  // 16-bit words
inline constexpr index_t tile_side = 16;
inline constexpr index_t tile_depth = 32;
}  // namespace backend::detail
HEED_NAMESPACE_END
