// The `decoder` of tokenizer.json: token texts in, text out, as a stream.
//
// Supported: ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, Sequence, and none (tokens
// joined by spaces). Each step hands on what is certain and holds back the rest, so one
// implementation serves both whole texts and streams, and they agree by construction. Immutable
// after Parse; a State belongs to one stream.
#pragma once

#include <boost/json.hpp>

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "text/tokenizer/pattern.h"

namespace nibble::text {

class Decoder {
 public:
  // What the steps remember between two tokens of one stream.
  struct StepState {
    std::string held;     // bytes or text that may still change
    size_t stripped = 0;  // Strip: characters removed so far
    bool started = false;
  };
  using State = std::vector<StepState>;

  static Result<Decoder> Parse(const boost::json::value& spec);

  State NewState() const { return State(steps_.size()); }
  // Appends the text that is certain once this token is known. Valid UTF-8 if the tokens are.
  void Push(std::string_view token, State* state, std::string* out) const;
  void Finish(State* state, std::string* out) const;

  // What a token stands for whatever its neighbours are; may be part of a code point.
  std::string TokenBytes(std::string_view token) const;

 private:
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct JoinWithSpaces {};
  struct Strip {
    char32_t content;
    size_t start;
    size_t stop;
    bool fused;  // tokens are parts of one string: strip that one
  };
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Metaspace {
    char32_t replacement;
    bool drops_first;
  };
  using Step =
      std::variant<ByteLevel, ByteFallback, Fuse, JoinWithSpaces, Strip, Replace, Metaspace>;

  Status ParseStep(const boost::json::value& spec, int depth);
  Status RefuseAfterFuse(std::string_view type) const;

  // Hands a token to step `at`, or to the output behind the last step.
  void PushTo(size_t at, std::string_view token, State* state, std::string* out) const;
  void FinishFrom(size_t at, State* state, std::string* out) const;

  std::vector<Step> steps_;
  bool fused_ = false;     // while parsing: the steps so far give parts of one string
  size_t max_growth_ = 1;  // of a token, by Replace
};

}  // namespace nibble::text
