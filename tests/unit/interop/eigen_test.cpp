// Eigen's types as views: shape, strides, constness, and what only run time can refuse.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <array>
#include <heed/core/view_of.hpp>
#include <string>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>
#include <vector>

#include "support/errors.hpp"

namespace {

using heed::index_t;
using heed::tensor_view;
using heed::view_of;
using heed_test::error_of;
template <class T>
using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class X>
using element_of = heed::view_element<X>;

// Every element of the view is the element of the matrix, in place.
template <class View, class Matrix>
void expect_same(const View& view, const Matrix& m) {
  static_assert(View::rank == 2);
  ASSERT_EQ(view.extent(0), m.rows());
  ASSERT_EQ(view.extent(1), m.cols());
  for (index_t i = 0; i < m.rows(); ++i) {
    for (index_t j = 0; j < m.cols(); ++j) ASSERT_EQ(&view(i, j), &m.coeffRef(i, j));
  }
}

// ---- what the compiler decides
// -------------------------------------------------------------------

using dynamic = matrix<float>;
static_assert(heed::viewable<dynamic> && heed::viewable<const dynamic&>);
static_assert(heed::viewable<Eigen::Map<const dynamic>>);
static_assert(heed::viewable<Eigen::Tensor<float, 3, Eigen::RowMajor>>);
static_assert(heed::view_rank<dynamic&> == 2);
static_assert(heed::view_rank<Eigen::RowVectorXf> == 2);
static_assert(heed::view_rank<Eigen::Tensor<float, 3, Eigen::RowMajor>> == 3);
static_assert(heed::view_rank<Eigen::TensorMap<Eigen::Tensor<float, 4, Eigen::RowMajor>>> == 4);
// Known, so that the message about the layout is reached.
static_assert(heed::viewable<Eigen::MatrixXf> && heed::viewable<Eigen::VectorXf>);
static_assert(heed::viewable<decltype(dynamic() + dynamic())>);
static_assert(!heed::viewable<float> && !heed::viewable<float*> && !heed::viewable<std::string>);

static_assert(std::is_same_v<element_of<dynamic&>, float>);
static_assert(std::is_same_v<element_of<const dynamic&>, const float>);
static_assert(std::is_same_v<element_of<dynamic>, const float>, "a temporary may only be read");
static_assert(std::is_same_v<element_of<Eigen::Map<dynamic>>, float>);
static_assert(std::is_same_v<element_of<Eigen::Map<const dynamic>>, const float>);
static_assert(std::is_same_v<element_of<Eigen::Map<const dynamic>&>, const float>);
static_assert(std::is_same_v<element_of<Eigen::Ref<dynamic>&>, float>);
static_assert(std::is_same_v<element_of<Eigen::Ref<const dynamic>&>, const float>);
static_assert(std::is_same_v<element_of<Eigen::Block<dynamic>>, float>);
static_assert(std::is_same_v<element_of<const Eigen::Block<const dynamic>>, const float>);
static_assert(std::is_same_v<element_of<matrix<Eigen::half>&>, Eigen::half>);
static_assert(std::is_same_v<element_of<const matrix<Eigen::bfloat16>&>, const Eigen::bfloat16>);

using tensor3 = Eigen::Tensor<double, 3, Eigen::RowMajor>;
static_assert(std::is_same_v<element_of<tensor3&>, double>);
static_assert(std::is_same_v<element_of<const tensor3&>, const double>);
static_assert(std::is_same_v<element_of<tensor3>, const double>);
static_assert(std::is_same_v<element_of<Eigen::TensorMap<tensor3>>, double>);
static_assert(std::is_same_v<element_of<const Eigen::TensorMap<tensor3>&>, double>);
static_assert(std::is_same_v<element_of<Eigen::TensorMap<const tensor3>>, const double>);
static_assert(
    std::is_same_v<element_of<Eigen::TensorMap<Eigen::Tensor<const double, 3, Eigen::RowMajor>>>,
                   const double>);

// ---- matrices
// ------------------------------------------------------------------------------------

TEST(view_of_eigen, matrix) {
  dynamic m = dynamic::Random(5, 3);
  const auto view = view_of(m);
  static_assert(std::is_same_v<decltype(view), const tensor_view<float, 2>>);
  expect_same(view, m);
  EXPECT_EQ(view.stride(0), 3);
  view(4, 2) = 7;
  EXPECT_EQ(m(4, 2), 7);

  const dynamic& constant = m;
  expect_same(view_of(constant), constant);
}

TEST(view_of_eigen, matrices_with_sizes_known_at_compile_time) {
  Eigen::Matrix<double, 4, 6, Eigen::RowMajor> fixed;
  fixed.setRandom();
  expect_same(view_of(fixed), fixed);
  Eigen::Matrix<double, Eigen::Dynamic, 6, Eigen::RowMajor> half_fixed(3, 6);
  expect_same(view_of(half_fixed), half_fixed);
  Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> array(2, 5);
  expect_same(view_of(array), array);
}

TEST(view_of_eigen, row_vectors_are_one_row) {
  Eigen::RowVectorXf v = Eigen::RowVectorXf::Random(9);
  expect_same(view_of(v), v);
  auto part = v.segment(2, 4);
  expect_same(view_of(part), part);
  Eigen::Matrix<float, 1, 4> fixed;
  expect_same(view_of(fixed), fixed);
}

TEST(view_of_eigen, blocks_keep_the_stride_of_their_matrix) {
  dynamic m = dynamic::Random(6, 8);
  auto block = m.block(1, 2, 3, 4);
  const auto view = view_of(block);
  expect_same(view, block);
  EXPECT_EQ(view.stride(0), 8);
  expect_same(view_of(m.middleRows(2, 3)), m.middleRows(2, 3));
  expect_same(view_of(m.rightCols(5)), m.rightCols(5));
  expect_same(view_of(m.row(4)), m.row(4));
  expect_same(view_of(m.block(1, 1, 4, 4).topLeftCorner(2, 3)), m.block(1, 1, 2, 3));
}

TEST(view_of_eigen, maps_with_strides) {
  std::vector<float> memory(100);
  using stride = Eigen::OuterStride<>;
  Eigen::Map<dynamic, 0, stride> padded(memory.data() + 3, 4, 5, stride(11));
  const auto view = view_of(padded);
  expect_same(view, padded);
  EXPECT_EQ(view.stride(0), 11);
  EXPECT_EQ(view.data(), memory.data() + 3);

  Eigen::Map<dynamic, 0, stride> broadcast(memory.data(), 4, 5, stride(0));
  EXPECT_EQ(view_of(broadcast).stride(0), 0);

  using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  Eigen::Map<dynamic, 0, strides> contiguous(memory.data(), 4, 5, strides(7, 1));
  expect_same(view_of(contiguous), contiguous);
}

TEST(view_of_eigen, refs) {
  dynamic m = dynamic::Random(6, 8);
  Eigen::Ref<dynamic> ref = m.leftCols(3);
  expect_same(view_of(ref), ref);
  EXPECT_EQ(view_of(ref).data(), m.data());
  const Eigen::Ref<const dynamic> constant = m;
  EXPECT_EQ(view_of(constant).data(), m.data());
}

TEST(view_of_eigen, a_transposed_column_major_matrix_is_row_major) {
  Eigen::MatrixXf m = Eigen::MatrixXf::Random(4, 7);
  auto transposed = m.transpose();
  const auto view = view_of(transposed);
  ASSERT_EQ(view.extent(0), 7);
  ASSERT_EQ(view.extent(1), 4);
  for (index_t i = 0; i < 7; ++i) {
    for (index_t j = 0; j < 4; ++j) EXPECT_EQ(&view(i, j), &m(j, i));
  }
}

TEST(view_of_eigen, empty_matrices) {
  dynamic none(0, 8), thin(3, 0);
  EXPECT_TRUE(view_of(none).empty());
  EXPECT_EQ(view_of(none).extent(1), 8);
  EXPECT_TRUE(view_of(thin).empty());
}

TEST(view_of_eigen, strides_of_run_time_are_checked) {
  Eigen::MatrixXf columns = Eigen::MatrixXf::Random(5, 7);
  auto row = columns.row(2);  // row-major, but its elements are 5 apart
  EXPECT_EQ(error_of([&] { view_of(row); }),
            "Eigen argument: inner stride 5, the elements of a row must be contiguous (stride 1)");
  std::vector<float> memory(100);
  using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  Eigen::Map<dynamic, 0, strides> apart(memory.data(), 4, 5, strides(20, 2));
  EXPECT_EQ(error_of([&] { view_of(apart); }),
            "Eigen argument: inner stride 2, the elements of a row must be contiguous (stride 1)");
  // Of a single element per row, the stride says nothing.
  Eigen::Map<dynamic, 0, strides> thin(memory.data(), 4, 1, strides(20, 2));
  EXPECT_EQ(view_of(thin).stride(0), 20);
}

TEST(view_of_eigen, outputs) {
  dynamic m = dynamic::Zero(4, 4);
  heed::output_view_of(m)(0, 0) = 1;
  heed::output_view_of(m.middleRows(1, 2))(0, 1) = 2;
  heed::output_view_of(Eigen::Map<dynamic>(m.data(), 4, 4))(3, 3) = 3;
  EXPECT_EQ(m(0, 0), 1);
  EXPECT_EQ(m(1, 1), 2);
  EXPECT_EQ(m(3, 3), 3);
}

// ---- tensors
// -------------------------------------------------------------------------------------

TEST(view_of_eigen, tensor) {
  tensor3 t(2, 3, 4);
  t.setRandom();
  const auto view = view_of(t);
  static_assert(std::is_same_v<decltype(view), const tensor_view<double, 3>>);
  for (index_t a = 0; a < 2; ++a) {
    for (index_t b = 0; b < 3; ++b) {
      for (index_t c = 0; c < 4; ++c) EXPECT_EQ(&view(a, b, c), &t(a, b, c));
    }
  }
  EXPECT_EQ(std::as_const(t).data(), view_of(std::as_const(t)).data());
}

TEST(view_of_eigen, ranks_one_to_four) {
  Eigen::Tensor<float, 1, Eigen::RowMajor> one(5);
  Eigen::Tensor<float, 2, Eigen::RowMajor> two(5, 6);
  Eigen::Tensor<float, 4, Eigen::RowMajor> four(2, 3, 5, 6);
  EXPECT_EQ(view_of(one).extents(), (std::array<index_t, 1>{5}));
  EXPECT_EQ(view_of(two).extents(), (std::array<index_t, 2>{5, 6}));
  EXPECT_EQ(view_of(four).extents(), (std::array<index_t, 4>{2, 3, 5, 6}));
  EXPECT_EQ(view_of(four).strides(), (std::array<index_t, 4>{90, 30, 6, 1}));
}

TEST(view_of_eigen, tensor_maps_and_fixed_tensors) {
  std::vector<double> memory(24);
  Eigen::TensorMap<tensor3> map(memory.data(), 2, 3, 4);
  EXPECT_EQ(&view_of(map)(1, 2, 3), memory.data() + 23);
  heed::output_view_of(Eigen::TensorMap<tensor3>(memory.data(), 2, 3, 4))(0, 0, 1) = 5;
  EXPECT_EQ(memory[1], 5);
  Eigen::TensorFixedSize<float, Eigen::Sizes<2, 3>, Eigen::RowMajor> fixed;
  EXPECT_EQ(view_of(fixed).extents(), (std::array<index_t, 2>{2, 3}));
  EXPECT_EQ(view_of(fixed).data(), fixed.data());
}

}  // namespace
