// Which backend a call uses when it names none: the strongest that the target has, or the one that
// HEED_DEFAULT_BACKEND names (scalar, vec, avx512, amx; the CMake option HEED_BACKEND sets it).
#pragma once

#include <concepts>
#include <string_view>

#include "amx.hpp"
#include "avx512.hpp"
#include "scalar.hpp"
#include "vec.hpp"

HEED_NAMESPACE_BEGIN
namespace backend {

#if defined(HEED_DEFAULT_BACKEND)
using native = HEED_DEFAULT_BACKEND;
#elif defined(HEED_HAS_AMX)
using native = amx;
#elif defined(HEED_HAS_AVX512)
using native = avx512;
#else
using native = vec;
#endif

// Whether the target of this translation unit can run a backend.
template <class B>
inline constexpr bool available = requires {
  B::name;
};

static_assert(available<native>,
              "heed: HEED_DEFAULT_BACKEND names a backend that the compiler's target cannot run; "
              "compile for that instruction set or choose another backend");

}  // namespace backend
HEED_NAMESPACE_END
