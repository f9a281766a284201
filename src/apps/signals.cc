#include "apps/signals.h"

#include <unistd.h>

#include <atomic>
#include <cstring>

namespace nibble::apps {
namespace {

// Handlers may touch lock-free atomics and call write and _exit, and nothing else.
static_assert(std::atomic<int>::is_always_lock_free);
constexpr int kShellsExitCode = -1;
std::atomic<int> g_exit_code{kShellsExitCode};
std::atomic<const char*> g_last_line{""};
std::atomic<bool> g_raised{false};

void Exit(int signal) {
  const char* line = g_last_line;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line, std::strlen(line));
  const int code = g_exit_code;
  _exit(code == kShellsExitCode ? 128 + signal : code);
}

void Note(int) { g_raised = true; }

void NoteOrExit(int signal) {
  if (g_raised.exchange(true)) Exit(signal);
}

}  // namespace

SignalHandlers::SignalHandlers(void (*handler)(int), bool with_term) : with_term_(with_term) {
  struct sigaction action{};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &previous_int_);
  if (with_term_) sigaction(SIGTERM, &action, &previous_term_);
}

SignalHandlers::~SignalHandlers() {
  sigaction(SIGINT, &previous_int_, nullptr);
  if (with_term_) sigaction(SIGTERM, &previous_term_, nullptr);
}

ExitOnSignal::ExitOnSignal(std::optional<int> exit_code) {
  g_exit_code = exit_code.value_or(kShellsExitCode);
  // On a terminal the cursor may stand behind a progress bar.
  g_last_line = isatty(STDERR_FILENO) != 0 ? "\nstopped while loading the model\n"
                                           : "stopped while loading the model\n";
  handlers_.emplace(&Exit, true);
}

SignalFlag::SignalFlag(bool stops) {
  g_exit_code = kShellsExitCode;
  g_last_line = "";
  g_raised = false;
  handlers_.emplace(stops ? &NoteOrExit : &Note, stops);
}

bool SignalFlag::raised() const { return g_raised; }

}  // namespace nibble::apps
