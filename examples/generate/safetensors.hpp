// Reads .safetensors files.
//
//   bytes 0..7     length of the header, little endian
//   header         JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …},
//                  and optionally "__metadata__": {"key": "value", …}
//   payload        the tensors, row-major; offsets count from here, without gaps or overlaps
//
// A file is data from elsewhere: everything is checked when it is opened, and whatever is wrong is
// one std::runtime_error that names the file, the tensor and the values that disagree.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "eigen.hpp"

namespace example {

class safetensors_file {
 public:
  using shape_type = std::vector<std::int64_t>;

  struct tensor_data {
    std::string dtype;
    shape_type shape;
    std::span<const std::byte> bytes;  // lives as long as the file object
  };

  // Reads and checks the whole file.
  static safetensors_file open(const std::filesystem::path& path) { return safetensors_file(path); }

  // The tensors point into the file's bytes, which moving keeps in place.
  safetensors_file(safetensors_file&&) = default;
  safetensors_file& operator=(safetensors_file&&) = default;

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    result.reserve(tensors_.size());
    for (const auto& entry : tensors_) result.push_back(entry.first);
    return result;
  }

  const tensor_data& tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      fail("tensor '" + name + "' is missing; the file has " + std::to_string(tensors_.size()) +
           " others");
    }
    return found->second;
  }
  const tensor_data& tensor(const std::string& name, const shape_type& expected) const {
    const tensor_data& data = tensor(name);
    if (data.shape != expected) {
      fail(name, "shape " + text_of(data.shape) + " is not the expected " + text_of(expected));
    }
    return data;
  }

  // The elements of a tensor of floating-point numbers, in another such type.
  std::vector<float> as_float(const std::string& name) const {
    return as<float>(tensor(name), name);
  }
  std::vector<float> as_float(const std::string& name, const shape_type& expected) const {
    return as<float>(tensor(name, expected), name);
  }
  std::vector<Eigen::bfloat16> as_bfloat16(const std::string& name) const {
    return as<Eigen::bfloat16>(tensor(name), name);
  }
  std::vector<Eigen::bfloat16> as_bfloat16(const std::string& name,
                                           const shape_type& expected) const {
    return as<Eigen::bfloat16>(tensor(name, expected), name);
  }

  std::vector<std::int32_t> as_int32(const std::string& name) const {
    const tensor_data& data = tensor(name);
    if (data.dtype != "I32") fail(name, "dtype '" + data.dtype + "' is not the expected 'I32'");
    return elements<std::int32_t>(data);
  }

  static std::string text_of(const shape_type& shape) {
    std::string text = "[";
    for (const std::int64_t extent : shape) {
      if (text.size() > 1) text += ", ";
      text += std::to_string(extent);
    }
    return text + "]";
  }

 private:
  static_assert(std::endian::native == std::endian::little, "the format is little endian");
  using json = nlohmann::json;
  static constexpr std::uint64_t length_bytes = 8;
  // The format's own limit. Checkpoints of the largest models stay far below it.
  static constexpr std::uint64_t most_header_bytes = 100'000'000;

  explicit safetensors_file(const std::filesystem::path& path) : name_(path.string()) {
    read_file(path);
    const json header = parse_header();
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        check_metadata(entry);
      } else {
        tensors_.emplace(name, parse_entry(name, entry));
      }
    }
    check_layout();
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw std::runtime_error(name_ + ": " + message);
  }
  [[noreturn]] void fail(const std::string& tensor, const std::string& message) const {
    fail("tensor '" + tensor + "': " + message);
  }

  void read_file(const std::filesystem::path& path) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) fail("there is no such file");
    if (!std::filesystem::is_regular_file(status)) fail("is not a regular file");
    const std::uint64_t size = std::filesystem::file_size(path, error);
    std::ifstream stream(path, std::ios::binary);
    if (error || !stream) fail("cannot be opened for reading");
    if (size < length_bytes) {
      fail("has " + std::to_string(size) + " bytes, fewer than the " +
           std::to_string(length_bytes) + " of the header's length");
    }
    std::uint64_t header_length = 0;
    stream.read(reinterpret_cast<char*>(&header_length), length_bytes);
    if (!stream) fail("cannot be read");
    // Before anything as large as the file is allocated, and in a form that cannot overflow.
    if (header_length > size - length_bytes) {
      fail("header length " + std::to_string(header_length) + " is beyond the " +
           std::to_string(size - length_bytes) + " bytes that follow it");
    }
    if (header_length > most_header_bytes) {
      fail("header length " + std::to_string(header_length) + " is above the format's limit of " +
           std::to_string(most_header_bytes));
    }
    header_bytes_ = static_cast<std::size_t>(header_length);
    bytes_.resize(static_cast<std::size_t>(size - length_bytes));
    stream.read(reinterpret_cast<char*>(bytes_.data()),
                static_cast<std::streamsize>(bytes_.size()));
    if (static_cast<std::size_t>(stream.gcount()) != bytes_.size()) {
      fail("ended after " + std::to_string(stream.gcount()) + " of " +
           std::to_string(bytes_.size()) + " bytes");
    }
  }

  std::span<const std::byte> payload() const {
    return std::span<const std::byte>(bytes_).subspan(header_bytes_);
  }

  json parse_header() const {
    const char* begin = reinterpret_cast<const char*>(bytes_.data());
    // The parser would keep the last of two entries with the same name.
    std::set<std::string> seen;
    std::string repeated;
    const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
      if (depth == 1 && event == json::parse_event_t::key &&
          !seen.insert(parsed.get<std::string>()).second) {
        repeated = parsed.get<std::string>();
      }
      return true;
    };
    json header;
    try {
      header = json::parse(begin, begin + header_bytes_, watch);
    } catch (const json::exception& error) {
      fail(std::string("header is not JSON: ") + error.what());
    }
    if (!header.is_object()) {
      fail(std::string("header is not a JSON object but of type ") + header.type_name());
    }
    if (!repeated.empty()) fail(repeated, "has two entries in the header");
    return header;
  }

  void check_metadata(const json& metadata) const {
    if (!metadata.is_object()) {
      fail(std::string("__metadata__ is not a JSON object but of type ") + metadata.type_name());
    }
    for (const auto& [key, value] : metadata.items()) {
      if (!value.is_string()) {
        fail("__metadata__ '" + key + "' is not a string but of type " + value.type_name());
      }
    }
  }

  // 0 for a type that the format does not have.
  static std::uint64_t bytes_of(std::string_view dtype) {
    for (const std::string_view one : {"BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"}) {
      if (dtype == one) return 1;
    }
    for (const std::string_view two : {"F16", "BF16", "I16", "U16"}) {
      if (dtype == two) return 2;
    }
    for (const std::string_view four : {"F32", "I32", "U32"}) {
      if (dtype == four) return 4;
    }
    for (const std::string_view eight : {"F64", "I64", "U64"}) {
      if (dtype == eight) return 8;
    }
    return 0;
  }

  const json& member(const std::string& tensor, const json& entry, const char* key) const {
    const auto found = entry.find(key);
    if (found == entry.end()) fail(tensor, std::string("its entry has no '") + key + "'");
    return *found;
  }

  // An element of one of the two lists of integers; what is too large for 64 bits parses as a
  // floating-point number, and is refused with them.
  std::uint64_t integer(const std::string& tensor, const char* key, const json& value) const {
    if (!value.is_number_unsigned()) {
      fail(tensor, std::string(key) + " has an element " +
                       (value.is_number() ? value.dump() : "of type " + type_of(value)) +
                       ", which is not an integer from 0 to 2^64 - 1");
    }
    return value.get<std::uint64_t>();
  }
  static std::string type_of(const json& value) { return value.type_name(); }

  tensor_data parse_entry(const std::string& name, const json& entry) const {
    if (!entry.is_object()) {
      fail(name, "its entry is not a JSON object but of type " + type_of(entry));
    }
    const json& dtype = member(name, entry, "dtype");
    const json& shape = member(name, entry, "shape");
    const json& offsets = member(name, entry, "data_offsets");
    if (!dtype.is_string()) fail(name, "dtype is not a string but of type " + type_of(dtype));
    if (!shape.is_array()) fail(name, "shape is not a list but of type " + type_of(shape));
    if (!offsets.is_array() || offsets.size() != 2) {
      fail(name, offsets.is_array()
                     ? "data_offsets has " + std::to_string(offsets.size()) + " elements, not 2"
                     : "data_offsets is not a list but of type " + type_of(offsets));
    }

    tensor_data tensor;
    tensor.dtype = dtype.get<std::string>();
    const std::uint64_t element_bytes = bytes_of(tensor.dtype);
    if (element_bytes == 0) fail(name, "dtype '" + tensor.dtype + "' is not known");

    std::uint64_t expected = element_bytes;
    bool fits = true, empty = false;
    for (const json& item : shape) {
      const std::uint64_t extent = integer(name, "shape", item);
      if (extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        fail(name, "shape has an element " + std::to_string(extent) + " above 2^63 - 1");
      }
      tensor.shape.push_back(static_cast<std::int64_t>(extent));
      empty = empty || extent == 0;
      fits = fits && !__builtin_mul_overflow(expected, extent, &expected);
    }
    if (empty) expected = 0;
    if (!empty && !fits) {
      fail(name, "shape " + text_of(tensor.shape) + " of " + tensor.dtype +
                     " takes more than 2^64 - 1 bytes");
    }

    const std::uint64_t begin = integer(name, "data_offsets", offsets[0]);
    const std::uint64_t end = integer(name, "data_offsets", offsets[1]);
    const std::string range =
        "data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) + "]";
    if (begin > end) fail(name, range + " end before they begin");
    if (end > payload().size()) {
      fail(name, range + " leave the payload of " + std::to_string(payload().size()) + " bytes");
    }
    if (end - begin != expected) {
      fail(name, range + " hold " + std::to_string(end - begin) + " bytes, but shape " +
                     text_of(tensor.shape) + " of " + tensor.dtype + " takes " +
                     std::to_string(expected));
    }
    tensor.bytes =
        payload().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    return tensor;
  }

  // The tensors must fill the payload exactly: otherwise two share bytes, or bytes are hidden.
  void check_layout() const {
    struct range {
      std::uint64_t begin, end;
      const std::string* name;
    };
    std::vector<range> ranges;
    for (const auto& [name, tensor] : tensors_) {
      const auto begin = static_cast<std::uint64_t>(tensor.bytes.data() - payload().data());
      ranges.push_back({begin, begin + tensor.bytes.size(), &name});
    }
    std::sort(ranges.begin(), ranges.end(), [](const range& a, const range& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t covered = 0;
    const std::string* former = nullptr;
    for (const range& current : ranges) {
      if (current.begin < covered) {
        fail(*current.name, "begins at byte " + std::to_string(current.begin) +
                                " of the payload, but tensor '" + *former + "' ends at " +
                                std::to_string(covered));
      }
      if (current.begin > covered) {
        fail(*current.name, "begins at byte " + std::to_string(current.begin) +
                                " of the payload, but what precedes it ends at " +
                                std::to_string(covered));
      }
      covered = current.end;
      former = current.name;
    }
    if (covered != payload().size()) {
      fail("the tensors end at byte " + std::to_string(covered) + " of a payload of " +
           std::to_string(payload().size()) + " bytes");
    }
  }

  // Nothing in the format aligns a tensor to its element size, so elements are copied out.
  template <class T>
  static std::vector<T> elements(const tensor_data& tensor) {
    std::vector<T> result(tensor.bytes.size() / sizeof(T));
    if (!result.empty()) {
      std::memcpy(static_cast<void*>(result.data()), tensor.bytes.data(), tensor.bytes.size());
    }
    return result;
  }

  template <class To, class From>
  static std::vector<To> converted(const tensor_data& tensor) {
    std::vector<From> from = elements<From>(tensor);
    if constexpr (std::is_same_v<From, To>) {
      return from;
    } else {
      std::vector<To> result(from.size());
      std::transform(from.begin(), from.end(), result.begin(),
                     [](From value) { return static_cast<To>(static_cast<float>(value)); });
      return result;
    }
  }

  template <class To>
  std::vector<To> as(const tensor_data& tensor, const std::string& name) const {
    if (tensor.dtype == "F32") return converted<To, float>(tensor);
    if (tensor.dtype == "BF16") return converted<To, Eigen::bfloat16>(tensor);
    if (tensor.dtype == "F16") return converted<To, Eigen::half>(tensor);
    if (tensor.dtype == "F64") return converted<To, double>(tensor);
    fail(name, "dtype '" + tensor.dtype + "' is not one of the expected F32, BF16, F16, F64");
  }

  std::string name_;
  std::vector<std::byte> bytes_;  // header and payload
  std::size_t header_bytes_ = 0;
  std::map<std::string, tensor_data> tensors_;
};

}  // namespace example
