#include "text/tokenizer/pre_tokenizer.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "text/tokenizer/byte_alphabet.h"
#include "text/tokenizer/json_fields.h"
#include "text/tokenizer/pattern.h"
#include "text/unicode/unicode.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

constexpr int kMaxNesting = 16;
constexpr size_t kMaxStages = 32;  // a piece passes them by recursion

struct Piece {
  std::string_view text;
  bool at_origin;
};

}  // namespace

// One step; what it makes of a piece goes to the next stage, or to the sink behind the last one.
struct PreTokenizer::Stage {
  virtual ~Stage() = default;

  struct Next {
    const std::unique_ptr<Stage>* stages;
    const std::unique_ptr<Stage>* end;
    PieceSink* sink;

    Status operator()(Piece piece) const {
      if (piece.text.empty()) return {};
      if (stages == end) return sink->Take(piece.text);
      return (*stages)->Run(piece, Next{stages + 1, end, sink});
    }
  };

  virtual Status Run(Piece piece, Next next) const = 0;
};

namespace {

using Stage = PreTokenizer::Stage;

enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

Result<Behavior> ParseBehavior(std::string_view name, std::string_view what) {
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return Fail(Code::kUnsupported, "tokenizer.json: {}: behavior \"{}\" is not supported", what,
              name);
}

// Turns the alternation of gaps and matches of one piece into pieces for the next stage. Keeps the
// first error and ignores what comes after it.
class Delimiter {
 public:
  Delimiter(Piece whole, Behavior behavior, bool invert, Stage::Next next)
      : whole_(whole), behavior_(behavior), invert_(invert), next_(next), at_(whole.text.data()) {}

  void OnMatch(const Match& match) {
    if (at_ != match.begin) Add({at_, match.begin}, false);
    Add(match, true);
    at_ = match.end;
  }

  Status Finish() {
    const char* end = whole_.text.data() + whole_.text.size();
    if (at_ != end) Add({at_, end}, false);
    if (held_) Emit(*held_);
    return std::move(status_);
  }

 private:
  void Add(const Match& part, bool found) {
    const bool is_match = found != invert_;
    switch (behavior_) {
      case Behavior::kIsolated:
        Emit(part);
        return;
      case Behavior::kRemoved:
        if (!is_match) Emit(part);
        return;
      case Behavior::kContiguous:
        Hold(part, held_ && is_match == held_is_match_);
        break;
      case Behavior::kMergedWithPrevious:
        Hold(part, held_ && is_match && !held_is_match_);
        break;
      case Behavior::kMergedWithNext:
        Hold(part, held_ && !is_match && held_is_match_);
        break;
    }
    held_is_match_ = is_match;
  }

  // Joins the part to the held one, or lets that one go and holds the new one.
  void Hold(const Match& part, bool join) {
    if (join) {
      held_->end = part.end;
      return;
    }
    if (held_) Emit(*held_);
    held_ = part;
  }

  void Emit(const Match& part) {
    if (!status_) return;
    const std::string_view text(part.begin, static_cast<size_t>(part.end - part.begin));
    status_ = next_({text, whole_.at_origin && part.begin == whole_.text.data()});
  }

  Piece whole_;
  Behavior behavior_;
  bool invert_;
  Stage::Next next_;
  const char* at_;
  std::optional<Match> held_;
  bool held_is_match_ = false;
  Status status_;
};

struct SplitStage : Stage {
  Pattern pattern;
  Behavior behavior;
  bool invert;
  SplitStage(Pattern p, Behavior b, bool i) : pattern(std::move(p)), behavior(b), invert(i) {}

  Status Run(Piece piece, Next next) const override {
    Delimiter delimiter(piece, behavior, invert, next);
    NIBBLE_TRY(pattern.ForEachMatch(piece.text, [&](const Match& m) { delimiter.OnMatch(m); }));
    return delimiter.Finish();
  }
};

// Every character for which `is_delimiter` holds is a match.
template <typename Predicate>
Status SplitAtCharacters(Piece piece, Behavior behavior, Stage::Next next, Predicate is_delimiter) {
  Delimiter delimiter(piece, behavior, /*invert=*/false, next);
  const char* const end = piece.text.data() + piece.text.size();
  for (const char* p = piece.text.data(); p < end;) {
    const char* start = p;
    if (is_delimiter(NextCodePoint(p))) delimiter.OnMatch({start, p});
  }
  return delimiter.Finish();
}

struct DigitsStage : Stage {
  bool individual;
  explicit DigitsStage(bool i) : individual(i) {}

  Status Run(Piece piece, Next next) const override {
    const PropertyTable properties;
    return SplitAtCharacters(piece, individual ? Behavior::kIsolated : Behavior::kContiguous, next,
                             [&](char32_t c) { return properties.Has(c, kDigitsNumeric); });
  }
};

struct PunctuationStage : Stage {
  Behavior behavior;
  explicit PunctuationStage(Behavior b) : behavior(b) {}

  Status Run(Piece piece, Next next) const override {
    const PropertyTable properties;
    return SplitAtCharacters(piece, behavior, next,
                             [&](char32_t c) { return properties.Has(c, kPunctuationMark); });
  }
};

struct WhitespaceSplitStage : Stage {
  Status Run(Piece piece, Next next) const override {
    const CategoryTable categories;
    return SplitAtCharacters(piece, Behavior::kRemoved, next,
                             [&](char32_t c) { return categories.In(c, kWhiteSpace); });
  }
};

// \w+|[^\w\s]+ : runs of word characters, runs of other characters; white space is dropped.
struct WhitespaceStage : Stage {
  Status Run(Piece piece, Next next) const override {
    enum Kind { kWord, kOther, kBlank };
    const PropertyTable properties;
    const CategoryTable categories;
    const char* const end = piece.text.data() + piece.text.size();
    const char* run = piece.text.data();
    Kind run_kind = kBlank;
    const auto flush = [&](const char* to) -> Status {
      if (run_kind == kBlank || run == to) return {};
      const bool at_origin = piece.at_origin && run == piece.text.data();
      return next({{run, static_cast<size_t>(to - run)}, at_origin});
    };
    for (const char* p = run; p < end;) {
      const char* start = p;
      const char32_t c = NextCodePoint(p);
      const Kind kind = properties.Has(c, kRustWord)    ? kWord
                        : categories.In(c, kWhiteSpace) ? kBlank
                                                        : kOther;
      if (kind == run_kind) continue;
      NIBBLE_TRY(flush(start));
      run = start;
      run_kind = kind;
    }
    return flush(end);
  }
};

// ByteLevel's add_prefix_space.
struct PrefixSpaceStage : Stage {
  Status Run(Piece piece, Next next) const override {
    if (piece.text.starts_with(' ')) return next(piece);
    std::string with_space = " ";
    with_space += piece.text;
    return next({with_space, piece.at_origin});
  }
};

// A ByteLevel that other stages follow: they see its alphabet, not bytes.
struct ByteAlphabetStage : Stage {
  Status Run(Piece piece, Next next) const override {
    return next({BytesToAlphabet(piece.text), piece.at_origin});
  }
};

struct MetaspaceStage : Stage {
  enum class Prepend { kAlways, kFirst, kNever };
  char32_t replacement;
  std::string replacement_text;
  Prepend prepend = Prepend::kAlways;
  bool split = true;

  Status Run(Piece piece, Next next) const override {
    std::string text;
    text.reserve(piece.text.size() + piece.text.size() / 2 + replacement_text.size());
    const bool has_mark = piece.text.starts_with(' ') || piece.text.starts_with(replacement_text);
    const bool wants_mark =
        prepend == Prepend::kAlways || (prepend == Prepend::kFirst && piece.at_origin);
    if (wants_mark && !has_mark) text += replacement_text;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += replacement_text;
      } else {
        text += c;
      }
    }
    const Piece rewritten{text, piece.at_origin};
    if (!split) return next(rewritten);
    return SplitAtCharacters(rewritten, Behavior::kMergedWithNext, next,
                             [&](char32_t c) { return c == replacement; });
  }
};

Result<std::unique_ptr<Stage>> ParseMetaspace(const boost::json::object& object,
                                              std::string_view what) {
  auto stage = std::make_unique<MetaspaceStage>();
  NIBBLE_ASSIGN(stage->replacement, CharField(object, "replacement", what));
  AppendUtf8(stage->replacement, &stage->replacement_text);
  NIBBLE_ASSIGN(stage->split, BoolField(object, "split", what, true));
  NIBBLE_ASSIGN(const bool add_prefix_space, BoolField(object, "add_prefix_space", what, true));
  // Files from before prepend_scheme say it with add_prefix_space.
  std::string_view scheme = add_prefix_space ? "always" : "never";
  if (FindField(object, "prepend_scheme") != nullptr) {
    NIBBLE_ASSIGN(scheme, StringField(object, "prepend_scheme", what));
  }
  if (scheme == "always") {
    stage->prepend = MetaspaceStage::Prepend::kAlways;
  } else if (scheme == "first") {
    stage->prepend = MetaspaceStage::Prepend::kFirst;
  } else if (scheme == "never") {
    stage->prepend = MetaspaceStage::Prepend::kNever;
  } else {
    return Fail(Code::kUnsupported, "tokenizer.json: {}: prepend_scheme \"{}\" is not supported",
                what, scheme);
  }
  if (!add_prefix_space && scheme != "never") {
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: {}: add_prefix_space false contradicts prepend_scheme \"{}\"",
                what, scheme);
  }
  return stage;
}

Result<std::unique_ptr<Stage>> ParseSplit(const boost::json::object& object,
                                          std::string_view what) {
  const boost::json::value* spec = FindField(object, "pattern");
  if (spec == nullptr) {
    return Fail(Code::kInvalidArgument, "tokenizer.json: {}: field \"pattern\" is missing", what);
  }
  NIBBLE_ASSIGN(Pattern pattern, Pattern::Parse(*spec, what));
  NIBBLE_ASSIGN(const std::string_view name, StringField(object, "behavior", what));
  NIBBLE_ASSIGN(const Behavior behavior, ParseBehavior(name, what));
  NIBBLE_ASSIGN(const bool invert, BoolField(object, "invert", what));
  return std::make_unique<SplitStage>(std::move(pattern), behavior, invert);
}

// Appends the stages of one component. ByteLevel's own rewriting is appended only when another
// stage follows; until then *byte_level says that it is due.
Status ParseStages(const boost::json::value& spec, int depth, bool* byte_level,
                   std::vector<std::unique_ptr<Stage>>* stages) {
  if (depth > kMaxNesting || stages->size() >= kMaxStages) {
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: pre_tokenizer is nested more than {} deep or has more than {} "
                "members",
                kMaxNesting, kMaxStages);
  }
  NIBBLE_ASSIGN(const boost::json::object* object, AsObject(spec, "pre_tokenizer"));
  NIBBLE_ASSIGN(const std::string_view type, StringField(*object, "type", "pre_tokenizer"));
  const std::string what = fmt::format("pre_tokenizer {}", type);
  if (type == "Sequence") {
    NIBBLE_ASSIGN(const boost::json::array* members, ArrayField(*object, "pretokenizers", what));
    for (const boost::json::value& member : *members) {
      NIBBLE_TRY(ParseStages(member, depth + 1, byte_level, stages));
    }
    return {};
  }
  if (std::exchange(*byte_level, false)) stages->push_back(std::make_unique<ByteAlphabetStage>());
  if (type == "ByteLevel") {
    // Each further one would double the text.
    for (const auto& stage : *stages) {
      if (dynamic_cast<const ByteAlphabetStage*>(stage.get()) != nullptr) {
        return Fail(Code::kUnsupported,
                    "tokenizer.json: pre_tokenizer: a second ByteLevel is not supported");
      }
    }
    NIBBLE_ASSIGN(const bool add_prefix_space, BoolField(*object, "add_prefix_space", what));
    NIBBLE_ASSIGN(const bool use_regex, BoolField(*object, "use_regex", what, true));
    if (add_prefix_space) stages->push_back(std::make_unique<PrefixSpaceStage>());
    if (use_regex) {
      stages->push_back(std::make_unique<SplitStage>(Pattern::Known(FindKnownPattern(kGpt2Pattern)),
                                                     Behavior::kIsolated, false));
    }
    *byte_level = true;
  } else if (type == "Split") {
    NIBBLE_ASSIGN(std::unique_ptr<Stage> stage, ParseSplit(*object, what));
    stages->push_back(std::move(stage));
  } else if (type == "Digits") {
    NIBBLE_ASSIGN(const bool individual, BoolField(*object, "individual_digits", what));
    stages->push_back(std::make_unique<DigitsStage>(individual));
  } else if (type == "Punctuation") {
    Behavior behavior = Behavior::kIsolated;
    if (FindField(*object, "behavior") != nullptr) {
      NIBBLE_ASSIGN(const std::string_view name, StringField(*object, "behavior", what));
      NIBBLE_ASSIGN(behavior, ParseBehavior(name, what));
    }
    stages->push_back(std::make_unique<PunctuationStage>(behavior));
  } else if (type == "Whitespace") {
    stages->push_back(std::make_unique<WhitespaceStage>());
  } else if (type == "WhitespaceSplit") {
    stages->push_back(std::make_unique<WhitespaceSplitStage>());
  } else if (type == "Metaspace") {
    NIBBLE_ASSIGN(std::unique_ptr<Stage> stage, ParseMetaspace(*object, what));
    stages->push_back(std::move(stage));
  } else {
    return Fail(Code::kUnsupported,
                "tokenizer.json: pre_tokenizer \"{}\" is not supported (Sequence, Split, "
                "ByteLevel, Digits, Punctuation, Whitespace, WhitespaceSplit and Metaspace are)",
                type);
  }
  return {};
}

}  // namespace

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

Result<PreTokenizer> PreTokenizer::Parse(const boost::json::value& spec) {
  PreTokenizer result;
  if (!spec.is_null()) {
    NIBBLE_TRY(ParseStages(spec, 0, &result.is_byte_level_, &result.stages_));
  }
  return result;
}

Result<PreTokenizer> PreTokenizer::ForBytes(std::string_view expression) {
  NIBBLE_ASSIGN(Pattern pattern, Pattern::FromExpression(expression, RegexSyntax::kRust));
  PreTokenizer result;
  result.stages_.push_back(
      std::make_unique<SplitStage>(std::move(pattern), Behavior::kRemoved, /*invert=*/true));
  result.is_byte_level_ = true;
  return result;
}

Status PreTokenizer::Run(std::string_view text, bool at_origin, PieceSink* sink) const {
  const std::unique_ptr<Stage>* first = stages_.data();
  return Stage::Next{first, first + stages_.size(), sink}({text, at_origin});
}

}  // namespace nibble::text
