#include "server/service.h"

#include <algorithm>

#include "base/log.h"
#include "server/api/errors.h"
#include "server/api/json_text.h"

namespace nibble::server {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

// What a page may load and do: its own files and the API of this server, nothing inline, nothing
// else.
constexpr std::string_view kContentSecurityPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'";

HttpResponse JsonResponse(int status, std::string body) {
  return {status, "application/json", std::move(body), {}};
}

bool IsJson(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.pop_back();
  for (char& c : type) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return type == "application/json";
}

// %2F and the like; nothing when malformed.
std::optional<std::string> DecodePath(std::string_view path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] != '%') {
      out += path[i];
      continue;
    }
    if (i + 2 >= path.size()) return std::nullopt;
    const auto digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                    : -1;
    };
    const int high = digit(path[i + 1]);
    const int low = digit(path[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

}  // namespace

struct Service::Route {
  using ServiceHandler = void (Service::*)(Exchange&);
  using ModelHandler = void (*)(const ModelApi&, const std::shared_ptr<Exchange>&);

  std::string_view path;
  std::string_view methods;          // besides HEAD (with GET) and OPTIONS
  bool open = false;                 // needs no key
  bool generates = false;            // refused while draining
  ServiceHandler service = nullptr;  // always there; answers from the network thread
  ModelHandler model = nullptr;      // needs a model; runs on a worker
};

std::span<const Service::Route> Service::Routes() {
  using Shared = const std::shared_ptr<Exchange>&;
  static const Route routes[] = {
      {"/health", "GET", true, false, &Service::Health, nullptr},
      {"/live", "GET", true, false, &Service::Live, nullptr},
      {"/ping", "GET, POST", false, false, &Service::Health, nullptr},
      {"/version", "GET", false, false, &Service::Version, nullptr},
      {"/load", "GET", false, false, &Service::Load, nullptr},
      {"/metrics", "GET", false, false, &Service::Metrics, nullptr},
      {"/v1/models", "GET", false, false, nullptr,
       [](const ModelApi& api, Shared exchange) { api.Models(*exchange); }},
      {"/tokenize", "POST", false, false, nullptr,
       [](const ModelApi& api, Shared exchange) { api.Tokenize(*exchange); }},
      {"/detokenize", "POST", false, false, nullptr,
       [](const ModelApi& api, Shared exchange) { api.Detokenize(*exchange); }},
      {"/v1/chat/completions", "POST", false, true, nullptr,
       [](const ModelApi& api, Shared exchange) { api.ChatCompletions(exchange); }},
      {"/v1/completions", "POST", false, true, nullptr,
       [](const ModelApi& api, Shared exchange) { api.Completions(exchange); }},
      {kModelPrefix, "GET", false, false, nullptr,
       [](const ModelApi& api, Shared exchange) {
         const std::string_view path = exchange->request().path;
         api.Model(*exchange, DecodePath(path.substr(kModelPrefix.size())).value_or(""));
       }},
  };
  return routes;
}

const Service::Route* Service::FindRoute(std::string_view path) {
  for (const Route& route : Routes()) {
    if (route.path == path) return &route;
    const bool names_model = route.path == kModelPrefix && path.starts_with(kModelPrefix) &&
                             path.size() > kModelPrefix.size();
    if (names_model) return &route;
  }
  return nullptr;
}

Service::Service(const ServerOptions& options, WorkPool* requests,
                 std::shared_ptr<WorkPool> formatters)
    : options_(options), requests_(requests), formatters_(std::move(formatters)) {
  SetLoopback(true);
}

void Service::SetLoopback(bool loopback) {
  guard_ = std::make_unique<const Guard>(
      GuardOptions{options_.api_keys, options_.allowed_origins, options_.allowed_hosts, loopback});
}

// ---- Before the body ----

bool Service::Screen(Exchange& exchange) {
  const HttpRequest& request = exchange.request();
  if (const auto wrong = guard_->CheckOrigin(request)) {
    exchange.Respond(ErrorResponse(403, *wrong));
    return false;
  }
  const std::string origin = guard_->AllowedOrigin(request);
  if (!origin.empty()) {
    exchange.AddHeader("Access-Control-Allow-Origin", origin);
    exchange.AddHeader("Vary", "Origin");
  }
  const std::string_view id = request.Header("x-request-id");
  if (!id.empty() && id.size() <= 128) exchange.AddHeader("X-Request-Id", std::string(id));

  const Route* route = FindRoute(request.path);
  if (route == nullptr) {
    if (!ServePage(exchange)) {
      exchange.Respond(ErrorResponse(404, "there is nothing at " + Quote(request.path)));
    }
    return false;
  }
  if (!ScreenMethod(exchange, *route)) return false;
  if (!route->open && !guard_->HasKey(request)) {
    exchange.Respond(ErrorResponse(401, "a valid API key is needed: Authorization: Bearer KEY"));
    return false;
  }
  if (request.method == "POST" && route->model != nullptr) {
    if (!IsJson(request.Header("content-type"))) {
      exchange.Respond(ErrorResponse(400, "Content-Type must be application/json"));
      return false;
    }
    const std::string_view encoding = request.Header("content-encoding");
    if (!encoding.empty() && encoding != "identity") {
      exchange.Respond(
          ErrorResponse(400, "Content-Encoding " + Quote(encoding) + " is not supported"));
      return false;
    }
  }
  if (route->model != nullptr) {
    if (const auto error = NotServing()) {
      exchange.Respond(ErrorResponse(*error));
      return false;
    }
    if (route->generates && draining_) {
      exchange.Respond(ErrorResponse(503, "the server is shutting down"));
      return false;
    }
  }
  return true;
}

bool Service::ScreenMethod(Exchange& exchange, const Route& route) {
  const std::string& method = exchange.request().method;
  const bool gets = route.methods.starts_with("GET");
  const std::string allowed = std::string(route.methods) + (gets ? ", HEAD, OPTIONS" : ", OPTIONS");
  if (method == "OPTIONS") {
    AnswerPreflight(exchange, allowed);
    return false;
  }
  const bool fits = (gets && (method == "GET" || method == "HEAD")) ||
                    (method == "POST" && route.methods.ends_with("POST"));
  if (fits) return true;
  HttpResponse response =
      ErrorResponse(405, Quote(method) + " is not allowed here; allowed: " + allowed);
  response.headers.push_back({"Allow", allowed});
  exchange.Respond(std::move(response));
  return false;
}

void Service::AnswerPreflight(Exchange& exchange, std::string_view methods) {
  HttpResponse response{204, "", "", {{"Allow", std::string(methods)}}};
  if (!guard_->AllowedOrigin(exchange.request()).empty()) {
    response.headers.push_back({"Access-Control-Allow-Methods", std::string(methods)});
    response.headers.push_back(
        {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id"});
    response.headers.push_back({"Access-Control-Max-Age", "600"});
  }
  exchange.Respond(std::move(response));
}

// Files of the binary: public, so a browser can show the page that asks for the key.
bool Service::ServePage(Exchange& exchange) {
  const HttpRequest& request = exchange.request();
  const auto page =
      std::find_if(options_.pages.begin(), options_.pages.end(),
                   [&](const Page& candidate) { return candidate.path == request.path; });
  if (page == options_.pages.end()) return false;
  if (request.method != "GET" && request.method != "HEAD") {
    HttpResponse response = ErrorResponse(405, "only GET and HEAD are allowed here");
    response.headers.push_back({"Allow", "GET, HEAD"});
    exchange.Respond(std::move(response));
    return true;
  }
  HttpResponse response{200, page->content_type, "", {}};
  response.body.assign(reinterpret_cast<const char*>(page->gzip.data()), page->gzip.size());
  response.headers = {{"Content-Encoding", "gzip"},
                      {"Content-Security-Policy", std::string(kContentSecurityPolicy)},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}};
  exchange.Respond(std::move(response));
  return true;
}

std::optional<Error> Service::NotServing() const {
  std::lock_guard lock(mutex_);
  if (api_ == nullptr) {
    return Error(Code::kUnavailable, fmt::format("the model is not ready yet: {}, {:.0f} %", stage_,
                                                 fraction_ * 100.0));
  }
  if (auto health = api_->model().engine->Health(); !health) return health.error();
  return std::nullopt;
}

// ---- After the body ----

void Service::Handle(std::shared_ptr<Exchange> exchange) {
  const Route* route = FindRoute(exchange->request().path);
  if (route->service != nullptr) {
    (this->*route->service)(*exchange);
    return;
  }
  requests_->Submit([this, exchange = std::move(exchange), handler = route->model] {
    try {
      if (!exchange->gone()) handler(*api(), exchange);
    } catch (const std::exception& error) {
      exchange->Respond(ErrorResponse(Error(Code::kInternal, error.what())));
    }
  });
}

HttpResponse Service::ProtocolError(int status, std::string_view message) {
  return ErrorResponse(status, message);
}

void Service::Answered(const HttpRequest& request, int status, size_t bytes) {
  // Only known paths become labels: clients could invent any number of others.
  const Route* route = FindRoute(request.path);
  const bool page =
      std::any_of(options_.pages.begin(), options_.pages.end(),
                  [&](const Page& candidate) { return candidate.path == request.path; });
  const std::string_view handler = route != nullptr ? route->path
                                   : page           ? std::string_view(request.path)
                                                    : std::string_view("none");
  constexpr std::string_view kMethods[] = {"GET", "POST", "HEAD", "OPTIONS"};
  const bool known =
      std::find(std::begin(kMethods), std::end(kMethods), request.method) != std::end(kMethods);
  const std::chrono::duration<double> seconds =
      request.method.empty() ? std::chrono::steady_clock::duration::zero()
                             : std::chrono::steady_clock::now() - request.arrival;
  http_metrics_.Observe(handler, known ? request.method : "other", status, seconds.count(), bytes);
}

// ---- State ----

void Service::SetStage(std::string_view stage, double fraction) {
  std::lock_guard lock(mutex_);
  stage_ = stage;
  fraction_ = std::clamp(fraction, 0.0, 1.0);
}

void Service::SetReady(std::shared_ptr<const ServedModel> model) {
  auto api = std::make_shared<const ModelApi>(
      ApiOptions{options_.request_timeout, options_.prompt_tokens_details}, std::move(model),
      formatters_, answers_);
  std::lock_guard lock(mutex_);
  api_ = std::move(api);
}

std::shared_ptr<const ModelApi> Service::api() const {
  std::lock_guard lock(mutex_);
  return api_;
}

// ---- Endpoints of the server itself ----

void Service::Health(Exchange& exchange) {
  std::string stage;
  double fraction = 1.0;
  std::string message;
  if (const auto error = NotServing()) {
    std::lock_guard lock(mutex_);
    stage = api_ == nullptr ? stage_ : "failed";
    fraction = api_ == nullptr ? fraction_ : 1.0;
    message = error->message();
  } else if (draining_) {
    stage = "draining";
    message = "the server is shutting down";
  } else {
    exchange.Respond({200, "", "", {}});
    return;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
  std::string body = R"({"stage":)";
  AppendJsonString(body, stage);
  body += fmt::format(R"(,"percent":{:.1f},"seconds":{:.1f},)", fraction * 100.0, seconds.count());
  body += ErrorBody(503, message).substr(1);  // ..."error": {...}}
  HttpResponse response = JsonResponse(503, std::move(body));
  response.headers.push_back({"Retry-After", "1"});
  exchange.Respond(std::move(response));
}

void Service::Live(Exchange& exchange) { exchange.Respond({200, "", "", {}}); }

void Service::Version(Exchange& exchange) {
  std::string body = R"({"version":)";
  AppendJsonString(body, options_.version);
  exchange.Respond(JsonResponse(200, body + "}"));
}

void Service::Load(Exchange& exchange) {
  exchange.Respond(JsonResponse(200, fmt::format(R"({{"server_load":{}}})", answers_->size())));
}

void Service::Metrics(Exchange& exchange) {
  const auto api = this->api();
  MetricsWriter process({});
  http_metrics_.Write(process);
  WriteProcessMetrics(process);
  process.Gauge("nibble_answers_in_flight", "Answers under way.",
                static_cast<double>(answers_->size()));
  std::string text = process.text();
  if (api != nullptr) {
    const ServedModel& model = api->model();
    MetricsWriter engine({{"model_name", model.name()}, {"engine", "0"}});
    WriteEngineMetrics(model.engine->stats(), model.engine->memory_plan(), engine);
    text += engine.text();
  }
  exchange.Respond({200, "text/plain; version=0.0.4; charset=utf-8", std::move(text), {}});
}

}  // namespace nibble::server
