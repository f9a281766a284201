// Chat messages and tools: from the forms that clients send to the one that chat templates read.
#pragma once

#include <boost/json.hpp>

#include "server/api/errors.h"

namespace nibble::server {

// Content parts of type text are joined by newlines, null content is empty, arguments of tool calls
// become objects where they are JSON objects, `reasoning` and `reasoning_content` are both set if
// either is there, null fields are left out. Other content types are refused by name.
ApiResult<boost::json::array> NormalizeMessages(const boost::json::value& messages);

// Checked, otherwise as sent.
ApiResult<boost::json::array> CheckTools(const boost::json::value& tools);

}  // namespace nibble::server
