// Chat templates: the Jinja subset of published templates, rendered as transformers renders them
// (sandboxed jinja2 with trim_blocks, lstrip_blocks, loop controls, `generation` blocks). The
// oracle of the tests is jinja2 itself.
//
// Rendering is bounded: steps, output bytes, recursion depth and loop lengths have limits, so no
// template can loop or allocate without bound. Values that came from the caller (message text, tool
// schemas) are tracked through every string operation, and the result says which of its bytes they
// are: the tokenizer never parses control tokens there. Thread-safety: a compiled template is
// immutable; Render may be called from any thread.
#pragma once

#include <boost/json.hpp>

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/tokenizer.h"

namespace nibble::text {

struct RenderedPrompt {
  std::string text;
  std::vector<TextRange> untrusted;  // sorted, disjoint
};

struct RenderOptions {
  std::optional<std::time_t> now;  // what strftime_now shows, in local time; default: the clock
};

class ChatTemplate {
 public:
  // Errors name the line.
  static Result<ChatTemplate> Compile(std::string_view source);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // variables: messages, tools, documents, add_generation_prompt, bos_token, eos_token, ..., and
  // extras such as enable_thinking. Strings under `trusted` (special tokens) are trusted, all
  // others are not.
  Result<RenderedPrompt> Render(const boost::json::object& variables,
                                const boost::json::object& trusted,
                                const RenderOptions& options = {}) const;

  // True when the template mentions the variable by name ("enable_thinking", "tools").
  bool Mentions(std::string_view variable) const;

  struct Impl;

 private:
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::text
