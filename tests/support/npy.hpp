// Reader of NumPy's .npy files (format versions 1.0 to 3.0), for test data.
//
// File: "\x93NUMPY", major and minor version byte, header length (2 bytes in 1.0, else 4, little
// endian), header, payload. The header is a Python dict with exactly the keys descr (element
// type), fortran_order and shape. Accepted are little-endian, C-order arrays of bool, integers and
// floats; everything else is refused with one std::runtime_error that names the file.
// Format: numpy.lib.format, "A simple format for saving numpy arrays".
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace heed_test {

namespace npy_detail {

// Strings and integers, one after the other. (Chains of operator+ draw false warnings from g++ 12.)
template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::string text;
  const auto append = [&text](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(part)>>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (append(parts), ...);
  return text;
}

template <class... Parts>
[[noreturn]] void fail(std::string_view name, const Parts&... problem) {
  throw std::runtime_error(concatenate(name, ": ", problem...));
}

}  // namespace npy_detail

struct npy_array {
  std::string dtype;                // as in the header, such as "<f4" or "|b1"
  std::vector<std::int64_t> shape;  // empty for a scalar
  std::vector<std::byte> bytes;     // elements in C order, little endian

  // Number of elements.
  std::int64_t size() const;

  // The elements in C order as T: bool, float, double or an integer type of <cstdint>. To bool:
  // what is not zero is true. To an integer: a value that T cannot hold exactly throws. To a
  // floating type: rounds.
  template <class T>
  std::vector<T> as() const;
};

// Parses the content of a .npy file; `name` stands for the file in error messages.
npy_array parse_npy(std::span<const std::byte> file, std::string_view name);

npy_array read_npy(const std::filesystem::path& path);

}  // namespace heed_test
