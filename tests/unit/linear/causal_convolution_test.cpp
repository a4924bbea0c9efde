// linear::causal_convolution against plain sums; pieces with a state are the whole; errors.
#include "heed/linear/causal_convolution.hpp"

#include "heed/core/thread_pool.hpp"
#include "support/errors.hpp"
#include "unit/linear/support.hpp"

namespace {

using heed::index_t;
using heed_test::numbers;
namespace linear = heed::linear;

template <class Backend>
class causal_convolution : public ::testing::Test {};
TYPED_TEST_SUITE(causal_convolution, heed_test::method_backends, heed_test::backend_name);

numbers<double> wide(const numbers<float>& x) {
  numbers<double> y(x.shape);
  std::copy(x.data.begin(), x.data.end(), y.data.begin());
  return y;
}

TYPED_TEST(causal_convolution, agrees_with_plain_sums) {
  for (const auto& [B, L, C, W] : {std::array<index_t, 4>{2, 30, 37, 4},
                                   {1, 1, 16, 4},
                                   {3, 2, 5, 7},
                                   {1, 9, 3, 1},
                                   {1, 0, 8, 4}}) {
    SCOPED_TRACE(::testing::Message() << B << " " << L << " " << C << " " << W);
    const auto x = heed_test::random_numbers<float>({B, L, C}, 1);
    const auto w = heed_test::random_numbers<float>({C, W}, 2);
    const auto bias = heed_test::random_numbers<float>({C}, 3);
    const auto before = heed_test::random_numbers<float>({B, W - 1, C}, 4);
    numbers<double> wanted({B, L, C});
    const auto wx = wide(x), ww = wide(w), wb = wide(bias), ws = wide(before);
    heed::reference::causal_convolution(wx.r3(), ww.r2(), wb.r1(), ws.r3(), wanted.v3());
    numbers<float> out({B, L, C}, NAN);
    auto state = before;
    heed::thread_pool pool(2);
    linear::causal_convolution<TypeParam>(x.r3(), w.r2(), out.v3(), linear::channel_bias(bias.r1()),
                                          linear::input_state(state.v3()), heed::on{pool});
    EXPECT_LE(heed_test::relative_rms(out.data, wanted.data), 1e-6);
    for (double& y : wanted.data) y /= 1 + std::exp(-y);
    state = before;
    linear::causal_convolution<TypeParam>(x.r3(), w.r2(), out.v3(), linear::silu_activation{},
                                          linear::channel_bias(bias.r1()),
                                          linear::input_state(state.v3()));
    EXPECT_LE(heed_test::relative_rms(out.data, wanted.data), 1e-6);
  }
}

TYPED_TEST(causal_convolution, pieces_are_the_whole) {
  constexpr index_t B = 2, L = 23, C = 10, W = 4;
  const auto x = heed_test::random_numbers<float>({B, L, C}, 1);
  const auto w = heed_test::random_numbers<float>({C, W}, 2);
  numbers<float> whole({B, L, C}, NAN), pieces(whole), state({B, W - 1, C}), last(state);
  linear::causal_convolution<TypeParam>(x.r3(), w.r2(), whole.v3(), linear::input_state(last.v3()));
  index_t at = 0;
  for (const index_t n : {1, 1, 5, 0, 2, 14}) {
    linear::causal_convolution<TypeParam>(x.r3().slice(1, at, n), w.r2(),
                                          pieces.v3().slice(1, at, n),
                                          linear::input_state(state.v3()));
    at += n;
  }
  ASSERT_EQ(at, L);
  EXPECT_EQ(whole.data, pieces.data);
  EXPECT_EQ(last.data, state.data);
  numbers<float> in_place = x;
  linear::causal_convolution<TypeParam>(in_place.r3(), w.r2(), in_place.v3());
  EXPECT_EQ(whole.data, in_place.data);
}

#if defined(HEED_HAS_EXCEPTIONS)
TEST(causal_convolution_errors, name_operand_axis_and_both_extents) {
  const numbers<float> x({2, 5, 6}), w({6, 4}), bias({7});
  numbers<float> out({2, 5, 6}, 7.0f), state({2, 2, 6}, 7.0f);
  const auto expect = [&](const std::string& text, const auto& call) {
    heed_test::expect_error(text, call);
    for (const float y : out.data) ASSERT_EQ(y, 7.0f);
    for (const float y : state.data) ASSERT_EQ(y, 7.0f);
  };
  expect("weight: axis 0 has extent 6, must have 5", [&] {
    linear::causal_convolution(heed::tensor_view<const float, 3>(x.data.data(), {2, 6, 5}), w.r2(),
                               out.v3());
  });
  expect("weight: width 0 must be at least 1", [&] {
    linear::causal_convolution(x.r3(), heed::tensor_view<const float, 2>(w.data.data(), {6, 0}),
                               out.v3());
  });
  expect("out: axis 1 has extent 5, must have 4",
         [&] { linear::causal_convolution(x.r3().slice(1, 0, 4), w.r2(), out.v3()); });
  expect("bias: axis 0 has extent 7, must have 6", [&] {
    linear::causal_convolution(x.r3(), w.r2(), out.v3(), linear::channel_bias(bias.r1()));
  });
  const std::vector<float> empty;
  expect("bias: axis 0 has extent 0, must have 6", [&] {
    linear::causal_convolution(
        x.r3(), w.r2(), out.v3(),
        linear::channel_bias(heed::tensor_view<const float, 1>(empty.data(), {0})));
  });
  expect("state: axis 1 has extent 2, must have 3", [&] {
    linear::causal_convolution(x.r3(), w.r2(), out.v3(), linear::input_state(state.v3()));
  });
}
#endif

}  // namespace
