// Bytes of a body to a typed request: never a crash, never an error without a message in clean
// UTF-8. The first byte chooses the API.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/api/fields.h"
#include "server/api/json_text.h"

namespace nibble::server {
namespace {

template <typename Request>
void CheckAnswer(const ApiResult<Request>& request) {
  if (request) return;
  const HttpResponse response = ErrorResponse(request.error());
  if (response.status != 400 || !ParseJson(response.body)) std::abort();
}

}  // namespace
}  // namespace nibble::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble::server;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      CheckAnswer(ParseChatRequest(body));
      break;
    case 1:
      CheckAnswer(ParseCompletionRequest(body));
      break;
    case 2:
      CheckAnswer(ParseTokenizeRequest(body));
      break;
    default:
      CheckAnswer(ParseDetokenizeRequest(body));
  }
  return 0;
}
