// JSON of external cases. The parser is compiled once, in json.cpp, and not by every test.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace heed_test {

// A value and what lies in it, read only; copies share one document. A name or index that is
// missing and a value of another type throw nlohmann::json's exceptions.
class json_value {
 public:
  json_value() = default;  // of no document: only to assign to
  explicit json_value(nlohmann::json document);

  json_value at(std::string_view name) const;
  json_value operator[](const char* name) const { return at(name); }
  template <std::integral I>
  json_value at(I index) const {
    return element(static_cast<std::size_t>(index));
  }
  template <std::integral I>
  json_value operator[](I index) const {
    return at(index);
  }
  bool contains(std::string_view name) const;
  std::size_t size() const;
  bool is_null() const;
  bool is_array() const;

  // T: bool, int, std::int64_t, float, double, std::string, std::vector<std::int64_t>
  template <class T>
  T get() const;
  template <class T>
  requires std::is_arithmetic_v<T>
  operator T() const { return get<T>(); }
  template <class T>
  T value(std::string_view name, const T& fallback) const {
    return contains(name) ? at(name).get<T>() : fallback;
  }
  std::string value(std::string_view name, const char* fallback) const {
    return value(name, std::string(fallback));
  }
  friend bool operator==(const json_value& a, std::string_view b) {
    return a.get<std::string>() == b;
  }

  // For those who include the parser.
  const nlohmann::json& json() const { return *json_; }

 private:
  json_value element(std::size_t index) const;
  json_value inside(const nlohmann::json& part) const;

  std::shared_ptr<const nlohmann::json> json_;
};

// As Python's json module writes it: bare Infinity, -Infinity and NaN become numbers.
json_value parse_python_json(const std::string& text);

// The content of a file, parsed as above.
json_value read_json(const std::filesystem::path& path);

}  // namespace heed_test
