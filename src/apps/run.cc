// nibble run: one prompt, one answer on standard output; everything else goes to standard error.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "apps/conversation.h"
#include "base/log.h"

namespace nibble::apps {

int RunOnce(const RunOptions& options) {
  std::string prompt = options.prompt;
  if (prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  if (prompt.empty()) {
    return Report(Error(Code::kInvalidArgument,
                        "the prompt is empty: nibble run MODEL \"a question\", or - for stdin"));
  }
  auto conversation = Conversation::Open(options.model);
  if (!conversation) return Report(conversation.error());
  const AnswerOptions answer_options{
      .temperature = options.temperature, .max_tokens = options.max_tokens, .seed = options.seed};
  const auto print = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    return std::ferror(stdout) == 0;  // a closed pipe ends the answer
  };
  const bool raw = options.raw || !conversation->has_chat_template();
  auto answer =
      raw ? conversation->Continue(prompt, answer_options, print)
          : conversation->Ask({{{"role", "user"}, {"content", prompt}}}, answer_options, print);
  if (!answer) return Report(answer.error());
  std::fputc('\n', stdout);
  std::fflush(stdout);  // before the line on standard error
  LogInfo("{}", conversation->SpeedLine(*answer));
  return 0;
}

}  // namespace nibble::apps
