// Products of small matrices against sums in double, over odd sizes, strides and signs; what lies
// around the result stays as it was.
#include "heed/backend/products.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "support/backends.hpp"

namespace {

using heed::index_t;

template <class Backend>
class products : public ::testing::Test {};
TYPED_TEST_SUITE(products, heed_test::all_backends, heed_test::backend_name);

template <class Real>
std::vector<Real> random_numbers(index_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<Real> numbers(static_cast<std::size_t>(count));
  for (Real& x : numbers) x = static_cast<Real>(normal(generator));
  return numbers;
}

template <class Backend, class Real>
void expect_products(index_t m, index_t n, index_t k, bool transposed, bool subtract) {
  SCOPED_TRACE(::testing::Message() << m << " x " << n << " x " << k << (transposed ? ", Aᵀ" : "")
                                    << (subtract ? ", subtracted" : ""));
  const index_t a_row = transposed ? 1 : k + 3, a_step = transposed ? m + 2 : 1;
  const index_t b_row = n + 1, c_row = n + 2;
  const auto a = random_numbers<Real>((m + 3) * (k + 3), 1);
  // No element behind the last one that may be read: a sanitizer sees a read past it.
  const auto b = random_numbers<Real>(k == 0 || n == 0 ? 0 : (k - 1) * b_row + n, 2);
  const auto before = random_numbers<Real>(m * c_row, 3);
  auto c = before;

  using kernel = heed::backend::products<Backend, Real>;
  const auto run = subtract ? kernel::subtract : kernel::add;
  run(m, n, k, a.data(), a_row, a_step, b.data(), b_row, c.data(), c_row);

  const double allowed = (sizeof(Real) == 4 ? 1e-6 : 2e-15) * (4 + static_cast<double>(k));
  for (index_t i = 0; i < m; ++i) {
    for (index_t j = 0; j < c_row; ++j) {
      const auto at = static_cast<std::size_t>(i * c_row + j);
      if (j >= n) {
        EXPECT_EQ(c[at], before[at]) << "row " << i << " was written behind its end";
        continue;
      }
      double sum = 0;
      for (index_t p = 0; p < k; ++p) {
        sum += static_cast<double>(a[static_cast<std::size_t>(i * a_row + p * a_step)]) *
               static_cast<double>(b[static_cast<std::size_t>(p * b_row + j)]);
      }
      const double wanted = static_cast<double>(before[at]) + (subtract ? -sum : sum);
      ASSERT_NEAR(static_cast<double>(c[at]), wanted, allowed) << "[" << i << "][" << j << "]";
    }
  }
}

TYPED_TEST(products, sums_of_every_size) {
  for (const index_t m : {0, 1, 2, 5, 6, 7, 13, 64}) {
    for (const index_t n : {0, 1, 7, 16, 33, 64, 97, 115}) {
      for (const index_t k : {0, 1, 17, 128, 131}) {
        expect_products<TypeParam, float>(m, n, k, (m + n) % 2 == 0, k % 3 == 0);
      }
    }
  }
  for (const bool transposed : {false, true}) {
    for (const bool subtract : {false, true}) {
      expect_products<TypeParam, double>(11, 45, 130, transposed, subtract);
      expect_products<TypeParam, float>(19, 75, 300, transposed, subtract);
    }
  }
}

// A row's bits do not depend on how many other rows or columns there are.
TYPED_TEST(products, same_bits_however_the_work_is_cut) {
  using kernel = heed::backend::products<TypeParam, float>;
  constexpr index_t m = 23, n = 90, k = 200;
  const auto a = random_numbers<float>(m * k, 1), b = random_numbers<float>(k * n, 2);
  std::vector<float> whole(m * n), rows(m * n);
  kernel::add(m, n, k, a.data(), k, 1, b.data(), n, whole.data(), n);
  for (index_t i = 0; i < m; ++i) {
    kernel::add(1, 37, k, a.data() + i * k, k, 1, b.data(), n, rows.data() + i * n, n);
    kernel::add(1, n - 37, k, a.data() + i * k, k, 1, b.data() + 37, n, rows.data() + i * n + 37,
                n);
  }
  if constexpr (std::is_same_v<TypeParam, heed::backend::vec>) {
    // Which multiplications and additions are fused is the compiler's choice there.
    for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(whole[i], rows[i], 2e-5f);
  } else {
    EXPECT_EQ(whole, rows);
  }
}

template <class Backend, class Real>
void expect_transposed(index_t rows, index_t columns) {
  const auto from = random_numbers<Real>(rows * (columns + 1), 4);
  std::vector<Real> to(static_cast<std::size_t>(columns * (rows + 2)), Real(-77));
  heed::backend::products<Backend, Real>::transpose(rows, columns, from.data(), columns + 1,
                                                    to.data(), rows + 2);
  for (index_t j = 0; j < columns; ++j) {
    for (index_t i = 0; i < rows + 2; ++i) {
      const Real wanted =
          i < rows ? from[static_cast<std::size_t>(i * (columns + 1) + j)] : Real(-77);
      ASSERT_EQ(to[static_cast<std::size_t>(j * (rows + 2) + i)], wanted)
          << rows << " x " << columns << ": [" << j << "][" << i << "]";
    }
  }
}

TYPED_TEST(products, transposes) {
  for (const index_t rows : {0, 1, 5, 16, 17, 40}) {
    for (const index_t columns : {0, 1, 6, 16, 31, 48}) {
      expect_transposed<TypeParam, float>(rows, columns);
      expect_transposed<TypeParam, double>(rows, columns);
    }
  }
}

}  // namespace
