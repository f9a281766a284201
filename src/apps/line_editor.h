// A line of input from the terminal: cursor keys, history, UTF-8, a pasted newline inside a line.
// Falls back to plain lines where standard input is no terminal. Owner: the thread that calls Read.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::apps {

class LineEditor {
 public:
  // nullopt at end of input (Ctrl-D on an empty line). Ctrl-C clears the line.
  std::optional<std::string> Read(std::string_view prompt);

 private:
  std::optional<std::string> Edit(std::string_view prompt);

  std::vector<std::string> history_;
};

}  // namespace nibble::apps
