// DLPack tensors as views. The structs are those of dlpack.h, member for member.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <heed/interop/dlpack.hpp>
#include <limits>
#include <string>
#include <vector>

namespace {

using heed::index_t;
using heed::view_of_dlpack;

enum DLDeviceType : std::int32_t { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3, kDLROCMHost = 11 };
struct DLDevice {
  DLDeviceType device_type;
  std::int32_t device_id;
};
struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};
struct DLPackVersion {
  std::uint32_t major, minor;
};
struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned*);
  std::uint64_t flags;
  DLTensor dl_tensor;
};

class view_of_dlpack_test : public testing::Test {
 protected:
  DLTensor tensor(std::uint8_t code = 2, std::uint8_t bits = 32) {
    return {memory.data(), {kDLCPU, 0}, 3, {code, bits, 1}, shape.data(), strides.data(), 0};
  }
  template <class T = float, int Rank = 3, class Tensor>
  static std::string message(const Tensor& t) {
    try {
      view_of_dlpack<T, Rank>(t);
    } catch (const heed::invalid_argument& error) {
      return error.what();
    }
    return "nothing was refused";
  }

  std::array<std::int64_t, 3> shape{2, 3, 4};
  std::array<std::int64_t, 3> strides{20, 5, 1};
  alignas(64) std::array<float, 64> memory{};
};

TEST_F(view_of_dlpack_test, strides_and_byte_offset) {
  DLTensor t = tensor();
  t.byte_offset = 8;
  const auto view = view_of_dlpack<float, 3>(t);
  EXPECT_EQ(view.data(), memory.data() + 2);
  EXPECT_EQ(view.extents(), (std::array<index_t, 3>{2, 3, 4}));
  EXPECT_EQ(view.strides(), (std::array<index_t, 3>{20, 5, 1}));
  view(1, 2, 3) = 4;
  EXPECT_EQ(memory[2 + 33], 4);
  const heed::tensor_view<const float, 3> constant = view_of_dlpack<const float, 3>(t);
  EXPECT_EQ(constant.data(), view.data());
}

TEST_F(view_of_dlpack_test, no_strides_means_dense) {
  DLTensor t = tensor();
  t.strides = nullptr;
  EXPECT_EQ((view_of_dlpack<float, 3>(t).strides()), (std::array<index_t, 3>{12, 4, 1}));
}

TEST_F(view_of_dlpack_test, managed_tensors) {
  DLManagedTensor managed{tensor(), nullptr, nullptr};
  EXPECT_EQ((view_of_dlpack<float, 3>(managed).data()), memory.data());
  DLManagedTensorVersioned versioned{{1, 0}, nullptr, nullptr, 0, tensor()};
  EXPECT_EQ((view_of_dlpack<float, 3>(versioned).data()), memory.data());
  versioned.flags = 1;
  EXPECT_EQ((view_of_dlpack<const float, 3>(versioned).data()), memory.data());
  EXPECT_EQ(message(versioned), "DLPack tensor: it is read-only, ask for a view of const elements");
}

TEST_F(view_of_dlpack_test, element_types) {
  EXPECT_EQ(message<float>(tensor(2, 32)), "nothing was refused");
  EXPECT_EQ(message<double>(tensor(2, 64)), "nothing was refused");
  EXPECT_EQ(message<Eigen::half>(tensor(2, 16)), "nothing was refused");
  EXPECT_EQ(message<Eigen::bfloat16>(tensor(4, 16)), "nothing was refused");
  EXPECT_EQ(message<std::int32_t>(tensor(0, 32)), "nothing was refused");
  EXPECT_EQ(message<std::uint8_t>(tensor(1, 8)), "nothing was refused");
  EXPECT_EQ(message<bool>(tensor(6, 8)), "nothing was refused");

  EXPECT_EQ(message<float>(tensor(2, 64)), "DLPack tensor: elements are float64, not float32");
  EXPECT_EQ(message<Eigen::half>(tensor(4, 16)),
            "DLPack tensor: elements are bfloat16, not float16");
  EXPECT_EQ(message<Eigen::bfloat16>(tensor(2, 16)),
            "DLPack tensor: elements are float16, not bfloat16");
  EXPECT_EQ(message<std::uint8_t>(tensor(0, 8)), "DLPack tensor: elements are int8, not uint8");
  EXPECT_EQ(message<float>(tensor(17, 8)),
            "DLPack tensor: elements are type 17 of 8 bits, not float32");
  DLTensor lanes = tensor();
  lanes.dtype.lanes = 4;
  EXPECT_EQ(message(lanes), "DLPack tensor: elements are float32 x 4 lanes, not float32");
}

TEST_F(view_of_dlpack_test, devices) {
  DLTensor t = tensor();
  t.device.device_type = kDLCUDAHost;
  EXPECT_EQ(message(t), "nothing was refused");
  t.device.device_type = kDLROCMHost;
  EXPECT_EQ(message(t), "nothing was refused");
  t.device.device_type = kDLCUDA;
  EXPECT_EQ(message(t),
            "DLPack tensor: device type 2 is not the CPU (1) or pinned host memory (3, 11)");
}

TEST_F(view_of_dlpack_test, rank_and_layout) {
  EXPECT_EQ((message<float, 4>(tensor())), "DLPack tensor: rank 3 is not 4");
  strides = {1, 2, 6};
  EXPECT_EQ(message(tensor()),
            "DLPack tensor: last axis has stride 6, it must be contiguous (stride 1)");
  shape = {2, 3, 1};  // of one element, the stride says nothing
  EXPECT_EQ(message(tensor()), "nothing was refused");
}

TEST_F(view_of_dlpack_test, memory) {
  DLTensor t = tensor();
  t.byte_offset = 2;
  EXPECT_EQ(message(t),
            "DLPack tensor: data plus byte offset 2 is not aligned to elements of 4 bytes");
  t = tensor();
  t.data = nullptr;
  EXPECT_EQ(message(t), "DLPack tensor: data is null");
  shape[1] = 0;
  EXPECT_EQ(message(t), "nothing was refused");
  EXPECT_TRUE((view_of_dlpack<float, 3>(t).empty()));
}

TEST_F(view_of_dlpack_test, sizes) {
  shape = {2, -3, 4};
  EXPECT_EQ(message(tensor()), "tensor_view: axis 1 has negative extent -3");
  shape = {std::numeric_limits<std::int64_t>::max(), 3, 4};
  DLTensor t = tensor();
  t.strides = nullptr;
  EXPECT_EQ(
      message(t),
      "DLPack tensor: element count overflows 64 bits at axis 0 of extent 9223372036854775807");
}

}  // namespace
