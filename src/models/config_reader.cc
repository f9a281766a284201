#include "models/config_reader.h"

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

int64_t ConfigReader::Int(std::string_view name, int64_t min, int64_t max) {
  if (!Has(name)) {
    Problem(fmt::format("{} is missing (an integer in {}..{})", name, min, max));
    return min;
  }
  return Int(name, min, max, min);
}

int64_t ConfigReader::Int(std::string_view name, int64_t min, int64_t max, int64_t fallback) {
  const json::value* value = Find(name);
  if (value == nullptr) return fallback;
  json::error_code failed;
  const int64_t number = value->to_number<int64_t>(failed);
  if (failed || number < min || number > max) {
    Problem(fmt::format("{} is {}: expected an integer in {}..{}", name, json::serialize(*value),
                        min, max));
    return min;
  }
  return number;
}

double ConfigReader::Float(std::string_view name, double min, double max) {
  if (!Has(name)) {
    Problem(fmt::format("{} is missing (a number in {}..{})", name, min, max));
    return min;
  }
  return Float(name, min, max, min);
}

double ConfigReader::Float(std::string_view name, double min, double max, double fallback) {
  const json::value* value = Find(name);
  if (value == nullptr) return fallback;
  json::error_code failed;
  const double number = value->to_number<double>(failed);
  if (failed || !(number >= min && number <= max)) {
    Problem(fmt::format("{} is {}: expected a number in {}..{}", name, json::serialize(*value), min,
                        max));
    return min;
  }
  return number;
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

std::optional<ConfigReader> ConfigReader::Object(std::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    Problem(fmt::format("{} is {}: expected an object", name, json::serialize(*value)));
    return std::nullopt;
  }
  return ConfigReader(value->get_object(), fmt::format("{} {}", where_, name));
}

}  // namespace nibble::models
