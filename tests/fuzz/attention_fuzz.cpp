// libFuzzer target over shapes, strides, element types and modifiers of heed::attention.
//   build/fuzz/tests/fuzz/attention_fuzz -max_total_time=300
#include <cstdlib>

#include "support/random_call.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string wrong =
      heed_test::random_call<heed::backend::native>(std::span(data, size)).run();
  if (!wrong.empty()) {
    std::fprintf(stderr, "%s\n", wrong.c_str());
    std::abort();
  }
  return 0;
}
