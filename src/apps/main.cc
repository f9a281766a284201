#include <exception>

#include "apps/options.h"
#include "base/log.h"

int main(int argc, char** argv) {
  try {
    return nibble::apps::RunCommandLine(argc, argv);
  } catch (const std::exception& error) {
    nibble::LogError("unexpected: {}", error.what());
    return 70;  // EX_SOFTWARE
  }
}
