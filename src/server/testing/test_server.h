// Test support: a running server over a FakeEngine, on a free port.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "server/server.h"
#include "server/testing/fake_engine.h"
#include "server/testing/test_client.h"

namespace nibble::server {

inline constexpr std::string_view kChatMl =
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- endif %}";

// Says "Hello" and stops.
inline void SayHello(const engine::Request& request, FakeStream& stream) {
  stream.Prompt();
  for (int32_t choice = 0; choice < request.sampling.n; ++choice) {
    if (request.sampling.max_tokens != 0) {
      stream.Text("Hel", choice);
      stream.Text("lo", choice);
    }
    stream.Done(engine::FinishReason::kStop, choice);
  }
}

class TestServer {
 public:
  explicit TestServer(FakeEngine::Script script = SayHello, ServerOptions options = {},
                      ServedModelOptions model = {}) {
    engine = std::make_shared<FakeEngine>(std::move(script));
    options.port = 0;
    options.stats_interval = std::chrono::milliseconds(0);
    auto started = Server::Start(std::move(options));
    NIBBLE_CHECK(started.has_value(), "{}", started.error().message());
    server = std::move(*started);
    model.engine = engine;
    if (model.names.empty()) model.names = {"fake", "alias"};
    if (model.chat_template.empty()) model.chat_template = kChatMl;
    const Status ready = server->SetReady(std::move(model));
    NIBBLE_CHECK(ready.has_value(), "{}", ready.error().message());
  }
  uint16_t port() const { return server->port(); }

  TestResponse Exchange(std::string_view request, bool bodiless = false) const {
    TestClient client(port());
    client.Send(request);
    return client.Read(bodiless);
  }
  TestResponse Get(std::string_view path) const { return Exchange(GetRequest(path)); }
  TestResponse Post(std::string_view path, std::string_view body) const {
    return Exchange(PostRequest(path, body));
  }
  boost::json::value PostJson(std::string_view path, std::string_view body) const {
    const TestResponse response = Post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return boost::json::parse(response.body);
  }

  // The server goes first: the engine's sinks refer to its pools.
  std::shared_ptr<FakeEngine> engine;
  std::unique_ptr<Server> server;
};

// The error object of an answer.
inline boost::json::object ErrorOf(const TestResponse& response) {
  boost::json::error_code error;
  const auto value = boost::json::parse(response.body, error);
  if (error || !value.is_object() || !value.get_object().contains("error")) return {};
  return value.get_object().at("error").get_object();
}

}  // namespace nibble::server
