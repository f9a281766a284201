#include "server/api/fields.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "server/api/json_text.h"

namespace nibble::server {
namespace {

std::string ChatWith(const std::string& field) {
  return R"({"messages":[{"role":"user","content":"hi"}])" + (field.empty() ? "" : "," + field) +
         "}";
}
std::string CompletionWith(const std::string& field) {
  return R"({"prompt":"hi")" + (field.empty() ? "" : "," + field) + "}";
}

TEST(FieldTable, NamesAreUniquePerApi) {
  std::map<std::string_view, unsigned> seen;
  for (const Field& field : FieldTable()) {
    EXPECT_EQ(seen[field.name] & field.apis, 0u) << field.name;
    seen[field.name] |= field.apis;
    EXPECT_NE(field.apis, 0u) << field.name;
  }
}

// Real clients send null for whatever they leave at its default.
TEST(FieldTable, NullIsAbsentForEveryField) {
  for (const Field& field : FieldTable()) {
    const std::string null = "\"" + std::string(field.name) + "\":null";
    if ((field.apis & kChat) != 0 && field.name != "messages") {
      EXPECT_TRUE(ParseChatRequest(ChatWith(null)).has_value()) << field.name;
    }
    if ((field.apis & kCompletions) != 0 && field.name != "prompt") {
      EXPECT_TRUE(ParseCompletionRequest(CompletionWith(null)).has_value()) << field.name;
    }
  }
}

TEST(FieldTable, WrongTypesAreRefusedByName) {
  for (const Field& field : FieldTable()) {
    if (field.treatment == Treatment::kIgnored) continue;
    for (const char* wrong : {R"({"no":"such"})", R"([[["x"]]])", "1e300", R"("\u0001")"}) {
      const std::string member = "\"" + std::string(field.name) + "\":" + wrong;
      // Each field takes at most some of the four values; what it refuses must carry its name.
      if ((field.apis & kChat) != 0) {
        const auto request = ParseChatRequest(ChatWith(member));
        if (!request) {
          EXPECT_EQ(request.error().param, field.name) << request.error().error.message();
        }
      }
    }
  }
}

TEST(FieldTable, RefusedFieldsAreNamed) {
  for (const char* member :
       {R"("suffix":"x")", R"("best_of":2)", R"("use_beam_search":true)",
        R"("response_format":{"type":"json_object"})", R"("guided_json":{})", R"("priority":3)",
        R"("bad_words":["a"])", R"("prompt_embeds":"AA")"}) {
    const auto request = ParseCompletionRequest(CompletionWith(member));
    ASSERT_FALSE(request.has_value()) << member;
    EXPECT_EQ(HttpStatus(request.error().error.code()), 400);
    EXPECT_NE(std::string(member).find("\"" + request.error().param + "\""), std::string::npos)
        << member;
  }
}

TEST(FieldTable, HarmlessValuesOfRefusedFieldsPass) {
  const auto request = ParseCompletionRequest(
      CompletionWith(R"("best_of":1,"suffix":"","use_beam_search":false,"priority":0,
                        "response_format":{"type":"text"},"length_penalty":1.0,"bad_words":[],
                        "stream_interval":1,"unknown_field":{"a":[1]})"));
  EXPECT_TRUE(request.has_value()) << (request ? "" : request.error().error.message());
}

struct Range {
  const char* field;
  const char* good;
  const char* bad;
};

TEST(FieldTable, RangesAreHard) {
  const Range ranges[] = {
      {"temperature", "0", "-0.1"},
      {"temperature", "2.0", "2.01"},
      {"top_p", "1", "0"},
      {"top_p", "0.001", "1.001"},
      {"top_k", "-1", "-2"},
      {"top_k", "0", "2147483648"},
      {"min_p", "1", "1.1"},
      {"presence_penalty", "-2", "-2.1"},
      {"frequency_penalty", "2", "2.1"},
      {"repetition_penalty", "0.5", "0"},
      {"max_tokens", "1", "-1"},
      {"max_tokens", "5", "1.5"},
      {"n", "64", "65"},
      {"n", "1", "0"},
      {"seed", "-9223372036854775808", "9223372036854775808"},
      {"stop", R"(["a"])", R"([""])"},
      {"stop", R"("a")", "7"},
      {"logit_bias", R"({"5":-100})", R"({"5":-101})"},
      {"logit_bias", R"({"5":1})", R"({"-5":1})"},
      {"stop_token_ids", "[1,2]", "[1099511627776]"},
      {"stream", "true", R"("true")"},
      {"ignore_eos", "false", "0"},
  };
  for (const Range& range : ranges) {
    const std::string name = "\"" + std::string(range.field) + "\":";
    const auto good = ParseCompletionRequest(CompletionWith(name + range.good));
    EXPECT_TRUE(good.has_value()) << name << range.good << " "
                                  << (good ? "" : good.error().error.message());
    const auto bad = ParseCompletionRequest(CompletionWith(name + range.bad));
    ASSERT_FALSE(bad.has_value()) << name << range.bad;
    EXPECT_EQ(bad.error().param, range.field);
  }
}

TEST(ChatRequest, WholeFloatsAreIntegers) {
  const auto request =
      ParseChatRequest(ChatWith(R"("max_tokens":16.0,"max_completion_tokens":8.0)"));
  ASSERT_TRUE(request.has_value());
  EXPECT_EQ(request->max_tokens, 8);  // max_completion_tokens wins
}

TEST(ChatRequest, MessagesTakeTheirTemplateForm) {
  const auto request = ParseChatRequest(R"({"messages":[
      {"role":"user","name":null,"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
      {"role":"assistant","content":null,"reasoning":"why","tool_calls":[
        {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}]},
      {"role":"tool","tool_call_id":"c1","content":"2"}]})");
  ASSERT_TRUE(request.has_value()) << request.error().error.message();
  const auto& user = request->messages[0].get_object();
  EXPECT_EQ(user.at("content"), "a\nb");
  EXPECT_FALSE(user.contains("name"));
  const auto& assistant = request->messages[1].get_object();
  EXPECT_EQ(assistant.at("content"), "");
  EXPECT_EQ(assistant.at("reasoning_content"), "why");
  EXPECT_EQ(assistant.at("reasoning"), "why");
  const auto& call = assistant.at("tool_calls").get_array()[0].get_object();
  EXPECT_EQ(call.at("function").get_object().at("arguments").get_object().at("x"), 1);
}

TEST(ChatRequest, FieldsThatNeedEachOther) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("top_logprobs":2)", "top_logprobs"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("continue_final_message":true)", "continue_final_message"},
      {R"("min_tokens":5,"max_tokens":4)", "min_tokens"},
      {R"("tool_choice":"auto")", "tool_choice"},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("tool_choice":{"type":"function","function":{"name":"f"}})", "tool_choice"},
      {R"("tools":[])", "tools"},
      {R"("prompt_logprobs":1,"stream":true)", "prompt_logprobs"},
      {R"("chat_template":"{{ 1 }}")", "chat_template"},
      {R"("chat_template_kwargs":{"chat_template":"x"})", "chat_template_kwargs"},
  };
  for (const auto& [member, param] : cases) {
    const auto request = ParseChatRequest(ChatWith(member));
    ASSERT_FALSE(request.has_value()) << member;
    EXPECT_EQ(request.error().param, param) << request.error().error.message();
  }
}

TEST(CompletionRequest, PromptForms) {
  const auto prompts = [](const char* prompt) {
    const auto request = ParseCompletionRequest(R"({"prompt":)" + std::string(prompt) + "}");
    return request ? request->prompts.size() : 0;
  };
  EXPECT_EQ(prompts(R"("a")"), 1u);
  EXPECT_EQ(prompts(R"(["a","b"])"), 2u);
  EXPECT_EQ(prompts("[1,2,3]"), 1u);
  EXPECT_EQ(prompts("[[1,2],[3]]"), 2u);
  for (const char* bad : {"[]", "[[]]", "{}", "7", R"(["a",1])", R"([1,"a"])", "[[1],\"a\"]",
                          "[-1]", "[1.5]", "[1099511627776]", "[null]"}) {
    EXPECT_EQ(prompts(bad), 0u) << bad;
  }
}

TEST(Json, RefusesWhatIsNotJsonText) {
  const std::string deep(100'000, '[');
  const std::string nul = std::string("{\"a\":") + '\0' + "}";
  for (const std::string& text :
       {std::string(""), std::string("{"), std::string("{} x"), std::string("{'a':1}"),
        std::string("[1,]"), std::string("NaN"), std::string("\"\xff\""),
        std::string("\"\xed\xa0\x80\""), std::string(R"("\ud800")"), std::string(R"("\udc00x")"),
        std::string(R"("\x41")"), std::string("\"a\nb\""), deep, nul}) {
    const auto value = ParseJson(text);
    ASSERT_FALSE(value.has_value()) << text.substr(0, 20);
    EXPECT_EQ(value.error().code(), Code::kInvalidArgument);
  }
  EXPECT_TRUE(ParseJson(" {\"a\": \"\\u0000\\ud83d\\ude00\"}\r\n ").has_value());
}

TEST(Json, StringsAndFloats) {
  std::string text;
  AppendJsonString(text, std::string_view("a\"\\\n\0\x1f\xc3\xa9", 8));
  EXPECT_EQ(text, "\"a\\\"\\\\\\n\\u0000\\u001f\xc3\xa9\"");
  std::string numbers;
  for (const float value : {-0.25f, 0.0f, -std::numeric_limits<float>::infinity(), 1e-10f}) {
    AppendJsonFloat(numbers, value);
    numbers += ' ';
  }
  EXPECT_EQ(numbers, "-0.25 0.0 -9999.0 1e-10 ");
  EXPECT_EQ(ValidUtf8("a\xf0\x9f\x98z\xff"), "a\xEF\xBF\xBDz\xEF\xBF\xBD");
}

}  // namespace
}  // namespace nibble::server
