// Reads the fields of a config.json: each with its name, its range and, where published files
// differ, its default. The first problem is kept, with field, value and allowed range; later fields
// are still read, so that a model's Config is one list of calls and one check at the end.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::models {

class ConfigReader {
 public:
  // where: what to call the object in errors ("config.json", "config.json text_config").
  ConfigReader(const boost::json::object& object, std::string where);

  // Absent and null mean the same.
  bool Has(std::string_view name) const;

  int64_t Int(std::string_view name, int64_t min, int64_t max);
  int64_t Int(std::string_view name, int64_t min, int64_t max, int64_t fallback);
  double Float(std::string_view name, double min, double max);
  double Float(std::string_view name, double min, double max, double fallback);
  bool Bool(std::string_view name, bool fallback);
  std::string String(std::string_view name, std::string_view fallback);
  std::vector<std::string> Strings(std::string_view name);                     // empty when absent
  std::vector<int64_t> Ints(std::string_view name, int64_t min, int64_t max);  // empty when absent
  std::vector<double> Floats(std::string_view name, double min, double max);   // empty when absent
  std::optional<ConfigReader> Object(std::string_view name);  // nullopt when absent

  // A check that spans fields.
  void Require(bool condition, std::string message);

  const Status& status() const { return status_; }
  void Adopt(const ConfigReader& inner);  // takes over its problem, if this has none

 private:
  const boost::json::value* Find(std::string_view name) const;
  // Without a fallback the field is required.
  template <typename T>
  T Number(std::string_view name, T min, T max, std::optional<T> fallback);
  template <typename T>
  std::vector<T> Numbers(std::string_view name, T min, T max);
  void Problem(std::string message);

  const boost::json::object* object_;
  std::string where_;
  Status status_;
};

// The config of the text model: `config` itself or, of a multimodal wrapper, its "text_config" with
// what the wrapper alone says (architectures, tie_word_embeddings, ...). `defaults`, a JSON object:
// what the family's published files may leave out.
boost::json::object TextConfig(const boost::json::object& config, std::string_view defaults = "{}");

}  // namespace nibble::models
