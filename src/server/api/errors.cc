#include "server/api/errors.h"

#include "base/log.h"
#include "server/api/json_text.h"

namespace nibble::server {

int HttpStatus(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
      return 400;
    case Code::kUnauthenticated:
      return 401;
    case Code::kNotFound:
      return 404;
    case Code::kTooLarge:
      return 413;
    case Code::kCancelled:
      return 499;
    case Code::kDeadline:
      return 504;
    case Code::kCorruption:
      return 500;
    case Code::kInternal:
    case Code::kResourceExhausted:
    case Code::kUnavailable:
      return 503;
  }
  return 503;
}

std::string_view ErrorType(int status) {
  switch (status) {
    case 401:
      return "AuthenticationError";
    case 403:
      return "PermissionDeniedError";
    case 404:
      return "NotFoundError";
    case 405:
      return "MethodNotAllowedError";
    case 408:
      return "RequestTimeoutError";
    case 413:
    case 431:
      return "RequestTooLargeError";
    case 500:
      return "InternalServerError";
    case 503:
      return "ServiceUnavailableError";
    case 504:
      return "DeadlineExceededError";
    default:
      return "BadRequestError";
  }
}

std::string ErrorBody(int status, std::string_view message, std::string_view param) {
  std::string body = R"({"error":{"message":)";
  AppendJsonString(body, message);
  body += R"(,"type":)";
  AppendJsonString(body, ErrorType(status));
  body += R"(,"param":)";
  if (param.empty()) {
    body += "null";
  } else {
    AppendJsonString(body, param);
  }
  body += fmt::format(R"(,"code":{}}}}})", status);
  return body;
}

// What is not the client's doing is logged. Our own faults may name anything: the log alone does.
std::string ErrorBody(const Error& error, std::string_view param) {
  const int status = HttpStatus(error.code());
  const bool ours = error.code() == Code::kInternal;
  if (ours || error.code() == Code::kCorruption)
    LogError("{}: {}", CodeName(error.code()), error.message());
  return ErrorBody(status, ours ? "internal error; the server's log says more" : error.message(),
                   param);
}

namespace {

HttpResponse Wrap(int status, std::string body) {
  HttpResponse response{status, "application/json", std::move(body), {}};
  if (status == 503) response.headers.push_back({"Retry-After", "1"});
  if (status == 401) response.headers.push_back({"WWW-Authenticate", "Bearer"});
  return response;
}

}  // namespace

HttpResponse ErrorResponse(int status, std::string_view message, std::string_view param) {
  return Wrap(status, ErrorBody(status, message, param));
}

HttpResponse ErrorResponse(const Error& error, std::string_view param) {
  return Wrap(HttpStatus(error.code()), ErrorBody(error, param));
}

HttpResponse ErrorResponse(const ApiError& error) {
  return ErrorResponse(error.error, error.param);
}

std::string Quote(std::string_view value) {
  constexpr size_t kLongest = 80;
  std::string text = "\"";
  text += ValidUtf8(value.substr(0, kLongest));
  text += value.size() > kLongest ? "…\"" : "\"";
  return text;
}

}  // namespace nibble::server
