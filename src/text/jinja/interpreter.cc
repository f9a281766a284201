#include "text/jinja/interpreter.h"

#include <algorithm>
#include <utility>

#include "text/jinja/python_text.h"

namespace nibble::text::jinja {
namespace {

constexpr size_t kMaxOutputBytes = kMaxStringBytes;

Result<Value> AsValue(bool value) { return Value(value); }

}  // namespace

void Interpreter::SetGlobal(std::string_view name, Value value) {
  globals_->Set(name, std::move(value));
}

Result<StringPtr> Interpreter::Render(const Body& body) {
  StringBuilder out;
  Frame frame{std::make_shared<Scope>(globals_), &out};
  const Result<Flow> flow = Execute(body, frame);
  if (!flow)
    return tl::unexpected<Error>(flow.error().Context(fmt::format("line {}", error_line_)));
  if (out.overflowed()) {
    return Fail(Code::kInvalidArgument, "the rendered prompt is longer than {} bytes",
                kMaxOutputBytes);
  }
  return out.Finish();
}

Status Interpreter::Enter() {
  if (++depth_ > limits().depth) {
    --depth_;
    return Fail(Code::kInvalidArgument, "macros or loops call each other deeper than {} levels",
                limits().depth);
  }
  const Status status = Spend(1);
  if (!status) --depth_;
  return status;
}

// ---- Statements ----

Result<Interpreter::Flow> Interpreter::Execute(const Body& body, Frame& frame) {
  for (const Statement& statement : body) {
    NIBBLE_ASSIGN(const Flow flow, ExecuteStatement(statement, frame));
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::ExecuteStatement(const Statement& statement, Frame& frame) {
  const auto run = [&]() -> Result<Flow> {
    NIBBLE_TRY(Enter());
    auto flow = std::visit([&](const auto& node) { return Run(node, frame); }, statement.node);
    Leave();
    return flow;
  };
  Result<Flow> flow = run();
  if (!flow && error_line_ == 0) error_line_ = statement.line;
  return flow;
}

Result<Interpreter::Flow> Interpreter::Run(const Data& node, Frame& frame) {
  NIBBLE_TRY(Spend(static_cast<int64_t>(node.text->size() / 64)));
  frame.out->Append(*node.text);
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::Run(const Output& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value value, Evaluate(*node.value, frame));
  NIBBLE_TRY(SpendOn(value));
  AppendStr(*frame.out, value);
  if (frame.out->overflowed()) {
    return Fail(Code::kInvalidArgument, "the rendered prompt is longer than {} bytes",
                kMaxOutputBytes);
  }
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::Run(const ForLoop& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value iterable, Evaluate(*node.iterable, frame));
  NIBBLE_ASSIGN(Values items, Items(iterable));
  return RunLoop(node, std::move(items), 0, frame);
}

Result<Values> Interpreter::FilterItems(const ForLoop& node, Values items, Frame& frame) {
  Values kept;
  for (Value& item : items) {
    Frame inner{std::make_shared<Scope>(frame.scope), frame.out};
    NIBBLE_TRY(AssignTo(node.target, item, *inner.scope));
    NIBBLE_ASSIGN(const Value keep, Evaluate(*node.condition, inner));
    if (IsTrue(keep)) kept.push_back(std::move(item));
  }
  return kept;
}

Result<Interpreter::Flow> Interpreter::RunLoop(const ForLoop& node, Values items, int depth0,
                                               Frame& frame) {
  if (node.condition) {
    NIBBLE_ASSIGN(items, FilterItems(node, std::move(items), frame));
  }
  if (items.empty()) {
    Frame inner{std::make_shared<Scope>(frame.scope), frame.out};
    return Execute(node.otherwise, inner);
  }
  Loop* loop = nullptr;
  if (node.uses_loop || node.recursive) {
    NIBBLE_TRY(Allocate(sizeof(Loop)));
    loop = NewLoop();
    loop->items = items;
    loop->depth0 = depth0;
    loop->recursive = node.recursive ? &node : nullptr;
    loop->scope = frame.scope;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    NIBBLE_TRY(Spend(1));
    Frame inner{std::make_shared<Scope>(frame.scope), frame.out};
    if (loop != nullptr) {
      loop->index0 = i;
      inner.scope->Set("loop", Value(loop));
    }
    NIBBLE_TRY(AssignTo(node.target, items[i], *inner.scope));
    NIBBLE_ASSIGN(const Flow flow, Execute(node.body, inner));
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

Result<Value> Interpreter::CallLoop(Loop& loop, const Value& iterable) {
  if (loop.recursive == nullptr) {
    return Fail(Code::kInvalidArgument,
                "loop(...) works only in a loop that is marked 'recursive'");
  }
  NIBBLE_ASSIGN(Values items, Items(iterable));
  StringBuilder out;
  Frame frame{loop.scope, &out};
  NIBBLE_TRY(RunLoop(*loop.recursive, std::move(items), loop.depth0 + 1, frame));
  return MakeString(out);
}

Result<Interpreter::Flow> Interpreter::Run(const If& node, Frame& frame) {
  for (const auto& [condition, body] : node.branches) {
    NIBBLE_ASSIGN(const Value holds, Evaluate(*condition, frame));
    if (IsTrue(holds)) return Execute(body, frame);
  }
  return Execute(node.otherwise, frame);
}

Status Interpreter::AssignTo(const Target& target, Value value, Scope& scope) {
  switch (target.type) {
    case Target::Type::kName:
      scope.Set(target.name, std::move(value));
      return {};
    case Target::Type::kNamespaceAttribute: {
      const Value* object = scope.Find(target.name);
      if (object == nullptr || !object->Is(Kind::kNamespace)) {
        return Fail(Code::kInvalidArgument,
                    "cannot assign to '{}.{}': '{}' is not a namespace (make it with namespace())",
                    target.name, target.attribute, target.name);
      }
      if (target.attribute.starts_with('_')) {
        return Fail(Code::kInvalidArgument, "a namespace cannot store '{}': it begins with '_'",
                    target.attribute);
      }
      object->name_space().Set(target.attribute, std::move(value));
      return {};
    }
    case Target::Type::kTuple:
      break;
  }
  if (value.IsUndefined() || !IsIterable(value)) {
    return Fail(Code::kInvalidArgument, "a value of type {} cannot be unpacked into {} names",
                TypeName(value), target.parts.size());
  }
  NIBBLE_ASSIGN(Values items, Items(value));
  if (items.size() != target.parts.size()) {
    return Fail(Code::kInvalidArgument, "{} values cannot be unpacked into {} names", items.size(),
                target.parts.size());
  }
  for (size_t i = 0; i < items.size(); ++i) {
    NIBBLE_TRY(AssignTo(target.parts[i], std::move(items[i]), scope));
  }
  return {};
}

Result<Interpreter::Flow> Interpreter::Run(const Assign& node, Frame& frame) {
  NIBBLE_ASSIGN(Value value, Evaluate(*node.value, frame));
  NIBBLE_TRY(AssignTo(node.target, std::move(value), *frame.scope));
  return Flow::kNormal;
}

Result<Value> Interpreter::Capture(const Body& body, const Frame& frame) {
  StringBuilder out;
  Frame inner{std::make_shared<Scope>(frame.scope), &out};
  NIBBLE_TRY(Execute(body, inner));
  return MakeString(out);
}

Result<Interpreter::Flow> Interpreter::Run(const AssignBlock& node, Frame& frame) {
  NIBBLE_ASSIGN(Value text, Capture(node.body, frame));
  if (node.filter) {
    NIBBLE_ASSIGN(text, ApplyToBlock(*node.filter, text, frame));
  }
  NIBBLE_TRY(AssignTo(node.target, std::move(text), *frame.scope));
  return Flow::kNormal;
}

Value Interpreter::NewMacroValue(const MacroDefinition& definition, const Frame& frame) {
  Macro* macro = NewMacro();
  macro->definition = &definition;
  macro->scope = frame.scope;
  return Value(static_cast<const Macro*>(macro));
}

Result<Interpreter::Flow> Interpreter::Run(const MacroDefinition& node, Frame& frame) {
  NIBBLE_TRY(Allocate(sizeof(Macro)));
  frame.scope->Set(node.name, NewMacroValue(node, frame));
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::Run(const CallBlock& node, Frame& frame) {
  const auto& call = std::get<CallExpression>(node.call->node);
  NIBBLE_ASSIGN(const Value callee, Evaluate(*call.callee, frame));
  NIBBLE_ASSIGN(Arguments arguments, EvalArguments(call.arguments, frame));
  NIBBLE_TRY(Allocate(sizeof(Macro)));
  arguments.named.emplace_back("caller", NewMacroValue(node.body, frame));
  NIBBLE_ASSIGN(const Value text, Runtime::Call(callee, std::move(arguments)));
  NIBBLE_TRY(SpendOn(text));
  AppendStr(*frame.out, text);
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::Run(const FilterBlock& node, Frame& frame) {
  NIBBLE_ASSIGN(Value text, Capture(node.body, frame));
  NIBBLE_ASSIGN(text, ApplyToBlock(*node.filter, text, frame));
  AppendStr(*frame.out, text);
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::Run(const With& node, Frame& frame) {
  Frame inner{std::make_shared<Scope>(frame.scope), frame.out};
  for (const auto& [target, expression] : node.bindings) {
    NIBBLE_ASSIGN(Value value, Evaluate(*expression, frame));  // sees the scope outside
    NIBBLE_TRY(AssignTo(target, std::move(value), *inner.scope));
  }
  return Execute(node.body, inner);
}

Result<Interpreter::Flow> Interpreter::Run(const Generation& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value text, Capture(node.body, frame));
  frame.out->Append(text.string());
  return Flow::kNormal;
}

// Python's binding of arguments, as jinja2's Macro does it.
Result<Value> Interpreter::CallMacro(const Macro& macro, Arguments arguments) {
  const MacroDefinition& definition = *macro.definition;
  const std::vector<std::string>& names = definition.parameters.names;
  const Expressions& defaults = definition.parameters.defaults;
  StringBuilder out;
  Frame frame{std::make_shared<Scope>(macro.scope), &out};
  const auto take_named = [&](std::string_view name) -> std::optional<Value> {
    for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
      if (it->first != name) continue;
      Value value = std::move(it->second);
      arguments.named.erase(it);
      return value;
    }
    return std::nullopt;
  };

  NIBBLE_TRY(Enter());
  const auto run = [&]() -> Status {
    std::vector<size_t> missing;
    for (size_t i = 0; i < names.size(); ++i) {
      std::optional<Value> value = i < arguments.positional.size()
                                       ? std::optional<Value>(arguments.positional[i])
                                       : take_named(names[i]);
      if (value) {
        frame.scope->Set(names[i], std::move(*value));
      } else {
        frame.scope->Set(names[i], Value::MakeUndefined(
                                       fmt::format("parameter '{}' was not provided", names[i])));
        missing.push_back(i);
      }
    }
    const bool named_caller = std::find(names.begin(), names.end(), "caller") != names.end();
    if (definition.uses_caller && !named_caller) {
      std::optional<Value> caller = take_named("caller");
      frame.scope->Set("caller", caller && !caller->IsNone()
                                     ? std::move(*caller)
                                     : Value::MakeUndefined("No caller defined"));
    }
    if (definition.uses_kwargs) {
      Dict kwargs;
      for (auto& [name, value] : arguments.named) kwargs.Set(Value::String(name), std::move(value));
      NIBBLE_ASSIGN(Value dict, MakeDict(std::move(kwargs)));
      frame.scope->Set("kwargs", std::move(dict));
    } else if (!arguments.named.empty()) {
      return Fail(Code::kInvalidArgument, "macro '{}' takes no argument named '{}'",
                  definition.name, arguments.named.front().first);
    }
    const size_t positional = std::min(arguments.positional.size(), names.size());
    if (definition.uses_varargs) {
      Values rest(arguments.positional.begin() + static_cast<ptrdiff_t>(positional),
                  arguments.positional.end());
      NIBBLE_ASSIGN(Value tuple, MakeList(std::move(rest), Sequence::Type::kTuple));
      frame.scope->Set("varargs", std::move(tuple));
    } else if (arguments.positional.size() > names.size()) {
      return Fail(Code::kInvalidArgument, "macro '{}' takes at most {} arguments, not {}",
                  definition.name, names.size(), arguments.positional.size());
    }
    for (const size_t i : missing) {
      const size_t first_default = names.size() - defaults.size();
      if (i < first_default) continue;
      NIBBLE_ASSIGN(Value value, Evaluate(*defaults[i - first_default], frame));
      frame.scope->Set(names[i], std::move(value));
    }
    NIBBLE_TRY(Execute(definition.body, frame));
    return {};
  };
  const Status status = run();
  Leave();
  NIBBLE_TRY(status);
  return MakeString(out);
}

// ---- Expressions ----

Result<Value> Interpreter::Evaluate(const Expression& expression, Frame& frame) {
  const auto run = [&]() -> Result<Value> {
    NIBBLE_TRY(Enter());
    auto value = std::visit([&](const auto& node) { return Eval(node, frame); }, expression.node);
    Leave();
    return value;
  };
  Result<Value> value = run();
  if (!value && error_line_ == 0) error_line_ = expression.line;
  return value;
}

Result<Value> Interpreter::Eval(const Name& node, Frame& frame) {
  if (const Value* value = frame.scope->Find(node.name)) return *value;
  if (const Builtin* function = FindGlobal(node.name)) {
    return Value(std::make_shared<const Function>(Function{function, Value()}));
  }
  return Value::MakeUndefined(fmt::format("'{}' is undefined", node.name));
}

Result<Value> Interpreter::Eval(const ListLiteral& node, Frame& frame) {
  Values items;
  for (const ExpressionPtr& item : node.items) {
    NIBBLE_ASSIGN(Value value, Evaluate(*item, frame));
    items.push_back(std::move(value));
  }
  return MakeList(std::move(items), node.type);
}

Result<Value> Interpreter::Eval(const DictLiteral& node, Frame& frame) {
  Dict dict;
  for (const auto& [key_node, value_node] : node.entries) {
    NIBBLE_ASSIGN(Value key, Evaluate(*key_node, frame));
    NIBBLE_ASSIGN(Value value, Evaluate(*value_node, frame));
    if (!IsHashable(key)) {
      return Fail(Code::kInvalidArgument, "a '{}' cannot be a key", TypeName(key));
    }
    dict.Set(std::move(key), std::move(value));
  }
  return MakeDict(std::move(dict));
}

Result<Value> Interpreter::Eval(const Conditional& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value holds, Evaluate(*node.condition, frame));
  if (IsTrue(holds)) return Evaluate(*node.then, frame);
  if (node.otherwise) return Evaluate(*node.otherwise, frame);
  return Value::MakeUndefined("the inline if-expression evaluated to false and has no else");
}

Result<Value> Interpreter::Eval(const Binary& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value left, Evaluate(*node.left, frame));
  NIBBLE_ASSIGN(const Value right, Evaluate(*node.right, frame));
  return Apply(node.op, left, right);
}

Result<Value> Interpreter::Eval(const Logical& node, Frame& frame) {
  NIBBLE_ASSIGN(Value left, Evaluate(*node.left, frame));
  if (IsTrue(left) != node.is_and) return left;
  return Evaluate(*node.right, frame);
}

Result<Value> Interpreter::Eval(const Unary& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value operand, Evaluate(*node.operand, frame));
  if (node.op == UnaryOperator::kNot) return AsValue(!IsTrue(operand));
  if (node.op == UnaryOperator::kNegative) return Negate(operand);
  if (operand.Is(Kind::kFloat)) return operand;
  if (operand.IsInteger()) return Value(operand.integer());
  return Fail(Code::kInvalidArgument, "'+' does not work on '{}'", TypeName(operand));
}

Result<Value> Interpreter::Eval(const Comparison& node, Frame& frame) {
  NIBBLE_ASSIGN(Value left, Evaluate(*node.first, frame));
  for (const auto& [op, operand] : node.rest) {
    NIBBLE_ASSIGN(Value right, Evaluate(*operand, frame));
    NIBBLE_ASSIGN(const bool holds, Holds(op, left, right));
    if (!holds) return AsValue(false);
    left = std::move(right);
  }
  return AsValue(true);
}

Result<Value> Interpreter::Eval(const Concatenation& node, Frame& frame) {
  StringBuilder out;
  for (const ExpressionPtr& part : node.parts) {
    NIBBLE_ASSIGN(const Value value, Evaluate(*part, frame));
    NIBBLE_TRY(SpendOn(value));
    AppendStr(out, value);
  }
  return MakeString(out);
}

Result<Value> Interpreter::Eval(const Attribute& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value object, Evaluate(*node.object, frame));
  return GetAttribute(object, node.name);
}

Result<Value> Interpreter::Eval(const Subscript& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value object, Evaluate(*node.object, frame));
  const auto* slice = std::get_if<SliceIndex>(&node.index->node);
  if (slice == nullptr) {
    NIBBLE_ASSIGN(const Value index, Evaluate(*node.index, frame));
    return GetItem(object, index);
  }
  Value parts[3] = {None{}, None{}, None{}};
  const ExpressionPtr* expressions[3] = {&slice->begin, &slice->end, &slice->step};
  for (size_t i = 0; i < 3; ++i) {
    if (*expressions[i]) {
      NIBBLE_ASSIGN(parts[i], Evaluate(**expressions[i], frame));
    }
  }
  return GetSlice(object, parts[0], parts[1], parts[2]);
}

Result<Value> Interpreter::Eval(const SliceIndex&, Frame&) {
  return Fail(Code::kInvalidArgument, "a slice cannot be one of several indices");
}

Result<Arguments> Interpreter::EvalArguments(const CallArguments& node, Frame& frame) {
  Arguments arguments;
  for (const ExpressionPtr& expression : node.positional) {
    NIBBLE_ASSIGN(Value value, Evaluate(*expression, frame));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, expression] : node.named) {
    NIBBLE_ASSIGN(Value value, Evaluate(*expression, frame));
    arguments.named.emplace_back(name, std::move(value));
  }
  if (node.star) {
    NIBBLE_ASSIGN(const Value rest, Evaluate(*node.star, frame));
    NIBBLE_ASSIGN(Values items, Items(rest));
    for (Value& item : items) arguments.positional.push_back(std::move(item));
  }
  if (node.double_star) {
    NIBBLE_ASSIGN(const Value rest, Evaluate(*node.double_star, frame));
    if (!rest.Is(Kind::kDict)) {
      return Fail(Code::kInvalidArgument, "** needs a dict, not '{}'", TypeName(rest));
    }
    for (const auto& [key, value] : rest.dict().entries()) {
      if (!key.IsString()) return Fail(Code::kInvalidArgument, "names after ** must be strings");
      arguments.named.emplace_back(key.string().bytes, value);
    }
  }
  return arguments;
}

Result<Value> Interpreter::Eval(const CallExpression& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value callee, Evaluate(*node.callee, frame));
  NIBBLE_ASSIGN(Arguments arguments, EvalArguments(node.arguments, frame));
  return Runtime::Call(callee, std::move(arguments));
}

Result<Value> Interpreter::Eval(const FilterCall& node, Frame& frame) {
  return EvalFilter(node, nullptr, frame);
}

Result<Value> Interpreter::EvalFilter(const FilterCall& node, const Value* block_text,
                                      Frame& frame) {
  Value input;
  if (!node.input) {
    if (block_text != nullptr) input = *block_text;
  } else if (block_text != nullptr) {
    NIBBLE_ASSIGN(input, ApplyToBlock(*node.input, *block_text, frame));
  } else {
    NIBBLE_ASSIGN(input, Evaluate(*node.input, frame));
  }
  NIBBLE_ASSIGN(Arguments arguments, EvalArguments(node.arguments, frame));
  return ApplyFilter(node.name, input, std::move(arguments));
}

Result<Value> Interpreter::ApplyToBlock(const Expression& filters, const Value& text,
                                        Frame& frame) {
  NIBBLE_TRY(Enter());
  auto result = EvalFilter(std::get<FilterCall>(filters.node), &text, frame);
  Leave();
  if (!result && error_line_ == 0) error_line_ = filters.line;
  return result;
}

Result<Value> Interpreter::Eval(const TestCall& node, Frame& frame) {
  NIBBLE_ASSIGN(const Value input, Evaluate(*node.input, frame));
  NIBBLE_ASSIGN(Arguments arguments, EvalArguments(node.arguments, frame));
  NIBBLE_ASSIGN(const bool holds, ApplyTest(node.name, input, std::move(arguments)));
  return AsValue(holds);
}

}  // namespace nibble::text::jinja
