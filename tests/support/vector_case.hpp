// One external test case: a folder with meta.json and one .npy file per array.
//
// meta.json exists in two forms. Cases of the ONNX node tests have "name" and "node" (operator and
// attributes); all others have "case", "layout" and "attrs". Both list their arrays under "inputs"
// and "outputs", each entry with "name", "dtype", "shape" and "file". tests/vectors/README.md says
// what the cases are.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "support/json.hpp"
#include "support/npy.hpp"

namespace heed_test {

struct vector_case {
  std::filesystem::path folder;
  std::string name;
  json_value meta;

  explicit vector_case(std::filesystem::path case_folder);

  // Optional inputs may be absent, see has_input; a name that is not listed throws.
  npy_array input(std::string_view array_name) const { return load("inputs", array_name); }
  npy_array output(std::string_view array_name) const { return load("outputs", array_name); }

  bool has_input(std::string_view array_name) const;
  bool has_output(std::string_view array_name) const;

 private:
  npy_array load(const char* list, std::string_view array_name) const;
};

// The case folders in `folder`, sorted by name. `folder` is relative to tests/vectors, such as
// "onnx". A folder that is missing or holds no case throws: a test over it would check nothing.
std::vector<std::filesystem::path> list_cases(const std::filesystem::path& folder);

}  // namespace heed_test
