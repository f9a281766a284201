#include "apps/line_editor.h"

#include <termios.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace nibble::apps {
namespace {

// Raw mode while it lives: keys arrive one by one and nothing is echoed.
class RawTerminal {
 public:
  RawTerminal() {
    ::tcgetattr(STDIN_FILENO, &saved_);
    termios raw = saved_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON | ISIG | IEXTEN);
    raw.c_iflag &= ~static_cast<tcflag_t>(IXON | ICRNL);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
  }
  ~RawTerminal() { ::tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_); }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios saved_;
};

bool ReadByte(char* byte) { return ::read(STDIN_FILENO, byte, 1) == 1; }

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Byte offset one code point to the left or right of `at`.
size_t Left(const std::string& line, size_t at) {
  while (at > 0 && IsContinuation(line[--at])) {
  }
  return at;
}
size_t Right(const std::string& line, size_t at) {
  if (at < line.size()) ++at;
  while (at < line.size() && IsContinuation(line[at])) ++at;
  return at;
}

size_t CodePoints(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += IsContinuation(byte) ? 0 : 1;
  return count;
}

enum class Key {
  kText,
  kEnter,
  kEnd,
  kInterrupt,
  kBackspace,
  kDelete,
  kLeft,
  kRight,
  kUp,
  kDown,
  kHome,
  kLineEnd,
  kNone
};

constexpr char Control(char letter) { return static_cast<char>(letter & 0x1F); }

// The rest of an escape sequence: "[A", "[3~", "OH".
Key ReadEscape() {
  char kind, code;
  if (!ReadByte(&kind) || (kind != '[' && kind != 'O') || !ReadByte(&code)) return Key::kNone;
  switch (code) {
    case 'A':
      return Key::kUp;
    case 'B':
      return Key::kDown;
    case 'C':
      return Key::kRight;
    case 'D':
      return Key::kLeft;
    case 'H':
      return Key::kHome;
    case 'F':
      return Key::kLineEnd;
    default:
      break;
  }
  char tail = code;
  while (tail >= '0' && tail <= '9' && ReadByte(&tail)) {
  }
  return code == '3' && tail == '~' ? Key::kDelete : Key::kNone;
}

Key ReadKey(char* byte) {
  if (!ReadByte(byte)) return Key::kEnd;
  switch (*byte) {
    case '\r':
    case '\n':
      return Key::kEnter;
    case Control('D'):
      return Key::kEnd;
    case Control('C'):
      return Key::kInterrupt;
    case Control('A'):
      return Key::kHome;
    case Control('E'):
      return Key::kLineEnd;
    case Control('H'):
    case 0x7F:
      return Key::kBackspace;
    case 0x1B:
      return ReadEscape();
    default:
      return static_cast<unsigned char>(*byte) < 0x20 && *byte != '\t' ? Key::kNone : Key::kText;
  }
}

void Redraw(std::string_view prompt, const std::string& line, size_t cursor) {
  std::printf("\r\033[K%.*s%s", static_cast<int>(prompt.size()), prompt.data(), line.c_str());
  const size_t back = CodePoints(std::string_view(line).substr(cursor));
  if (back > 0) std::printf("\033[%zuD", back);
  std::fflush(stdout);
}

}  // namespace

std::optional<std::string> LineEditor::Read(std::string_view prompt) {
  if (::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) return Edit(prompt);
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

std::optional<std::string> LineEditor::Edit(std::string_view prompt) {
  const RawTerminal raw;
  std::string line;
  size_t cursor = 0;
  size_t entry = history_.size();  // which history line is shown; size(): the new one
  while (true) {
    Redraw(prompt, line, cursor);
    char byte = 0;
    switch (ReadKey(&byte)) {
      case Key::kText:
        line.insert(line.begin() + static_cast<std::ptrdiff_t>(cursor++), byte);
        break;
      case Key::kEnter:
        std::fputs("\r\n", stdout);
        if (!line.empty()) history_.push_back(line);
        return line;
      case Key::kEnd:
        if (!line.empty()) break;
        std::fputs("\r\n", stdout);
        return std::nullopt;
      case Key::kInterrupt:
        line.clear();
        cursor = 0;
        break;
      case Key::kBackspace:
        if (cursor > 0) {
          const size_t from = Left(line, cursor);
          line.erase(from, cursor - from);
          cursor = from;
        }
        break;
      case Key::kDelete:
        line.erase(cursor, Right(line, cursor) - cursor);
        break;
      case Key::kLeft:
        cursor = Left(line, cursor);
        break;
      case Key::kRight:
        cursor = Right(line, cursor);
        break;
      case Key::kHome:
        cursor = 0;
        break;
      case Key::kLineEnd:
        cursor = line.size();
        break;
      case Key::kUp:
        if (entry > 0) line = history_[--entry];
        cursor = line.size();
        break;
      case Key::kDown:
        if (entry < history_.size()) ++entry;
        line = entry < history_.size() ? history_[entry] : std::string();
        cursor = line.size();
        break;
      case Key::kNone:
        break;
    }
  }
}

}  // namespace nibble::apps
