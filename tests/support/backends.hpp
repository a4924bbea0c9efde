// The backends that a test runs on: all that this program's target has, or those that the build
// names (the CMake option HEED_TEST_BACKENDS), since every backend costs compile time in every
// test.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "heed/backend/select.hpp"

namespace heed_test {

#if defined(HEED_TEST_BACKENDS)
using namespace heed::backend;
using all_backends = ::testing::Types<HEED_TEST_BACKENDS>;
#elif defined(HEED_HAS_AVX512)
using all_backends =
    ::testing::Types<heed::backend::scalar, heed::backend::vec, heed::backend::avx512>;
#else
using all_backends = ::testing::Types<heed::backend::scalar, heed::backend::vec>;

// Says once per program which backend is left out, as a skipped case.
TEST(backends, avx512) {
  GTEST_SKIP() << "the compiler's target (" << heed::abi_name << ") has no AVX-512";
}
#endif

struct backend_name {
  template <class Backend>
  static std::string GetName(int) {
    return std::string(Backend::name);
  }
};

}  // namespace heed_test
