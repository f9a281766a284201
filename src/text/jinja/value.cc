#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace nibble::text::jinja {
namespace {

constexpr size_t kIndexFrom = 8;  // entries; smaller dicts are searched in order
constexpr size_t kNotFound = static_cast<size_t>(-1);

struct Extent {
  int depth = 1;
  size_t weight = 1;
};

Extent ExtentOf(const Values& items) {
  Extent extent;
  for (const Value& item : items) {
    extent.depth = std::max(extent.depth, item.depth() + 1);
    extent.weight += item.weight();
  }
  return extent;
}

Status CheckExtent(int depth, size_t weight) {
  if (weight > kMaxValueWeight) {
    return Fail(Code::kInvalidArgument, "a list or dict holds more than {} values",
                kMaxValueWeight);
  }
  if (depth > kMaxValueDepth) {
    return Fail(Code::kInvalidArgument, "lists and dicts are nested deeper than {} levels",
                kMaxValueDepth);
  }
  return {};
}

bool SameItems(const Values& left, const Values& right) {
  return left.size() == right.size() &&
         std::equal(left.begin(), left.end(), right.begin(), AreEqual);
}

bool SameDicts(const Dict& left, const Dict& right) {
  if (left.size() != right.size()) return false;
  return std::all_of(left.entries().begin(), left.entries().end(), [&](const Dict::Entry& entry) {
    const Value* other = right.Find(entry.first);
    return other != nullptr && AreEqual(entry.second, *other);
  });
}

bool IsTuple(const Value& value) {
  return value.Is(Kind::kSequence) && value.sequence().type != Sequence::Type::kList;
}

// Exact comparison of an integer with a float.
std::optional<int> CompareNumbers(const Value& left, const Value& right) {
  if (left.IsInteger() && right.IsInteger()) {
    const Integer a = left.integer(), b = right.integer();
    return a < b ? -1 : a > b;
  }
  const long double a =
      left.Is(Kind::kFloat) ? left.number() : static_cast<long double>(left.integer());
  const long double b =
      right.Is(Kind::kFloat) ? right.number() : static_cast<long double>(right.integer());
  if (std::isnan(a) || std::isnan(b)) return std::nullopt;
  return a < b ? -1 : a > b;
}

Result<std::optional<int>> CompareItems(const Values& left, const Values& right) {
  for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    if (!AreEqual(left[i], right[i])) return Compare(left[i], right[i]);
  }
  return std::optional<int>(left.size() < right.size() ? -1 : left.size() > right.size());
}

Result<Values> ViewItems(const DictView& view) {
  Values items;
  items.reserve(view.dict->size());
  for (const auto& [key, value] : view.dict->entries()) {
    if (view.type == DictView::Type::kKeys) {
      items.push_back(key);
    } else if (view.type == DictView::Type::kValues) {
      items.push_back(value);
    } else {
      NIBBLE_ASSIGN(Value pair, MakeSequence({key, value}, Sequence::Type::kTuple));
      items.push_back(std::move(pair));
    }
  }
  return items;
}

}  // namespace

Value Value::MakeUndefined(std::string why) {
  return Value(Undefined{std::make_shared<const std::string>(std::move(why))});
}

int Value::depth() const {
  switch (kind()) {
    case Kind::kSequence:
      return sequence().depth;
    case Kind::kDict:
      return dict().depth();
    case Kind::kIterator:
      return iterator().depth;
    case Kind::kDictView:
      return view().dict->depth() + 1;
    case Kind::kFunction:
      return function().self.depth() + 1;
    default:
      return 0;
  }
}

size_t Value::weight() const {
  switch (kind()) {
    case Kind::kString:  // code points have to be counted where they are no bytes
      return 1 + string().size() / (string().ascii ? 16 : 8);
    case Kind::kSequence:
      return sequence().weight;
    case Kind::kDict:
      return dict().weight();
    case Kind::kIterator:
      return iterator().weight;
    case Kind::kDictView:
      return view().dict->weight();
    default:
      return 1;
  }
}

const void* Value::identity() const {
  switch (kind()) {
    case Kind::kString:
      return &string();
    case Kind::kSequence:
      return &sequence();
    case Kind::kDict:
      return &dict();
    case Kind::kRange:
      return &range();
    case Kind::kIterator:
      return &iterator();
    case Kind::kDictView:
      return &view();
    case Kind::kNamespace:
      return &name_space();
    case Kind::kMacro:
      return &macro();
    case Kind::kLoop:
      return &loop();
    case Kind::kFunction:
      return &function();
    default:
      return nullptr;
  }
}

void Dict::Set(Value key, Value value) {
  const size_t hash = HashOf(key);
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  weight_ += key.weight() + value.weight();
  const size_t at = Locate(key, hash);
  if (at != kNotFound) {
    entries_[at].second = std::move(value);
    return;
  }
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() == kIndexFrom) {
    for (size_t i = 0; i < kIndexFrom; ++i) index_.emplace(HashOf(entries_[i].first), i);
  } else if (entries_.size() > kIndexFrom) {
    index_.emplace(hash, entries_.size() - 1);
  }
}

size_t Dict::Locate(const Value& key, size_t hash) const {
  if (entries_.size() < kIndexFrom) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (AreEqual(entries_[i].first, key)) return i;
    }
    return kNotFound;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    if (AreEqual(entries_[it->second].first, key)) return it->second;
  }
  return kNotFound;
}

const Value* Dict::Find(const Value& key) const {
  const size_t at = Locate(key, HashOf(key));
  return at == kNotFound ? nullptr : &entries_[at].second;
}

const Value* Dict::Find(std::string_view key) const {
  if (entries_.size() >= kIndexFrom) return Find(Value::String(key));
  for (const auto& [name, value] : entries_) {
    if (name.IsString() && name.string().bytes == key) return &value;
  }
  return nullptr;
}

const Value* Namespace::Find(std::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::Set(std::string_view name, Value value) {
  for (auto& [key, old] : attributes) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  attributes.emplace_back(name, std::move(value));
}

Result<Value> MakeSequence(Values items, Sequence::Type type) {
  const Extent extent = ExtentOf(items);
  NIBBLE_TRY(CheckExtent(extent.depth, extent.weight));
  return Value(std::make_shared<const Sequence>(
      Sequence{std::move(items), type, extent.depth, extent.weight}));
}

Result<Value> MakeDict(Dict dict) {
  NIBBLE_TRY(CheckExtent(dict.depth(), dict.weight()));
  return Value(std::make_shared<const Dict>(std::move(dict)));
}

Result<Value> MakeIterator(Values items) {
  const Extent extent = ExtentOf(items);
  NIBBLE_TRY(CheckExtent(extent.depth, extent.weight));
  return Value(
      std::make_shared<Iterator>(Iterator{std::move(items), 0, extent.depth, extent.weight}));
}

bool IsTrue(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    default: {
      if (value.Is(Kind::kLoop)) return true;
      const std::optional<size_t> length = LengthOf(value);
      return !length || *length > 0;
    }
  }
}

bool IsHashable(const Value& value) {
  if (value.Is(Kind::kDict) || value.Is(Kind::kDictView)) return false;
  if (!value.Is(Kind::kSequence)) return true;
  const Sequence& sequence = value.sequence();
  return sequence.type != Sequence::Type::kList &&
         std::all_of(sequence.items.begin(), sequence.items.end(), IsHashable);
}

size_t HashOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 1;
    case Kind::kNone:
      return 2;
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
      return std::hash<double>{}(value.number() + 0.0);  // equal numbers: equal doubles
    case Kind::kString:
      return std::hash<std::string_view>{}(value.string().bytes);
    case Kind::kSequence: {
      size_t hash = 3;
      for (const Value& item : value.sequence().items) hash = hash * 1000003 ^ HashOf(item);
      return hash;
    }
    case Kind::kRange:
      return static_cast<size_t>(value.range().length);
    default:
      return std::hash<const void*>{}(value.identity());
  }
}

bool AreEqual(const Value& left, const Value& right) {
  if (left.IsNumber() && right.IsNumber()) return CompareNumbers(left, right) == 0;
  if (left.kind() != right.kind()) return false;
  switch (left.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return left.string().bytes == right.string().bytes;
    case Kind::kSequence:
      return IsTuple(left) == IsTuple(right) &&
             SameItems(left.sequence().items, right.sequence().items);
    case Kind::kDict:
      return SameDicts(left.dict(), right.dict());
    case Kind::kRange: {
      const Range &a = left.range(), &b = right.range();
      return a.length == b.length && (a.length == 0 || a.start == b.start) &&
             (a.length < 2 || a.step == b.step);
    }
    default:
      return left.identity() == right.identity();
  }
}

Result<std::optional<int>> Compare(const Value& left, const Value& right) {
  for (const Value* side : {&left, &right}) {
    if (side->IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *side->undefined().why);
  }
  if (left.IsNumber() && right.IsNumber()) return CompareNumbers(left, right);
  if (left.IsString() && right.IsString()) {
    const int sign = left.string().bytes.compare(right.string().bytes);
    return std::optional<int>(sign < 0 ? -1 : sign > 0);
  }
  if (left.Is(Kind::kSequence) && right.Is(Kind::kSequence) && IsTuple(left) == IsTuple(right)) {
    return CompareItems(left.sequence().items, right.sequence().items);
  }
  return Fail(Code::kInvalidArgument, "'{}' and '{}' cannot be ordered", TypeName(left),
              TypeName(right));
}

std::string TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.string().markup ? "Markup" : "str";
    case Kind::kSequence:
      return IsTuple(value) ? "tuple" : "list";
    case Kind::kDict:
      return "dict";
    case Kind::kRange:
      return "range";
    case Kind::kIterator:
      return "generator";
    case Kind::kDictView:
      switch (value.view().type) {
        case DictView::Type::kKeys:
          return "dict_keys";
        case DictView::Type::kValues:
          return "dict_values";
        default:
          return "dict_items";
      }
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kMacro:
      return "Macro";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kFunction:
      return "function";
  }
  return "object";
}

std::optional<size_t> LengthOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return CountCodePoints(value.string());
    case Kind::kSequence:
      return value.sequence().items.size();
    case Kind::kDict:
      return value.dict().size();
    case Kind::kRange:
      return static_cast<size_t>(value.range().length);
    case Kind::kDictView:
      return value.view().dict->size();
    case Kind::kLoop:
      return value.loop().items.size();
    default:
      return std::nullopt;
  }
}

bool IsIterable(const Value& value) {
  return LengthOf(value).has_value() || value.Is(Kind::kIterator);
}

Result<Values> ToItems(const Value& value) {
  Values items;
  switch (value.kind()) {
    case Kind::kUndefined:
      return items;
    case Kind::kString: {
      const MarkedString& text = value.string();
      for (size_t at = 0; at < text.size();) {
        const size_t length = CodePointLength(text.bytes, at);
        StringBuilder builder;
        builder.AppendSlice(text, at, at + length);
        items.emplace_back(builder.Finish());
        at += length;
      }
      return items;
    }
    case Kind::kSequence:
      return value.sequence().items;
    case Kind::kDict:
      for (const auto& [key, unused] : value.dict().entries()) items.push_back(key);
      return items;
    case Kind::kRange:
      for (Integer i = 0; i < value.range().length; ++i) items.emplace_back(value.range().At(i));
      return items;
    case Kind::kIterator: {
      Iterator& iterator = value.iterator();
      items.assign(iterator.items.begin() + static_cast<ptrdiff_t>(iterator.next),
                   iterator.items.end());
      iterator.next = iterator.items.size();
      return items;
    }
    case Kind::kDictView:
      return ViewItems(value.view());
    default:
      return Fail(Code::kInvalidArgument, "'{}' object is not iterable", TypeName(value));
  }
}

}  // namespace nibble::text::jinja
