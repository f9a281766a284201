#include "text/tokenizer/normalizer.h"

#include <algorithm>
#include <utility>

#include "text/tokenizer/json_fields.h"
#include "text/unicode/unicode.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

constexpr int kMaxNesting = 16;
constexpr size_t kMaxSteps = 64;

// How far a step may grow the text; published normalizers at most triple it (" " to "▁").
constexpr size_t MaxGrown(size_t bytes) { return bytes * 32 + (1u << 20); }

// Builds the text behind a step from kept and replaced parts of the text before it.
class Rewriter {
 public:
  explicit Rewriter(NormalizedText* target)
      : target_(target),
        tracked_(!target->untrusted.empty()),
        max_bytes_(MaxGrown(target->text.size())) {
    text_.reserve(target->text.size());
    untrusted_.reserve(target->untrusted.size());
  }

  // Copies the input up to `end`.
  void KeepTo(size_t end) {
    if (too_large_ || text_.size() + (end - done_) > max_bytes_) {
      too_large_ = true;
      return;
    }
    text_.append(target_->text, done_, end - done_);
    if (tracked_) {
      untrusted_.insert(untrusted_.end(), target_->untrusted.begin() + Offset(done_),
                        target_->untrusted.begin() + Offset(end));
    }
    done_ = end;
  }

  // Puts `content` in the place of the next input bytes up to `end`; it is as untrusted as any of
  // them.
  void ReplaceTo(size_t end, std::string_view content) {
    too_large_ = too_large_ || content.size() > max_bytes_ - text_.size();
    if (too_large_) return;
    text_.append(content);
    if (tracked_) {
      const auto first = target_->untrusted.begin() + Offset(done_);
      const auto last = target_->untrusted.begin() + Offset(end);
      const bool tainted = std::any_of(first, last, [](uint8_t flag) { return flag != 0; });
      untrusted_.insert(untrusted_.end(), content.size(), tainted ? 1 : 0);
    }
    done_ = end;
  }

  Status Finish() {
    KeepTo(target_->text.size());
    if (too_large_) {
      return Fail(Code::kTooLarge, "the normalizer grows a text of {} bytes to more than {}",
                  target_->text.size(), max_bytes_);
    }
    target_->text = std::move(text_);
    target_->untrusted = std::move(untrusted_);
    return {};
  }

 private:
  static std::ptrdiff_t Offset(size_t at) { return static_cast<std::ptrdiff_t>(at); }

  NormalizedText* target_;
  bool tracked_;
  size_t max_bytes_;
  std::string text_;
  std::vector<uint8_t> untrusted_;
  size_t done_ = 0;
  bool too_large_ = false;
};

}  // namespace

Result<Normalizer> Normalizer::Parse(const boost::json::value& spec) {
  Normalizer normalizer;
  if (!spec.is_null()) NIBBLE_TRY(ParseInto(spec, 0, &normalizer.steps_));
  return normalizer;
}

Status Normalizer::ParseInto(const boost::json::value& spec, int depth, std::vector<Step>* steps) {
  if (depth > kMaxNesting || steps->size() >= kMaxSteps) {
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: normalizer is nested more than {} deep or has more than {} steps",
                kMaxNesting, kMaxSteps);
  }
  NIBBLE_ASSIGN(const boost::json::object* object, AsObject(spec, "normalizer"));
  NIBBLE_ASSIGN(const std::string_view type, StringField(*object, "type", "normalizer"));
  const std::string what = fmt::format("normalizer {}", type);
  if (type == "Sequence") {
    NIBBLE_ASSIGN(const boost::json::array* members, ArrayField(*object, "normalizers", what));
    for (const boost::json::value& member : *members) {
      NIBBLE_TRY(ParseInto(member, depth + 1, steps));
    }
  } else if (type == "NFC") {
    steps->emplace_back(Unicode{NormalizationForm::kNfc});
  } else if (type == "NFKC") {
    steps->emplace_back(Unicode{NormalizationForm::kNfkc});
  } else if (type == "Lowercase") {
    steps->emplace_back(Lowercase{});
  } else if (type == "Prepend") {
    NIBBLE_ASSIGN(const std::string_view content, StringField(*object, "prepend", what));
    steps->emplace_back(Prepend{std::string(content)});
  } else if (type == "Strip") {
    NIBBLE_ASSIGN(const bool left, BoolField(*object, "strip_left", what));
    NIBBLE_ASSIGN(const bool right, BoolField(*object, "strip_right", what));
    steps->emplace_back(Strip{left, right});
  } else if (type == "Replace") {
    const boost::json::value* pattern = FindField(*object, "pattern");
    if (pattern == nullptr) {
      return Fail(Code::kInvalidArgument, "tokenizer.json: {}: field \"pattern\" is missing", what);
    }
    NIBBLE_ASSIGN(Pattern parsed, Pattern::Parse(*pattern, what));
    NIBBLE_ASSIGN(const std::string_view content, StringField(*object, "content", what));
    steps->emplace_back(Replace{std::move(parsed), std::string(content)});
  } else {
    return Fail(Code::kUnsupported,
                "tokenizer.json: normalizer \"{}\" is not supported (NFC, NFKC, Sequence, Replace, "
                "Prepend, Strip and Lowercase are)",
                type);
  }
  return {};
}

Status Normalizer::Apply(NormalizedText* text) const {
  for (const Step& step : steps_) {
    NIBBLE_TRY(std::visit([&](const auto& s) { return Run(s, text); }, step));
  }
  return {};
}

Status Normalizer::Run(const Unicode& step, NormalizedText* text) {
  const std::vector<NormalizedStretch> stretches = FindUnnormalized(text->text, step.form);
  if (stretches.empty()) return {};
  Rewriter rewriter(text);
  for (const NormalizedStretch& stretch : stretches) {
    rewriter.KeepTo(stretch.begin);
    rewriter.ReplaceTo(stretch.end, stretch.replacement);
  }
  return rewriter.Finish();
}

Status Normalizer::Run(const Replace& step, NormalizedText* text) {
  if (text->text.empty()) return {};
  Rewriter rewriter(text);
  bool prefix_removed = false;
  const auto replace = [&](const Match& match) {
    const auto begin = static_cast<size_t>(match.begin - text->text.data());
    const auto end = static_cast<size_t>(match.end - text->text.data());
    if (begin == 0 && end > 0 && step.content.empty()) prefix_removed = true;
    rewriter.KeepTo(begin);
    rewriter.ReplaceTo(end, step.content);
  };
  NIBBLE_TRY(step.pattern.ForEachMatch(text->text, replace));
  NIBBLE_TRY(rewriter.Finish());
  if (prefix_removed) text->starts_at_origin = false;
  return {};
}

Status Normalizer::Run(const Prepend& step, NormalizedText* text) {
  if (text->text.empty()) return {};
  Rewriter rewriter(text);
  rewriter.ReplaceTo(0, step.content);
  return rewriter.Finish();
}

Status Normalizer::Run(const Strip& step, NormalizedText* text) {
  const char* begin = text->text.data();
  const char* end = begin + text->text.size();
  while (step.right && end > begin) {
    const char* last = PreviousCodePoint(begin, end);
    const char* p = last;
    if (!IsWhiteSpace(NextCodePoint(p))) break;
    end = last;
  }
  while (step.left && begin < end) {
    const char* next = begin;
    if (!IsWhiteSpace(NextCodePoint(next))) break;
    begin = next;
  }
  const auto removed = static_cast<size_t>(begin - text->text.data());
  const auto kept = static_cast<size_t>(end - begin);
  if (removed > 0) text->starts_at_origin = false;
  text->text = text->text.substr(removed, kept);
  if (!text->untrusted.empty()) {
    const auto first = text->untrusted.begin() + static_cast<std::ptrdiff_t>(removed);
    text->untrusted = std::vector<uint8_t>(first, first + static_cast<std::ptrdiff_t>(kept));
  }
  return {};
}

Status Normalizer::Run(const Lowercase&, NormalizedText* text) {
  Rewriter rewriter(text);
  const char* const begin = text->text.data();
  const char* const end = begin + text->text.size();
  std::string lower;
  for (const char* p = begin; p < end;) {
    const char32_t c = NextCodePoint(p);
    lower.clear();
    AppendLowerCase(c, &lower);
    rewriter.ReplaceTo(static_cast<size_t>(p - begin), lower);
  }
  return rewriter.Finish();
}

}  // namespace nibble::text
