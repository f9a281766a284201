#include "text/tokenizer/post_processor.h"

#include <algorithm>
#include <string>

#include "text/tokenizer/json_fields.h"

namespace nibble::text {

namespace {

constexpr int kMaxNesting = 16;
constexpr size_t kMaxTemplates = 16;
constexpr std::string_view kTemplate = "post_processor TemplateProcessing";

// Appends the ids that a template's special token stands for.
Status AppendSpecialToken(const boost::json::object& special_tokens, const boost::json::value& item,
                          std::vector<int32_t>* ids) {
  NIBBLE_ASSIGN(const boost::json::object* object, AsObject(item, kTemplate));
  NIBBLE_ASSIGN(const std::string_view name, StringField(*object, "id", kTemplate));
  const boost::json::value* token = FindField(special_tokens, name);
  if (token == nullptr || !token->is_object()) {
    return Fail(Code::kInvalidArgument, "tokenizer.json: {}: \"{}\" is not in special_tokens",
                kTemplate, name);
  }
  NIBBLE_ASSIGN(const boost::json::array* values,
                ArrayField(token->get_object(), "ids", kTemplate));
  for (const boost::json::value& value : *values) {
    if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() > INT32_MAX) {
      return Fail(Code::kInvalidArgument, "tokenizer.json: {}: ids of \"{}\" must be token ids",
                  kTemplate, name);
    }
    ids->push_back(static_cast<int32_t>(value.get_int64()));
  }
  return {};
}

}  // namespace

Result<PostProcessor> PostProcessor::Parse(const boost::json::value& spec) {
  PostProcessor processor;
  if (!spec.is_null()) NIBBLE_TRY(ParseInto(spec, 0, &processor.templates_));
  return processor;
}

Status PostProcessor::ParseInto(const boost::json::value& spec, int depth,
                                std::vector<Template>* out) {
  if (depth > kMaxNesting || out->size() > kMaxTemplates) {
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: post_processor is nested more than {} deep or has more than {} "
                "templates",
                kMaxNesting, kMaxTemplates);
  }
  NIBBLE_ASSIGN(const boost::json::object* object, AsObject(spec, "post_processor"));
  NIBBLE_ASSIGN(const std::string_view type, StringField(*object, "type", "post_processor"));
  if (type == "ByteLevel") return {};
  if (type == "Sequence") {
    NIBBLE_ASSIGN(const boost::json::array* members,
                  ArrayField(*object, "processors", "post_processor Sequence"));
    for (const boost::json::value& member : *members) {
      NIBBLE_TRY(ParseInto(member, depth + 1, out));
    }
    return {};
  }
  if (type != "TemplateProcessing") {
    return Fail(Code::kUnsupported,
                "tokenizer.json: post_processor \"{}\" is not supported (TemplateProcessing, "
                "ByteLevel and Sequence are)",
                type);
  }
  NIBBLE_ASSIGN(const boost::json::array* items, ArrayField(*object, "single", kTemplate));
  const boost::json::object no_tokens;
  const boost::json::value* tokens = FindField(*object, "special_tokens");
  const boost::json::object& special_tokens =
      tokens != nullptr && tokens->is_object() ? tokens->get_object() : no_tokens;
  Template parsed;
  int sequences = 0;
  for (const boost::json::value& item : *items) {
    NIBBLE_ASSIGN(const boost::json::object* part, AsObject(item, kTemplate));
    if (const boost::json::value* special = FindField(*part, "SpecialToken")) {
      NIBBLE_TRY(AppendSpecialToken(special_tokens, *special,
                                    sequences == 0 ? &parsed.before : &parsed.after));
    } else if (FindField(*part, "Sequence") != nullptr) {
      ++sequences;
    } else {
      return Fail(Code::kUnsupported,
                  "tokenizer.json: {}: an item is neither SpecialToken nor Sequence", kTemplate);
    }
  }
  if (sequences != 1) {
    return Fail(Code::kUnsupported,
                "tokenizer.json: {}: \"single\" must hold the sequence once, it does {} times",
                kTemplate, sequences);
  }
  out->push_back(std::move(parsed));
  return {};
}

PostProcessor PostProcessor::InFront(int32_t id) {
  PostProcessor result;
  result.templates_.push_back({.before = {id}, .after = {}});
  return result;
}

std::vector<int32_t> PostProcessor::Apply(std::vector<int32_t> ids) const {
  for (const Template& t : templates_) {
    ids.insert(ids.begin(), t.before.begin(), t.before.end());
    ids.insert(ids.end(), t.after.begin(), t.after.end());
  }
  return ids;
}

int32_t PostProcessor::max_id() const {
  int32_t max = -1;
  for (const Template& t : templates_) {
    for (const int32_t id : t.before) max = std::max(max, id);
    for (const int32_t id : t.after) max = std::max(max, id);
  }
  return max;
}

std::optional<int32_t> PostProcessor::first_id() const {
  for (auto it = templates_.rbegin(); it != templates_.rend(); ++it) {
    if (!it->before.empty()) return it->before.front();
  }
  return std::nullopt;
}

std::optional<int32_t> PostProcessor::last_id() const {
  for (auto it = templates_.rbegin(); it != templates_.rend(); ++it) {
    if (!it->after.empty()) return it->after.back();
  }
  return std::nullopt;
}

}  // namespace nibble::text
