// One external test case: a folder with meta.json and one .npy file per array.
//
// meta.json exists in two forms. Cases of the ONNX node tests have "name" and "node" (operator and
// attributes); all others have "case", "layout" and "attrs". Both list their arrays under "inputs"
// and "outputs", each entry with "name", "dtype", "shape" and "file". tests/vectors/README.md says
// what the cases are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "support/npy.hpp"

#ifndef HEED_TEST_VECTORS
#error "define HEED_TEST_VECTORS as the path of tests/vectors, a string literal"
#endif

namespace heed_test {

namespace vector_case_detail {

// The words with which Python's json module writes numbers that JSON lacks.
struct non_finite_word {
  std::string_view word;
  double value;
};
inline constexpr non_finite_word non_finite_words[] = {
    {"-Infinity", -std::numeric_limits<double>::infinity()},
    {"Infinity", std::numeric_limits<double>::infinity()},
    {"NaN", std::numeric_limits<double>::quiet_NaN()},
};

// Begins the stand-in string of a non-finite number; no string of a meta.json begins so.
inline constexpr std::string_view marker = "non-finite number ";

// Parses JSON as Python's json module writes it: bare Infinity, -Infinity and NaN become numbers.
// The JSON parser refuses these words, so they travel through it as strings.
inline nlohmann::json parse_python_json(const std::string& text) {
  std::string standard;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size();) {
    const auto* const found =
        in_string
            ? std::end(non_finite_words)
            : std::find_if(std::begin(non_finite_words), std::end(non_finite_words),
                           [&](const non_finite_word& candidate) {
                             return text.compare(i, candidate.word.size(), candidate.word) == 0;
                           });
    if (found != std::end(non_finite_words)) {
      standard.append("\"").append(marker).append(found->word).append("\"");
      i += found->word.size();
      continue;
    }
    if (text[i] == '"') in_string = !in_string;
    // A backslash takes the next character with it, so that \" does not end the string.
    const std::size_t length = in_string && text[i] == '\\' ? 2 : 1;
    standard.append(text, i, length);
    i += length;
  }

  const auto restore_number = [](int, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (event == nlohmann::json::parse_event_t::value && value.is_string()) {
      const auto& string = value.get_ref<const std::string&>();
      for (const non_finite_word& candidate : non_finite_words) {
        if (string == std::string(marker).append(candidate.word)) {
          value = candidate.value;
          break;
        }
      }
    }
    return true;
  };
  return nlohmann::json::parse(standard, restore_number);
}

}  // namespace vector_case_detail

struct vector_case {
  std::filesystem::path folder;
  std::string name;
  nlohmann::json meta;

  explicit vector_case(std::filesystem::path case_folder) : folder(std::move(case_folder)) {
    const std::filesystem::path path = folder / "meta.json";
    std::ifstream stream(path, std::ios::binary);
    if (!stream) npy_detail::fail(path.string(), "cannot be opened");
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    try {
      meta = vector_case_detail::parse_python_json(text);
      name = meta.at(meta.contains("name") ? "name" : "case").get<std::string>();
      for (const char* const list : {"inputs", "outputs"}) {
        for (const nlohmann::json& entry : meta.at(list)) {
          entry.at("name").get_ref<const std::string&>();
          entry.at("file").get_ref<const std::string&>();
        }
      }
    } catch (const nlohmann::json::exception& error) {
      npy_detail::fail(path.string(), error.what());
    }
  }

  // Optional inputs may be absent, see has_input; a name that is not listed throws.
  npy_array input(std::string_view array_name) const { return load("inputs", array_name); }
  npy_array output(std::string_view array_name) const { return load("outputs", array_name); }

  bool has_input(std::string_view array_name) const {
    return find("inputs", array_name) != nullptr;
  }
  bool has_output(std::string_view array_name) const {
    return find("outputs", array_name) != nullptr;
  }

 private:
  const nlohmann::json* find(const char* list, std::string_view array_name) const {
    for (const nlohmann::json& entry : meta.at(list)) {
      if (entry.at("name").get_ref<const std::string&>() == array_name) return &entry;
    }
    return nullptr;
  }

  npy_array load(const char* list, std::string_view array_name) const {
    const nlohmann::json* const entry = find(list, array_name);
    if (entry == nullptr) {
      std::string known;
      for (const nlohmann::json& other : meta.at(list)) {
        known.append(known.empty() ? "" : ", ").append(other.at("name").get<std::string>());
      }
      npy_detail::fail(folder.string(), "'", array_name, "' is not one of its ", list, ": ", known);
    }
    return read_npy(folder / entry->at("file").get<std::string>());
  }
};

// The case folders in `folder`, sorted by name. `folder` is relative to tests/vectors, such as
// "onnx". A folder that is missing or holds no case throws: a test over it would check nothing.
inline std::vector<std::filesystem::path> list_cases(const std::filesystem::path& folder) {
  const std::filesystem::path root = std::filesystem::path(HEED_TEST_VECTORS) / folder;
  std::error_code error;
  std::vector<std::filesystem::path> cases;
  for (std::filesystem::directory_iterator entry(root, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_directory()) cases.push_back(entry->path());
  }
  if (error) npy_detail::fail(root.string(), error.message());
  if (cases.empty()) npy_detail::fail(root.string(), "holds no case folder");
  std::sort(cases.begin(), cases.end());
  return cases;
}

}  // namespace heed_test
