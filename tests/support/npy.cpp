#include "support/npy.hpp"

#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

namespace heed_test {

namespace npy_detail {
namespace {

static_assert(std::endian::native == std::endian::little,
              "payloads are little endian and copied without swapping");

// IEEE binary16 to float. The value of every half, subnormals too, is a normal float or zero, so
// the result does not depend on flush-to-zero modes.
float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1Fu;
  const std::uint32_t mantissa = half & 0x3FFu;
  std::uint32_t bits = 0;
  if (exponent == 0) {
    bits = std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24f);
  } else if (exponent == 0x1Fu) {
    bits = 0x7F800000u | (mantissa << 13);
  } else {
    bits = ((exponent + (127 - 15)) << 23) | (mantissa << 13);
  }
  return std::bit_cast<float>(sign | bits);
}

// Bytes per element of a header's descr, or 0 for a type that is not read. Types of one byte have
// no byte order, which NumPy writes as '|'.
std::size_t item_size(std::string_view dtype) {
  if (dtype == "|b1" || dtype == "|i1" || dtype == "|u1" || dtype == "<i1" || dtype == "<u1") {
    return 1;
  }
  if (dtype == "<f2" || dtype == "<i2" || dtype == "<u2") return 2;
  if (dtype == "<f4" || dtype == "<i4" || dtype == "<u4") return 4;
  if (dtype == "<f8" || dtype == "<i8" || dtype == "<u8") return 8;
  return 0;
}

std::string to_string(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(shape[axis]);
  }
  // Python writes a tuple of one element as (n,).
  return text + (shape.size() == 1 ? ",)" : ")");
}

// Number of bytes that `shape` needs, or nothing where an extent is negative or the product leaves
// std::int64_t. An extent of 0 gives 0 whatever the other extents are.
std::optional<std::int64_t> byte_count(const std::vector<std::int64_t>& shape,
                                       std::size_t bytes_per_item) {
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    empty = empty || extent == 0;
  }
  if (empty) return 0;
  auto count = static_cast<std::int64_t>(bytes_per_item);
  for (const std::int64_t extent : shape) {
    if (count > std::numeric_limits<std::int64_t>::max() / extent) return std::nullopt;
    count *= extent;
  }
  return count;
}

// std::isfinite is constantly true under -ffast-math, the bits are not.
bool is_finite(double value) {
  constexpr std::uint64_t exponent = 0x7FF0000000000000u;
  return (std::bit_cast<std::uint64_t>(value) & exponent) != exponent;
}

// Converts one value; a number that the target type cannot hold is refused instead of wrapped.
template <class To, class From>
To convert(From value, std::string_view dtype) {
  if constexpr (std::is_same_v<To, bool>) {
    return value != From{};
  } else if constexpr (std::is_floating_point_v<To> || std::is_same_v<From, bool>) {
    return static_cast<To>(value);
  } else if constexpr (std::is_integral_v<From>) {
    if (!std::in_range<To>(value)) {
      fail("npy_array::as", "value ", value, " of ", dtype,
           " does not fit the integer type asked for");
    }
    return static_cast<To>(value);
  } else {
    // 2^digits is the first value above the range, and exact.
    const double wide = value;
    const double limit = std::ldexp(1.0, std::numeric_limits<To>::digits);
    const double lowest = std::is_signed_v<To> ? -limit : 0.0;
    if (!is_finite(wide) || wide < lowest || wide >= limit || std::trunc(wide) != wide) {
      fail("npy_array::as", "value ", value, " of ", dtype,
           " does not fit the integer type asked for");
    }
    return static_cast<To>(value);
  }
}

struct npy_header {
  std::string dtype;
  std::vector<std::int64_t> shape;
};

// Parser of the header's dict. It knows the few Python literals that a header can hold: strings,
// True, False and tuples of integers.
class header_parser {
 public:
  header_parser(std::string_view text, std::string_view name) : text_(text), name_(name) {}

  npy_header parse() {
    std::optional<std::string> dtype;
    std::optional<std::vector<std::int64_t>> shape;
    std::optional<bool> fortran_order;

    if (!take('{')) header_error("is not a dict");
    while (!take('}')) {
      const std::string key = string_literal();
      if (!take(':')) header_error("has no ':' after key '", key, "'");
      if (key == "descr") {
        set_once(dtype, key, descr());
      } else if (key == "fortran_order") {
        set_once(fortran_order, key, boolean_literal());
      } else if (key == "shape") {
        set_once(shape, key, tuple_of_integers());
      } else {
        fail(name_, "header has the unknown key '", key, "'");
      }
      if (!take(',') && peek() != '}') header_error("has no ',' or '}' after key '", key, "'");
    }
    peek();
    if (position_ != text_.size()) header_error("goes on after the dict");

    if (!dtype) fail(name_, "header has no key 'descr'");
    if (!fortran_order) fail(name_, "header has no key 'fortran_order'");
    if (!shape) fail(name_, "header has no key 'shape'");
    check_dtype(*dtype);
    if (*fortran_order) fail(name_, "fortran_order is True, only False (C order) is read");
    for (std::size_t axis = 0; axis < shape->size(); ++axis) {
      if ((*shape)[axis] < 0) {
        fail(name_, "shape ", to_string(*shape), " has the negative extent ", (*shape)[axis],
             " at axis ", axis);
      }
    }
    return {std::move(*dtype), std::move(*shape)};
  }

 private:
  template <class... Parts>
  [[noreturn]] void header_error(const Parts&... problem) const {
    fail(name_, "header ", problem..., ", at byte ", position_, " of ", text_.size(), ": ",
         quoted(text_));
  }

  // Header text for a message: short, and free of control characters.
  static std::string quoted(std::string_view text) {
    constexpr std::size_t longest = 80;
    std::string result = "\"";
    for (const char c : text.substr(0, longest)) result += c >= ' ' && c <= '~' ? c : '?';
    return result + (text.size() > longest ? "...\"" : "\"");
  }

  void check_dtype(const std::string& dtype) const {
    if (item_size(dtype) != 0) return;
    if (!dtype.empty() && dtype.front() == '>') {
      fail(name_, "dtype '", dtype, "' is big endian, only little endian ('<') is read");
    }
    fail(name_, "unknown dtype '", dtype,
         "', known are b1, i1, i2, i4, i8, u1, u2, u4, u8, f2, f4, f8");
  }

  template <class T>
  void set_once(std::optional<T>& slot, const std::string& key, T value) const {
    if (slot) fail(name_, "header has the key '", key, "' twice");
    slot = std::move(value);
  }

  // Skips white space; the character that follows, '\0' at the end.
  char peek() {
    while (position_ < text_.size() &&
           (text_[position_] == ' ' || text_[position_] == '\t' || text_[position_] == '\n')) {
      ++position_;
    }
    return position_ < text_.size() ? text_[position_] : '\0';
  }

  bool take(char expected) {
    if (peek() != expected) return false;
    ++position_;
    return true;
  }

  bool take_word(std::string_view word) {
    peek();
    if (text_.substr(position_, word.size()) != word) return false;
    position_ += word.size();
    return true;
  }

  std::string string_literal() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') header_error("has no string where one must stand");
    const std::size_t end = text_.find(quote, position_ + 1);
    if (end == std::string_view::npos) header_error("has a string without an end");
    const std::string_view value = text_.substr(position_ + 1, end - position_ - 1);
    position_ = end + 1;
    return std::string(value);
  }

  std::string descr() {
    // A structured type is a list of fields.
    if (peek() == '[') fail(name_, "unknown dtype: structured types are not read");
    return string_literal();
  }

  bool boolean_literal() {
    if (take_word("True")) return true;
    if (take_word("False")) return false;
    header_error("has neither True nor False as fortran_order");
  }

  std::vector<std::int64_t> tuple_of_integers() {
    if (!take('(')) header_error("has a shape that is not a tuple");
    std::vector<std::int64_t> values;
    bool comma = true;
    while (!take(')')) {
      if (!comma) header_error("has a shape without ',' between extents");
      values.push_back(integer_literal());
      comma = take(',');
    }
    // (3) is a number in Python, (3,) a tuple.
    if (values.size() == 1 && !comma) header_error("has a shape that is not a tuple");
    return values;
  }

  std::int64_t integer_literal() {
    peek();
    std::int64_t value = 0;
    const char* const first = text_.data() + position_;
    const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), value);
    const auto length = static_cast<std::size_t>(end - first);
    if (error == std::errc::result_out_of_range) {
      fail(name_, "shape has the extent ", quoted(text_.substr(position_, length)),
           ", allowed are 0 to ", std::numeric_limits<std::int64_t>::max());
    }
    if (error != std::errc{}) header_error("has no integer where an extent must stand");
    position_ += length;
    return value;
  }

  std::string_view text_;
  std::string_view name_;
  std::size_t position_ = 0;
};

template <class Stored, class T, class Decode = std::identity>
std::vector<T> convert_all(const npy_array& array, Decode decode = {}) {
  // `shape` and `bytes` are public, so nothing guarantees here that they still agree.
  const auto count = static_cast<std::size_t>(array.size());
  if (array.bytes.size() % sizeof(Stored) != 0 || array.bytes.size() / sizeof(Stored) != count) {
    fail("npy_array::as", array.bytes.size(), " bytes do not match shape ", to_string(array.shape),
         " of ", array.dtype);
  }
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, array.bytes.data() + i * sizeof(Stored), sizeof(Stored));
    values[i] = convert<T>(decode(stored), array.dtype);
  }
  return values;
}

}  // namespace
}  // namespace npy_detail

std::int64_t npy_array::size() const {
  const std::optional<std::int64_t> count = npy_detail::byte_count(shape, 1);
  if (!count) {
    npy_detail::fail("npy_array::size", "shape ", npy_detail::to_string(shape),
                     " has no element count below 2^63");
  }
  return *count;
}

template <class T>
std::vector<T> npy_array::as() const {
  using npy_detail::convert_all;
  if (dtype == "|b1") {
    return convert_all<std::uint8_t, T>(*this, [](std::uint8_t value) { return value != 0; });
  }
  if (dtype == "<f2") return convert_all<std::uint16_t, T>(*this, npy_detail::half_to_float);
  if (dtype == "<f4") return convert_all<float, T>(*this);
  if (dtype == "<f8") return convert_all<double, T>(*this);
  if (dtype == "|i1" || dtype == "<i1") return convert_all<std::int8_t, T>(*this);
  if (dtype == "<i2") return convert_all<std::int16_t, T>(*this);
  if (dtype == "<i4") return convert_all<std::int32_t, T>(*this);
  if (dtype == "<i8") return convert_all<std::int64_t, T>(*this);
  if (dtype == "|u1" || dtype == "<u1") return convert_all<std::uint8_t, T>(*this);
  if (dtype == "<u2") return convert_all<std::uint16_t, T>(*this);
  if (dtype == "<u4") return convert_all<std::uint32_t, T>(*this);
  if (dtype == "<u8") return convert_all<std::uint64_t, T>(*this);
  npy_detail::fail("npy_array::as", "unknown dtype '", dtype, "'");
}
template std::vector<bool> npy_array::as() const;
template std::vector<float> npy_array::as() const;
template std::vector<double> npy_array::as() const;
template std::vector<std::int8_t> npy_array::as() const;
template std::vector<std::int16_t> npy_array::as() const;
template std::vector<std::int32_t> npy_array::as() const;
template std::vector<std::int64_t> npy_array::as() const;
template std::vector<std::uint8_t> npy_array::as() const;
template std::vector<std::uint16_t> npy_array::as() const;
template std::vector<std::uint32_t> npy_array::as() const;
template std::vector<std::uint64_t> npy_array::as() const;

npy_array parse_npy(std::span<const std::byte> file, std::string_view name) {
  using npy_detail::fail;
  constexpr std::array<unsigned char, 6> magic{0x93, 'N', 'U', 'M', 'P', 'Y'};
  constexpr std::size_t version_end = magic.size() + 2;

  if (file.size() < version_end) {
    fail(name, "file holds ", file.size(), " bytes, magic and version need ", version_end);
  }
  if (std::memcmp(file.data(), magic.data(), magic.size()) != 0) {
    fail(name, "bad magic, the file does not begin with \\x93NUMPY");
  }
  const auto major = std::to_integer<int>(file[magic.size()]);
  const auto minor = std::to_integer<int>(file[magic.size() + 1]);
  if (major < 1 || major > 3 || minor != 0) {
    fail(name, "unsupported version ", major, ".", minor, ", supported are 1.0, 2.0 and 3.0");
  }

  const std::size_t header_begin = version_end + (major == 1 ? 2 : 4);
  if (file.size() < header_begin) {
    fail(name, "file holds ", file.size(), " bytes, magic, version and header length need ",
         header_begin);
  }
  std::uint32_t header_length = 0;
  for (std::size_t i = header_begin; i-- > version_end;) {
    header_length = (header_length << 8) | std::to_integer<std::uint32_t>(file[i]);
  }
  const std::span<const std::byte> rest = file.subspan(header_begin);
  if (rest.size() < header_length) {
    fail(name, "header is truncated: file holds ", rest.size(), " bytes of it, its length says ",
         header_length);
  }

  const std::string_view header_text(reinterpret_cast<const char*>(rest.data()), header_length);
  npy_detail::npy_header header = npy_detail::header_parser(header_text, name).parse();
  const std::span<const std::byte> payload = rest.subspan(header_length);
  const std::string described =
      npy_detail::concatenate("shape ", npy_detail::to_string(header.shape), " of ", header.dtype);
  const std::optional<std::int64_t> needed =
      npy_detail::byte_count(header.shape, npy_detail::item_size(header.dtype));
  if (!needed) {
    fail(name, described, " needs more than ", std::numeric_limits<std::int64_t>::max(), " bytes");
  }
  if (std::cmp_not_equal(payload.size(), *needed)) {
    fail(name, "payload holds ", payload.size(), " bytes, ", described, " needs ", *needed);
  }
  return {std::move(header.dtype), std::move(header.shape),
          std::vector<std::byte>(payload.begin(), payload.end())};
}

npy_array read_npy(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    npy_detail::fail(name, "cannot be opened: ", error.message());
  }
  if (!std::filesystem::is_regular_file(status)) npy_detail::fail(name, "not a regular file");

  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = stream ? std::streamoff{stream.tellg()} : -1;
  if (size < 0) npy_detail::fail(name, "cannot be opened");
  std::vector<std::byte> content(static_cast<std::size_t>(size));
  stream.seekg(0);
  stream.read(reinterpret_cast<char*>(content.data()), size);
  if (stream.gcount() != size) {
    npy_detail::fail(name, "read ", stream.gcount(), " bytes, file holds ", size);
  }
  return parse_npy(content, name);
}

}  // namespace heed_test
