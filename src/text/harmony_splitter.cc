#include "text/harmony_splitter.h"

#include <algorithm>
#include <array>

#include "text/tool_parsers/tags.h"

namespace nibble::text {
namespace {

constexpr std::string_view kStartTag = "<|start|>";
constexpr std::string_view kChannelTag = "<|channel|>";
constexpr std::string_view kMessageTag = "<|message|>";
constexpr std::string_view kConstrainTag = "<|constrain|>";
constexpr std::array<std::string_view, 8> kTags = {kStartTag,     kChannelTag,    kMessageTag,
                                                   kConstrainTag, "<|end|>",      "<|return|>",
                                                   "<|call|>",    "<|endoftext|>"};
constexpr size_t kFirstEndTag = 4;  // from here on: a message ends
constexpr std::string_view kRecipient = "to=";
constexpr std::array<std::string_view, 5> kHeaderEnds = {kMessageTag, "<|end|>", "<|return|>",
                                                         "<|call|>", "<|endoftext|>"};
constexpr std::string_view kFunctions = "functions.";
constexpr size_t kMaxHeaderBytes = 1024;
constexpr std::string_view kMessageGap = "\n\n";

std::string_view TrimLeft(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
}

// The next word of a header, or the tag that comes next.
std::string_view TakeWord(std::string_view* header) {
  *header = TrimLeft(*header);
  size_t size = std::min(header->find_first_of(" \t\r\n"), header->size());
  for (const std::string_view tag : kTags) {
    if (header->starts_with(tag)) {
      size = tag.size();
      break;
    }
    size = std::min(size, header->find(tag));
  }
  const std::string_view word = header->substr(0, size);
  header->remove_prefix(size);
  return word;
}

}  // namespace

HarmonySplitter::HarmonySplitter(AnswerStart start, bool reads_calls)
    : reads_calls_(reads_calls),
      state_(start == AnswerStart::kDetect ? State::kStart : State::kBody),
      kind_(start == AnswerStart::kReasoning ? Kind::kReasoning : Kind::kContent) {}

std::span<const std::string_view> HarmonySplitter::tags() { return kTags; }

void HarmonySplitter::Push(std::string_view text, ToolParser& content, AnswerWriter& out) {
  pending_ += text;
  while (Advance(content, out)) {
  }
}

bool HarmonySplitter::Advance(ToolParser& content, AnswerWriter& out) {
  switch (state_) {
    case State::kStart:
      return AdvanceStart();
    case State::kHeader:
      return AdvanceHeader(content, out);
    case State::kBody:
      return AdvanceBody(content, out);
  }
  return false;
}

// Between messages, and at the beginning.
bool HarmonySplitter::AdvanceStart() {
  const std::string_view text = TrimLeft(pending_);
  if (text.empty()) return false;
  const auto begins_with = [&](std::string_view tag) { return text.starts_with(tag); };
  if (std::ranges::any_of(kTags, begins_with) || begins_with(kRecipient)) {
    state_ = State::kHeader;
    return true;
  }
  const auto may_become = [&](std::string_view tag) { return IsPartialTag(text, tag); };
  if (std::ranges::any_of(kTags, may_become) || may_become(kRecipient)) return false;
  kind_ = Kind::kContent;
  state_ = State::kBody;
  return true;
}

// What stands between two messages. Without <|message|> behind it, `rest` may be the text of one.
struct HarmonySplitter::Header {
  std::string_view channel;
  std::string_view recipient;
  std::string_view rest;  // behind the last part that is known

  static Header Parse(std::string_view text, bool is_complete) {
    const bool has_tag = FindFirstTag(text, kTags).at != text.npos;
    if (!has_tag && !is_complete) return {.channel = "", .recipient = "", .rest = text};
    Header header{.channel = "", .recipient = "", .rest = TrimLeft(text)};
    for (std::string_view left = text; !left.empty();) {
      const std::string_view word = TakeWord(&left);
      if (word == kStartTag || word == kConstrainTag) {
        TakeWord(&left);  // the role, which is the assistant's; the type of the content
      } else if (word == kChannelTag) {
        header.channel = TakeWord(&left);
      } else if (word.starts_with(kRecipient)) {
        header.recipient = word.substr(kRecipient.size());
      } else {
        continue;
      }
      header.rest = TrimLeft(left);
    }
    if (header.recipient.starts_with(kFunctions)) {
      header.recipient.remove_prefix(kFunctions.size());
    }
    return header;
  }
};

bool HarmonySplitter::AdvanceHeader(ToolParser& content, AnswerWriter& out) {
  const FoundTag end = FindFirstTag(pending_, kHeaderEnds);
  const bool too_long = std::min(end.at, pending_.size()) > kMaxHeaderBytes;
  if (end.at == std::string::npos && pending_.size() <= kMaxHeaderBytes + kMessageTag.size()) {
    return false;
  }
  if (too_long) {  // no header is: its end was forgotten
    const std::string text = pending_.substr(0, kMaxHeaderBytes);
    const Header header = Header::Parse(text, /*is_complete=*/false);
    BeginMessage(header, out);
    pending_.replace(0, kMaxHeaderBytes, header.rest);
    return true;
  }
  const std::string_view tag = kHeaderEnds[end.index];
  const std::string text = pending_.substr(0, end.at);
  pending_.erase(0, end.at + tag.size());
  const Header header = Header::Parse(text, tag == kMessageTag);
  BeginMessage(header, out);
  if (tag != kMessageTag) {
    Emit(header.rest, content, out);
    EndMessage(out);
  }
  return true;
}

void HarmonySplitter::BeginMessage(const Header& header, AnswerWriter& out) {
  state_ = State::kBody;
  message_has_text_ = false;
  kind_ = header.channel == "analysis" ? Kind::kReasoning : Kind::kContent;
  if (reads_calls_ && !header.recipient.empty()) {
    kind_ = Kind::kCall;
    out.StartToolCall(calls_, std::string(header.recipient));
  }
}

bool HarmonySplitter::AdvanceBody(ToolParser& content, AnswerWriter& out) {
  const FoundTag found = FindFirstTag(pending_, kTags);
  if (found.at == std::string::npos) {
    const size_t size = pending_.size() - PartialTagAtEnd(pending_, kTags);
    Emit(std::string_view(pending_).substr(0, size), content, out);
    pending_.erase(0, size);
    return false;
  }
  Emit(std::string_view(pending_).substr(0, found.at), content, out);
  const std::string_view tag = kTags[found.index];
  const bool is_header = tag == kStartTag || tag == kChannelTag;  // <|end|> was forgotten
  pending_.erase(0, found.at + (is_header ? 0 : tag.size()));
  if (is_header || found.index >= kFirstEndTag) EndMessage(out);
  return true;
}

void HarmonySplitter::Emit(std::string_view text, ToolParser& content, AnswerWriter& out) {
  if (kind_ == Kind::kCall) {
    const size_t last = text.find_last_not_of(" \t\r\n");
    if (last == text.npos) {
      space_ += text;
      return;
    }
    if (!message_has_text_) {
      space_.clear();
      text = TrimLeft(text);
    }
    const size_t size = text.find_last_not_of(" \t\r\n") + 1;
    out.ToolCallArguments(calls_, space_);
    out.ToolCallArguments(calls_, text.substr(0, size));
    space_ = text.substr(size);
    message_has_text_ = true;
    return;
  }
  if (text.empty()) return;
  bool& has_earlier = kind_ == Kind::kReasoning ? has_reasoning_ : has_content_;
  const std::string_view gap = has_earlier && !message_has_text_ ? kMessageGap : "";
  message_has_text_ = has_earlier = true;
  if (kind_ == Kind::kReasoning) {
    out.Reasoning(gap);
    out.Reasoning(text);
  } else {
    content.Push(gap, out);
    content.Push(text, out);
  }
}

void HarmonySplitter::EndMessage(AnswerWriter& out) {
  if (kind_ == Kind::kCall) {
    if (!message_has_text_) out.ToolCallArguments(calls_, "{}");
    space_.clear();
    ++calls_;
  }
  kind_ = Kind::kContent;
  message_has_text_ = false;
  state_ = State::kStart;
}

void HarmonySplitter::Finish(ToolParser& content, AnswerWriter& out) {
  if (state_ == State::kHeader) {  // a call whose name may be cut off is none
    Header header = Header::Parse(pending_, /*is_complete=*/false);
    header.recipient = {};
    BeginMessage(header, out);
    Emit(header.rest, content, out);
  } else if (state_ == State::kBody || !TrimLeft(pending_).empty()) {
    Emit(pending_, content, out);  // what only began like a tag
    EndMessage(out);
  }
  pending_.clear();
  content.Finish(out);
}

}  // namespace nibble::text
