// What one rendering needs besides the syntax tree: limits, storage, and the operations that
// filters and methods share with the interpreter. Thread-safety: one rendering, one thread.
#pragma once

#include <cstdint>
#include <ctime>
#include <deque>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/jinja/ast.h"
#include "text/jinja/builtins.h"
#include "text/jinja/value.h"

namespace nibble::text::jinja {

struct Limits {
  int64_t steps = 20'000'000;           // nodes evaluated, values touched, bytes looked at
  size_t allocated_bytes = 256u << 20;  // made by operations, whether still alive or not
  int depth = 400;                      // statements and expressions in each other, macros included
  Integer range_length = 100'000;       // as in jinja2's sandbox
};

// Variables of one scope. Assignments go to the innermost scope; reading falls through to the
// parents. Kept alive by the macros defined in it.
class Scope {
 public:
  explicit Scope(std::shared_ptr<Scope> parent) : parent_(std::move(parent)) {}

  void Set(std::string_view name, Value value);
  const Value* Find(std::string_view name) const;

 private:
  std::shared_ptr<Scope> parent_;
  std::vector<std::pair<std::string_view, Value>> variables_;  // names live in the syntax tree
};

struct Macro {
  const MacroDefinition* definition;
  std::shared_ptr<Scope> scope;  // where it was defined
};

class Runtime {
 public:
  explicit Runtime(const Limits& limits, std::time_t now) : limits_(limits), now_(now) {}
  virtual ~Runtime() = default;
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  std::time_t now() const { return now_; }
  const Limits& limits() const { return limits_; }

  // Accounting. Every operation pays for what it looks at and for what it makes.
  Status Spend(int64_t steps);
  Status SpendOn(const Value& value) { return Spend(static_cast<int64_t>(value.weight())); }
  Status Allocate(size_t bytes);

  // Results, paid for.
  Result<Value> MakeString(StringBuilder& builder, bool markup = false);
  Result<Value> MakeList(Values items, Sequence::Type type = Sequence::Type::kList);
  Result<Value> MakeIterator(Values items);
  Result<Value> MakeDict(Dict dict);
  Result<Value> Slice(const MarkedString& text, size_t begin, size_t end);
  // str(value), paid for.
  Result<StringPtr> Str(const Value& value);

  // list(value), paid for.
  Result<Values> Items(const Value& value);

  Result<Value> Call(const Value& callee, Arguments arguments);
  Result<Value> ApplyFilter(std::string_view name, const Value& input, Arguments arguments);
  Result<bool> ApplyTest(std::string_view name, const Value& input, Arguments arguments);

  // object.name: attributes first, then items.
  Result<Value> GetAttribute(const Value& object, std::string_view name);
  // object[key]: items first, then attributes.
  Result<Value> GetItem(const Value& object, const Value& key);
  Result<Value> GetSlice(const Value& object, const Value& begin, const Value& end,
                         const Value& step);

  Result<Value> Add(const Value& left, const Value& right);
  Result<Value> Apply(BinaryOperator op, const Value& left, const Value& right);
  Result<Value> Negate(const Value& value);
  Result<bool> Holds(CompareOperator op, const Value& left, const Value& right);
  Result<bool> Contains(const Value& container, const Value& item);

  Namespace* NewNamespace();
  Macro* NewMacro();
  Loop* NewLoop();

 protected:
  virtual Result<Value> CallMacro(const Macro& macro, Arguments arguments) = 0;
  virtual Result<Value> CallLoop(Loop& loop, const Value& iterable) = 0;

 private:
  Result<Value> Multiply(const Value& left, const Value& right);
  Result<Value> Arithmetic(BinaryOperator op, const Value& left, const Value& right);
  std::optional<Value> FindAttribute(const Value& object, std::string_view name);
  Result<std::optional<Value>> FindItem(const Value& object, const Value& key);

  Limits limits_;
  std::time_t now_;
  int64_t steps_ = 0;
  size_t allocated_ = 0;
  std::deque<Namespace> namespaces_;
  std::deque<Macro> macros_;
  std::deque<Loop> loops_;
};

// text % values and text.format(...), in format.cc.
Result<Value> FormatPercent(Runtime& runtime, const MarkedString& format, const Value& values);
Result<Value> FormatBraces(Runtime& runtime, const MarkedString& format,
                           const Arguments& arguments);

// MarkupSafe's escape.
StringPtr EscapeHtml(const MarkedString& text);

}  // namespace nibble::text::jinja
