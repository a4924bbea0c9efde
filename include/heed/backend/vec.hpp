// Backend on the compiler's vector extensions: AVX2, NEON, SSE2, AVX-512 and whatever else the
// compiler knows, from one source.
#pragma once

#include <string_view>

#include "detail/register_tiles.hpp"

HEED_NAMESPACE_BEGIN
namespace backend {

struct vec {
  static constexpr std::string_view name = "vec";

#if defined(__AVX512F__)
  static constexpr int vector_bytes = 64;
#elif defined(__AVX__)
  static constexpr int vector_bytes = 32;
#else
  static constexpr int vector_bytes = 16;
#endif
  // Accumulators fill the register file: 6 × 4 of 32 registers, 6 × 2 of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int tile_columns = 4;
#else
  static constexpr int tile_columns = 2;
#endif

  template <class Real>
  struct lanes {
    using real = Real;
    using pack_type = pack<Real, vector_bytes / static_cast<int>(sizeof(Real))>;
    static constexpr int rows = 6;
    static constexpr int columns = tile_columns;
    using integer = void;  // products with integer codes, where there are instructions for them

    // One expression, so that the compiler contracts it to a fused multiply-add.
    HEED_INLINE static pack_type fma(pack_type a, pack_type b, pack_type c) {
      return pack_type(a.v * b.v + c.v);
    }
    HEED_INLINE static pack_type exp2(pack_type x) { return heed::exp2(x); }
    template <class T>
    HEED_INLINE static pack_type load(const T* from) {
      return detail::load_widened<pack_type>(from);
    }
    template <class T>
    HEED_INLINE static void store(T* to, pack_type a) {
      if constexpr (std::is_same_v<T, Real>) {
        store_pack(to, a);
      } else {
        for (int lane = 0; lane < pack_type::size; ++lane) to[lane] = narrow<T>(a[lane]);
      }
    }
  };

  template <class Real, class... Operands>
  using tiles = detail::register_tiles<lanes<Real>>;
};

}  // namespace backend
HEED_NAMESPACE_END
