// DLPack tensors as tensor_view. <dlpack/dlpack.h> is not needed: any struct with the members of
// DLTensor will do, and so will DLManagedTensor and DLManagedTensorVersioned, which hold one.
//
//   data, byte_offset   the first element lies at (char*)data + byte_offset
//   ndim, shape, strides (in elements; null: dense and row-major)
//   dtype.{code, bits, lanes}, device.{device_type, device_id}
//
// Unlike view_of, the element type and the rank are the caller's: a DLPack tensor only knows them
// at run time. Source: DLPack 1.0, https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "../config.hpp"
#include "../core/element.hpp"
#include "../core/error.hpp"
#include "../core/tensor_view.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// Values of DLDataTypeCode and DLDeviceType.
enum class dlpack_code { integer = 0, unsigned_integer = 1, real = 2, bfloat = 4, boolean = 6 };
enum class dlpack_device { cpu = 1, cuda_host = 3, rocm_host = 11 };

struct dlpack_dtype {
  int code;
  int bits;
};

template <class T>
constexpr dlpack_dtype dlpack_dtype_of() {
  using value = std::remove_cv_t<T>;
  if constexpr (is_half<value>) {
    return {static_cast<int>(dlpack_code::real), 16};
  } else if constexpr (is_bfloat16<value>) {
    return {static_cast<int>(dlpack_code::bfloat), 16};
  } else if constexpr (std::is_same_v<value, bool>) {
    return {static_cast<int>(dlpack_code::boolean), 8};
  } else {
    static_assert(std::is_arithmetic_v<value>, "heed: DLPack has no name for this element type");
    constexpr dlpack_code code = std::is_floating_point_v<value> ? dlpack_code::real
                                 : std::is_signed_v<value>       ? dlpack_code::integer
                                                                 : dlpack_code::unsigned_integer;
    return {static_cast<int>(code), static_cast<int>(8 * sizeof(value))};
  }
}

inline std::string dlpack_dtype_name(int code, int bits, int lanes) {
  static constexpr const char* names[] = {"int",    "uint",    "float", "handle",
                                          "bfloat", "complex", "bool"};
  std::string name = code >= 0 && code < 7
                         ? names[code] + std::to_string(bits)
                         : "type " + std::to_string(code) + " of " + std::to_string(bits) + " bits";
  return lanes == 1 ? name : name + " x " + std::to_string(lanes) + " lanes";
}

}  // namespace detail

// A view of a DLPack tensor with elements T (const to read only) and Rank axes. Refused are another
// element type or rank, memory that the CPU cannot reach, and rows that are not contiguous.
template <class T, int Rank, class Tensor>
tensor_view<T, Rank> view_of_dlpack(const Tensor& tensor) {
  if constexpr (requires { tensor.dl_tensor; }) {  // a struct around it says who frees it
    if constexpr (!std::is_const_v<T> && requires { tensor.flags; }) {
      constexpr std::uint64_t read_only = 1;
      if ((static_cast<std::uint64_t>(tensor.flags) & read_only) != 0) {
        raise("DLPack tensor: it is read-only, ask for a view of const elements");
      }
    }
    return view_of_dlpack<T, Rank>(tensor.dl_tensor);
  } else {
    const int device = static_cast<int>(tensor.device.device_type);
    if (device != static_cast<int>(detail::dlpack_device::cpu) &&
        device != static_cast<int>(detail::dlpack_device::cuda_host) &&
        device != static_cast<int>(detail::dlpack_device::rocm_host)) {
      raise(message("DLPack tensor: device type ")
            << device << " is not the CPU (1) or pinned host memory (3, 11)");
    }

    constexpr detail::dlpack_dtype expected = detail::dlpack_dtype_of<T>();
    const int code = static_cast<int>(tensor.dtype.code);
    const int bits = static_cast<int>(tensor.dtype.bits);
    const int lanes = static_cast<int>(tensor.dtype.lanes);
    if (code != expected.code || bits != expected.bits || lanes != 1) {
      raise("DLPack tensor: elements are " + detail::dlpack_dtype_name(code, bits, lanes) +
            ", not " + detail::dlpack_dtype_name(expected.code, expected.bits, 1));
    }
    if (static_cast<int>(tensor.ndim) != Rank) {
      raise(message("DLPack tensor: rank ")
            << static_cast<index_t>(tensor.ndim) << " is not " << Rank);
    }

    typename tensor_view<T, Rank>::shape extents{}, strides{};
    index_t step = 1;
    bool empty = false;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      const auto at = static_cast<std::size_t>(axis);
      extents[at] = static_cast<index_t>(tensor.shape[axis]);
      empty = empty || extents[at] == 0;
      strides[at] = tensor.strides != nullptr ? static_cast<index_t>(tensor.strides[axis]) : step;
      if (tensor.strides == nullptr && extents[at] > 0 &&
          __builtin_mul_overflow(step, extents[at], &step)) {
        raise(message("DLPack tensor: element count overflows 64 bits at axis ")
              << axis << " of extent " << extents[at]);
      }
    }
    if (extents[Rank - 1] > 1 && strides[Rank - 1] != 1) {
      raise(message("DLPack tensor: last axis has stride ")
            << strides[Rank - 1] << ", it must be contiguous (stride 1)");
    }

    if (tensor.data == nullptr) {
      if (!empty) raise("DLPack tensor: data is null");
      return tensor_view<T, Rank>(nullptr, extents, strides);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) +
                         static_cast<std::uintptr_t>(tensor.byte_offset);
    if (address % (expected.bits / 8) != 0) {
      raise(message("DLPack tensor: data plus byte offset ")
            << static_cast<index_t>(tensor.byte_offset) << " is not aligned to elements of "
            << expected.bits / 8 << " bytes");
    }
    return tensor_view<T, Rank>(reinterpret_cast<T*>(address), extents, strides);
  }
}

HEED_NAMESPACE_END
