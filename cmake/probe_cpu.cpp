// Prints the instruction sets that this CPU has and that the operating system saves on a context
// switch, by the names of the compiler flags that switch them on, one per line.
#include <cpuid.h>

#include <cstdio>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

struct registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

static registers cpuid(unsigned leaf, unsigned subleaf) {
  registers r;
  // Leaves above the highest one return the highest one's data; they must read as "has nothing".
  if (leaf <= __get_cpuid_max(leaf & 0x80000000u, nullptr)) {
    __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
  }
  return r;
}

static unsigned enabled_state() {  // XCR0: which registers the operating system saves
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux hands the tile registers out on request, and may refuse: a sandbox does.
static bool tiles_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return true;
#endif
}

static void print(bool present, const char* name) {
  if (present) std::puts(name);
}

int main() {
  const auto bit = [](unsigned word, int index) { return ((word >> index) & 1u) != 0; };
  const registers basic = cpuid(1, 0), wide = cpuid(7, 0), wide1 = cpuid(7, 1),
                  extended = cpuid(0x80000001u, 0);

  const unsigned state = bit(basic.c, 27) ? enabled_state() : 0;
  const bool avx = (state & 0x6u) == 0x6u;              // xmm, ymm
  const bool avx512 = avx && (state & 0xe0u) == 0xe0u;  // mask registers, upper zmm
  // Tile configuration, tile data.
  const bool amx = (state & 0x60000u) == 0x60000u && tiles_granted();

  print(bit(basic.c, 0), "sse3");
  print(bit(basic.c, 9), "ssse3");
  print(bit(basic.c, 19), "sse4.1");
  print(bit(basic.c, 20), "sse4.2");
  print(bit(basic.c, 23), "popcnt");
  print(bit(basic.c, 22), "movbe");
  print(bit(extended.c, 5), "lzcnt");
  print(bit(wide.b, 3), "bmi");
  print(bit(wide.b, 8), "bmi2");

  print(avx && bit(basic.c, 28), "avx");
  print(avx && bit(wide.b, 5), "avx2");
  print(avx && bit(basic.c, 12), "fma");
  print(avx && bit(basic.c, 29), "f16c");
  print(avx && bit(wide1.a, 4), "avxvnni");

  print(avx512 && bit(wide.b, 16), "avx512f");
  print(avx512 && bit(wide.b, 28), "avx512cd");
  print(avx512 && bit(wide.b, 30), "avx512bw");
  print(avx512 && bit(wide.b, 17), "avx512dq");
  print(avx512 && bit(wide.b, 31), "avx512vl");
  print(avx512 && bit(wide.b, 21), "avx512ifma");
  print(avx512 && bit(wide.c, 1), "avx512vbmi");
  print(avx512 && bit(wide.c, 6), "avx512vbmi2");
  print(avx512 && bit(wide.c, 11), "avx512vnni");
  print(avx512 && bit(wide.c, 12), "avx512bitalg");
  print(avx512 && bit(wide.c, 14), "avx512vpopcntdq");
  print(avx512 && bit(wide1.a, 5), "avx512bf16");
  print(avx512 && bit(wide.d, 23), "avx512fp16");

  print(amx && bit(wide.d, 24), "amx-tile");
  print(amx && bit(wide.d, 25), "amx-int8");
  print(amx && bit(wide.d, 22), "amx-bf16");
  print(amx && bit(wide1.a, 21), "amx-fp16");
}
