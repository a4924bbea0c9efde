// Tests of the readers of external test data: support/npy.hpp and support/vector_case.hpp.
#include "support/npy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "support/vector_case.hpp"

namespace {

using heed_test::npy_array;
using heed_test::parse_npy;
using heed_test::read_npy;
using heed_test::vector_case;

using file_bytes = std::vector<std::byte>;

void append(file_bytes& file, std::string_view text) {
  for (const char c : text) file.push_back(static_cast<std::byte>(c));
}

// A .npy file of any version with the header text as given and a payload of zeros.
file_bytes make_file(std::string_view header, std::size_t payload_bytes, int major = 1,
                     int minor = 0) {
  file_bytes file;
  append(file, "\x93NUMPY");
  file.push_back(static_cast<std::byte>(major));
  file.push_back(static_cast<std::byte>(minor));
  const int length_bytes = major == 1 ? 2 : 4;
  for (int i = 0; i < length_bytes; ++i) {
    file.push_back(static_cast<std::byte>((header.size() >> (8 * i)) & 0xFFu));
  }
  append(file, header);
  file.resize(file.size() + payload_bytes);
  return file;
}

std::string make_header(std::string_view dtype, std::string_view shape) {
  std::string header = "{'descr': '";
  header.append(dtype).append("', 'fortran_order': False, 'shape': ").append(shape);
  return header.append(", }\n");
}

template <class T>
file_bytes make_vector_file(std::string_view dtype, const std::vector<T>& values) {
  const std::string shape = heed_test::npy_detail::concatenate("(", values.size(), ",)");
  file_bytes file = make_file(make_header(dtype, shape), 0);
  const std::span<const std::byte> payload = std::as_bytes(std::span(values));
  file.insert(file.end(), payload.begin(), payload.end());
  return file;
}

std::string error_of(const file_bytes& file) {
  try {
    parse_npy(file, "x.npy");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

// A folder of its own under the system's temporary one, removed at the end.
class temporary_folder {
 public:
  temporary_folder() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() /
            ("heed_npy_test_" + std::to_string(random()) + std::to_string(random()));
    std::filesystem::create_directory(path_);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() { std::filesystem::remove_all(path_); }

  std::filesystem::path write(const std::string& name, std::span<const std::byte> content) const {
    std::ofstream stream(path_ / name, std::ios::binary);
    stream.write(reinterpret_cast<const char*>(content.data()),
                 static_cast<std::streamsize>(content.size()));
    return path_ / name;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

template <class T>
void expect_round_trip(std::string_view dtype, const std::vector<T>& values) {
  SCOPED_TRACE(dtype);
  const npy_array array = parse_npy(make_vector_file(dtype, values), "x.npy");
  EXPECT_EQ(array.dtype, dtype);
  EXPECT_EQ(array.shape, std::vector<std::int64_t>{static_cast<std::int64_t>(values.size())});
  EXPECT_EQ(array.size(), static_cast<std::int64_t>(values.size()));
  const std::vector<T> read = array.as<T>();
  ASSERT_EQ(read.size(), values.size());
  // Bits, because NaN differs from itself and -0 equals 0.
  EXPECT_EQ(std::memcmp(read.data(), values.data(), values.size() * sizeof(T)), 0);
}

template <class T>
std::vector<T> extremes() {
  using limits = std::numeric_limits<T>;
  return {limits::lowest(), T{0}, T{1}, T{77}, limits::max()};
}

template <class T>
std::vector<T> special_floats() {
  using limits = std::numeric_limits<T>;
  return {limits::lowest(),     -limits::infinity(), -T{0},       T{0},
          limits::denorm_min(), limits::min(),       T{1} / T{3}, limits::max(),
          limits::infinity(),   limits::quiet_NaN()};
}

TEST(npy, reads_each_dtype) {
  expect_round_trip("|i1", extremes<std::int8_t>());
  expect_round_trip("<i1", extremes<std::int8_t>());
  expect_round_trip("<i2", extremes<std::int16_t>());
  expect_round_trip("<i4", extremes<std::int32_t>());
  expect_round_trip("<i8", extremes<std::int64_t>());
  expect_round_trip("|u1", extremes<std::uint8_t>());
  expect_round_trip("<u1", extremes<std::uint8_t>());
  expect_round_trip("<u2", extremes<std::uint16_t>());
  expect_round_trip("<u4", extremes<std::uint32_t>());
  expect_round_trip("<u8", extremes<std::uint64_t>());
  expect_round_trip("<f4", special_floats<float>());
  expect_round_trip("<f8", special_floats<double>());
}

TEST(npy, reads_bool) {
  const npy_array array =
      parse_npy(make_vector_file("|b1", std::vector<std::uint8_t>{0, 1, 2, 255}), "x.npy");
  EXPECT_EQ(array.as<bool>(), (std::vector<bool>{false, true, true, true}));
  EXPECT_EQ(array.as<std::uint8_t>(), (std::vector<std::uint8_t>{0, 1, 1, 1}));
  EXPECT_EQ(array.as<float>(), (std::vector<float>{0, 1, 1, 1}));
}

TEST(npy, reads_every_half) {
  std::vector<std::uint16_t> patterns(1u << 16);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  const npy_array array = parse_npy(make_vector_file("<f2", patterns), "x.npy");
  const std::vector<float> floats = array.as<float>();
  const std::vector<double> doubles = array.as<double>();

  for (const std::uint16_t pattern : patterns) {
    const int exponent = (pattern >> 10) & 31;
    const int mantissa = pattern & 1023;
    const std::uint64_t sign = pattern >> 15;
    // Compared as bits: the signs of zeros count, and -ffast-math may not touch NaN and infinity.
    const auto float_bits = std::bit_cast<std::uint32_t>(floats[pattern]);
    const auto double_bits = std::bit_cast<std::uint64_t>(doubles[pattern]);
    ASSERT_EQ(float_bits >> 31, sign) << pattern;
    ASSERT_EQ(double_bits >> 63, sign) << pattern;
    if (exponent == 31) {
      ASSERT_EQ((float_bits >> 23) & 0xFFu, 0xFFu) << pattern;
      ASSERT_EQ((float_bits & 0x7FFFFFu) != 0, mantissa != 0) << pattern;
      ASSERT_EQ((double_bits >> 52) & 0x7FFu, 0x7FFu) << pattern;
      ASSERT_EQ((double_bits & 0xFFFFFFFFFFFFFu) != 0, mantissa != 0) << pattern;
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      ASSERT_EQ(std::fabs(doubles[pattern]), magnitude) << pattern;
      ASSERT_EQ(static_cast<double>(std::fabs(floats[pattern])), magnitude) << pattern;
    }
  }
}

TEST(npy, reads_known_halves) {
  const std::vector<std::uint16_t> patterns{0x3C00, 0xC000, 0x7BFF, 0x0400, 0x0001, 0x3555};
  const npy_array array = parse_npy(make_vector_file("<f2", patterns), "x.npy");
  EXPECT_EQ(array.as<double>(),
            (std::vector<double>{1.0, -2.0, 65504.0, 0x1p-14, 0x1p-24, 0.333251953125}));
}

TEST(npy, reads_every_version) {
  for (const int major : {1, 2, 3}) {
    SCOPED_TRACE(major);
    const npy_array array = parse_npy(make_file(make_header("<i4", "(2, 3)"), 24, major), "x.npy");
    EXPECT_EQ(array.shape, (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(array.as<int>(), std::vector<int>(6, 0));
  }
}

TEST(npy, reads_a_header_longer_than_the_length_field_of_version_1_allows) {
  const std::string header = make_header("<i4", "(1,)") + std::string(70000, ' ');
  EXPECT_EQ(parse_npy(make_file(header, 4, 2), "x.npy").as<int>(), std::vector<int>{0});
}

TEST(npy, reads_scalars_and_empty_arrays) {
  const npy_array scalar = parse_npy(make_file(make_header("<f8", "()"), 8), "x.npy");
  EXPECT_TRUE(scalar.shape.empty());
  EXPECT_EQ(scalar.size(), 1);
  EXPECT_EQ(scalar.as<double>(), std::vector<double>{0.0});

  // The other extents of an empty array may be so large that their product overflows.
  for (const char* const shape : {"(0,)", "(3, 0)", "(9223372036854775807, 4, 0)"}) {
    SCOPED_TRACE(shape);
    const npy_array empty = parse_npy(make_file(make_header("<f4", shape), 0), "x.npy");
    EXPECT_EQ(empty.size(), 0);
    EXPECT_TRUE(empty.as<float>().empty());
  }
}

TEST(npy, reads_other_spellings_of_the_header) {
  for (const char* const header :
       {"{\"shape\":(2,1),\"descr\":\"<f4\",\"fortran_order\":False}",
        "  { 'fortran_order' : False ,\t'shape' : ( 2 , 1 , ) , 'descr' : '<f4' , }   \n\n"}) {
    SCOPED_TRACE(header);
    const npy_array array = parse_npy(make_file(header, 8), "x.npy");
    EXPECT_EQ(array.dtype, "<f4");
    EXPECT_EQ(array.shape, (std::vector<std::int64_t>{2, 1}));
  }
}

TEST(npy, converts_values) {
  const npy_array doubles =
      parse_npy(make_vector_file("<f8", std::vector<double>{-3.0, 0.0, 0.1, 1e10}), "x.npy");
  EXPECT_EQ(doubles.as<float>(), (std::vector<float>{-3.0f, 0.0f, 0.1f, 1e10f}));
  EXPECT_EQ(doubles.as<bool>(), (std::vector<bool>{true, false, true, true}));

  const npy_array integers =
      parse_npy(make_vector_file("<i8", std::vector<std::int64_t>{-128, 0, 127}), "x.npy");
  EXPECT_EQ(integers.as<std::int8_t>(), (std::vector<std::int8_t>{-128, 0, 127}));
  EXPECT_EQ(integers.as<double>(), (std::vector<double>{-128.0, 0.0, 127.0}));

  const npy_array bounds =
      parse_npy(make_vector_file("<f8", std::vector<double>{-0x1p63, 0x1p62, 42.0}), "x.npy");
  EXPECT_EQ(bounds.as<std::int64_t>(),
            (std::vector<std::int64_t>{std::numeric_limits<std::int64_t>::min(),
                                       std::int64_t{1} << 62, 42}));
}

template <class To, class From>
std::string conversion_error(std::string_view dtype, From value) {
  const npy_array array = parse_npy(make_vector_file(dtype, std::vector<From>{value}), "x.npy");
  try {
    array.as<To>();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST(npy, refuses_conversions_that_change_the_value) {
  EXPECT_EQ(conversion_error<std::int8_t>("<i2", std::int16_t{300}),
            "npy_array::as: value 300 of <i2 does not fit the integer type asked for");
  EXPECT_EQ(conversion_error<std::uint64_t>("|i1", std::int8_t{-1}),
            "npy_array::as: value -1 of |i1 does not fit the integer type asked for");
  EXPECT_EQ(conversion_error<int>("<f8", 0.5),
            "npy_array::as: value 0.500000 of <f8 does not fit the integer type asked for");
  for (const double value : {0x1p63, -0x1.8p63, std::numeric_limits<double>::infinity(),
                             std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_NE(conversion_error<std::int64_t>("<f8", value), "no error");
  }
  EXPECT_NE(conversion_error<std::uint8_t>("<f4", 256.0f), "no error");
  EXPECT_NE(conversion_error<std::uint8_t>("<f4", -1.0f), "no error");
}

TEST(npy, refuses_an_array_whose_members_disagree) {
  npy_array array = parse_npy(make_file(make_header("<f4", "(4,)"), 16), "x.npy");
  array.shape = {5};
  EXPECT_THROW(array.as<float>(), std::runtime_error);
  array.shape = {4};
  array.bytes.pop_back();
  EXPECT_THROW(array.as<float>(), std::runtime_error);
  array.dtype = "<c8";
  EXPECT_THROW(array.as<float>(), std::runtime_error);
  array.shape = {-1};
  EXPECT_THROW(array.size(), std::runtime_error);
}

TEST(npy, names_what_is_wrong_before_the_header) {
  EXPECT_EQ(error_of({}), "x.npy: file holds 0 bytes, magic and version need 8");
  file_bytes bad_magic = make_file(make_header("<f4", "(1,)"), 4);
  bad_magic[1] = std::byte{'n'};
  EXPECT_EQ(error_of(bad_magic), "x.npy: bad magic, the file does not begin with \\x93NUMPY");
  const std::string header = make_header("<f4", "(1,)");
  EXPECT_EQ(error_of(make_file(header, 4, 4)),
            "x.npy: unsupported version 4.0, supported are 1.0, 2.0 and 3.0");
  EXPECT_EQ(error_of(make_file(header, 4, 0)),
            "x.npy: unsupported version 0.0, supported are 1.0, 2.0 and 3.0");
  EXPECT_EQ(error_of(make_file(header, 4, 1, 255)),
            "x.npy: unsupported version 1.255, supported are 1.0, 2.0 and 3.0");

  file_bytes cut = make_file(header, 4, 2);
  cut.resize(11);
  EXPECT_EQ(error_of(cut), "x.npy: file holds 11 bytes, magic, version and header length need 12");
  cut = make_file(std::string(100, ' '), 0);
  cut.resize(10 + 60);
  EXPECT_EQ(error_of(cut),
            "x.npy: header is truncated: file holds 60 bytes of it, its length says 100");
  // A length with the top bit set, to catch a sign error.
  cut = make_file(header, 4, 3);
  cut[11] = std::byte{0xFF};
  EXPECT_EQ(error_of(cut),
            "x.npy: header is truncated: file holds 62 bytes of it, its length says " +
                std::to_string(0xFF000000u + header.size()));
}

TEST(npy, names_what_is_wrong_in_the_header) {
  struct {
    std::string header;
    std::string error;
  } const cases[] = {
      {"", "header is not a dict, at byte 0 of 0: \"\""},
      {"[1, 2]", "header is not a dict, at byte 0 of 6: \"[1, 2]\""},
      {"{", "header has no string where one must stand, at byte 1 of 1: \"{\""},
      {"{'descr", "header has a string without an end, at byte 1 of 7: \"{'descr\""},
      {"{descr: 1}", "header has no string where one must stand, at byte 1 of 10: \"{descr: 1}\""},
      {"{'descr' '<f4'}",
       "header has no ':' after key 'descr', at byte 9 of 15: \"{'descr' '<f4'}\""},
      {"{'descr': '<f4' 'shape': ()}",
       "header has no ',' or '}' after key 'descr', at byte 16 of 28: "
       "\"{'descr': '<f4' 'shape': ()}\""},
      {"{}", "header has no key 'descr'"},
      {"{'descr': '<f4', 'shape': (), }", "header has no key 'fortran_order'"},
      {"{'descr': '<f4', 'fortran_order': False, }", "header has no key 'shape'"},
      {"{'fortran_order': False, 'shape': (), }", "header has no key 'descr'"},
      {"{'descr': '<f4', 'descr': '<f4'}", "header has the key 'descr' twice"},
      {"{'order': 'C'}", "header has the unknown key 'order'"},
      {"{'fortran_order': 0}",
       "header has neither True nor False as fortran_order, at byte 18 of 20: "
       "\"{'fortran_order': 0}\""},
      {make_header("<f4", "(1,)") + "x",
       "header goes on after the dict, at byte 58 of 59: "
       "\"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }?x\""},
      {make_header("<f4", "(1,)") + std::string(1, '\0'),
       "header goes on after the dict, at byte 58 of 59: "
       "\"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }??\""},
      {"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }",
       "fortran_order is True, only False (C order) is read"},

      {make_header(">f4", "(1,)"), "dtype '>f4' is big endian, only little endian ('<') is read"},
      {make_header("<c8", "(1,)"),
       "unknown dtype '<c8', known are b1, i1, i2, i4, i8, u1, u2, u4, u8, f2, f4, f8"},
      {make_header("|O", "(1,)"),
       "unknown dtype '|O', known are b1, i1, i2, i4, i8, u1, u2, u4, u8, f2, f4, f8"},
      {make_header("", "(1,)"),
       "unknown dtype '', known are b1, i1, i2, i4, i8, u1, u2, u4, u8, f2, f4, f8"},
      {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
       "unknown dtype: structured types are not read"},

      {make_header("<f4", "(2, -3)"), "shape (2, -3) has the negative extent -3 at axis 1"},
      {make_header("<f4", "(9223372036854775808,)"),
       "shape has the extent \"9223372036854775808\", allowed are 0 to 9223372036854775807"},
      {make_header("<f4", "(-9223372036854775809,)"),
       "shape has the extent \"-9223372036854775809\", allowed are 0 to 9223372036854775807"},
      {make_header("<f4", "(9223372036854775807,)"),
       "shape (9223372036854775807,) of <f4 needs more than 9223372036854775807 bytes"},
      {make_header("<f4", "(4294967296, 4294967296)"),
       "shape (4294967296, 4294967296) of <f4 needs more than 9223372036854775807 bytes"},
      {make_header("|u1", "(4294967296, 2147483648)"),
       "shape (4294967296, 2147483648) of |u1 needs more than 9223372036854775807 bytes"},
      {"{'shape': 3}",
       "header has a shape that is not a tuple, at byte 10 of 12: \"{'shape': 3}\""},
      {"{'shape': (3)}",
       "header has a shape that is not a tuple, at byte 13 of 14: \"{'shape': (3)}\""},
      {"{'shape': (3 4)}",
       "header has a shape without ',' between extents, at byte 13 of 16: \"{'shape': (3 4)}\""},
      {"{'shape': (,)}",
       "header has no integer where an extent must stand, at byte 11 of 14: \"{'shape': (,)}\""},
      {"{'shape': (2.5,)}",
       "header has a shape without ',' between extents, at byte 12 of 17: "
       "\"{'shape': (2.5,)}\""},
      {"{'shape': (3, ",
       "header has no integer where an extent must stand, at byte 14 of 14: "
       "\"{'shape': (3, \""},
  };
  for (const auto& [header, error] : cases) {
    EXPECT_EQ(error_of(make_file(header, 4)), "x.npy: " + error) << header;
  }
}

TEST(npy, keeps_messages_short) {
  EXPECT_EQ(error_of(make_file(std::string(5000, '#'), 0)),
            "x.npy: header is not a dict, at byte 0 of 5000: \"" + std::string(80, '#') + "...\"");
}

TEST(npy, refuses_a_payload_of_another_length) {
  const std::string header = make_header("<f4", "(4, 4)");
  EXPECT_EQ(error_of(make_file(header, 60)),
            "x.npy: payload holds 60 bytes, shape (4, 4) of <f4 needs 64");
  EXPECT_EQ(error_of(make_file(header, 65)),
            "x.npy: payload holds 65 bytes, shape (4, 4) of <f4 needs 64");
  EXPECT_EQ(error_of(make_file(make_header("|b1", "(0, 7)"), 1)),
            "x.npy: payload holds 1 bytes, shape (0, 7) of |b1 needs 0");
  EXPECT_EQ(error_of(make_file(make_header("<f8", "()"), 0)),
            "x.npy: payload holds 0 bytes, shape () of <f8 needs 8");
}

TEST(npy, refuses_every_prefix_of_a_file) {
  for (const int major : {1, 2, 3}) {
    const file_bytes file = make_file(make_header("<i2", "(3, 5)"), 30, major);
    ASSERT_NO_THROW(parse_npy(file, "x.npy"));
    for (std::size_t length = 0; length < file.size(); ++length) {
      // A copy of exactly this length, so that the address sanitizer sees a read behind its end.
      const file_bytes prefix(file.data(), file.data() + length);
      const std::string error = error_of(prefix);
      EXPECT_TRUE(error.starts_with("x.npy: ")) << major << ' ' << length << ' ' << error;
    }
  }
}

TEST(npy, survives_every_wrong_byte) {
  const file_bytes file = make_file(make_header("<u2", "(2, 11)"), 44);
  for (std::size_t position = 0; position < file.size() - 44; ++position) {
    for (unsigned value = 0; value < 256; ++value) {
      file_bytes changed = file;
      changed[position] = static_cast<std::byte>(value);
      try {
        // Some changes give another valid file, such as '<i2' or (11, 2); it must be consistent.
        const npy_array array = parse_npy(changed, "x.npy");
        EXPECT_EQ(array.as<double>().size(), static_cast<std::size_t>(array.size()));
      } catch (const std::runtime_error& error) {
        EXPECT_TRUE(std::string_view(error.what()).starts_with("x.npy: ")) << error.what();
      }
    }
  }
}

std::string read_error_of(const std::filesystem::path& path) {
  try {
    read_npy(path);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST(npy, reads_files) {
  const temporary_folder folder;
  const std::vector<std::int32_t> values{3, -1, 4};
  const auto path = folder.write("values.npy", make_vector_file("<i4", values));
  EXPECT_EQ(read_npy(path).as<std::int32_t>(), values);

  const auto empty = folder.write("empty.npy", {});
  EXPECT_EQ(read_error_of(empty),
            empty.string() + ": file holds 0 bytes, magic and version need 8");
  const auto missing = folder.path() / "missing.npy";
  EXPECT_EQ(read_error_of(missing),
            missing.string() + ": cannot be opened: " +
                std::make_error_code(std::errc::no_such_file_or_directory).message());
  EXPECT_EQ(read_error_of(folder.path()), folder.path().string() + ": not a regular file");
}

// --- vector_case ---------------------------------------------------------------------------------

const std::filesystem::path vectors = HEED_TEST_VECTORS;

std::string case_error_of(const std::filesystem::path& folder) {
  try {
    vector_case{folder};
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST(vector_case, opens_a_case_of_the_onnx_node_tests) {
  const vector_case test(vectors / "onnx" / "test_attention_4d_diff_heads_mask4d_padded_kv");
  EXPECT_EQ(test.name, "test_attention_4d_diff_heads_mask4d_padded_kv");
  EXPECT_EQ(test.meta.at("node").at("op_type").get<std::string>(), "Attention");
  EXPECT_TRUE(test.has_input("nonpad_kv_seqlen"));
  EXPECT_FALSE(test.has_input("past_key"));
  EXPECT_FALSE(test.has_input("Y"));
  EXPECT_TRUE(test.has_output("Y"));
  EXPECT_FALSE(test.has_output("present_key"));
  EXPECT_EQ(test.input("Q").shape, (std::vector<std::int64_t>{2, 3, 4, 8}));
  EXPECT_EQ(test.input("nonpad_kv_seqlen").as<std::int64_t>(), (std::vector<std::int64_t>{3, 4}));
  EXPECT_EQ(test.output("Y").shape, (std::vector<std::int64_t>{2, 3, 4, 10}));
}

TEST(vector_case, opens_a_case_of_the_other_form) {
  const vector_case test(vectors / "dense" / "attn_sink_gptoss");
  EXPECT_EQ(test.name, "attn_sink_gptoss");
  EXPECT_EQ(test.meta.at("attrs").at("window_size").get<int>(), 16);
  EXPECT_EQ(test.input("sink_bias").shape, std::vector<std::int64_t>{4});
  EXPECT_EQ(test.output("max_logits").dtype, "<f8");
}

TEST(vector_case, names_the_case_and_the_missing_array) {
  const vector_case test(vectors / "flex" / "full");
  const std::string folder = (vectors / "flex" / "full").string();
  try {
    test.input("mask");
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), folder + ": 'mask' is not one of its inputs: Q, K, V");
  }
  try {
    test.output("Q");
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), folder + ": 'Q' is not one of its outputs: O, lse");
  }
}

TEST(vector_case, refuses_a_bad_meta_file) {
  const temporary_folder folder;
  const std::string path = (folder.path() / "meta.json").string();
  EXPECT_EQ(case_error_of(folder.path()), path + ": cannot be opened");
  for (const std::string_view text :
       {"", "[]", "{\"inputs\": [], \"outputs\": []}", "{\"name\": \"x\", \"inputs\": []}",
        "{\"name\": \"x\", \"inputs\": [], \"outputs\": [{\"name\": \"Y\"}]}",
        "{\"name\": 3, \"inputs\": [], \"outputs\": []}", "{\"name\": \"a", "{\"name\": \"\\"}) {
    SCOPED_TRACE(text);
    folder.write("meta.json", std::as_bytes(std::span(text)));
    EXPECT_TRUE(case_error_of(folder.path()).starts_with(path + ": ["))
        << case_error_of(folder.path());
  }
}

TEST(vector_case, reads_the_non_finite_numbers_that_python_writes) {
  const auto document = heed_test::parse_python_json(
      R"({"values": [-Infinity, Infinity, NaN, -1.5], "text": "-Infinity \" NaN", "NaN": 1})");
  const nlohmann::json& meta = document.json();
  const auto bits = [&](std::size_t i) {
    return std::bit_cast<std::uint64_t>(meta.at("values").at(i).get<double>());
  };
  EXPECT_EQ(bits(0), 0xFFF0000000000000u);
  EXPECT_EQ(bits(1), 0x7FF0000000000000u);
  EXPECT_EQ(bits(2), 0x7FF8000000000000u);
  EXPECT_EQ(meta.at("values").at(3), -1.5);
  EXPECT_EQ(meta.at("text"), "-Infinity \" NaN");
  EXPECT_EQ(meta.at("NaN"), 1);

  const vector_case test(vectors / "onnx" / "test_flexattention_causal_mask");
  const auto& initializers =
      test.meta.json().at("node").at("attributes").at("score_mod").at("initializers");
  EXPECT_EQ(initializers.back().at("name"), "neg_inf");
  EXPECT_TRUE(initializers.back().at("values").at(0).is_number_float());
}

TEST(vector_case, lists_cases_in_order) {
  const std::vector<std::filesystem::path> cases = heed_test::list_cases("dense");
  ASSERT_EQ(cases.size(), 12u);
  EXPECT_EQ(cases.front(), vectors / "dense" / "attn_causal_gqa");
  EXPECT_EQ(cases.back(), vectors / "dense" / "forgetting_wNone");
  EXPECT_TRUE(std::is_sorted(cases.begin(), cases.end()));
  EXPECT_THROW(heed_test::list_cases("no such folder"), std::runtime_error);
  EXPECT_THROW(heed_test::list_cases("dense/attn_causal_gqa"), std::runtime_error);
}

// Every array of every case in tests/vectors, against what its meta.json says.
TEST(vector_case, every_array_has_the_dtype_and_shape_that_meta_says) {
  const std::map<std::string, std::string> dtypes{
      {"bool", "|b1"},  {"uint8", "|u1"},   {"uint16", "<u2"},  {"int32", "<i4"},
      {"int64", "<i8"}, {"float16", "<f2"}, {"float32", "<f4"}, {"float64", "<f8"},
  };
  std::map<std::string, std::size_t> case_counts;
  std::map<std::string, std::size_t> array_counts;
  for (const auto& family : std::filesystem::directory_iterator(vectors)) {
    // A folder with an index has no case folders; the test that it is for reads all of it.
    if (!family.is_directory() || std::filesystem::exists(family.path() / "index.json")) continue;
    const std::string family_name = family.path().filename().string();
    for (const std::filesystem::path& folder : heed_test::list_cases(family_name)) {
      SCOPED_TRACE(folder.string());
      ++case_counts[family_name];
      const vector_case test(folder);
      EXPECT_EQ(test.name, folder.filename().string());

      std::set<std::string> listed{"meta.json"};
      for (const std::string list : {"inputs", "outputs"}) {
        for (const nlohmann::json& entry : test.meta.json().at(list)) {
          const auto name = entry.at("name").get<std::string>();
          SCOPED_TRACE(name);
          listed.insert(entry.at("file").get<std::string>());
          ++array_counts[family_name];
          const npy_array array = list == "inputs" ? test.input(name) : test.output(name);
          EXPECT_EQ(array.shape, entry.at("shape").get<std::vector<std::int64_t>>());
          EXPECT_EQ(array.dtype, dtypes.at(entry.at("dtype").get<std::string>()));
          EXPECT_EQ(array.as<double>().size(), static_cast<std::size_t>(array.size()));
        }
      }
      std::set<std::string> present;
      for (const auto& file : std::filesystem::directory_iterator(folder)) {
        present.insert(file.path().filename().string());
      }
      EXPECT_EQ(present, listed);
    }
  }
  // A folder that lost cases must not pass for one that is read completely.
  EXPECT_EQ(case_counts["onnx"], 72u);
  EXPECT_EQ(array_counts["onnx"], 419u);
  EXPECT_EQ(case_counts["linear"], 19u);
  EXPECT_EQ(array_counts["linear"], 112u);
  EXPECT_EQ(case_counts["dense"], 12u);
  EXPECT_EQ(array_counts["dense"], 57u);
  EXPECT_EQ(case_counts["flex"], 15u);
  EXPECT_EQ(array_counts["flex"], 95u);
  EXPECT_EQ(case_counts["neighborhood"], 2u);
  EXPECT_EQ(array_counts["neighborhood"], 17u);
  EXPECT_EQ(case_counts["lowp"], 14u);
  EXPECT_EQ(array_counts["lowp"], 154u);
}

}  // namespace
