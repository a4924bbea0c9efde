// Usage: odr avx2|avx512. Compares that unit with the baseline unit in the same program.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "unit.hpp"

static bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool cpu_has_avx512() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

int main(int argc, char** argv) {
  const bool wide = argc > 1 && std::strcmp(argv[1], "avx512") == 0;
  if (!(wide ? cpu_has_avx512() : cpu_has_avx2())) {
    std::printf("skipped: this CPU has no %s\n",
                wide ? "AVX-512 F, BW, DQ and VL" : "AVX2 and FMA");
    return 77;
  }
  const odr::unit a = odr::baseline(), b = wide ? odr::avx512() : odr::avx2();
  for (const odr::unit& u : {a, b}) {
    std::printf("%.*s, backend %.*s\n", int(u.isa.size()), u.isa.data(), int(u.backend.size()),
                u.backend.data());
  }

  static float q[odr::queries * odr::depth], k[odr::keys * odr::depth], v[odr::keys * odr::depth];
  static float from_a[odr::queries * odr::depth], from_b[odr::queries * odr::depth];
  unsigned state = 1;
  const auto fill = [&state](float* first, float* last) {
    for (; first != last; ++first) {
      state = state * 1664525u + 1013904223u;
      *first = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    }
  };
  fill(std::begin(q), std::end(q));
  fill(std::begin(k), std::end(k));
  fill(std::begin(v), std::end(v));
  a.attention(q, k, v, from_a);
  b.attention(q, k, v, from_b);

  float error = 0, size = 0;
  for (int i = 0; i < odr::queries * odr::depth; ++i) {
    error = std::max(error, std::fabs(from_a[i] - from_b[i]));
    size = std::max(size, std::fabs(from_a[i]));
  }
  std::printf("largest difference %g, largest value %g\n", static_cast<double>(error),
              static_cast<double>(size));
  if (a.isa == b.isa) return std::puts("both units name the same instruction set"), 1;
  return error < 1e-5f && size > 0.01f ? 0 : 1;
}
