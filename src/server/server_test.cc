// The life of a server: loading, ready, full, draining, stopping; and what it says about itself.
#include "server/server.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <future>
#include <stdexcept>
#include <thread>

#include "server/testing/test_server.h"

namespace nibble::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const char kChatPath[] = "/v1/chat/completions";
const char kHello[] = R"({"messages":[{"role":"user","content":"hi"}]})";
const char kHelloStream[] = R"({"messages":[{"role":"user","content":"hi"}],"stream":true})";

TEST(Lifecycle, HealthTellsHowFarLoadingIs) {
  ServerOptions options;
  options.port = 0;
  auto server = Server::Start(options);
  ASSERT_TRUE(server.has_value());
  (*server)->SetStage("loading weights", 0.4);
  const auto exchange = [&](const std::string& request) {
    TestClient client((*server)->port());
    client.Send(request);
    return client.Read();
  };
  const TestResponse health = exchange(GetRequest("/health"));
  EXPECT_EQ(health.status, 503);
  EXPECT_TRUE(health.Has("Retry-After"));
  const auto body = boost::json::parse(health.body);
  EXPECT_EQ(body.at("stage"), "loading weights");
  EXPECT_EQ(body.at("percent"), 40.0);
  EXPECT_EQ(body.at("error").at("code"), 503);
  EXPECT_EQ(exchange(GetRequest("/live")).status, 200);
  EXPECT_EQ(exchange(GetRequest("/metrics")).status, 200);
  EXPECT_EQ(exchange(GetRequest("/v1/models")).status, 503);
  EXPECT_EQ(exchange(PostRequest(kChatPath, kHello)).status, 503);

  ServedModelOptions model;
  model.engine = std::make_shared<FakeEngine>(SayHello);
  model.names = {"fake"};
  model.chat_template = kChatMl;
  ASSERT_TRUE((*server)->SetReady(model).has_value());
  const TestResponse ready = exchange(GetRequest("/health"));
  EXPECT_EQ(ready.status, 200);
  EXPECT_EQ(ready.body, "");
  EXPECT_EQ(exchange(PostRequest(kChatPath, kHello)).status, 200);
}

TEST(Lifecycle, UsedPortNamesTheWayOut) {
  TestServer first;
  ServerOptions options;
  options.port = first.port();
  const auto second = Server::Start(options);
  ASSERT_FALSE(second.has_value());
  EXPECT_NE(second.error().message().find("--port"), std::string::npos) << second.error().message();
  options.port = 0;
  options.host = "no.such.host.invalid";
  EXPECT_FALSE(Server::Start(options).has_value());
}

TEST(Lifecycle, FullMeans503AndRetryAfterAndNothingIsPrepared) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    stream.WaitCancelled(seconds(30));
  });
  server.engine->SetCapacity(1);
  TestClient first(server.port());
  first.Send(PostRequest(kChatPath, kHello));
  while (server.engine->submitted().empty()) std::this_thread::yield();
  const TestResponse full = server.Post(kChatPath, kHello);
  EXPECT_EQ(full.status, 503);
  EXPECT_TRUE(full.Has("Retry-After: "));
  EXPECT_EQ(ErrorOf(full).at("code"), 503);
  EXPECT_EQ(server.Get("/health").status, 200);  // full is not dead
  // A list needs a place for every prompt.
  EXPECT_EQ(server.Post("/v1/completions", R"({"prompt":["a","b"]})").status, 503);
}

// Of a stream that had its status when the error came. The prompt is longer than kHello's, so that
// handlers tell it by its tokens.
boost::json::value ErrorBehindText(TestServer& server) {
  const TestResponse response = server.Post(
      kChatPath,
      R"({"messages":[{"role":"user","content":"a longer text than that"}],"stream":true})");
  EXPECT_EQ(response.status, 200);
  const auto events = SseData(response.body);
  if (events.size() < 2) throw std::runtime_error("the stream ends without an error");
  EXPECT_EQ(events.back(), "[DONE]");
  return boost::json::parse(events[events.size() - 2]).at("error");
}

TEST(Lifecycle, DeadlineIs504BeforeAndAnEventAfterTheFirstToken) {
  TestServer server(
      [](const engine::Request& request, FakeStream& stream) {
        EXPECT_TRUE(request.deadline.has_value());
        stream.Prompt();
        if (request.tokens.size() > 40) stream.Text("some");
        stream.Error(Code::kDeadline, "the request's time is over");
      },
      [] {
        ServerOptions options;
        options.request_timeout = seconds(60);
        options.limits.heartbeat = milliseconds(1);
        return options;
      }());
  const TestResponse before = server.Post(kChatPath, kHelloStream);
  EXPECT_EQ(before.status, 504);
  EXPECT_EQ(ErrorOf(before).at("code"), 504);
  EXPECT_EQ(ErrorBehindText(server).at("code"), 504);
}

TEST(Lifecycle, InternalErrorsAre503WithoutDetails) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Error(Code::kInternal, "secret path /root/x");
  });
  const TestResponse response = server.Post(kChatPath, kHello);
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.body.find("secret"), std::string::npos);
}

TEST(Lifecycle, BrokenLogitsAre500WithTheReason) {
  const std::string reason = "LlamaForCausalLM: logits at position 7 are NaN or infinite";
  TestServer server([&](const engine::Request& request, FakeStream& stream) {
    if (request.tokens.size() > 20) stream.Text("so far");
    stream.Error(Code::kCorruption, reason);
  });
  const TestResponse whole = server.Post(kChatPath, kHello);
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(ErrorOf(whole).at("type"), "InternalServerError");
  EXPECT_EQ(ErrorOf(whole).at("message"), boost::json::string(reason));
  const boost::json::value error = ErrorBehindText(server);
  EXPECT_EQ(error.at("code"), 500);
  EXPECT_EQ(error.at("message"), boost::json::string(reason));
}

TEST(Drain, RunningAnswersFinishNewOnesAreRefused) {
  std::promise<void> go;
  std::shared_future<void> gone = go.get_future().share();
  TestServer server([gone](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    stream.Text("first");
    gone.wait_for(seconds(30));
    stream.Text(" last");
    stream.Done();
  });
  auto exit_code = std::async(std::launch::async, [&] { return server.server->Run(); });
  TestClient running(server.port());
  running.Send(PostRequest(kChatPath, kHelloStream));
  ASSERT_TRUE(running.WaitFor("first"));
  TestClient kept(server.port());  // an idle connection that was open before
  kept.Send(GetRequest("/live"));
  ASSERT_EQ(kept.Read().status, 200);

  server.server->Stop();
  EXPECT_TRUE(kept.WaitClosed());
  go.set_value();
  const TestResponse response = running.Read();
  EXPECT_TRUE(response.complete);
  EXPECT_NE(response.body.find(" last"), std::string::npos);
  EXPECT_EQ(exit_code.get(), 0);
}

TEST(Drain, SecondStopForces) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    stream.Text("first");
    stream.WaitCancelled(seconds(30));
  });
  auto exit_code = std::async(std::launch::async, [&] { return server.server->Run(); });
  TestClient running(server.port());
  running.Send(PostRequest(kChatPath, kHelloStream));
  ASSERT_TRUE(running.WaitFor("first"));
  server.server->Stop();
  server.server->Stop();
  const TestResponse response = running.Read();
  const auto events = SseData(response.body);
  ASSERT_GE(events.size(), 2u) << response.body;
  EXPECT_EQ(boost::json::parse(events[events.size() - 2]).at("error").at("code"), 503);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(exit_code.get(), 1);
  EXPECT_TRUE(server.engine->WaitCancelled(1, seconds(5)));
}

TEST(Drain, ADeadEngineEndsTheServerWithAnError) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    stream.Text("first");
    stream.Done();
  });
  auto exit_code = std::async(std::launch::async, [&] { return server.server->Run(); });
  TestClient client(server.port());
  client.Send(PostRequest(kChatPath, kHello));
  EXPECT_EQ(client.Read().status, 200);
  server.engine->SetFailed();
  EXPECT_EQ(exit_code.get(), 1);
}

TEST(Drain, SigtermDrains) {
  TestServer server;
  const pthread_t runner = pthread_self();
  std::thread sender([runner] {
    struct sigaction action{};
    while (action.sa_handler == SIG_DFL) {  // until the handler is there it would end the test
      std::this_thread::yield();
      sigaction(SIGTERM, nullptr, &action);
    }
    pthread_kill(runner, SIGTERM);
  });
  EXPECT_EQ(server.server->Run(), 0);
  sender.join();
}

TEST(About, ModelsVersionMetrics) {
  TestServer server(SayHello, {}, {.names = {"org/model", "alias"}, .root = "/models/x"});
  const auto models = boost::json::parse(server.Get("/v1/models").body);
  EXPECT_EQ(models.at("object"), "list");
  EXPECT_EQ(models.at("data").get_array().size(), 2u);
  const auto& card = models.at("data").at(0);
  EXPECT_EQ(card.at("id"), "org/model");
  EXPECT_EQ(card.at("root"), "/models/x");
  EXPECT_EQ(card.at("max_model_len"), 512);
  EXPECT_EQ(boost::json::parse(server.Get("/v1/models/org/model").body).at("id"), "org/model");
  EXPECT_EQ(boost::json::parse(server.Get("/v1/models/org%2Fmodel").body).at("id"), "org/model");
  EXPECT_EQ(server.Get("/v1/models/other").status, 404);
  EXPECT_EQ(boost::json::parse(server.Get("/version").body).at("version"), "0.1.0");
  EXPECT_EQ(server.Get("/ping").status, 200);
  EXPECT_EQ(server.Exchange(PostRequest("/ping", "", "")).status, 200);

  const TestResponse metrics = server.Get("/metrics");
  EXPECT_TRUE(metrics.Has("Content-Type: text/plain; version=0.0.4"));
  for (const char* line :
       {"# TYPE vllm:num_requests_running gauge", "# TYPE vllm:prompt_tokens_total counter",
        "vllm:num_requests_running{model_name=\"org/model\",engine=\"0\"} 0.0",
        "vllm:request_success_total{model_name=\"org/"
        "model\",engine=\"0\",finished_reason=\"stop\"} 0.0",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"org/"
        "model\",engine=\"0\",le=\"0.001\"} 0.0",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"org/"
        "model\",engine=\"0\",le=\"+Inf\"} 0.0",
        "http_requests_total{handler=\"/v1/models\",method=\"GET\",status=\"2xx\"} 1.0",
        "process_resident_memory_bytes"}) {
    EXPECT_NE(metrics.body.find(line), std::string::npos) << line;
  }
}

TEST(About, RequestIdIsEchoedAndNamesTheAnswer) {
  TestServer server;
  const TestResponse response = server.Exchange(
      PostRequest(kChatPath, kHello, "Content-Type: application/json\r\nX-Request-Id: run-7\r\n"));
  EXPECT_TRUE(response.Has("X-Request-Id: run-7"));
  EXPECT_EQ(boost::json::parse(response.body).at("id"), "chatcmpl-run-7");
}

}  // namespace
}  // namespace nibble::server
