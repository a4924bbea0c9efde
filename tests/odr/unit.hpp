// What each translation unit of this program offers.
#pragma once

#include <string_view>

namespace odr {

inline constexpr int queries = 5, keys = 37, depth = 40;

struct unit {
  std::string_view isa;      // the library's inline namespace, which names the instruction set
  std::string_view backend;  // the backend chosen at compile time
  void (*attention)(const float* q, const float* k, const float* v, float* out);
};

unit baseline();
unit avx2();
unit avx512();

}  // namespace odr
