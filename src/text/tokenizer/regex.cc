#include "text/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace nibble::text {

namespace {

constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr size_t kJitStackStart = 32 * 1024;
constexpr size_t kJitStackMax = 8 * 1024 * 1024;

// What a search writes to; one per thread, shared by all expressions.
class MatchBuffers {
 public:
  MatchBuffers()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)) {
    if (!Usable()) return;
    pcre2_set_match_limit(context_, kMatchLimit);
    pcre2_set_depth_limit(context_, kDepthLimit);
    pcre2_set_heap_limit(context_, kHeapLimitKib);
    pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  ~MatchBuffers() {
    pcre2_jit_stack_free(stack_);
    pcre2_match_context_free(context_);
    pcre2_match_data_free(data_);
  }
  MatchBuffers(const MatchBuffers&) = delete;
  MatchBuffers& operator=(const MatchBuffers&) = delete;

  bool Usable() const { return data_ != nullptr && context_ != nullptr; }
  pcre2_match_data* data() { return data_; }
  pcre2_match_context* context() { return context_; }

 private:
  pcre2_match_data* data_;
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;  // null where PCRE2 has no JIT: the interpreter needs none
};

std::string Pcre2Message(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Compiled {
  std::string expression;  // as in the file, for messages
  pcre2_code* code = nullptr;
  ~Compiled() { pcre2_code_free(code); }
};

Result<Regex> Regex::Compile(std::string_view expression, RegexSyntax syntax) {
  NIBBLE_ASSIGN(const std::string translated, TranslatePattern(expression, syntax));
  auto compiled = std::make_shared<Compiled>();
  compiled->expression = expression;
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  if (context == nullptr) return Fail(Code::kResourceExhausted, "no memory for PCRE2");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 context.get());
  if (compiled->code == nullptr) {
    return Fail(Code::kInvalidArgument, "regular expression {:?}: {}", expression,
                Pcre2Message(error));
  }
  // Where there is no JIT, matching falls back to the interpreter with the same results.
  (void)pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(compiled));
}

Result<bool> Regex::Find(std::string_view text, size_t from, Match* match) const {
  thread_local MatchBuffers buffers;
  if (!buffers.Usable()) return Fail(Code::kResourceExhausted, "no memory for PCRE2");
  const int rc =
      pcre2_match(compiled_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                  PCRE2_NO_UTF_CHECK, buffers.data(), buffers.context());
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc < 0) {
    return Fail(Code::kInvalidArgument,
                "the text cannot be split with the tokenizer's expression {:?}: {} at byte {}",
                compiled_->expression, Pcre2Message(rc), from);
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(buffers.data());
  *match = {text.data() + offsets[0], text.data() + offsets[1]};
  return true;
}

}  // namespace nibble::text
