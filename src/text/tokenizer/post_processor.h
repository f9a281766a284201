// The `post_processor` of tokenizer.json: which special tokens stand around an encoded text.
//
// Supported: TemplateProcessing (its template for one sequence), ByteLevel (no effect on ids),
// Sequence. Immutable after Parse.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"

namespace nibble::text {

class PostProcessor {
 public:
  static Result<PostProcessor> Parse(const boost::json::value& spec);
  // One id in front of every text.
  static PostProcessor InFront(int32_t id);

  std::vector<int32_t> Apply(std::vector<int32_t> ids) const;

  // The largest id that it adds, -1 if none.
  int32_t max_id() const;
  // The first id in front of, and the last id behind, any text.
  std::optional<int32_t> first_id() const;
  std::optional<int32_t> last_id() const;

 private:
  struct Template {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
  };
  static Status ParseInto(const boost::json::value& spec, int depth, std::vector<Template>* out);
  std::vector<Template> templates_;
};

}  // namespace nibble::text
