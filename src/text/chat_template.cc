#include "text/chat_template.h"

#include <ctime>
#include <utility>

#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"

namespace nibble::text {
namespace {

using jinja::Value;

// JSON to template values. `trusted` says whose strings these are.
class JsonConverter {
 public:
  explicit JsonConverter(bool trusted) : trusted_(trusted) {}

  Result<Value> Convert(const boost::json::value& json, int depth = 0) const {
    if (depth > jinja::kMaxValueDepth) {
      return Fail(Code::kInvalidArgument, "JSON is nested deeper than {} levels",
                  jinja::kMaxValueDepth);
    }
    switch (json.kind()) {
      case boost::json::kind::null:
        return Value(jinja::None{});
      case boost::json::kind::bool_:
        return Value(json.get_bool());
      case boost::json::kind::int64:
        return Value(static_cast<jinja::Integer>(json.get_int64()));
      case boost::json::kind::uint64:
        return Value(static_cast<jinja::Integer>(json.get_uint64()));
      case boost::json::kind::double_:
        return Value(json.get_double());
      case boost::json::kind::string:
        return String(json.get_string());
      case boost::json::kind::array: {
        jinja::Values items;
        items.reserve(json.get_array().size());
        for (const boost::json::value& item : json.get_array()) {
          NIBBLE_ASSIGN(Value value, Convert(item, depth + 1));
          items.push_back(std::move(value));
        }
        return jinja::MakeSequence(std::move(items));
      }
      case boost::json::kind::object: {
        jinja::Dict dict;
        for (const auto& [key, item] : json.get_object()) {
          NIBBLE_ASSIGN(Value value, Convert(item, depth + 1));
          dict.Set(String(key), std::move(value));
        }
        return jinja::MakeDict(std::move(dict));
      }
    }
    return Value(jinja::None{});
  }

 private:
  Value String(std::string_view text) const {
    return Value(trusted_ ? jinja::TrustedString(text) : jinja::UntrustedString(text));
  }

  bool trusted_;
};

Status SetGlobals(jinja::Interpreter& interpreter, const boost::json::object& variables,
                  bool trusted) {
  for (const auto& [name, json] : variables) {
    auto value = JsonConverter(trusted).Convert(json);
    if (!value) {
      return tl::unexpected<Error>(
          value.error().Context(fmt::format("template variable '{}'", std::string_view(name))));
    }
    interpreter.SetGlobal(name, std::move(*value));
  }
  return {};
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::SyntaxTree tree;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Compile(std::string_view source) {
  auto tree = jinja::Parse(source);
  if (!tree) return tl::unexpected<Error>(tree.error().Context("chat template"));
  return ChatTemplate(std::make_unique<Impl>(Impl{std::move(*tree)}));
}

Result<RenderedPrompt> ChatTemplate::Render(const boost::json::object& variables,
                                            const boost::json::object& trusted,
                                            const RenderOptions& options) const {
  jinja::Interpreter interpreter({}, options.now.value_or(std::time(nullptr)));
  // As in transformers, a caller's variable replaces a special token of the same name.
  NIBBLE_TRY(SetGlobals(interpreter, trusted, true));
  NIBBLE_TRY(SetGlobals(interpreter, variables, false));
  const auto text = interpreter.Render(impl_->tree.body);
  if (!text) return tl::unexpected<Error>(text.error().Context("chat template"));
  return RenderedPrompt{(*text)->bytes, (*text)->untrusted};
}

bool ChatTemplate::Mentions(std::string_view variable) const {
  return impl_->tree.names.contains(variable);
}

}  // namespace nibble::text
