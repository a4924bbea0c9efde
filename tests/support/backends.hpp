// The backends that a test runs on: all that this program's target has, or those that the build
// names (the CMake option HEED_TEST_BACKENDS), since every backend costs compile time in every
// test.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <type_traits>

#include "heed/backend/select.hpp"

namespace heed_test {

#if defined(HEED_TEST_BACKENDS)
using namespace heed::backend;
using all_backends = ::testing::Types<HEED_TEST_BACKENDS>;
#elif defined(HEED_HAS_AMX)
using all_backends = ::testing::Types<heed::backend::scalar, heed::backend::vec,
                                      heed::backend::avx512, heed::backend::amx>;
#elif defined(HEED_HAS_AVX512)
using all_backends =
    ::testing::Types<heed::backend::scalar, heed::backend::vec, heed::backend::avx512>;
#else
using all_backends = ::testing::Types<heed::backend::scalar, heed::backend::vec>;
#endif

// Methods are made of kernels that tests/unit/dense runs on every backend: the target's best does
// for them here, and the presets of other backends run them too; every backend costs compile time.
#if defined(HEED_TEST_BACKENDS)
using method_backends = all_backends;
#else
using method_backends = ::testing::Types<heed::backend::native>;
#endif

// Says once per program which backends are left out, as skipped cases.
#if !defined(HEED_TEST_BACKENDS) && !defined(HEED_HAS_AVX512)
TEST(backends, avx512) {
  GTEST_SKIP() << "the compiler's target (" << heed::abi_name << ") has no AVX-512";
}
#endif
#if !defined(HEED_TEST_BACKENDS) && !defined(HEED_HAS_AMX)
TEST(backends, amx) {
  GTEST_SKIP() << "the compiler's target (" << heed::abi_name << ") has no AMX for bfloat16";
}
#endif

// How far a log-sum-exp may be from the truth: where q, k, v and out are all of type T, a backend
// may round the weights that it sums.
template <class Backend, class T, class Real>
double lse_tolerance(double truth) {
  using tiles = typename Backend::template tiles<Real, T, T, T, T>;
  return 1e-5 + 5e-6 * std::abs(truth) + static_cast<double>(tiles::weight_rounding);
}

// Calls use(std::type_identity<Backend>{}) for each of a list, where backends share what takes
// long.
template <class First, class... Others, class Use>
void for_each_backend(::testing::Types<First, Others...>, const Use& use) {
  (use(std::type_identity<First>{}), ..., use(std::type_identity<Others>{}));
}

struct backend_name {
  template <class Backend>
  static std::string GetName(int) {
    return std::string(Backend::name);
  }
};

}  // namespace heed_test
