#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>
#include <vector>

// The handler must not return, so the test ends in it.
static void expect_key_depth(const char* message) {
  std::printf("handler: %s\n", message);
  const bool named =
      std::strstr(message, "k") && std::strstr(message, "8") && std::strstr(message, "4");
  std::_Exit(named ? EXIT_SUCCESS : EXIT_FAILURE);
}

int main() {
  std::vector<float> q(2 * 8, 1.0f), k(3 * 8, 0.5f), v(3 * 8, 2.0f), out(2 * 8, -1.0f);
  const heed::tensor_view<const float, 2> qv(q.data(), {2, 8}), kv(k.data(), {3, 8}),
      vv(v.data(), {3, 8});
  const heed::tensor_view<float, 2> ov(out.data(), {2, 8});

  heed::attention(qv, kv, vv, ov, heed::causal{});
  for (const float x : out) {
    if (!(std::fabs(x - 2.0f) < 1e-5f)) {
      std::printf("equal values must come out as they are: %g\n", static_cast<double>(x));
      return EXIT_FAILURE;
    }
  }

  heed::set_error_handler(expect_key_depth);
  const heed::tensor_view<const float, 2> narrow(k.data(), {3, 4});
  heed::attention(qv, narrow, vv, ov);
  std::puts("a key depth of 4 against a query depth of 8 was accepted");
  return EXIT_FAILURE;
}
