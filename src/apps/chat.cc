// nibble chat: a conversation in the terminal. Ctrl-C stops the answer, not the program; Ctrl-D
// leaves.
#include <cstdio>
#include <string>

#include "apps/conversation.h"
#include "apps/line_editor.h"
#include "apps/signals.h"
#include "base/log.h"

namespace nibble::apps {
namespace {

constexpr const char* kHelp =
    "  /clear   forget the conversation\n"
    "  /system TEXT   set the system message and start anew\n"
    "  /help    this list\n"
    "  Ctrl-C stops an answer, Ctrl-D leaves\n";

}  // namespace

int Chat(const ChatOptions& options) {
  auto conversation = Conversation::Open(options.model);
  if (!conversation) return Report(conversation.error());
  if (!conversation->has_chat_template()) {
    return Report(
        Error(Code::kUnsupported,
              "this model has no chat template: use `nibble run MODEL PROMPT` to continue a text"));
  }
  std::string system = options.system;
  boost::json::array messages;
  const auto restart = [&] {
    messages.clear();
    if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  };
  restart();
  std::printf("Type a message; /help lists commands.\n");
  LineEditor editor;
  while (auto line = editor.Read("> ")) {
    if (line->empty()) continue;
    if (line->starts_with("/")) {
      if (*line == "/clear") {
        restart();
      } else if (line->starts_with("/system ")) {
        system = line->substr(8);
        restart();
      } else {
        std::fputs(kHelp, stdout);
      }
      continue;
    }
    messages.push_back({{"role", "user"}, {"content", *line}});
    const SignalFlag interrupt = SignalFlag::Interrupts();
    auto answer = conversation->Ask(
        messages, {.temperature = options.temperature, .max_tokens = options.max_tokens},
        [&interrupt](std::string_view text) {
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
          return !interrupt.raised();
        });
    if (!answer) {
      Report(answer.error());
      messages.pop_back();
      continue;
    }
    std::printf("%s\n\033[2m%s\033[0m\n", answer->stopped ? " [stopped]" : "",
                conversation->SpeedLine(*answer).c_str());
    messages.push_back({{"role", "assistant"}, {"content", answer->text}});
  }
  return 0;
}

}  // namespace nibble::apps
