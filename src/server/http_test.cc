// The HTTP border over real sockets: framing, limits, slow and leaving clients, origins, keys.
#include <gtest/gtest.h>

#include <thread>

#include "server/testing/test_server.h"

namespace nibble::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const char kHello[] = R"({"messages":[{"role":"user","content":"hi"}]})";
const char kHelloStream[] = R"({"messages":[{"role":"user","content":"hi"}],"stream":true})";

// Posts the prompt event and then waits to be cancelled.
void WaitForever(const engine::Request&, FakeStream& stream) {
  stream.Prompt();
  stream.WaitCancelled(seconds(30));
}

// ---- Malformed and hostile requests ----

struct Abuse {
  const char* name;
  std::string request;
  int status;  // 0: closed without an answer is fine too
};

std::string Chat(std::string_view body) { return PostRequest("/v1/chat/completions", body); }
std::string Completion(std::string_view body) { return PostRequest("/v1/completions", body); }
std::string WithMessages(const std::string& messages) {
  return Chat("{\"messages\":" + messages + "}");
}

std::vector<Abuse> AbuseCases() {
  const std::string json = "Content-Type: application/json\r\n";
  const std::string nul =
      std::string("{\"messages\":[{\"role\":\"user\",\"content\":\"a") + '\0' + "\"}]}";
  return {
      // Syntax of HTTP.
      {"no request line", "\r\n\r\n", 400},
      {"binary noise", std::string("\x16\x03\x01\x02\x00\x01\xfc\x03\x03", 9) + "\r\n\r\n", 400},
      {"no version", "GET /health\r\n\r\n", 400},
      {"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"version 9", "GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n", 400},
      {"bad header name", "GET /health HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n", 400},
      {"folded header", "GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n", 200},
      {"control character in a header",
       "GET /health HTTP/1.1\r\nHost: localhost\r\nA: \x01\r\n\r\n", 400},
      {"NUL in the target",
       std::string("GET /he") + '\0' + "lth HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
      {"no host", "GET /health HTTP/1.1\r\n\r\n", 400},
      {"two hosts", "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400},
      {"foreign host", "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
      {"rebinding host", "GET /v1/models HTTP/1.1\r\nHost: 127.evil.example:80\r\n\r\n", 403},
      {"foreign origin", GetRequest("/v1/models", "Origin: https://evil.example\r\n"), 403},
      {"null origin", GetRequest("/v1/models", "Origin: null\r\n"), 403},
      {"unknown method", "BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
      {"wrong method", "DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
      {"GET on a POST route", GetRequest("/v1/chat/completions"), 405},
      {"nothing there", GetRequest("/v1/nothing"), 404},
      {"path traversal", GetRequest("/../../etc/passwd"), 404},
      {"length and chunks",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json +
           "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400},
      {"two lengths",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json +
           "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
       400},
      {"negative length",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json + "Content-Length: -1\r\n\r\n", 400},
      {"huge length",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json +
           "Content-Length: 99999999999999999999\r\n\r\n",
       400},
      {"length over the limit",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json + "Content-Length: 99999999\r\n\r\n",
       413},
      {"bad chunk size",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json +
           "Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
       400},
      {"unknown transfer coding",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json + "Transfer-Encoding: gzip\r\n\r\n",
       400},
      {"strange expectation",
       "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + json +
           "Expect: a-miracle\r\nContent-Length: 2\r\n\r\n{}",
       417},
      {"compressed body", PostRequest("/tokenize", "{}", json + "Content-Encoding: gzip\r\n"), 400},
      {"no content type", PostRequest("/tokenize", "{}", ""), 400},
      {"form content type", PostRequest("/tokenize", "{}", "Content-Type: text/plain\r\n"), 400},
      // Syntax of JSON.
      {"empty body", Chat(""), 400},
      {"not JSON", Chat("hello"), 400},
      {"cut JSON", Chat("{\"messages\":"), 400},
      {"trailing text", Chat(std::string(kHello) + "x"), 400},
      {"array", Chat("[]"), 400},
      {"null", Chat("null"), 400},
      {"NaN", Chat("{\"temperature\":NaN}"), 400},
      {"deep", Chat(std::string(200'000, '[')), 400},
      {"deep objects", Chat("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}"), 400},
      {"raw NUL", Chat(nul), 400},
      {"invalid UTF-8", Chat("{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}"), 400},
      {"overlong UTF-8", Chat("{\"messages\":[{\"role\":\"user\",\"content\":\"\xc0\x80\"}]}"),
       400},
      {"lone surrogate", Chat(R"({"messages":[{"role":"user","content":"\ud800"}]})"), 400},
      {"blanks only", Chat(std::string(1 << 20, ' ')), 400},
      // Values.
      {"no messages", Chat("{}"), 400},
      {"empty messages", WithMessages("[]"), 400},
      {"messages of strings", WithMessages("[\"hi\"]"), 400},
      {"message without role", WithMessages("[{\"content\":\"x\"}]"), 400},
      {"numeric role", WithMessages("[{\"role\":1,\"content\":\"x\"}]"), 400},
      {"numeric content", WithMessages("[{\"role\":\"user\",\"content\":7}]"), 400},
      {"image part",
       WithMessages(R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])"), 400},
      {"tool message without id", WithMessages(R"([{"role":"tool","content":"x"}])"), 400},
      {"bad tool call", WithMessages(R"([{"role":"assistant","tool_calls":[7]}])"), 400},
      {"unknown model", Chat(R"({"model":"gpt-4","messages":[{"role":"user","content":"x"}]})"),
       404},
      {"model of wrong type", Chat(R"({"model":7,"messages":[{"role":"user","content":"x"}]})"),
       400},
      {"prompt too long", Completion(R"({"prompt":")" + std::string(600, 'a') + "\"}"), 400},
      {"hopelessly long prompt", Completion(R"({"prompt":")" + std::string(1 << 20, 'a') + "\"}"),
       400},
      {"max_tokens too large", Completion(R"({"prompt":"a","max_tokens":100000})"), 400},
      {"max_tokens zero", Completion(R"({"prompt":"a","max_tokens":0})"), 400},
      {"empty prompt", Completion(R"({"prompt":""})"), 400},
      {"id outside the vocabulary", Completion(R"({"prompt":[1,99999]})"), 400},
      {"40-bit id", Completion(R"({"prompt":[1099511627777]})"), 400},
      {"negative id", Completion(R"({"prompt":[-1]})"), 400},
      {"bias of an unknown id", Completion(R"({"prompt":"a","logit_bias":{"99999":1}})"), 400},
      {"n with greedy", Completion(R"({"prompt":"a","n":2,"temperature":0})"), 400},
      {"too many logprobs", Completion(R"({"prompt":"a","logprobs":21})"), 400},
      {"template raises", WithMessages(R"([{"role":"raise","content":"x"}])"), 400},
  };
}

// Everything hostile gets its 4xx, in the error shape, and the server goes on serving.
TEST(Abuse, RightStatusAndShape) {
  TestServer server(
      SayHello, {},
      {.chat_template = std::string(
           "{%- for message in messages %}{%- if message.role == 'raise' %}{{ "
           "raise_exception('no') }}"
           "{%- endif %}{{ message.content }}{%- endfor %}{{ add_generation_prompt }}")});
  for (const Abuse& abuse : AbuseCases()) {
    TestClient client(server.port());
    client.Send(abuse.request);
    client.CloseSending();
    const TestResponse response = client.Read();
    EXPECT_EQ(response.status, abuse.status) << abuse.name << ": " << response.body;
    if (response.status < 400) continue;
    const auto error = ErrorOf(response);
    ASSERT_TRUE(error.contains("message")) << abuse.name << ": " << response.body;
    EXPECT_EQ(error.at("code"), abuse.status) << abuse.name;
    EXPECT_TRUE(error.contains("type") && error.contains("param")) << abuse.name;
  }
  EXPECT_EQ(server.Get("/health").status, 200);
  EXPECT_EQ(server.engine->submitted().size(), 0u);
}

TEST(Limits, HeaderTooLarge) {
  TestServer server;
  TestClient client(server.port());
  client.Send("GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + std::string(100'000, 'x') +
              "\r\n\r\n");
  EXPECT_EQ(client.Read().status, 431);
  EXPECT_TRUE(client.WaitClosed());
}

TEST(Limits, ChunkedBodyTooLarge) {
  ServerOptions options;
  options.limits.body_bytes = 10'000;
  TestServer server(SayHello, options);
  TestClient client(server.port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) client.Send("400\r\n" + std::string(1024, ' ') + "\r\n");
  EXPECT_EQ(client.Read().status, 413);
}

TEST(Limits, AllBodiesTogether) {
  ServerOptions options;
  options.limits.all_bodies_bytes = 1000;
  TestServer server(SayHello, options);
  const TestResponse response =
      server.Post("/tokenize", R"({"prompt":")" + std::string(2000, 'a') + "\"}");
  EXPECT_EQ(response.status, 503);
  EXPECT_TRUE(response.Has("Retry-After"));
  EXPECT_EQ(server.Post("/tokenize", R"({"prompt":"a"})").status, 200);
}

TEST(Limits, SlowHeaderAndBody) {
  ServerOptions options;
  options.limits.header_timeout = milliseconds(200);
  options.limits.body_idle_timeout = milliseconds(200);
  TestServer server(SayHello, options);
  TestClient header(server.port());
  header.Send("GET /health HTTP/1.1\r\nHost: loc");
  EXPECT_EQ(header.Read().status, 408);
  TestClient body(server.port());
  body.Send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 100\r\n\r\n{");
  EXPECT_EQ(body.Read().status, 408);
  EXPECT_TRUE(body.WaitClosed());
}

TEST(Limits, IdleConnectionsClose) {
  ServerOptions options;
  options.limits.keep_alive_timeout = milliseconds(100);
  TestServer server(SayHello, options);
  TestClient client(server.port());
  EXPECT_TRUE(client.WaitClosed());
  EXPECT_EQ(client.buffer(), "");
}

TEST(Limits, TooManyConnections) {
  ServerOptions options;
  options.limits.max_connections = 2;
  TestServer server(SayHello, options);
  TestClient first(server.port());
  TestClient second(server.port());
  first.Send(GetRequest("/live"));
  second.Send(GetRequest("/live"));
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  TestClient third(server.port());
  EXPECT_EQ(third.Read().status, 503);
}

// ---- Connections ----

TEST(Connection, KeepAliveAndPipelining) {
  TestServer server;
  TestClient client(server.port());
  // Four requests in one packet: answers come in order, none is lost.
  client.Send(GetRequest("/version") + Chat(kHello) + GetRequest("/nothing") + GetRequest("/live"));
  const TestResponse version = client.Read();
  EXPECT_NE(version.body.find("version"), std::string::npos);
  EXPECT_NE(client.Read().body.find("\"Hello\""), std::string::npos);
  EXPECT_EQ(client.Read().status, 404);
  EXPECT_EQ(client.Read().status, 200);
  // And a request that arrives while another is answered, cut in two.
  client.Send(Chat(kHelloStream) + "GET /ver");
  EXPECT_TRUE(client.Read().body.ends_with("data: [DONE]\n\n"));
  client.Send("sion HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(client.Read().status, 200);
}

TEST(Connection, CloseAndHttp10) {
  TestServer server;
  const TestResponse closing = server.Exchange(GetRequest("/live", "Connection: close\r\n"));
  EXPECT_TRUE(closing.Has("Connection: close"));
  // HTTP/1.0 knows no chunks: the body ends with the connection.
  TestClient old(server.port());
  const std::string body = kHelloStream;
  old.Send(
      "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const TestResponse response = old.Read();
  EXPECT_FALSE(response.Has("chunked"));
  EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
}

TEST(Connection, HeadAndOptions) {
  TestServer server;
  TestClient client(server.port());
  client.Send("HEAD /version HTTP/1.1\r\nHost: localhost\r\n\r\n" + GetRequest("/live"));
  const TestResponse head = client.Read(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_TRUE(head.Has("Content-Length: ")) << head.head;
  EXPECT_EQ(client.Read().status, 200);  // nothing of a body stood in between
  const TestResponse options =
      server.Exchange("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(options.status, 204);
  EXPECT_TRUE(options.Has("Allow: POST, OPTIONS"));
}

TEST(Connection, ExpectContinue) {
  TestServer server;
  TestClient client(server.port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Expect: 100-continue\r\nContent-Length: 14\r\n\r\n");
  ASSERT_TRUE(client.WaitFor("HTTP/1.1 100 Continue\r\n\r\n"));
  client.Send(R"({"prompt":"a"})");
  EXPECT_EQ(client.Read().status, 200);
}

TEST(Connection, ByteByByte) {
  TestServer server;
  TestClient client(server.port());
  for (const char c : PostRequest("/tokenize", R"({"prompt":"ab"})"))
    client.Send(std::string(1, c));
  EXPECT_EQ(client.Read().status, 200);
}

// ---- Clients that leave ----

TEST(ClientGone, CancelsWhileNothingIsWritten) {
  for (const char* body : {kHello, kHelloStream}) {
    TestServer server(WaitForever);
    TestClient client(server.port());
    client.Send(Chat(body));
    while (server.engine->submitted().empty()) std::this_thread::yield();
    client.Close();
    EXPECT_TRUE(server.engine->WaitCancelled(1, seconds(5))) << body;
  }
}

TEST(ClientGone, CancelsInTheMiddleOfAStream) {
  TestServer server([](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    stream.Text("a");
    stream.WaitCancelled(seconds(30));
  });
  TestClient client(server.port());
  client.Send(Chat(kHelloStream));
  ASSERT_TRUE(client.WaitFor("\"a\""));
  client.Close();
  EXPECT_TRUE(server.engine->WaitCancelled(1, seconds(5)));
}

TEST(ClientGone, AllPromptsAndPipelinedBytes) {
  TestServer server(WaitForever);
  TestClient client(server.port());
  client.Send(Completion(R"({"prompt":["a","b","c"]})") + GetRequest("/live"));
  while (server.engine->submitted().size() < 3) std::this_thread::yield();
  client.Close();
  EXPECT_TRUE(server.engine->WaitCancelled(3, seconds(5)));
}

// A client may close its sending half and still read the answer.
TEST(ClientGone, HalfCloseStillGetsTheAnswer) {
  for (const char* body : {kHello, kHelloStream}) {
    TestServer server([](const engine::Request&, FakeStream& stream) {
      stream.Prompt();
      std::this_thread::sleep_for(milliseconds(100));  // the end arrives first
      stream.Text("late");
      stream.Done();
    });
    TestClient client(server.port());
    client.Send(Chat(body));
    client.CloseSending();
    const TestResponse response = client.Read();
    EXPECT_EQ(response.status, 200);
    EXPECT_TRUE(response.complete);
    EXPECT_NE(response.body.find("late"), std::string::npos) << response.body;
    EXPECT_EQ(server.engine->cancelled(), 0u);
  }
}

TEST(ClientGone, ManyAbortedStreamsLeaveNothing) {
  TestServer server(WaitForever);
  constexpr size_t kClients = 200;
  for (size_t i = 0; i < kClients; ++i) {
    TestClient client(server.port());
    client.Send(Chat(kHelloStream));
  }
  // Some leave before they are submitted: what was submitted must all be cancelled.
  // The last clients may come after it looked as if all had left.
  constexpr int kLooks = 10;
  const auto deadline = std::chrono::steady_clock::now() + seconds(10);
  int settled = 0;
  while (settled < kLooks && std::chrono::steady_clock::now() < deadline) {
    const bool idle = server.Get("/load").body == R"({"server_load":0})";
    const bool all_left = server.engine->cancelled() >= server.engine->submitted().size();
    settled = idle && all_left ? settled + 1 : 0;
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(settled, kLooks) << server.engine->cancelled() << " of "
                             << server.engine->submitted().size() << " cancelled, "
                             << server.Get("/load").body;
}

// ---- Slow readers ----

TEST(SlowReader, GetsEverythingInFewerChunks) {
  constexpr int kTokens = 20'000;
  const std::string piece(40, 'x');
  TestServer server([&](const engine::Request&, FakeStream& stream) {
    stream.Prompt();
    for (int i = 0; i < kTokens; ++i) stream.Text(piece);
    stream.Done();
  });
  server.engine->SetMaxModelLen(10'000'000);
  TestClient client(server.port(), 4096);
  client.Send(Chat(kHelloStream));
  ASSERT_TRUE(client.WaitFor("\r\n\r\n"));
  std::this_thread::sleep_for(milliseconds(300));  // the engine is long done
  const TestResponse response = client.Read();
  EXPECT_TRUE(response.complete);
  size_t length = 0;
  size_t chunks = 0;
  for (const std::string& data : SseData(response.body)) {
    if (data == "[DONE]") continue;
    const auto chunk = boost::json::parse(data);
    const auto& delta = chunk.at("choices").at(0).at("delta").get_object();
    if (const auto* content = delta.if_contains("content")) length += content->get_string().size();
    ++chunks;
  }
  EXPECT_EQ(length, kTokens * piece.size());
  EXPECT_LT(chunks, static_cast<size_t>(kTokens));
}

TEST(SlowReader, WhoNeverReadsIsCutOff) {
  ServerOptions options;
  options.limits.write_timeout = milliseconds(300);
  TestServer server(
      [](const engine::Request&, FakeStream& stream) {
        stream.Prompt();
        for (int i = 0; i < 100'000 && !stream.Cancelled(); ++i) stream.Text(std::string(100, 'x'));
        stream.WaitCancelled(seconds(30));
      },
      options);
  TestClient client(server.port(), 4096);
  client.Send(Chat(kHelloStream));
  EXPECT_TRUE(server.engine->WaitCancelled(1, seconds(10)));
}

TEST(Heartbeat, CommentsWhileTheModelIsSilent) {
  ServerOptions options;
  options.limits.heartbeat = milliseconds(50);
  TestServer server(
      [](const engine::Request&, FakeStream& stream) {
        stream.Prompt();
        std::this_thread::sleep_for(milliseconds(200));
        stream.Text("x");
        stream.Done();
      },
      options);
  const TestResponse response = server.Post("/v1/chat/completions", kHelloStream);
  EXPECT_TRUE(response.body.starts_with(": keep-alive\n\n")) << response.body;
  EXPECT_TRUE(SseData(response.body)[0].find("\"role\":\"assistant\"") != std::string::npos);
}

// ---- Keys and origins ----

TEST(Keys, EveryRouteButHealth) {
  ServerOptions options;
  options.api_keys = {"first", "second"};
  static const unsigned char kPage[] = {0x1f, 0x8b};
  options.pages = {{"/", "text/html; charset=utf-8", kPage}};
  TestServer server(SayHello, options);
  for (const char* path :
       {"/v1/models", "/metrics", "/version", "/load", "/ping", "/v1/models/fake"}) {
    const TestResponse response = server.Get(path);
    EXPECT_EQ(response.status, 401) << path;
    EXPECT_EQ(ErrorOf(response).at("code"), 401);
    EXPECT_TRUE(response.Has("WWW-Authenticate: Bearer"));
  }
  EXPECT_EQ(server.Post("/tokenize", R"({"prompt":"a"})").status, 401);
  EXPECT_EQ(server.Get("/health").status, 200);
  EXPECT_EQ(server.Get("/live").status, 200);
  EXPECT_EQ(server.Get("/").status, 200);
  const auto with = [&](const std::string& value) {
    return server.Exchange(GetRequest("/v1/models", "Authorization: " + value + "\r\n")).status;
  };
  EXPECT_EQ(with("Bearer first"), 200);
  EXPECT_EQ(with("bearer second"), 200);
  EXPECT_EQ(with("Bearer third"), 401);
  EXPECT_EQ(with("Bearer firstx"), 401);
  EXPECT_EQ(with("first"), 401);
  EXPECT_EQ(with("Bearer "), 401);
}

TEST(Origins, LocalPagesMayOthersMayNot) {
  TestServer server;
  const auto get = [&](const std::string& headers) {
    return server.Exchange("GET /v1/models HTTP/1.1\r\n" + headers + "\r\n");
  };
  EXPECT_TRUE(get("Host: localhost\r\nOrigin: http://localhost:3000\r\n")
                  .Has("Access-Control-Allow-Origin: http://localhost:3000"));
  EXPECT_EQ(get("Host: 127.0.0.1:8000\r\nOrigin: http://127.0.0.1:8000\r\n").status, 200);
  EXPECT_EQ(get("Host: [::1]:8000\r\n").status, 200);
  EXPECT_EQ(get("Host: localhost\r\nOrigin: http://localhost.evil.example\r\n").status, 403);
  EXPECT_EQ(get("Host: localhost.evil.example\r\n").status, 403);

  ServerOptions options;
  options.allowed_origins = {"https://chat.example"};
  options.allowed_hosts = {"box.lan"};
  TestServer open(SayHello, options);
  const TestResponse allowed = open.Exchange(
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: box.lan:8000\r\nOrigin: "
      "https://chat.example\r\n\r\n");
  EXPECT_EQ(allowed.status, 204);
  EXPECT_TRUE(allowed.Has("Access-Control-Allow-Origin: https://chat.example"));
  EXPECT_TRUE(allowed.Has("Access-Control-Allow-Headers: "));
}

TEST(Pages, StrictPolicyAndGzip) {
  static const unsigned char kPage[] = {0x1f, 0x8b, 0x08, 0x00};
  ServerOptions options;
  options.pages = {{"/", "text/html; charset=utf-8", kPage}};
  TestServer server(SayHello, options);
  const TestResponse page = server.Get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_TRUE(page.Has("Content-Encoding: gzip"));
  EXPECT_TRUE(page.Has("Content-Security-Policy: default-src 'none'; script-src 'self'"));
  EXPECT_EQ(page.body.size(), sizeof kPage);
  EXPECT_EQ(server.Post("/", "{}").status, 405);
}

}  // namespace
}  // namespace nibble::server
