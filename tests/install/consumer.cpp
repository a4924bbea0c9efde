// A user's first program: three queries attend causally to three keys.
#include <cmath>
#include <cstdio>
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>
#include <vector>

int main() {
  // Equal keys weigh the values they may see equally: row i is the mean of values 0…i.
  const std::vector<float> q(3 * 2, 1.0f), k(3 * 2, 1.0f), v{0, 3, 2, 5, 7, 1};
  std::vector<float> out(3 * 2);
  heed::attention(heed::tensor_view<const float, 2>(q.data(), {3, 2}),
                  heed::tensor_view<const float, 2>(k.data(), {3, 2}),
                  heed::tensor_view<const float, 2>(v.data(), {3, 2}),
                  heed::tensor_view<float, 2>(out.data(), {3, 2}), heed::causal{});

  const std::vector<float> expected{0, 3, 1, 4, 3, 3};
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::printf("%g ", static_cast<double>(out[i]));
    if (!(std::fabs(out[i] - expected[i]) < 1e-5f)) return std::puts("is wrong"), 1;
  }
  std::puts("");
}
