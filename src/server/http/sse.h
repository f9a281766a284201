// Server-sent events: one event is one "data:" line and a blank line, written whole.
#pragma once

#include <string>
#include <string_view>

#include "server/http/exchange.h"

namespace nibble::server {

// `json` has no line break: JSON text escapes them.
inline std::string SseEvent(std::string_view json) {
  std::string event = "data: ";
  event.append(json).append("\n\n");
  return event;
}

// X-Accel-Buffering asks nginx to pass events on as they come.
inline HttpResponse SseHead() {
  return {200,
          "text/event-stream; charset=utf-8",
          "",
          {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}};
}

}  // namespace nibble::server
