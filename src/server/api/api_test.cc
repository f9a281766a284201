// The shapes of answers, whole and streamed, and what reaches the engine.
#include "server/api/api.h"

#include <gtest/gtest.h>

#include "server/testing/test_server.h"

namespace nibble::server {
namespace {

namespace json = boost::json;
using engine::TokenLogprob;

const char kChatPath[] = "/v1/chat/completions";
const char kCompletionsPath[] = "/v1/completions";

std::string Hello(const std::string& more = "") {
  return R"({"model":"fake","messages":[{"role":"user","content":"hi"}])" +
         (more.empty() ? "" : "," + more) + "}";
}

std::vector<json::value> Chunks(const TestResponse& response) {
  std::vector<json::value> chunks;
  const auto events = SseData(response.body);
  EXPECT_EQ(events.empty() ? "" : events.back(), "[DONE]") << response.body;
  for (size_t i = 0; i + 1 < events.size(); ++i) chunks.push_back(json::parse(events[i]));
  return chunks;
}

TokenLogprob Logprob(int32_t token, float value, std::vector<std::pair<int32_t, float>> top) {
  return {token, value, 1, std::move(top)};
}

// ---- Chat ----

TEST(Chat, WholeAnswer) {
  TestServer server;
  const json::value answer = server.PostJson(kChatPath, Hello());
  EXPECT_EQ(answer.at("object"), "chat.completion");
  EXPECT_TRUE(std::string_view(answer.at("id").as_string()).starts_with("chatcmpl-"));
  EXPECT_EQ(answer.at("model"), "fake");
  const auto& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(choice.at("message").at("content"), "Hello");
  EXPECT_EQ(choice.at("finish_reason"), "stop");
  EXPECT_TRUE(choice.at("stop_reason").is_null());
  EXPECT_TRUE(choice.at("logprobs").is_null());
  const auto& usage = answer.at("usage");
  EXPECT_EQ(usage.at("completion_tokens"), 5);
  EXPECT_EQ(usage.at("total_tokens").as_int64(),
            usage.at("prompt_tokens").as_int64() + usage.at("completion_tokens").as_int64());
  EXPECT_EQ(usage.at("prompt_tokens_details").at("cached_tokens"), 0);
}

TEST(Chat, StreamFollowsTheProtocol) {
  TestServer server;
  const TestResponse response = server.Post(kChatPath, Hello(R"("stream":true)"));
  EXPECT_TRUE(response.Has("Content-Type: text/event-stream"));
  const auto chunks = Chunks(response);
  ASSERT_EQ(chunks.size(), 4u) << response.body;
  EXPECT_EQ(chunks[0].at("choices").at(0).at("delta"),
            json::value({{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(chunks[1].at("choices").at(0).at("delta"), json::value({{"content", "Hel"}}));
  EXPECT_EQ(chunks[2].at("choices").at(0).at("delta"), json::value({{"content", "lo"}}));
  EXPECT_TRUE(chunks[2].at("choices").at(0).at("finish_reason").is_null());
  EXPECT_EQ(chunks[3].at("choices").at(0).at("finish_reason"), "stop");
  for (const auto& chunk : chunks) {
    EXPECT_EQ(chunk.at("object"), "chat.completion.chunk");
    EXPECT_EQ(chunk.at("id"), chunks[0].at("id"));
    EXPECT_FALSE(chunk.as_object().contains("usage"));
  }
}

TEST(Chat, StreamUsage) {
  TestServer server;
  const auto end = Chunks(
      server.Post(kChatPath, Hello(R"("stream":true,"stream_options":{"include_usage":true})")));
  EXPECT_TRUE(end.back().at("choices").as_array().empty());
  EXPECT_EQ(end.back().at("usage").at("completion_tokens"), 5);
  EXPECT_FALSE(end[1].as_object().contains("usage"));
  const auto always = Chunks(server.Post(
      kChatPath,
      Hello(
          R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})")));
  EXPECT_EQ(always[1].at("usage").at("completion_tokens"), 3);
  EXPECT_EQ(always[2].at("usage").at("completion_tokens"), 5);
}

TEST(Chat, ChoicesStopsAndReasons) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    stream.Text("b", 1);
    stream.Text("a", 0);
    stream.Done(engine::FinishReason::kLength, 1);
    stream.Done(engine::FinishReason::kStop, 0, "END");
  });
  const json::value answer = server.PostJson(kChatPath, Hello(R"("n":2)"));
  EXPECT_EQ(answer.at("choices").at(0).at("message").at("content"), "a");
  EXPECT_EQ(answer.at("choices").at(0).at("stop_reason"), "END");
  EXPECT_EQ(answer.at("choices").at(1).at("finish_reason"), "length");
  EXPECT_EQ(answer.at("usage").at("completion_tokens"), 2);
}

TEST(Chat, LogprobsAndIds) {
  const auto script = [](const engine::Request& request, FakeStream& stream) {
    EXPECT_EQ(request.sampling.logprobs, 2);
    stream.Prompt();
    stream.Text("\xC3\xA9", 0,
                {Logprob(0xC3, -0.5f, {{0xC3, -0.5f}, {'a', -1.25f}}),
                 Logprob(0xA9, -0.25f, {{0xA9, -0.25f}})});
    stream.Done();
  };
  TestServer server(script);
  const std::string fields = R"("logprobs":true,"top_logprobs":2,"return_token_ids":true)";
  const auto check = [](const json::value& content) {
    EXPECT_EQ(content.at(0).at("token"), "\xEF\xBF\xBD");  // half of a code point
    EXPECT_EQ(content.at(0).at("bytes"), json::value({0xC3}));
    EXPECT_EQ(content.at(0).at("logprob"), -0.5);
    EXPECT_EQ(content.at(0).at("top_logprobs").at(1).at("token"), "a");
    EXPECT_EQ(content.at(1).at("bytes"), json::value({0xA9}));
  };
  const json::value answer = server.PostJson(kChatPath, Hello(fields));
  check(answer.at("choices").at(0).at("logprobs").at("content"));
  EXPECT_EQ(answer.at("choices").at(0).at("token_ids"), json::value({0xC3, 0xA9}));
  EXPECT_EQ(answer.at("prompt_token_ids").at(0), kStartId);
  const auto chunks = Chunks(server.Post(kChatPath, Hello(fields + R"(,"stream":true)")));
  check(chunks[1].at("choices").at(0).at("logprobs").at("content"));
  EXPECT_EQ(chunks[0].at("prompt_token_ids").at(0), kStartId);
  EXPECT_EQ(chunks[1].at("choices").at(0).at("token_ids"), json::value({0xC3, 0xA9}));
}

// Text that a caller typed must not become a control token; the template's own must.
TEST(Chat, MessageTextNeverBecomesControlTokens) {
  TestServer server;
  server.PostJson(kChatPath, R"({"messages":[{"role":"user","content":"a<|im_end|>b"}]})");
  const std::vector<int32_t> tokens = server.engine->submitted().at(0).tokens;
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), kStartId), 2);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), kEndId), 1);
  // A raw prompt is parsed.
  server.PostJson(kCompletionsPath, R"({"prompt":"a<|im_end|>b"})");
  EXPECT_EQ(server.engine->submitted().at(1).tokens, (std::vector<int32_t>{'a', kEndId, 'b'}));
}

TEST(Chat, TemplatesKnowEveryNamedSpecialToken) {
  TestServer server(
      SayHello, {},
      {.tokenizer_config_json = R"({"eos_token": {"content": "E"}, "image_token": "I",
                                    "extra_special_tokens": {"audio_token": "A"}, "chat_template": "no"})",
       .chat_template = "{{ eos_token }}{{ image_token }}{{ audio_token }}{{ bos_token }}"});
  server.PostJson(kChatPath, Hello());
  EXPECT_EQ(server.engine->submitted().at(0).tokens, (std::vector<int32_t>{'E', 'I', 'A'}));
}

TEST(Chat, SamplingReachesTheEngine) {
  ServedModelOptions model;
  model.generation_config_json =
      R"({"temperature":0.6,"top_k":20,"top_p":0.95,"repetition_penalty":1.1,"max_new_tokens":7})";
  model.override_generation_config = R"({"top_p":0.9})";
  TestServer server(SayHello, {}, model);
  server.PostJson(kChatPath, Hello());
  server.PostJson(kChatPath,
                  Hello(R"("temperature":0.0,"top_k":-1,"top_p":1.0,"min_p":0.1,"seed":-1,
      "presence_penalty":0.5,"frequency_penalty":-0.5,"repetition_penalty":1.0,"max_tokens":9,
      "min_tokens":2,"ignore_eos":true,"stop":["x","y"],"stop_token_ids":[5],"logit_bias":{"7":3},
      "include_stop_str_in_output":true,"skip_special_tokens":false,"cache_salt":"s")"));
  const auto requests = server.engine->submitted();
  const engine::SamplingParams& defaults = requests.at(0).sampling;
  EXPECT_FLOAT_EQ(defaults.temperature, 0.6f);
  EXPECT_EQ(defaults.top_k, 20);
  EXPECT_FLOAT_EQ(defaults.top_p, 0.9f);
  EXPECT_FLOAT_EQ(defaults.repetition_penalty, 1.1f);
  EXPECT_EQ(defaults.max_tokens, 7);
  EXPECT_FALSE(defaults.seed.has_value());
  const engine::SamplingParams& given = requests.at(1).sampling;
  EXPECT_EQ(given.temperature, 0.0f);
  EXPECT_EQ(given.top_k, 0);
  EXPECT_EQ(given.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(given.max_tokens, 9);
  EXPECT_EQ(given.min_tokens, 2);
  EXPECT_TRUE(given.ignore_eos && given.include_stop_string && !given.skip_special_tokens);
  EXPECT_EQ(given.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(given.stop_token_ids, std::vector<int32_t>{5});
  EXPECT_EQ(given.logit_bias.at(0), (std::pair<int32_t, float>{7, 3.0f}));
  EXPECT_EQ(requests.at(1).cache_salt, "s");
}

TEST(Chat, WithoutMaxTokensTheContextIsTheLimit) {
  TestServer server;
  server.PostJson(kChatPath, Hello());
  const auto request = server.engine->submitted().at(0);
  EXPECT_EQ(request.sampling.max_tokens, 512 - static_cast<int64_t>(request.tokens.size()));
}

TEST(Chat, ContinueFinalMessage) {
  TestServer server;
  server.PostJson(kChatPath, R"({"messages":[{"role":"user","content":"hi"},
      {"role":"assistant","content":"Once upon"}],
      "add_generation_prompt":false,"continue_final_message":true})");
  const auto tokens = server.engine->submitted().at(0).tokens;
  EXPECT_TRUE(server.engine->tokenizer()
                  .Decode(tokens, false)
                  .ends_with("<|im_end|>\n<|im_start|>assistant\nOnce upon"));
}

// ---- Tools and reasoning ----

const char kTools[] = R"("tools":[{"type":"function","function":{"name":"add","description":"Adds.",
    "parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}])";

void CallAdd(const engine::Request&, FakeStream& stream) {
  stream.Prompt();
  for (const char* piece : {"<tool_", "call>\n{\"name\": \"add\", \"argu", "ments\": {\"a\"",
                            ": 1}}\n</tool", "_call>"}) {
    stream.Text(piece);
  }
  stream.Done();
}

TEST(Tools, HermesCallsWholeAndStreamed) {
  TestServer server(CallAdd);
  const json::value answer = server.PostJson(kChatPath, Hello(kTools));
  const auto& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_TRUE(choice.at("message").at("content").is_null());
  const auto& call = choice.at("message").at("tool_calls").at(0);
  EXPECT_EQ(call.at("type"), "function");
  EXPECT_EQ(call.at("function").at("name"), "add");
  EXPECT_EQ(call.at("function").at("arguments"), "{\"a\": 1}");

  const auto chunks =
      Chunks(server.Post(kChatPath, Hello(std::string(kTools) + R"(,"stream":true)")));
  std::string arguments;
  std::string name;
  for (const auto& chunk : chunks) {
    const auto& delta = chunk.at("choices").at(0).at("delta").as_object();
    const auto* calls = delta.if_contains("tool_calls");
    if (calls == nullptr) continue;
    const auto& function = calls->at(0).at("function").as_object();
    if (const auto* started = function.if_contains("name")) {
      name = std::string(started->as_string());
      EXPECT_EQ(function.at("arguments"), "");
      EXPECT_TRUE(calls->at(0).as_object().contains("id"));
    } else {
      arguments += std::string_view(function.at("arguments").as_string());
    }
  }
  EXPECT_EQ(name, "add");
  EXPECT_EQ(arguments, "{\"a\": 1}");
  EXPECT_EQ(chunks.back().at("choices").at(0).at("finish_reason"), "tool_calls");
}

// A template that knows no tools: the model is told in the system message.
TEST(Tools, ReachTheModelWithoutTemplateSupport) {
  TestServer server;
  server.PostJson(kChatPath, Hello(kTools));
  const std::string prompt =
      server.engine->tokenizer().Decode(server.engine->submitted().at(0).tokens, false);
  EXPECT_NE(prompt.find("<|im_start|>system"), std::string::npos);
  EXPECT_NE(prompt.find("\"name\":\"add\""), std::string::npos);
  server.PostJson(kChatPath, Hello(std::string(kTools) + R"(,"tool_choice":"none")"));
  const std::string without =
      server.engine->tokenizer().Decode(server.engine->submitted().at(1).tokens, false);
  EXPECT_EQ(without.find("add"), std::string::npos);
}

// A second template takes the requests with tools, with its own parsers and form of calls.
TEST(Tools, ATemplateOfTheirOwn) {
  ServedModelOptions model;
  model.chat_template = "plain {{ messages[0].content }}";
  model.tool_use_template =
      "{{ tools | length }} tools{% for m in messages %}{% if m.tool_calls %}"
      "[TOOL_CALLS]{{ 'text' if m.tool_calls[0].function.arguments is string }}"
      "{{ m.tool_calls[0].function.name ~ m.tool_calls[0].function.arguments }}{% endif %}"
      "{% endfor %}";
  TestServer server(
      [](const engine::Request&, FakeStream& stream) {
        stream.Prompt();
        stream.Text("[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}}]");
        stream.Done();
      },
      {}, model);
  const auto prompt = [&](size_t request) {
    return server.engine->tokenizer().Decode(server.engine->submitted().at(request).tokens, false);
  };
  const json::value answer =
      server.PostJson(kChatPath, std::string(R"({"messages":[{"role":"user","content":"x"},
          {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
           "function":{"name":"add","arguments":"{\"a\": 2}"}}]}],)") +
                                     kTools + "}");
  EXPECT_EQ(prompt(0), "1 tools[TOOL_CALLS]textadd{\"a\": 2}");
  const auto& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("tool_calls").at(0).at("function").at("name"), "add");
  server.PostJson(kChatPath, Hello());
  server.PostJson(kChatPath, Hello(std::string(kTools) + R"(,"tool_choice":"none")"));
  EXPECT_EQ(prompt(1).substr(0, 6), "plain ");
  EXPECT_EQ(prompt(2), prompt(1));
}

// gpt-oss: the format is found by the template, and the history goes through it.
TEST(Tools, HarmonyThroughTheTemplate) {
  ServedModelOptions model;
  model.chat_template =
      "{% for m in messages %}<|start|>{{ m.role }}{% if m.tool_calls %}"
      "{% if m.content %}{{ raise_exception('content and calls') }}{% endif %}"
      "<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant to=functions."
      "{{ m.tool_calls[0].function.name }}<|channel|>commentary json<|message|>"
      "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% else %}<|message|>"
      "{{ m.content }}<|end|>{% endif %}{% endfor %}{{ tools | length }}<|start|>assistant";
  TestServer server(
      [](const engine::Request&, FakeStream& stream) {
        stream.Prompt();
        stream.Text("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>comm");
        stream.Text("entary to=functions.add <|constrain|>json<|message|>{\"a\": 1}");
        stream.Done();
      },
      {}, model);
  const json::value answer = server.PostJson(
      kChatPath, std::string(R"({"model":"fake","messages":[{"role":"user","content":"x"},
          {"role":"assistant","content":"pre","reasoning":"why","tool_calls":[{"id":"1",
           "type":"function","function":{"name":"add","arguments":"{\"a\": 2}"}}]},
          {"role":"tool","tool_call_id":"1","content":"3"}],)") +
                     kTools + "}");
  const auto& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("reasoning"), "Hm.");
  EXPECT_EQ(choice.at("message").at("tool_calls").at(0).at("function").at("name"), "add");
  const std::string prompt =
      server.engine->tokenizer().Decode(server.engine->submitted().at(0).tokens, false);
  EXPECT_NE(prompt.find("<|message|>why\n\npre<|end|><|start|>assistant to=functions.add"
                        "<|channel|>commentary json<|message|>{\"a\": 2}<|call|>"),
            std::string::npos)
      << prompt;
}

// The model's own id of a call comes back to the template; Mistral's has nine characters.
TEST(Tools, IdsOfCalls) {
  for (const std::string parser : {"kimi_k2", "mistral"}) {
    ServedModelOptions model;
    model.tool_parser = parser;
    model.chat_template = "{{ tools | tojson }}{{ messages[0].content }}";
    TestServer server(
        [&](const engine::Request&, FakeStream& stream) {
          stream.Prompt();
          stream.Text(parser == "mistral"
                          ? "[TOOL_CALLS]add[ARGS]{}"
                          : "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{}");
          stream.Done();
        },
        {}, model);
    const json::value answer = server.PostJson(kChatPath, Hello(kTools));
    const std::string id(
        answer.at("choices").at(0).at("message").at("tool_calls").at(0).at("id").as_string());
    if (parser == "mistral") {
      EXPECT_EQ(id.size(), 9u);
    } else {
      EXPECT_EQ(id, "functions.add:0");
    }
  }
}

TEST(Tools, WithoutToolsTagsAreText) {
  TestServer server(CallAdd);
  const json::value answer = server.PostJson(kChatPath, Hello());
  EXPECT_TRUE(std::string_view(answer.at("choices").at(0).at("message").at("content").as_string())
                  .starts_with("<tool_call>"));
}

TEST(Reasoning, BothNames) {
  ServedModelOptions model;
  model.reasoning_parser = "qwen3";
  TestServer server(
      [](const engine::Request&, FakeStream& stream) {
        stream.Prompt();
        stream.Text("<think>why");
        stream.Text("</think>");
        stream.Text("because");
        stream.Done();
      },
      {}, model);
  const json::value answer = server.PostJson(kChatPath, Hello());
  const auto& message = answer.at("choices").at(0).at("message");
  EXPECT_EQ(message.at("reasoning"), "why");
  EXPECT_EQ(message.at("reasoning_content"), "why");
  EXPECT_EQ(message.at("content"), "because");
  std::string reasoning;
  std::string content;
  for (const auto& chunk : Chunks(server.Post(kChatPath, Hello(R"("stream":true)")))) {
    const auto& delta = chunk.at("choices").at(0).at("delta").as_object();
    if (const auto* piece = delta.if_contains("reasoning")) {
      reasoning += std::string_view(piece->as_string());
      EXPECT_EQ(delta.at("reasoning_content"), *piece);
    }
    if (const auto* piece = delta.if_contains("content")) {
      content += std::string_view(piece->as_string());
    }
  }
  EXPECT_EQ(reasoning, "why");
  EXPECT_EQ(content, "because");
  const json::value hidden = server.PostJson(kChatPath, Hello(R"("include_reasoning":false)"));
  EXPECT_FALSE(hidden.at("choices").at(0).at("message").as_object().contains("reasoning"));
}

// ---- Completions ----

TEST(Completions, WholeAnswerAndDefaultTokens) {
  TestServer server;
  const json::value answer =
      server.PostJson(kCompletionsPath, R"({"model":"alias","prompt":"Say"})");
  EXPECT_EQ(answer.at("object"), "text_completion");
  EXPECT_TRUE(std::string_view(answer.at("id").as_string()).starts_with("cmpl-"));
  EXPECT_EQ(answer.at("choices").at(0).at("text"), "Hello");
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), 3);
  EXPECT_EQ(server.engine->submitted().at(0).sampling.max_tokens, 16);
}

TEST(Completions, ListsAreNumberedPromptMajor) {
  TestServer server([](const engine::Request& request, FakeStream& stream) {
    stream.Prompt();
    for (int32_t choice = 0; choice < 2; ++choice) {
      stream.Text(std::string(1, static_cast<char>(request.tokens[0])) + std::to_string(choice),
                  choice);
      stream.Done(engine::FinishReason::kLength, choice);
    }
  });
  const json::value answer = server.PostJson(kCompletionsPath, R"({"prompt":["a","b"],"n":2})");
  std::string texts;
  for (size_t i = 0; i < 4; ++i) {
    const auto& choice = answer.at("choices").at(i);
    EXPECT_EQ(choice.at("index"), i);
    texts += std::string(choice.at("text").as_string()) + " ";
  }
  EXPECT_EQ(texts, "a0 a1 b0 b1 ");
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), 2);
  EXPECT_EQ(answer.at("usage").at("completion_tokens"), 8);
  std::vector<std::string> streamed(4);
  for (const auto& chunk :
       Chunks(server.Post(kCompletionsPath, R"({"prompt":[[97],[98]],"n":2,"stream":true})"))) {
    const auto& choice = chunk.at("choices").at(0);
    streamed[static_cast<size_t>(choice.at("index").as_int64())] +=
        std::string_view(choice.at("text").as_string());
  }
  EXPECT_EQ(streamed, (std::vector<std::string>{"a0", "a1", "b0", "b1"}));
}

// The contract of lm-eval: one entry per prompt token and one for the generated token, EOS
// included.
TEST(Completions, EchoWithLogprobs) {
  TestServer server([](const engine::Request& request, FakeStream& stream) {
    EXPECT_EQ(request.sampling.prompt_logprobs, 1);
    EXPECT_EQ(request.sampling.logprobs, 1);
    stream.Prompt(0, {std::nullopt, Logprob('b', -2.0f, {{'x', -0.5f}})});
    engine::StreamEvent end{engine::StreamEvent::Kind::kDelta};
    end.delta.tokens = {kEndId};
    end.delta.logprobs = {Logprob(kEndId, -0.125f, {{kEndId, -0.125f}})};
    stream.Post(std::move(end));
    stream.Done();
  });
  for (const char* prompt : {"\"ab\"", "[97,98]"}) {
    const json::value answer = server.PostJson(
        kCompletionsPath,
        std::string(R"({"echo":true,"logprobs":1,"max_tokens":1,"temperature":0,"prompt":)") +
            prompt + "}");
    const auto& choice = answer.at("choices").at(0);
    EXPECT_EQ(choice.at("text"), "ab");
    const auto& logprobs = choice.at("logprobs");
    EXPECT_EQ(logprobs.at("token_logprobs"), json::value({nullptr, -2.0, -0.125}));
    EXPECT_EQ(logprobs.at("tokens"), json::value({"a", "b", "<|im_end|>"}));
    EXPECT_EQ(logprobs.at("text_offset"), json::value({0, 1, 2}));
    EXPECT_TRUE(logprobs.at("top_logprobs").at(0).is_null());
    // The actual token is always there, beside the best.
    EXPECT_EQ(logprobs.at("top_logprobs").at(1).at("b"), -2.0);
    EXPECT_EQ(logprobs.at("top_logprobs").at(1).at("x"), -0.5);
    EXPECT_EQ(choice.at("finish_reason"), "stop");
  }
}

TEST(Completions, ScoringOnly) {
  TestServer server([](const engine::Request& request, FakeStream& stream) {
    EXPECT_EQ(request.sampling.max_tokens, 0);
    stream.Prompt(0, {std::nullopt, Logprob('b', -2.0f, {})});
    stream.Done(engine::FinishReason::kLength);
  });
  const json::value answer = server.PostJson(
      kCompletionsPath, R"({"prompt":"ab","echo":true,"logprobs":0,"max_tokens":0})");
  EXPECT_EQ(answer.at("choices").at(0).at("text"), "ab");
  EXPECT_EQ(answer.at("choices").at(0).at("logprobs").at("token_logprobs"),
            json::value({nullptr, -2.0}));
  EXPECT_EQ(answer.at("usage").at("completion_tokens"), 0);
}

TEST(Completions, PromptLogprobsAndTokenNames) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Prompt(0, {std::nullopt, Logprob('b', -2.0f, {{'x', -0.5f}})});
    stream.Text("c", 0, {Logprob('c', -std::numeric_limits<float>::infinity(), {})});
    stream.Done();
  });
  const json::value answer = server.PostJson(
      kCompletionsPath,
      R"({"prompt":"ab","prompt_logprobs":1,"logprobs":0,"return_tokens_as_token_ids":true})");
  const auto& choice = answer.at("choices").at(0);
  EXPECT_TRUE(choice.at("prompt_logprobs").at(0).is_null());
  EXPECT_EQ(choice.at("prompt_logprobs").at(1).at("98").at("logprob"), -2.0);
  EXPECT_EQ(choice.at("logprobs").at("tokens").at(0), "token_id:99");
  EXPECT_EQ(choice.at("logprobs").at("token_logprobs").at(0), -9999.0);
}

TEST(Completions, OneFailureEndsTheWholeRequest) {
  TestServer server([](const engine::Request& request, FakeStream& stream) {
    if (request.tokens[0] == 'b') return stream.Error(Code::kInvalidArgument, "bad luck");
    stream.Prompt();
    stream.WaitCancelled(std::chrono::seconds(30));
  });
  const TestResponse response = server.Post(kCompletionsPath, R"({"prompt":["a","b"]})");
  EXPECT_EQ(response.status, 400);
  EXPECT_TRUE(server.engine->WaitCancelled(1, std::chrono::seconds(5)));
}

// ---- Tokens ----

TEST(Tokenize, BothDialectsAndMessages) {
  TestServer server;
  const json::value tokens = server.PostJson(
      "/tokenize", R"({"model":"fake","prompt":"a<|im_end|>","return_token_strs":true})");
  EXPECT_EQ(tokens.at("tokens"), json::value({'a', kEndId}));
  EXPECT_EQ(tokens.at("count"), 2);
  EXPECT_EQ(tokens.at("max_model_len"), 512);
  EXPECT_EQ(tokens.at("token_strs"), json::value({"a", "<|im_end|>"}));
  EXPECT_EQ(server.PostJson("/tokenize", R"({"content":"ab"})").at("tokens"),
            json::value({'a', 'b'}));
  EXPECT_EQ(
      server.PostJson("/tokenize", R"({"content":"a","with_pieces":true})").at("tokens").at(0),
      json::value({{"id", 97}, {"piece", "a"}}));
  const json::value chat =
      server.PostJson("/tokenize", R"({"messages":[{"role":"user","content":"<|im_end|>"}]})");
  EXPECT_EQ(chat.at("tokens").at(0), kStartId);
  EXPECT_EQ(std::count(chat.at("tokens").as_array().begin(), chat.at("tokens").as_array().end(),
                       json::value(kEndId)),
            1);
}

TEST(Detokenize, KeepsSpecialTokens) {
  TestServer server;
  const json::value text = server.PostJson("/detokenize", R"({"tokens":[97,257]})");
  EXPECT_EQ(text.at("prompt"), "a<|im_end|>");
  EXPECT_EQ(text.at("content"), "a<|im_end|>");
  EXPECT_EQ(server.PostJson("/detokenize", R"({"tokens":[]})").at("prompt"), "");
  EXPECT_EQ(server.Post("/detokenize", R"({"tokens":[99999]})").status, 400);
  EXPECT_EQ(server.Post("/detokenize", "{}").status, 400);
}

}  // namespace
}  // namespace nibble::server
