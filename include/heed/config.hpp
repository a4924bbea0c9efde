// Compiler and instruction-set detection, and the inline namespace that carries version and
// instruction set, so that translation units built for different targets can be linked together.
#pragma once

#include "version.hpp"

#if !defined(__GNUC__) && !defined(__clang__)
#error "heed needs g++ 12 or newer, or clang 14 or newer"
#endif

// Instruction sets that the compiler may use, strongest first. One word, since it is part of the
// inline namespace's name.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HEED_HAS_AVX512 1
#define HEED_ISA avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define HEED_ISA avx2
#elif defined(__AVX__)
#define HEED_ISA avx
#elif defined(__SSE2__)
#define HEED_ISA sse2
#elif defined(__ARM_NEON)
#define HEED_ISA neon
#else
#define HEED_ISA generic
#endif

// Sets that change generated code below one of the names above; code for one must not be merged
// with code for another by the linker.
#if (defined(__AMX_TILE__) && defined(__AMX_BF16__)) || \
    (defined(__AMXTILE__) && defined(__AMXBF16__))
#define HEED_TARGET_AMX 1
#if defined(__AMX_FP16__) || defined(HEED_AMX_FP16)
#define HEED_ISA_AMX _amx_amxfp16
#else
#define HEED_ISA_AMX _amx
#endif
#else
#define HEED_ISA_AMX
#endif
#if defined(__AVX512BF16__)
#define HEED_ISA_BF16 _bf16
#else
#define HEED_ISA_BF16
#endif
#if defined(__AVX512FP16__)
#define HEED_ISA_FP16 _fp16
#else
#define HEED_ISA_FP16
#endif
#if defined(__AVX512VNNI__) && defined(__AVXVNNI__)
#define HEED_TARGET_AVXVNNI 1
#define HEED_ISA_VNNI _avxvnni
#elif defined(__AVX512VNNI__)
#define HEED_ISA_VNNI _vnni
#else
#define HEED_ISA_VNNI
#endif
#if defined(__F16C__) && !defined(HEED_HAS_AVX512)
#define HEED_ISA_F16C _f16c
#else
#define HEED_ISA_F16C
#endif
#if defined(__cpp_exceptions)
#define HEED_HAS_EXCEPTIONS 1
#define HEED_ISA_EXCEPTIONS
#else
#define HEED_ISA_EXCEPTIONS _noexcept
#endif

#define HEED_CONCAT_(major, minor, patch, isa, amx, bf16, fp16, vnni, f16c, exceptions) \
  v##major##_##minor##_##patch##_##isa##amx##bf16##fp16##vnni##f16c##exceptions
#define HEED_CONCAT(...) HEED_CONCAT_(__VA_ARGS__)
#define HEED_ABI                                                                                  \
  HEED_CONCAT(HEED_VERSION_MAJOR, HEED_VERSION_MINOR, HEED_VERSION_PATCH, HEED_ISA, HEED_ISA_AMX, \
              HEED_ISA_BF16, HEED_ISA_FP16, HEED_ISA_VNNI, HEED_ISA_F16C, HEED_ISA_EXCEPTIONS)
#define HEED_STRING_(...) #__VA_ARGS__
#define HEED_STRING(...) HEED_STRING_(__VA_ARGS__)

#define HEED_NAMESPACE_BEGIN \
  namespace heed {           \
  inline namespace HEED_ABI {
#define HEED_NAMESPACE_END \
  }                        \
  }

// Functors and register tiles must be inlined whatever the optimiser's size heuristics say: a call
// per vector of scores would cost more than the arithmetic.
#define HEED_INLINE inline __attribute__((always_inline))
#define HEED_LAMBDA_INLINE __attribute__((always_inline))
#define HEED_NOINLINE __attribute__((noinline))

#include <cstddef>
#include <cstdint>

HEED_NAMESPACE_BEGIN

// Sizes, strides (in elements) and positions.
using index_t = std::int64_t;

// Name of the inline namespace, for diagnostics and tests.
inline constexpr const char* abi_name = HEED_STRING(HEED_ABI);

HEED_NAMESPACE_END
