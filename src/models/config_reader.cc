#include "models/config_reader.h"

#include <type_traits>
#include <utility>

namespace nibble::models {

namespace json = boost::json;

ConfigReader::ConfigReader(const json::object& object, std::string where)
    : object_(&object), where_(std::move(where)) {}

const json::value* ConfigReader::Find(std::string_view name) const {
  const json::value* value = object_->if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool ConfigReader::Has(std::string_view name) const { return Find(name) != nullptr; }

void ConfigReader::Problem(std::string message) {
  if (status_) status_ = tl::unexpected(Error(Code::kCorruption, where_ + ": " + message));
}

void ConfigReader::Require(bool condition, std::string message) {
  if (!condition) Problem(std::move(message));
}

void ConfigReader::Adopt(const ConfigReader& inner) {
  if (status_ && !inner.status_) status_ = inner.status_;
}

template <typename T>
T ConfigReader::Number(std::string_view name, T min, T max, std::optional<T> fallback) {
  const std::string_view kind = std::is_integral_v<T> ? "an integer" : "a number";
  const json::value* value = Find(name);
  if (value == nullptr) {
    if (!fallback) Problem(fmt::format("{} is missing ({} in {}..{})", name, kind, min, max));
    return fallback.value_or(min);
  }
  json::error_code failed;
  const T number = value->to_number<T>(failed);
  if (failed || !(number >= min && number <= max)) {
    Problem(fmt::format("{} is {}: expected {} in {}..{}", name, json::serialize(*value), kind, min,
                        max));
    return min;
  }
  return number;
}

int64_t ConfigReader::Int(std::string_view name, int64_t min, int64_t max) {
  return Number<int64_t>(name, min, max, std::nullopt);
}

int64_t ConfigReader::Int(std::string_view name, int64_t min, int64_t max, int64_t fallback) {
  return Number<int64_t>(name, min, max, fallback);
}

double ConfigReader::Float(std::string_view name, double min, double max) {
  return Number<double>(name, min, max, std::nullopt);
}

double ConfigReader::Float(std::string_view name, double min, double max, double fallback) {
  return Number<double>(name, min, max, fallback);
}

bool ConfigReader::Bool(std::string_view name, bool fallback) {
  const json::value* value = Find(name);
  if (value == nullptr) return fallback;
  if (!value->is_bool()) {
    Problem(fmt::format("{} is {}: expected true or false", name, json::serialize(*value)));
    return fallback;
  }
  return value->get_bool();
}

std::string ConfigReader::String(std::string_view name, std::string_view fallback) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    Problem(fmt::format("{} is {}: expected a string", name, json::serialize(*value)));
    return std::string(fallback);
  }
  return std::string(value->get_string());
}

std::vector<std::string> ConfigReader::Strings(std::string_view name) {
  std::vector<std::string> strings;
  const json::value* value = Find(name);
  if (value == nullptr) return strings;
  if (!value->is_array()) {
    Problem(fmt::format("{} is {}: expected a list of strings", name, json::serialize(*value)));
    return strings;
  }
  for (const json::value& item : value->get_array()) {
    if (!item.is_string()) {
      Problem(fmt::format("{} holds {}: expected strings", name, json::serialize(item)));
      return strings;
    }
    strings.emplace_back(item.get_string());
  }
  return strings;
}

template <typename T>
std::vector<T> ConfigReader::Numbers(std::string_view name, T min, T max) {
  std::vector<T> numbers;
  const json::value* value = Find(name);
  if (value == nullptr) return numbers;
  if (!value->is_array()) {
    Problem(fmt::format("{} is {}: expected a list of numbers", name, json::serialize(*value)));
    return numbers;
  }
  for (const json::value& item : value->get_array()) {
    json::error_code failed;
    const T number = item.is_number() ? item.to_number<T>(failed) : T();
    if (!item.is_number() || failed || !(number >= min && number <= max)) {
      Problem(fmt::format("{} holds {}: expected numbers in {}..{}", name, json::serialize(item),
                          min, max));
      return numbers;
    }
    numbers.push_back(number);
  }
  return numbers;
}

std::vector<int64_t> ConfigReader::Ints(std::string_view name, int64_t min, int64_t max) {
  return Numbers<int64_t>(name, min, max);
}

std::vector<double> ConfigReader::Floats(std::string_view name, double min, double max) {
  return Numbers<double>(name, min, max);
}

std::optional<ConfigReader> ConfigReader::Object(std::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    Problem(fmt::format("{} is {}: expected an object", name, json::serialize(*value)));
    return std::nullopt;
  }
  return ConfigReader(value->get_object(), fmt::format("{} {}", where_, name));
}

json::object TextConfig(const json::object& config, std::string_view defaults) {
  const json::value* nested = config.if_contains("text_config");
  const bool wrapped = nested != nullptr && nested->is_object();
  json::object text = wrapped ? nested->get_object() : config;
  const json::value fallbacks = json::parse(defaults);
  for (const json::object* more : {&config, &fallbacks.get_object()}) {
    for (const auto& [name, value] : *more) {
      json::value& field = text[name];
      if (field.is_null()) field = value;
    }
  }
  // The wrapper owns the head: in its text_config this field is a default that says nothing.
  if (const json::value* tied = config.if_contains("tie_word_embeddings");
      wrapped && tied != nullptr)
    text["tie_word_embeddings"] = *tied;
  return text;
}

}  // namespace nibble::models
