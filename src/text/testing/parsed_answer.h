// What a client holds when a parser has gone through an answer. For tests.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "text/answer_parser.h"

namespace nibble::text {

struct ParsedCall {
  std::string name;
  std::string arguments;
  std::string id = {};
  bool operator==(const ParsedCall&) const = default;
};

// Joined pieces.
struct ParsedAnswer {
  std::string content = {};
  std::string reasoning = {};
  std::vector<ParsedCall> calls = {};
  bool operator==(const ParsedAnswer&) const = default;
};

inline void PrintTo(const ParsedAnswer& answer, std::ostream* out) {
  *out << "content \"" << answer.content << "\" reasoning \"" << answer.reasoning << "\"";
  for (const ParsedCall& call : answer.calls)
    *out << " call " << call.name << "(" << call.arguments << ") " << call.id;
}

inline void Collect(const std::vector<AnswerEvent>& events, ParsedAnswer& answer) {
  for (const AnswerEvent& event : events) {
    switch (event.kind) {
      case AnswerEvent::Kind::kContent:
        answer.content += event.text;
        break;
      case AnswerEvent::Kind::kReasoning:
        answer.reasoning += event.text;
        break;
      case AnswerEvent::Kind::kToolCallStart:
        EXPECT_EQ(event.index, static_cast<int>(answer.calls.size()));
        answer.calls.push_back({event.text, "", event.id});
        break;
      case AnswerEvent::Kind::kToolCallArguments:
        ASSERT_FALSE(answer.calls.empty());
        EXPECT_EQ(event.index, static_cast<int>(answer.calls.size()) - 1);
        answer.calls.back().arguments += event.text;
        break;
    }
  }
}

// The text comes in pieces that end at `cuts`.
inline ParsedAnswer Parse(const AnswerParserOptions& options, std::string_view text,
                          const std::vector<size_t>& cuts = {}) {
  auto parser = AnswerParser::Make(options);
  EXPECT_TRUE(parser) << parser.error().message();
  ParsedAnswer answer;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    Collect(parser->Push(text.substr(begin, cut - begin)), answer);
    begin = cut;
  }
  Collect(parser->Push(text.substr(begin)), answer);
  Collect(parser->Finish(), answer);
  return answer;
}

}  // namespace nibble::text
