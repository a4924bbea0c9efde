// Tests of the example's reader of .safetensors files: everything that can be wrong with a file is
// one clear error, and the real files open.
#include "../../../examples/generate/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using example::safetensors_file;

std::string little_endian(std::uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  return bytes;
}
std::string with_header(const std::string& header, const std::string& payload) {
  return little_endian(header.size()) + header + payload;
}
// A file with one tensor "x".
std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets, std::size_t payload) {
  return with_header("{\"x\": {\"dtype\": \"" + dtype + "\", \"shape\": " + shape +
                         ", \"data_offsets\": " + offsets + "}}",
                     std::string(payload, '\0'));
}

class safetensors : public ::testing::Test {
 protected:
  safetensors() {
    std::string pattern = (std::filesystem::temp_directory_path() / "safetensors-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    folder_ = pattern;
  }
  ~safetensors() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::filesystem::path write(const std::string& content) const {
    const std::filesystem::path path = folder_ / "file.safetensors";
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
    return path;
  }
  safetensors_file open(const std::string& content) const {
    return safetensors_file::open(write(content));
  }

  // The message of the error, which must name the file; "" when there is none.
  std::string error_of(const std::string& content) const {
    const std::filesystem::path path = write(content);
    return error_of([&] { safetensors_file::open(path); }, path);
  }
  template <class Call>
  std::string error_of(const Call& call, const std::filesystem::path& path) const {
    try {
      call();
    } catch (const std::runtime_error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.rfind(path.string() + ": ", 0), 0u) << message;
      return message.substr(path.string().size() + 2);
    }
    return "";
  }

  std::filesystem::path folder_;
};

// Two tensors in another order than their bytes, metadata, an empty tensor and a scalar.
const std::string valid_header =
    R"({"__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "scalar": {"dtype": "I32", "shape": [], "data_offsets": [20, 24]},
        "empty": {"dtype": "F64", "shape": [4, 0], "data_offsets": [24, 24]}}  )";
std::string valid_file() {
  std::string payload;
  payload += std::string("\x00\x00\x80\x3f", 4) + std::string("\x00\x00\x00\xc0", 4);  // 1, -2
  for (int i = 0; i < 6; ++i) payload += std::string("\x80\x3f", 2);                   // 1
  payload += std::string("\xfe\xff\xff\xff", 4);                                       // -2
  return with_header(valid_header, payload);
}

TEST_F(safetensors, reads_what_is_there) {
  const safetensors_file file = open(valid_file());
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b", "empty", "scalar"}));
  EXPECT_EQ(file.tensor("b").dtype, "BF16");
  EXPECT_EQ(file.tensor("b").shape, (safetensors_file::shape_type{2, 3}));
  EXPECT_EQ(file.tensor("b").bytes.size(), 12u);
  EXPECT_EQ(file.as_float("a"), (std::vector<float>{1, -2}));
  EXPECT_EQ(file.as_float("b", {2, 3}), std::vector<float>(6, 1.0f));
  EXPECT_EQ(file.as_bfloat16("a"),
            (std::vector<Eigen::bfloat16>{Eigen::bfloat16(1.0f), Eigen::bfloat16(-2.0f)}));
  EXPECT_EQ(file.as_int32("scalar"), std::vector<std::int32_t>{-2});
  EXPECT_TRUE(file.as_float("empty", {4, 0}).empty());
}

TEST_F(safetensors, tensors_survive_a_move) {
  safetensors_file file = open(valid_file());
  const safetensors_file moved = std::move(file);
  EXPECT_EQ(moved.as_float("a"), (std::vector<float>{1, -2}));
}

TEST_F(safetensors, a_file_without_tensors_is_valid) {
  EXPECT_TRUE(open(with_header("{}", "")).names().empty());
}

TEST_F(safetensors, converts_every_floating_point_type) {
  const auto file = open(with_header(
      R"({"h": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
          "d": {"dtype": "F64", "shape": [1], "data_offsets": [2, 10]}})",
      std::string("\x00\x3e", 2) + std::string("\x00\x00\x00\x00\x00\x00\xf8\x3f", 8)));
  EXPECT_EQ(file.as_float("h"), std::vector<float>{1.5f});
  EXPECT_EQ(file.as_float("d"), std::vector<float>{1.5f});
}

TEST_F(safetensors, every_truncation_is_one_error) {
  const std::string whole = valid_file();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error_of(whole.substr(0, size)), "") << size << " bytes";
  }
  EXPECT_EQ(error_of(whole), "");
}

TEST_F(safetensors, damaged_files_open_or_are_one_error) {
  const std::string whole = valid_file();
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    std::string damaged = whole;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < changes; ++i) {
      damaged[random() % damaged.size()] = static_cast<char>(random() & 0xff);
    }
    const std::filesystem::path path = write(damaged);
    try {
      const safetensors_file file = safetensors_file::open(path);
      unsigned sum = 0;  // reads every byte, for the address sanitizer
      for (const std::string& name : file.names()) {
        for (const std::byte byte : file.tensor(name).bytes) sum += static_cast<unsigned>(byte);
      }
      EXPECT_GT(sum, 0u);
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()).rfind(path.string(), 0), 0u) << error.what();
    }  // anything else fails the test
  }
}

TEST_F(safetensors, files_that_cannot_be_read) {
  const auto open_at = [&](const std::filesystem::path& path) {
    return error_of([&] { safetensors_file::open(path); }, path);
  };
  EXPECT_EQ(open_at(folder_ / "none"), "there is no such file");
  EXPECT_EQ(open_at(folder_), "is not a regular file");
}

TEST_F(safetensors, bad_header_lengths) {
  EXPECT_EQ(error_of("1234567"), "has 7 bytes, fewer than the 8 of the header's length");
  EXPECT_EQ(error_of(little_endian(3) + "{}"),
            "header length 3 is beyond the 2 bytes that follow it");
  EXPECT_EQ(error_of(std::string(8, '\xff') + "{}"),
            "header length 18446744073709551615 is beyond the 2 bytes that follow it");
  EXPECT_NE(error_of(little_endian(0)).find("header is not JSON"), std::string::npos);
}

TEST_F(safetensors, an_absurd_header_is_refused_unread) {
  const std::filesystem::path path = write(little_endian(200'000'000));
  std::filesystem::resize_file(path, 200'000'008);  // takes no room on most file systems
  EXPECT_EQ(error_of([&] { safetensors_file::open(path); }, path),
            "header length 200000000 is above the format's limit of 100000000");
}

TEST_F(safetensors, headers_that_are_not_objects) {
  EXPECT_NE(error_of(with_header("{\"x\": ", "")).find("header is not JSON"), std::string::npos);
  EXPECT_NE(error_of(with_header("{\"\xff\": 1}", "")).find("header is not JSON"),
            std::string::npos);
  EXPECT_EQ(error_of(with_header("[1]", "")), "header is not a JSON object but of type array");
  EXPECT_EQ(error_of(with_header("3", "")), "header is not a JSON object but of type number");
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  EXPECT_EQ(error_of(with_header(deep, "")), "header is not a JSON object but of type array");
}

TEST_F(safetensors, entries_that_lack_something) {
  const auto of_entry = [&](const std::string& entry) {
    return error_of(with_header("{\"x\": " + entry + "}", "1234"));
  };
  EXPECT_EQ(of_entry("7"), "tensor 'x': its entry is not a JSON object but of type number");
  EXPECT_EQ(of_entry(R"({"shape": [1], "data_offsets": [0, 4]})"),
            "tensor 'x': its entry has no 'dtype'");
  EXPECT_EQ(of_entry(R"({"dtype": "F32", "data_offsets": [0, 4]})"),
            "tensor 'x': its entry has no 'shape'");
  EXPECT_EQ(of_entry(R"({"dtype": "F32", "shape": [1]})"),
            "tensor 'x': its entry has no 'data_offsets'");
  EXPECT_EQ(of_entry(R"({"dtype": 32, "shape": [1], "data_offsets": [0, 4]})"),
            "tensor 'x': dtype is not a string but of type number");
  EXPECT_EQ(of_entry(R"({"dtype": "F32", "shape": 1, "data_offsets": [0, 4]})"),
            "tensor 'x': shape is not a list but of type number");
  EXPECT_EQ(of_entry(R"({"dtype": "F32", "shape": [1], "data_offsets": {"0": 4}})"),
            "tensor 'x': data_offsets is not a list but of type object");
  EXPECT_EQ(of_entry(R"({"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]})"),
            "tensor 'x': data_offsets has 3 elements, not 2");
}

TEST_F(safetensors, bad_metadata) {
  EXPECT_EQ(error_of(with_header(R"({"__metadata__": 1})", "")),
            "__metadata__ is not a JSON object but of type number");
  EXPECT_EQ(error_of(with_header(R"({"__metadata__": {"a": 1}})", "")),
            "__metadata__ 'a' is not a string but of type number");
}

TEST_F(safetensors, bad_types_and_shapes) {
  EXPECT_EQ(error_of(one_tensor("F33", "[1]", "[0, 4]", 4)),
            "tensor 'x': dtype 'F33' is not known");
  EXPECT_EQ(error_of(one_tensor("F32", "[-1]", "[0, 4]", 4)),
            "tensor 'x': shape has an element -1, which is not an integer from 0 to 2^64 - 1");
  EXPECT_EQ(error_of(one_tensor("F32", "[1.5]", "[0, 4]", 4)),
            "tensor 'x': shape has an element 1.5, which is not an integer from 0 to 2^64 - 1");
  EXPECT_EQ(error_of(one_tensor("F32", "[\"1\"]", "[0, 4]", 4)),
            "tensor 'x': shape has an element of type string, which is not an integer from 0 to "
            "2^64 - 1");
  EXPECT_EQ(error_of(one_tensor("U8", "[9223372036854775808]", "[0, 4]", 4)),
            "tensor 'x': shape has an element 9223372036854775808 above 2^63 - 1");
  // 2^32 · 2^32 · 4 is 0 modulo 2^64.
  EXPECT_EQ(error_of(one_tensor("F32", "[4294967296, 4294967296]", "[0, 0]", 0)),
            "tensor 'x': shape [4294967296, 4294967296] of F32 takes more than 2^64 - 1 bytes");
  EXPECT_EQ(error_of(one_tensor("F32", "[4294967296, 4294967296, 0]", "[0, 0]", 0)), "");
}

TEST_F(safetensors, bad_offsets) {
  EXPECT_EQ(error_of(one_tensor("F32", "[1]", "[4, 0]", 4)),
            "tensor 'x': data_offsets [4, 0] end before they begin");
  EXPECT_EQ(error_of(one_tensor("F32", "[2]", "[0, 8]", 4)),
            "tensor 'x': data_offsets [0, 8] leave the payload of 4 bytes");
  EXPECT_EQ(error_of(one_tensor("F32", "[2]", "[18446744073709551608, 18446744073709551615]", 4)),
            "tensor 'x': data_offsets [18446744073709551608, 18446744073709551615] leave the "
            "payload of 4 bytes");
  EXPECT_EQ(error_of(one_tensor("F32", "[2]", "[0, 18446744073709551616]", 4)),
            "tensor 'x': data_offsets has an element 1.8446744073709552e+19, which is not an "
            "integer from 0 to 2^64 - 1");
  EXPECT_EQ(error_of(one_tensor("F32", "[3, 2]", "[0, 20]", 20)),
            "tensor 'x': data_offsets [0, 20] hold 20 bytes, but shape [3, 2] of F32 takes 24");
}

TEST_F(safetensors, tensors_must_fill_the_payload) {
  const auto two = [&](const std::string& first, const std::string& second, std::size_t payload) {
    const auto entry = [](const std::string& offsets) {
      return R"({"dtype": "U8", "shape": [4], "data_offsets": )" + offsets + "}";
    };
    return error_of(with_header("{\"x\": " + entry(first) + ", \"y\": " + entry(second) + "}",
                                std::string(payload, '\0')));
  };
  EXPECT_EQ(two("[0, 4]", "[4, 8]", 8), "");
  EXPECT_EQ(two("[0, 4]", "[3, 7]", 8),
            "tensor 'y': begins at byte 3 of the payload, but tensor 'x' ends at 4");
  EXPECT_EQ(two("[0, 4]", "[0, 4]", 8),
            "tensor 'y': begins at byte 0 of the payload, but tensor 'x' ends at 4");
  EXPECT_EQ(two("[0, 4]", "[5, 9]", 9),
            "tensor 'y': begins at byte 5 of the payload, but what precedes it ends at 4");
  EXPECT_EQ(two("[0, 4]", "[4, 8]", 9), "the tensors end at byte 8 of a payload of 9 bytes");
  EXPECT_EQ(error_of(with_header("{}", "1")), "the tensors end at byte 0 of a payload of 1 bytes");
}

TEST_F(safetensors, a_name_may_not_come_twice) {
  EXPECT_EQ(error_of(with_header(
                R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})",
                "1234")),
            "tensor 'x': has two entries in the header");
}

TEST_F(safetensors, asking_for_what_is_not_there) {
  const std::filesystem::path path = write(valid_file());
  const safetensors_file file = safetensors_file::open(path);
  const auto asked = [&](const auto& call) { return error_of(call, path); };
  EXPECT_EQ(asked([&] { file.tensor("c"); }), "tensor 'c' is missing; the file has 4 others");
  EXPECT_EQ(asked([&] {
              file.as_float("b", {3, 2});
            }),
            "tensor 'b': shape [2, 3] is not the expected [3, 2]");
  EXPECT_EQ(asked([&] { file.as_float("scalar"); }),
            "tensor 'scalar': dtype 'I32' is not one of the expected F32, BF16, F16, F64");
  EXPECT_EQ(asked([&] { file.as_int32("a"); }),
            "tensor 'a': dtype 'F32' is not the expected 'I32'");
}

TEST(safetensors_model, opens) {
  const std::filesystem::path folder = std::filesystem::path(HEED_EXAMPLE_MODELS) / "pybyte";
  const safetensors_file model = safetensors_file::open(folder / "model.safetensors");
  EXPECT_EQ(model.names().size(), 38u);
  std::size_t parameters = 0;
  for (const std::string& name : model.names()) {
    EXPECT_EQ(model.tensor(name).dtype, "BF16");
    for (const float value : model.as_float(name)) ASSERT_TRUE(value - value == 0) << name;
    parameters += model.tensor(name).bytes.size() / 2;
  }
  EXPECT_EQ(parameters, 3213568u);

  const safetensors_file golden = safetensors_file::open(folder / "golden.safetensors");
  EXPECT_EQ(golden.as_int32("tokens").size(), 1024u);
  EXPECT_EQ(golden.as_float("layer3.q", {4, 1024, 64}).size(), 4u * 1024 * 64);
}

}  // namespace
