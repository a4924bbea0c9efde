// Pseudo-random attention calls against the oracle, on every backend.
#include "support/backends.hpp"
#include "support/random_call.hpp"

namespace {

template <class Backend>
class random_calls : public ::testing::Test {};
TYPED_TEST_SUITE(random_calls, heed_test::all_backends, heed_test::backend_name);

TYPED_TEST(random_calls, match_the_oracle_or_are_refused) {
  std::mt19937 generator(20260101);
  for (int call = 0; call < 150; ++call) {
    std::vector<std::uint8_t> bytes(64);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(generator());
    EXPECT_EQ(heed_test::random_call<TypeParam>(bytes).run(), "") << "call " << call;
  }
}

}  // namespace
