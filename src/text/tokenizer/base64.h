// Base64 as in RFC 4648, with padding: how tiktoken.model and tekken.json write bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble::text {

// Nothing if the text is not the encoding of any bytes.
std::optional<std::string> DecodeBase64(std::string_view text);

}  // namespace nibble::text
