// Prints the instruction sets that this CPU has and that the operating system saves on a context
// switch, by the names of the compiler flags that switch them on, one per line.
#include <cpuid.h>

#include <cstdio>
#if defined(__linux__)
#include <setjmp.h>
#include <signal.h>
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

// Whether tdpfp16ps multiplies halves: a virtual machine may hide the bit for it from cpuid. By
// bytes, since compilers may know neither the instruction nor tiles.
#if defined(__linux__) && defined(__x86_64__)
static sigjmp_buf before;
static void no_such_instruction(int) { siglongjmp(before, 1); }

static bool tiles_multiply_halves() {
  struct sigaction handler = {}, former;
  handler.sa_handler = no_such_instruction;
  sigaction(SIGILL, &handler, &former);
  bool right = false;
  if (sigsetjmp(before, 1) == 0) {
    // Palette 1; tiles 0 to 2 have one row of four bytes.
    alignas(64) unsigned char shapes[64] = {1};
    for (int tile = 0; tile < 3; ++tile) shapes[16 + 2 * tile] = 4, shapes[48 + tile] = 1;
    const unsigned short a[2] = {0x3c00, 0x4000}, b[2] = {0x1400, 0x0001};  // 1, 2; 2^-10, 2^-24
    float sum = 0;
    __asm__ volatile(
        ".byte 0xc4, 0xe2, 0x78, 0x49, 0x00\n"        // ldtilecfg (%%rax)
        ".byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0\n"        // tilezero %%tmm0
        ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x0b\n"  // tileloadd (%%rbx,%%rcx), %%tmm1
        ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x14, 0x0a\n"  // tileloadd (%%rdx,%%rcx), %%tmm2
        ".byte 0xc4, 0xe2, 0x6b, 0x5c, 0xc1\n"        // tdpfp16ps %%tmm2, %%tmm1, %%tmm0
        ".byte 0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x0e\n"  // tilestored %%tmm0, (%%rsi,%%rcx)
        ".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0\n"        // tilerelease
        ::"a"(shapes),
        "b"(a), "c"(64l), "d"(b), "S"(&sum)
        : "memory");
    right = sum == 0x1p-10f + 0x1p-23f;
  }
  sigaction(SIGILL, &former, nullptr);
  return right;
}
#else
static bool tiles_multiply_halves() { return false; }
#endif

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
  print(amx && bit(wide.d, 24) && (bit(wide1.a, 21) || tiles_multiply_halves()), "amx-fp16");
}
