// Values of the template engine, with Python's meaning.
//
// Strings, lists, tuples and dicts are immutable (the sandbox of transformers forbids mutation) and
// shared. What can change or refer to itself (namespaces, macros, loop objects) belongs to the
// Arena of one rendering and is held by plain pointer, so that no cycle can leak. Containers know
// their nesting depth and their weight (the number of values below, shared ones counted each time
// they are reached); both are bounded, so no walk over a value overflows the stack or takes
// forever. Integers have 128 bits; arithmetic that leaves them is an error. Thread-safety: a Value
// belongs to the thread that renders.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "text/jinja/marked_string.h"

namespace nibble::text::jinja {

class Value;
struct Sequence;
class Dict;
struct Iterator;
struct DictView;
struct Namespace;
struct Macro;
struct Loop;
struct Function;
struct Builtin;
struct ForLoop;
class Scope;

using Integer = __int128;
using Values = std::vector<Value>;

constexpr int kMaxValueDepth = 200;
constexpr size_t kMaxValueWeight = 16 << 20;

struct None {};
struct Undefined {
  std::shared_ptr<const std::string> why;  // "'x' is undefined"
};
struct Range {
  Integer start = 0;
  Integer step = 1;
  Integer length = 0;
  Integer At(Integer index) const { return start + index * step; }
};

enum class Kind {  // in the order of Value's variant
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kSequence,
  kDict,
  kRange,
  kIterator,
  kDictView,
  kNamespace,
  kMacro,
  kLoop,
  kFunction,
};

class Value {
 public:
  Value() = default;  // undefined
  Value(None) : data_(None{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(Integer value) : data_(value) {}
  Value(int value) : data_(static_cast<Integer>(value)) {}
  Value(int64_t value) : data_(static_cast<Integer>(value)) {}
  Value(size_t value) : data_(static_cast<Integer>(value)) {}
  Value(double value) : data_(value) {}
  Value(StringPtr value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Sequence> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Dict> value) : data_(std::move(value)) {}
  Value(Range value) : data_(std::make_shared<const Range>(value)) {}
  Value(std::shared_ptr<Iterator> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const DictView> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Function> value) : data_(std::move(value)) {}
  Value(Namespace* value) : data_(value) {}
  Value(const Macro* value) : data_(value) {}
  Value(Loop* value) : data_(value) {}
  Value(const char*) = delete;

  static Value String(std::string_view trusted) { return Value(TrustedString(trusted)); }
  static Value MakeUndefined(std::string why);

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool Is(Kind kind) const { return this->kind() == kind; }
  bool IsUndefined() const { return Is(Kind::kUndefined); }
  bool IsNone() const { return Is(Kind::kNone); }
  bool IsString() const { return Is(Kind::kString); }
  // int or bool, which Python counts among the ints.
  bool IsInteger() const { return Is(Kind::kInt) || Is(Kind::kBool); }
  bool IsNumber() const { return IsInteger() || Is(Kind::kFloat); }

  // Each may be called only on its kind.
  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  bool boolean() const { return std::get<bool>(data_); }
  Integer integer() const {
    return Is(Kind::kBool) ? static_cast<Integer>(boolean()) : std::get<Integer>(data_);
  }
  double number() const {
    return Is(Kind::kFloat) ? std::get<double>(data_) : static_cast<double>(integer());
  }
  const MarkedString& string() const { return *std::get<StringPtr>(data_); }
  const StringPtr& string_ptr() const { return std::get<StringPtr>(data_); }
  const Sequence& sequence() const { return *std::get<std::shared_ptr<const Sequence>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  const std::shared_ptr<const Dict>& dict_ptr() const {
    return std::get<std::shared_ptr<const Dict>>(data_);
  }
  const Range& range() const { return *std::get<std::shared_ptr<const Range>>(data_); }
  Iterator& iterator() const { return *std::get<std::shared_ptr<Iterator>>(data_); }
  const DictView& view() const { return *std::get<std::shared_ptr<const DictView>>(data_); }
  Namespace& name_space() const { return *std::get<Namespace*>(data_); }
  const Macro& macro() const { return *std::get<const Macro*>(data_); }
  Loop& loop() const { return *std::get<Loop*>(data_); }
  const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }

  // How deep containers are nested below: 0 for scalars.
  int depth() const;
  // How many values a walk over this one visits; strings count their size too.
  size_t weight() const;
  // The address of what is shared, for `is sameas`.
  const void* identity() const;

 private:
  std::variant<Undefined, None, bool, Integer, double, StringPtr, std::shared_ptr<const Sequence>,
               std::shared_ptr<const Dict>, std::shared_ptr<const Range>, std::shared_ptr<Iterator>,
               std::shared_ptr<const DictView>, Namespace*, const Macro*, Loop*,
               std::shared_ptr<const Function>>
      data_;
};

struct Sequence {
  enum class Type { kList, kTuple, kGroup };  // kGroup: a tuple with names `grouper` and `list`
  Values items;
  Type type = Type::kList;
  int depth = 1;
  size_t weight = 1;
};

// Keeps insertion order, as Python does. Keys are compared as Python compares them: 1 == 1.0 ==
// True.
class Dict {
 public:
  using Entry = std::pair<Value, Value>;

  // The key must be hashable (IsHashable); an equal key keeps its place and gets the new value.
  void Set(Value key, Value value);
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  int depth() const { return depth_; }
  size_t weight() const { return weight_; }

 private:
  size_t Locate(const Value& key, size_t hash) const;

  std::vector<Entry> entries_;
  std::unordered_multimap<size_t, size_t> index_;  // hash → entry, once there are many
  int depth_ = 1;
  size_t weight_ = 1;
};

// What generators and `reversed` give: can be walked once.
struct Iterator {
  Values items;
  size_t next = 0;
  int depth = 1;
  size_t weight = 1;
};

struct DictView {
  enum class Type { kKeys, kValues, kItems };
  std::shared_ptr<const Dict> dict;
  Type type;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
};

struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

// A global function or a method bound to its object.
struct Function {
  const Builtin* builtin;
  Value self;
};

// `loop` inside {% for %}.
struct Loop {
  Values items;
  size_t index0 = 0;
  int depth0 = 0;
  std::optional<Values> last_changed;
  const ForLoop* recursive = nullptr;  // when marked so: what loop(items) renders
  std::shared_ptr<Scope> scope;        // where it was opened
};

// Containers: an error when they would be too deep or too heavy.
Result<Value> MakeSequence(Values items, Sequence::Type type = Sequence::Type::kList);
Result<Value> MakeDict(Dict dict);
Result<Value> MakeIterator(Values items);

// Python's bool(value).
bool IsTrue(const Value& value);
bool IsHashable(const Value& value);
size_t HashOf(const Value& value);  // equal values have equal hashes; value is hashable
bool AreEqual(const Value& left, const Value& right);
// The sign of left - right for <, <=, >, >=; nullopt when not ordered because of a NaN; an error
// where Python raises TypeError.
Result<std::optional<int>> Compare(const Value& left, const Value& right);

// As type(value).__name__ says it.
std::string TypeName(const Value& value);
// What len() gives, nullopt for types without length.
std::optional<size_t> LengthOf(const Value& value);
bool IsIterable(const Value& value);
// list(value). Walks an Iterator to its end.
Result<Values> ToItems(const Value& value);

}  // namespace nibble::text::jinja
