#include "text/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "text/tokenizer/byte_alphabet.h"
#include "text/tokenizer/json_fields.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

constexpr std::string_view kWhat = "model BPE";
constexpr size_t kMaxVocabularyBytes = 1u << 30;
// Up to this many symbols a scan for the minimum beats the heap.
constexpr size_t kShortPiece = 48;
constexpr uint32_t kEndOfList = UINT32_MAX;
constexpr uint64_t kEmptyPair = UINT64_MAX;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void Bpe::PairTable::Reserve(size_t count) {
  slots_.assign(std::bit_ceil(std::max<size_t>(count * 2, 16)), Slot{kEmptyPair, 0});
}

size_t Bpe::PairTable::FindSlot(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t mixed = (pair ^ pair >> 32) * 0x9E3779B97F4A7C15ull;
  size_t i = (mixed ^ mixed >> 32) & mask;
  while (slots_[i].pair != pair && slots_[i].pair != kEmptyPair) i = (i + 1) & mask;
  return i;
}

void Bpe::PairTable::Set(int32_t left, int32_t right, uint32_t rank) {
  const uint64_t pair = PairKey(left, right);
  slots_[FindSlot(pair)] = {pair, rank};
}

uint32_t Bpe::PairTable::Rank(int32_t left, int32_t right) const {
  const Slot& slot = slots_[FindSlot(PairKey(left, right))];
  return slot.pair == kEmptyPair ? kNoRank : slot.rank;
}

Result<Bpe> Bpe::Parse(const boost::json::object& model, bool byte_level) {
  Bpe bpe;
  bpe.byte_level_ = byte_level;
  // Dropout is a matter of training: encoding for a model is deterministic.
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (FindField(model, affix) == nullptr) continue;
    NIBBLE_ASSIGN(const std::string_view text, StringField(model, affix, kWhat));
    if (!text.empty()) {
      return Fail(Code::kUnsupported, "tokenizer.json: {}: {} \"{}\" is not supported", kWhat,
                  affix, text);
    }
  }
  NIBBLE_ASSIGN(bpe.byte_fallback_, BoolField(model, "byte_fallback", kWhat, false));
  NIBBLE_ASSIGN(bpe.fuse_unknown_, BoolField(model, "fuse_unk", kWhat, false));
  NIBBLE_ASSIGN(bpe.ignore_merges_, BoolField(model, "ignore_merges", kWhat, false));
  NIBBLE_TRY(bpe.ParseVocabulary(model));
  NIBBLE_TRY(bpe.ParseMerges(model));
  if (FindField(model, "unk_token") != nullptr) {
    NIBBLE_ASSIGN(const std::string_view unknown, StringField(model, "unk_token", kWhat));
    bpe.unknown_token_ = unknown;
    bpe.unknown_id_ = bpe.vocabulary_.Find(unknown);
  }
  bpe.IndexBytes();
  return bpe;
}

Result<Bpe> Bpe::FromRanks(const std::vector<RankedToken>& tokens, int32_t first_id) {
  Bpe bpe;
  bpe.byte_level_ = true;
  bpe.ignore_merges_ = true;  // tiktoken too looks up the whole piece first
  size_t bytes = 0;
  for (const RankedToken& token : tokens) bytes += 2 * token.bytes.size();
  bpe.vocabulary_.Reserve(tokens.size(), bytes);
  for (const RankedToken& token : tokens) {
    bpe.vocabulary_.Add(BytesToAlphabet(token.bytes), first_id + token.rank);
  }
  bpe.IndexBytes();
  bpe.IndexRanks(tokens, first_id);
  return bpe;
}

// Symbols are always tokens, so the pairs that can be merged are the cuts of the tokens in two.
void Bpe::IndexRanks(const std::vector<RankedToken>& tokens, int32_t first_id) {
  struct Cut {
    int32_t left;
    int32_t right;
    uint32_t rank;
  };
  std::vector<Cut> cuts;
  int32_t last_rank = 0;
  for (const RankedToken& token : tokens) {
    last_rank = std::max(last_rank, token.rank);
    const std::string_view bytes = token.bytes;
    for (size_t at = 1; at < bytes.size(); ++at) {
      const int32_t left = byte_vocabulary_.Find(bytes.substr(0, at));
      const int32_t right = left < 0 ? left : byte_vocabulary_.Find(bytes.substr(at));
      if (right >= 0) cuts.push_back({left, right, static_cast<uint32_t>(token.rank)});
    }
  }
  pairs_.Reserve(cuts.size());
  for (const Cut& cut : cuts) pairs_.Set(cut.left, cut.right, cut.rank);
  merged_.resize(static_cast<size_t>(last_rank) + 1);
  for (size_t rank = 0; rank < merged_.size(); ++rank) {
    merged_[rank] = first_id + static_cast<int32_t>(rank);
  }
}

Status Bpe::ParseVocabulary(const boost::json::object& model) {
  const boost::json::value* field = FindField(model, "vocab");
  if (field == nullptr || !field->is_object()) {
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: {}: field \"vocab\" must be an object of token: id", kWhat);
  }
  const boost::json::object& entries = field->get_object();
  size_t bytes = 0;
  for (const auto& [token, id] : entries) bytes += token.size();
  if (bytes > kMaxVocabularyBytes) {
    return Fail(Code::kTooLarge, "tokenizer.json: {}: a vocabulary of {} bytes, at most {} allowed",
                kWhat, bytes, kMaxVocabularyBytes);
  }
  vocabulary_.Reserve(entries.size(), bytes);
  for (const auto& [token, id] : entries) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > kMaxTokenId) {
      return Fail(Code::kInvalidArgument,
                  "tokenizer.json: {}: the id of \"{}\" must be an integer from 0 to {}", kWhat,
                  std::string_view(token), kMaxTokenId);
    }
    vocabulary_.Add(token, static_cast<int32_t>(id.get_int64()));
  }
  return {};
}

Status Bpe::ParseMerges(const boost::json::object& model) {
  NIBBLE_ASSIGN(const boost::json::array* merges, ArrayField(model, "merges", kWhat));
  pairs_.Reserve(merges->size());
  merged_.reserve(merges->size());
  for (const boost::json::value& merge : *merges) {
    const auto rank = static_cast<uint32_t>(merged_.size());
    if (merge.is_string()) {
      const std::string_view text = merge.get_string();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        return Fail(Code::kInvalidArgument,
                    "tokenizer.json: {}: merge {} \"{}\" must be two tokens with one space between",
                    kWhat, rank, text);
      }
      NIBBLE_TRY(AddMerge(rank, text.substr(0, space), text.substr(space + 1)));
    } else if (merge.is_array() && merge.get_array().size() == 2 &&
               merge.get_array()[0].is_string() && merge.get_array()[1].is_string()) {
      const boost::json::array& pair = merge.get_array();
      NIBBLE_TRY(AddMerge(rank, pair[0].get_string(), pair[1].get_string()));
    } else {
      return Fail(Code::kInvalidArgument,
                  "tokenizer.json: {}: merge {} must be \"a b\" or [\"a\", \"b\"]", kWhat, rank);
    }
  }
  return {};
}

Status Bpe::AddMerge(uint32_t rank, std::string_view left, std::string_view right) {
  const int32_t left_id = vocabulary_.Find(left);
  const int32_t right_id = vocabulary_.Find(right);
  std::string joined(left);
  joined += right;
  const int32_t merged_id = vocabulary_.Find(joined);
  if (left_id < 0 || right_id < 0 || merged_id < 0 || left.empty() || right.empty()) {
    const std::string_view missing = left_id < 0 || left.empty()     ? left
                                     : right_id < 0 || right.empty() ? right
                                                                     : std::string_view(joined);
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: {}: merge {} needs the token \"{}\", which is not in the "
                "vocabulary",
                kWhat, rank, missing);
  }
  pairs_.Set(left_id, right_id, rank);
  merged_.push_back(merged_id);
  return {};
}

void Bpe::IndexBytes() {
  int32_t max_id = -1;
  vocabulary_.ForEach([&](std::string_view, int32_t id) { max_id = std::max(max_id, id); });
  whole_word_ = std::make_unique<std::atomic<uint8_t>[]>(static_cast<size_t>(max_id + 1));
  if (byte_level_) {
    byte_vocabulary_.Reserve(vocabulary_.size(), 0);
    vocabulary_.ForEach([&](std::string_view text, int32_t id) {
      if (const auto bytes = AlphabetToBytes(text)) byte_vocabulary_.Add(*bytes, id);
    });
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto index = static_cast<size_t>(byte);
    std::string character;
    AppendUtf8(ByteToAlphabet(static_cast<unsigned char>(byte)), &character);
    byte_ids_[index] = vocabulary_.Find(character);
    fallback_byte_ids_[index] = vocabulary_.Find(fmt::format("<0x{:02X}>", byte));
  }
}

Status Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  const TokenTable& words = byte_level_ ? byte_vocabulary_ : vocabulary_;
  const int32_t id = words.Find(piece);
  if (id < 0) return EncodeByMerging(piece, scratch, ids);
  if (!ignore_merges_) {
    std::atomic<uint8_t>& known = whole_word_[static_cast<size_t>(id)];
    const uint8_t whole = known.load(std::memory_order_relaxed);
    if (whole == kNo) return EncodeByMerging(piece, scratch, ids);
    if (whole == kUnknown) {
      const size_t start = ids->size();
      NIBBLE_TRY(EncodeByMerging(piece, scratch, ids));
      const bool is_whole = ids->size() == start + 1 && ids->back() == id;
      known.store(is_whole ? kYes : kNo, std::memory_order_relaxed);
      return {};
    }
  }
  ids->push_back(id);
  return {};
}

Status Bpe::EncodeByMerging(std::string_view piece, Scratch* scratch,
                            std::vector<int32_t>* ids) const {
  scratch->symbols.clear();
  NIBBLE_TRY(AppendSymbols(piece, &scratch->symbols));
  if (scratch->symbols.size() <= kShortPiece) {
    MergeShort(&scratch->symbols);
    for (const Scratch::Symbol& symbol : scratch->symbols) ids->push_back(symbol.id);
  } else {
    MergeLong(scratch);
    for (uint32_t i = 0; i != kEndOfList; i = scratch->next[i]) {
      ids->push_back(scratch->symbols[i].id);
    }
  }
  return {};
}

// One symbol per byte or character. What the vocabulary lacks becomes fallback bytes, or the
// unknown token, or, without one, nothing.
Status Bpe::AppendSymbols(std::string_view piece, std::vector<Scratch::Symbol>* symbols) const {
  bool unknown_pending = false;
  const auto flush_unknown = [&] {
    if (unknown_pending) symbols->push_back({unknown_id_, kNoRank});
    unknown_pending = false;
  };
  std::string alphabet_character;
  for (size_t at = 0; at < piece.size();) {
    std::string_view character = piece.substr(at, byte_level_ ? 1 : Utf8Length(piece[at]));
    at += character.size();
    const int32_t id = byte_level_ ? byte_ids_[static_cast<unsigned char>(character[0])]
                                   : vocabulary_.Find(character);
    if (id >= 0) {
      flush_unknown();
      symbols->push_back({id, kNoRank});
      continue;
    }
    if (byte_level_) {
      alphabet_character = BytesToAlphabet(character);
      character = alphabet_character;
    }
    // Fallback bytes go in front of an unknown token that is still pending, as in `tokenizers`.
    if (byte_fallback_ && AppendFallbackBytes(character, symbols)) continue;
    if (!unknown_token_) continue;
    if (unknown_id_ < 0) {
      return Fail(Code::kInvalidArgument,
                  "the vocabulary has no token for \"{}\", and unk_token \"{}\" is not in it",
                  character, *unknown_token_);
    }
    if (!fuse_unknown_) flush_unknown();
    unknown_pending = true;
  }
  flush_unknown();
  return {};
}

bool Bpe::AppendFallbackBytes(std::string_view character,
                              std::vector<Scratch::Symbol>* symbols) const {
  const auto id_of = [&](char c) { return fallback_byte_ids_[static_cast<unsigned char>(c)]; };
  if (!std::all_of(character.begin(), character.end(), [&](char c) { return id_of(c) >= 0; })) {
    return false;
  }
  for (const char c : character) symbols->push_back({id_of(c), kNoRank});
  return true;
}

void Bpe::MergeShort(std::vector<Scratch::Symbol>* symbols) const {
  std::vector<Scratch::Symbol>& s = *symbols;
  for (size_t i = 0; i + 1 < s.size(); ++i) s[i].rank = pairs_.Rank(s[i].id, s[i + 1].id);
  for (;;) {
    size_t best = 0;
    for (size_t i = 1; i < s.size(); ++i) {
      if (s[i].rank < s[best].rank) best = i;
    }
    if (s.empty() || s[best].rank == kNoRank) return;
    s[best].id = merged_[s[best].rank];
    s.erase(s.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    s[best].rank = best + 1 < s.size() ? pairs_.Rank(s[best].id, s[best + 1].id) : kNoRank;
    if (best > 0) s[best - 1].rank = pairs_.Rank(s[best - 1].id, s[best].id);
  }
}

void Bpe::MergeLong(Scratch* scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols;
  std::vector<uint32_t>& previous = scratch->previous;
  std::vector<uint32_t>& next = scratch->next;
  std::vector<uint64_t>& heap = scratch->heap;
  const auto count = static_cast<uint32_t>(symbols.size());
  previous.resize(count);
  next.resize(count);
  heap.clear();
  // Keys order by rank, then by position. An entry is stale when its symbol has another rank now.
  const auto key = [](uint32_t rank, uint32_t at) {
    return static_cast<uint64_t>(rank) << 32 | at;
  };
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kEndOfList : i - 1;
    next[i] = i + 1 == count ? kEndOfList : i + 1;
    if (i + 1 == count) break;
    symbols[i].rank = pairs_.Rank(symbols[i].id, symbols[i + 1].id);
    if (symbols[i].rank != kNoRank) heap.push_back(key(symbols[i].rank, i));
  }
  const auto later = std::greater<uint64_t>();
  std::make_heap(heap.begin(), heap.end(), later);
  const auto update = [&](uint32_t at) {
    const uint32_t right = next[at];
    const uint32_t rank =
        right == kEndOfList ? kNoRank : pairs_.Rank(symbols[at].id, symbols[right].id);
    symbols[at].rank = rank;
    if (rank == kNoRank) return;
    heap.push_back(key(rank, at));
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const auto at = static_cast<uint32_t>(heap.back());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (symbols[at].rank != rank) continue;
    const uint32_t right = next[at];
    symbols[at].id = merged_[rank];
    symbols[right].rank = kNoRank;
    next[at] = next[right];
    if (next[at] != kEndOfList) previous[next[at]] = at;
    update(at);
    if (previous[at] != kEndOfList) update(previous[at]);
  }
}

}  // namespace nibble::text
