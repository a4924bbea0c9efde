#include "support/json.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "support/npy.hpp"

namespace heed_test {

json_value::json_value(nlohmann::json document)
    : json_(std::make_shared<const nlohmann::json>(std::move(document))) {}

json_value json_value::inside(const nlohmann::json& part) const {
  json_value result;
  result.json_ = {json_, &part};
  return result;
}

json_value json_value::at(std::string_view name) const {
  return inside(json_->at(std::string(name)));
}
json_value json_value::element(std::size_t index) const { return inside(json_->at(index)); }
bool json_value::contains(std::string_view name) const {
  return json_->contains(std::string(name));
}
std::size_t json_value::size() const { return json_->size(); }
bool json_value::is_null() const { return json_->is_null(); }
bool json_value::is_array() const { return json_->is_array(); }

template <class T>
T json_value::get() const {
  return json_->get<T>();
}
template bool json_value::get() const;
template int json_value::get() const;
template std::int64_t json_value::get() const;
template float json_value::get() const;
template double json_value::get() const;
template std::string json_value::get() const;
template std::vector<std::int64_t> json_value::get() const;

namespace {

// The words with which Python's json module writes numbers that JSON lacks.
struct non_finite_word {
  std::string_view word;
  double value;
};
constexpr non_finite_word non_finite_words[] = {
    {"-Infinity", -std::numeric_limits<double>::infinity()},
    {"Infinity", std::numeric_limits<double>::infinity()},
    {"NaN", std::numeric_limits<double>::quiet_NaN()},
};

// Begins the stand-in string of a non-finite number; no string of a meta.json begins so.
constexpr std::string_view marker = "non-finite number ";

}  // namespace

// The JSON parser refuses these words, so they travel through it as strings.
json_value parse_python_json(const std::string& text) {
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
  return json_value(nlohmann::json::parse(standard, restore_number));
}

json_value read_json(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) npy_detail::fail(path.string(), "cannot be opened");
  return parse_python_json({std::istreambuf_iterator<char>(stream), {}});
}

}  // namespace heed_test
