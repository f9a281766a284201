// The chat page inside the binary. The definition is generated from web/ by cmake/embed_web.cmake.
#pragma once

#include <vector>

#include "server/server.h"

namespace nibble::apps {

// Every file of web/, packed with gzip; the spans live as long as the program.
std::vector<server::Page> WebPages();

}  // namespace nibble::apps
