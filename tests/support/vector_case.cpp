#include "support/vector_case.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#ifndef HEED_TEST_VECTORS
#error "define HEED_TEST_VECTORS as the path of tests/vectors, a string literal"
#endif

namespace heed_test {

namespace {

const nlohmann::json* find(const json_value& meta, const char* list, std::string_view array_name) {
  for (const nlohmann::json& entry : meta.json().at(list)) {
    if (entry.at("name").get_ref<const std::string&>() == array_name) return &entry;
  }
  return nullptr;
}

}  // namespace

vector_case::vector_case(std::filesystem::path case_folder) : folder(std::move(case_folder)) {
  const std::filesystem::path path = folder / "meta.json";
  try {
    meta = read_json(path);
    name = meta.at(meta.contains("name") ? "name" : "case").get<std::string>();
    for (const char* const list : {"inputs", "outputs"}) {
      for (const nlohmann::json& entry : meta.json().at(list)) {
        entry.at("name").get_ref<const std::string&>();
        entry.at("file").get_ref<const std::string&>();
      }
    }
  } catch (const nlohmann::json::exception& error) {
    npy_detail::fail(path.string(), error.what());
  }
}

bool vector_case::has_input(std::string_view array_name) const {
  return find(meta, "inputs", array_name) != nullptr;
}
bool vector_case::has_output(std::string_view array_name) const {
  return find(meta, "outputs", array_name) != nullptr;
}

npy_array vector_case::load(const char* list, std::string_view array_name) const {
  const nlohmann::json* const entry = find(meta, list, array_name);
  if (entry == nullptr) {
    std::string known;
    for (const nlohmann::json& other : meta.json().at(list)) {
      known.append(known.empty() ? "" : ", ").append(other.at("name").get<std::string>());
    }
    npy_detail::fail(folder.string(), "'", array_name, "' is not one of its ", list, ": ", known);
  }
  return read_npy(folder / entry->at("file").get<std::string>());
}

std::vector<std::filesystem::path> list_cases(const std::filesystem::path& folder) {
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
