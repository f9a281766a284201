#include "text/tokenizer/added_tokens.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "text/tokenizer/json_fields.h"
#include "text/unicode/unicode.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

// Bounds the look-ahead per byte of text, and the depth of the trie.
constexpr size_t kMaxContentBytes = 4096;

bool EndsWithWord(std::string_view text) {
  if (text.empty()) return false;
  const char* p = PreviousCodePoint(text.data(), text.data() + text.size());
  return PropertyTable().Has(NextCodePoint(p), kRustWord);
}

bool StartsWithWord(std::string_view text) {
  if (text.empty()) return false;
  const char* p = text.data();
  return PropertyTable().Has(NextCodePoint(p), kRustWord);
}

// Where the white space at the end of text[0, end) begins, not before `from`.
size_t BlanksBefore(std::string_view text, size_t from, size_t end) {
  const char* const limit = text.data() + from;
  const char* p = text.data() + end;
  while (p > limit) {
    const char* last = PreviousCodePoint(limit, p);
    const char* q = last;
    if (!IsWhiteSpace(NextCodePoint(q))) break;
    p = last;
  }
  return static_cast<size_t>(p - text.data());
}

// Where the white space that starts at `begin` ends.
size_t BlanksAfter(std::string_view text, size_t begin) {
  const char* const end = text.data() + text.size();
  const char* p = text.data() + begin;
  while (p < end) {
    const char* next = p;
    if (!IsWhiteSpace(NextCodePoint(next))) break;
    p = next;
  }
  return static_cast<size_t>(p - text.data());
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<Token> tokens)
    : tokens_(std::move(tokens)), first_bytes_(256, false) {
  // Of equal contents (after normalizing) the first one stays, special tokens before others.
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const Token& a, const Token& b) {
    return a.content != b.content ? a.content < b.content : a.special > b.special;
  });
  const auto duplicates =
      std::unique(tokens_.begin(), tokens_.end(),
                  [](const Token& a, const Token& b) { return a.content == b.content; });
  tokens_.erase(duplicates, tokens_.end());
  for (const Token& token : tokens_) {
    first_bytes_[static_cast<unsigned char>(token.content[0])] = true;
    has_special_ = has_special_ || token.special;
  }
  nodes_.emplace_back();
  BuildNode(0, 0, tokens_.size(), 0);
}

// The node for the tokens [first, last), which agree in their first `depth` bytes.
void AddedTokenMatcher::BuildNode(uint32_t node, size_t first, size_t last, size_t depth) {
  if (first < last && tokens_[first].content.size() == depth) {
    nodes_[node].token = static_cast<int32_t>(first++);
  }
  struct Child {
    size_t first;
    size_t last;
  };
  std::vector<Child> children;
  for (size_t i = first; i < last; ++i) {
    const bool same = !children.empty() &&
                      tokens_[i].content[depth] == tokens_[children.back().first].content[depth];
    if (!same) children.push_back({i, i});
    children.back().last = i + 1;
  }
  const auto first_edge = static_cast<uint32_t>(edges_.size());
  nodes_[node].first_edge = first_edge;
  nodes_[node].edge_count = static_cast<uint32_t>(children.size());
  for (const Child& child : children) {
    edges_.push_back({static_cast<unsigned char>(tokens_[child.first].content[depth]),
                      static_cast<uint32_t>(nodes_.size())});
    nodes_.emplace_back();
  }
  for (size_t i = 0; i < children.size(); ++i) {
    BuildNode(edges_[first_edge + i].node, children[i].first, children[i].last, depth + 1);
  }
}

const AddedTokenMatcher::Token* AddedTokenMatcher::LongestAt(
    std::string_view text, size_t at, std::span<const uint8_t> untrusted) const {
  const Token* longest = nullptr;
  bool trusted = true;  // text[at, i)
  uint32_t node = 0;
  for (size_t i = at;; ++i) {
    if (nodes_[node].token >= 0) {
      const Token& token = tokens_[static_cast<size_t>(nodes_[node].token)];
      if (trusted || !token.special) longest = &token;
    }
    if (i == text.size()) return longest;
    const auto byte = static_cast<unsigned char>(text[i]);
    const Edge* edge = edges_.data() + nodes_[node].first_edge;
    const Edge* const edges_end = edge + nodes_[node].edge_count;
    while (edge != edges_end && edge->byte < byte) ++edge;
    if (edge == edges_end || edge->byte != byte) return longest;
    node = edge->node;
    if (!untrusted.empty() && untrusted[i] != 0) trusted = false;
  }
}

std::vector<TextPart> AddedTokenMatcher::Split(std::string_view text,
                                               std::span<const uint8_t> untrusted) const {
  std::vector<TextPart> parts;
  size_t done = 0;
  size_t at = 0;
  while (!tokens_.empty() && at < text.size()) {
    const Token* token = first_bytes_[static_cast<unsigned char>(text[at])]
                             ? LongestAt(text, at, untrusted)
                             : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if (token->single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (token->lstrip && begin > done) begin = BlanksBefore(text, done, begin);
    if (token->rstrip) end = BlanksAfter(text, end);
    if (done < begin) parts.push_back({done, begin, TokenTable::kNone});
    parts.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), TokenTable::kNone});
  return parts;
}

Result<AddedTokens> AddedTokens::Parse(const boost::json::value* spec, const TokenTable& vocabulary,
                                       const Normalizer& normalizer) {
  constexpr std::string_view kWhat = "added_tokens";
  std::vector<AddedTokenMatcher::Token> sets[2];  // by `normalized`
  std::unordered_map<int32_t, std::string> contents;
  std::unordered_map<std::string, int32_t> ids;
  std::unordered_set<std::string> specials;
  if (spec != nullptr && !spec->is_array()) {
    return Fail(Code::kInvalidArgument, "tokenizer.json: {} must be an array", kWhat);
  }
  static const boost::json::array kNothing;
  for (const boost::json::value& entry : spec != nullptr ? spec->get_array() : kNothing) {
    NIBBLE_ASSIGN(const boost::json::object* object, AsObject(entry, kWhat));
    AddedTokenMatcher::Token token;
    NIBBLE_ASSIGN(token.content, StringField(*object, "content", kWhat));
    if (token.content.empty()) continue;
    if (token.content.size() > kMaxContentBytes) {
      return Fail(Code::kUnsupported, "tokenizer.json: {}: a token of {} bytes, at most {} allowed",
                  kWhat, token.content.size(), kMaxContentBytes);
    }
    NIBBLE_ASSIGN(const int64_t file_id, IntField(*object, "id", kWhat));
    if (file_id < 0 || file_id > kMaxTokenId) {
      return Fail(Code::kInvalidArgument,
                  "tokenizer.json: {}: id {} of \"{}\" must be from 0 to {}", kWhat, file_id,
                  token.content, kMaxTokenId);
    }
    const int32_t vocabulary_id = vocabulary.Find(token.content);
    token.id = vocabulary_id >= 0 ? vocabulary_id : static_cast<int32_t>(file_id);
    if (token.id != file_id) {
      LogWarning("tokenizer.json: added token \"{}\" has id {}, its vocabulary entry {}: using {}",
                 token.content, file_id, token.id, token.id);
    }
    NIBBLE_ASSIGN(token.single_word, BoolField(*object, "single_word", kWhat, false));
    NIBBLE_ASSIGN(token.lstrip, BoolField(*object, "lstrip", kWhat, false));
    NIBBLE_ASSIGN(token.rstrip, BoolField(*object, "rstrip", kWhat, false));
    NIBBLE_ASSIGN(token.special, BoolField(*object, "special", kWhat, false));
    NIBBLE_ASSIGN(const bool normalized, BoolField(*object, "normalized", kWhat, !token.special));
    if (!ids.try_emplace(token.content, token.id).second) continue;
    contents[token.id] = token.content;
    if (token.special) specials.insert(token.content);
    if (normalized) {
      NormalizedText text{.text = token.content};
      NIBBLE_TRY(normalizer.Apply(&text));
      token.content = std::move(text.text);
      if (token.content.empty()) continue;
    }
    sets[normalized ? 1 : 0].push_back(std::move(token));
  }
  AddedTokens tokens(AddedTokenMatcher(std::move(sets[0])), AddedTokenMatcher(std::move(sets[1])));
  tokens.contents_ = std::move(contents);
  tokens.ids_ = std::move(ids);
  tokens.specials_ = std::move(specials);
  return tokens;
}

std::optional<int32_t> AddedTokens::Find(std::string_view content) const {
  const auto it = ids_.find(std::string(content));
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace nibble::text
