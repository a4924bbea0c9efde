#include <heed/score/softcap.hpp>
#include <limits>

#include "unit/score/support.hpp"

namespace {

using namespace heed_test;

static_assert(heed::score_function<heed::softcap>);

TEST(softcap, is_the_formula) {
  for (const double cap : {0.5, 15.0, 50.0, 1000.0}) {
    const auto formula = [&](double s, const position&) { return cap * std::tanh(s / cap); };
    const tolerance limit{.relative_float = 8e-7, .relative_double = 2e-15, .of_result = true};
    for (const call_shape& shape : odd_shapes) {
      expect_formula(heed::softcap{cap}, shape, formula, limit);
      expect_formula(heed::softcap{static_cast<float>(cap)}, shape, formula, limit);
    }
  }
}

TEST(softcap, bounds_any_score) {
  const heed::softcap cap{30};
  const position p{0, 0, 0, 0, 1, 1};
  for (const float s : {1e4f, 1e30f, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(cap(s, p), 30.f);
    EXPECT_EQ(cap(-s, p), -30.f);
    const auto at = make_pack_position<float, 4>({1, 1, 1, 4}, 0, 0, 0, 0);
    for (int lane = 0; lane < 4; ++lane) {
      EXPECT_EQ(cap(pack<float, 4>(s), at)[lane], 30.f);
      EXPECT_EQ(cap(pack<float, 4>(-s), at)[lane], -30.f);
    }
  }
}

TEST(softcap, refuses_a_cap_that_is_no_bound) {
  EXPECT_EQ(error_of([] { heed::softcap{0}; }), "softcap: cap 0 is not in [1e-30, 1e30]");
  EXPECT_EQ(error_of([] { heed::softcap{-50}; }), "softcap: cap -50 is not in [1e-30, 1e30]");
  EXPECT_NE(error_of([] { heed::softcap{std::numeric_limits<double>::infinity()}; }), "accepted");
  EXPECT_NE(error_of([] { heed::softcap{std::numeric_limits<double>::quiet_NaN()}; }), "accepted");
  EXPECT_NE(error_of([] { heed::softcap{1e-31}; }), "accepted");
}

TEST(softcap, derivative) {
  const heed::softcap cap{2};
  for (const double s : {-5.0, -0.3, 0.0, 0.01, 1.5, 9.0}) {
    const heed::position p{0, 0, 0, 0, 1, 1};
    EXPECT_NEAR(cap.derivative(s, p), (cap(s + 1e-6, p) - cap(s - 1e-6, p)) / 2e-6, 1e-8) << s;
    EXPECT_NEAR(cap.derivative(static_cast<float>(s), p), cap.derivative(s, p), 1e-6) << s;
  }
}

}  // namespace
