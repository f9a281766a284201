// What SIGINT and SIGTERM do while a command works. Handlers belong to the process: one object at a
// time, made and destroyed by the main thread; what was there before comes back.
#pragma once

#include <csignal>
#include <optional>

namespace nibble::apps {

// Replaces the handlers of some signals while it lives.
class SignalHandlers {
 public:
  SignalHandlers(void (*handler)(int), bool with_term);
  ~SignalHandlers();
  SignalHandlers(const SignalHandlers&) = delete;
  SignalHandlers& operator=(const SignalHandlers&) = delete;

 private:
  const bool with_term_;
  struct sigaction previous_int_{};
  struct sigaction previous_term_{};
};

// SIGINT and SIGTERM end the program at once, after a line on standard error: for loading, which
// leaves nothing half-done behind when it is cut short.
class ExitOnSignal {
 public:
  // exit_code: 0 where being stopped is a normal end, as of a server. Absent: 128 + the signal, as
  // shells expect of a command that could not do what it was asked.
  explicit ExitOnSignal(std::optional<int> exit_code = std::nullopt);

 private:
  std::optional<SignalHandlers> handlers_;
};

// A signal is noted, and the work asks for it.
class SignalFlag {
 public:
  // SIGINT, however often.
  static SignalFlag Interrupts() { return SignalFlag(false); }
  // SIGINT and SIGTERM; a second one ends the program at once.
  static SignalFlag Stops() { return SignalFlag(true); }

  bool raised() const;

 private:
  explicit SignalFlag(bool stops);

  std::optional<SignalHandlers> handlers_;
};

}  // namespace nibble::apps
