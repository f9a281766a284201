// Errors as HTTP answers: {"error": {"message", "type", "param", "code"}}, code equal to the
// status.
//
// The one table from Code to status and type. A client sees three 5xx only: 503 (full, loading,
// draining, or the server's own fault, of which the log knows more), 504 (deadline), and 500 (the
// model computed no logits: trying again does not help).
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "server/http/exchange.h"

namespace nibble::server {

// A request that was refused, with the field to blame ("" if none).
struct ApiError {
  Error error;
  std::string param;
};
template <typename T>
using ApiResult = tl::expected<T, ApiError>;

template <typename... Args>
tl::unexpected<ApiError> Refuse(std::string param, fmt::format_string<Args...> format,
                                Args&&... args) {
  return tl::unexpected<ApiError>(
      {Error(Code::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)),
       std::move(param)});
}

int HttpStatus(Code code);
std::string_view ErrorType(int status);

// The object {"error": ...} as JSON text.
std::string ErrorBody(int status, std::string_view message, std::string_view param = {});
std::string ErrorBody(const Error& error, std::string_view param = {});

HttpResponse ErrorResponse(int status, std::string_view message, std::string_view param = {});
HttpResponse ErrorResponse(const Error& error, std::string_view param = {});
HttpResponse ErrorResponse(const ApiError& error);

// A value that a client sent, short enough and clean enough for a message.
std::string Quote(std::string_view value);

}  // namespace nibble::server
