// What does not fit gives one error, and nothing is written.
#include "heed/neighborhood/attention.hpp"
#include "unit/neighborhood/support.hpp"

namespace {

using heed::index_t;
using const_view = heed::tensor_view<const float, 4>;
namespace neighborhood = heed::neighborhood;

struct call {
  std::vector<float> numbers = std::vector<float>(4096, 0.5f);
  std::vector<float> out_data = std::vector<float>(4096, 42.f);
  std::vector<float> lse_data = std::vector<float>(512, 42.f);
  const_view q{numbers.data(), {2, 4, 20, 6}}, k{numbers.data(), {2, 2, 20, 6}},
      v{numbers.data(), {2, 2, 20, 5}};
  heed::tensor_view<float, 4> out{out_data.data(), {2, 4, 20, 5}};
  heed::tensor_view<float, 3> lse{lse_data.data(), {2, 4, 20}};
  neighborhood::pattern<2> which{.grid = {4, 5}, .window = {3, 3}};

  template <class... Modifiers>
  void expect(const std::string& text, const Modifiers&... modifiers) {
    heed_test::expect_error(text, [&] {
      neighborhood::attention<2>(q, k, v, out, which, heed::lse_to{lse}, modifiers...);
    });
    for (float x : out_data) ASSERT_EQ(x, 42.f) << text;
    for (float x : lse_data) ASSERT_EQ(x, 42.f) << text;
  }
};

TEST(neighborhood_errors, pattern) {
  call c;
  c.which.window = {3, 6};
  c.expect("neighborhood: window 6 of axis 1 is over the grid extent 5");
  c.which = {.grid = {4, 5}, .window = {3, 3}, .stride = {1, 4}};
  c.expect("neighborhood: stride 4 of axis 1 is over the window 3");
  c.which = {.grid = {4, 5}, .window = {3, 3}, .dilation = {2, 1}};
  c.expect("neighborhood: window 3 of axis 0 with dilation 2 is over the grid extent 4");
  c.which = {.grid = {4, -5}, .window = {3, 3}};
  c.expect("neighborhood: grid extent -5 of axis 1 is less than 1");
  c.which = {.grid = {4, 6}, .window = {3, 3}};
  c.expect("q: length 20 differs from the grid's 24 tokens");
}

TEST(neighborhood_errors, operands) {
  call c;
  c.k = const_view(c.numbers.data(), {2, 2, 19, 6});
  c.expect("k: length 19 differs from the grid's 20 tokens");
  c = call();
  c.v = const_view(c.numbers.data(), {1, 2, 20, 5});
  c.expect("v: batch 1 differs from q's 2");
  c = call();
  c.out = heed::tensor_view<float, 4>(c.out_data.data(), {2, 4, 21, 5});
  c.expect("out: length 21 differs from the grid's 20 tokens");
  c = call();
  c.k = const_view(c.numbers.data(), {2, 3, 20, 6});
  c.v = const_view(c.numbers.data(), {2, 3, 20, 5});
  c.expect("k: head count 3 does not divide query head count 4");
  c = call();
  c.k = const_view(c.numbers.data(), {2, 2, 20, 7});
  c.expect("k: depth 7 differs from q's 6");
  c = call();
  c.lse = heed::tensor_view<float, 3>(c.lse_data.data(), {2, 4, 21});
  c.expect("lse: axis 2 has extent 21, call has 20");
}

TEST(neighborhood_errors, modifiers) {
  call c;
  const auto table = [&](index_t heads, index_t rows, index_t columns) {
    return neighborhood::relative_bias{
        heed::tensor_view<const float, 3>(c.numbers.data(), {heads, rows, columns})};
  };
  c.expect("relative_bias: head axis has extent 3, call has 4 heads", table(3, 5, 5));
  c.expect("relative_bias: axis 1 has extent 7, a window of 3 needs 5", table(4, 7, 5));
  c.expect("relative_bias: axis 2 has extent 3, a window of 3 needs 5", table(1, 5, 3));
  c.expect("scale: value is not finite", heed::scale{INFINITY});
}

}  // namespace
