// Walks the syntax tree and writes the prompt.
#pragma once

#include "base/error.h"
#include "text/jinja/ast.h"
#include "text/jinja/runtime.h"

namespace nibble::text::jinja {

class Interpreter : public Runtime {
 public:
  Interpreter(const Limits& limits, std::time_t now) : Runtime(limits, now) {}

  // Variables of the caller and of the model; later ones replace earlier ones.
  void SetGlobal(std::string_view name, Value value);  // the name must outlive the rendering

  // The error names the line.
  Result<StringPtr> Render(const Body& body);

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  // Where statements write, and the variables they see.
  struct Frame {
    std::shared_ptr<Scope> scope;
    StringBuilder* out;
  };

  Result<Flow> Execute(const Body& body, Frame& frame);
  Result<Flow> ExecuteStatement(const Statement& statement, Frame& frame);
  Result<Flow> Run(const Data& node, Frame& frame);
  Result<Flow> Run(const Output& node, Frame& frame);
  Result<Flow> Run(const ForLoop& node, Frame& frame);
  Result<Flow> Run(const If& node, Frame& frame);
  Result<Flow> Run(const Assign& node, Frame& frame);
  Result<Flow> Run(const AssignBlock& node, Frame& frame);
  Result<Flow> Run(const MacroDefinition& node, Frame& frame);
  Result<Flow> Run(const CallBlock& node, Frame& frame);
  Result<Flow> Run(const FilterBlock& node, Frame& frame);
  Result<Flow> Run(const With& node, Frame& frame);
  Result<Flow> Run(const Generation& node, Frame& frame);
  Result<Flow> Run(const Break&, Frame&) { return Flow::kBreak; }
  Result<Flow> Run(const Continue&, Frame&) { return Flow::kContinue; }

  Result<Flow> RunLoop(const ForLoop& node, Values items, int depth0, Frame& frame);
  Result<Values> FilterItems(const ForLoop& node, Values items, Frame& frame);
  // The text a body writes, in a scope of its own.
  Result<Value> Capture(const Body& body, const Frame& frame);
  Status AssignTo(const Target& target, Value value, Scope& scope);
  Value NewMacroValue(const MacroDefinition& definition, const Frame& frame);
  Result<Value> CallMacro(const Macro& macro, Arguments arguments) override;
  Result<Value> CallLoop(Loop& loop, const Value& iterable) override;

  Result<Value> Evaluate(const Expression& expression, Frame& frame);
  Result<Value> Eval(const Constant& node, Frame&) { return node.value; }
  Result<Value> Eval(const Name& node, Frame& frame);
  Result<Value> Eval(const ListLiteral& node, Frame& frame);
  Result<Value> Eval(const DictLiteral& node, Frame& frame);
  Result<Value> Eval(const Conditional& node, Frame& frame);
  Result<Value> Eval(const Binary& node, Frame& frame);
  Result<Value> Eval(const Logical& node, Frame& frame);
  Result<Value> Eval(const Unary& node, Frame& frame);
  Result<Value> Eval(const Comparison& node, Frame& frame);
  Result<Value> Eval(const Concatenation& node, Frame& frame);
  Result<Value> Eval(const Attribute& node, Frame& frame);
  Result<Value> Eval(const Subscript& node, Frame& frame);
  Result<Value> Eval(const SliceIndex& node, Frame& frame);
  Result<Value> Eval(const CallExpression& node, Frame& frame);
  Result<Value> Eval(const FilterCall& node, Frame& frame);
  Result<Value> Eval(const TestCall& node, Frame& frame);
  Result<Arguments> EvalArguments(const CallArguments& node, Frame& frame);
  Result<Value> EvalFilter(const FilterCall& node, const Value* block_text, Frame& frame);
  // A chain of filters whose innermost input is the text of a block.
  Result<Value> ApplyToBlock(const Expression& filters, const Value& text, Frame& frame);

  Status Enter();
  void Leave() { --depth_; }

  std::shared_ptr<Scope> globals_ = std::make_shared<Scope>(nullptr);
  int depth_ = 0;
  int error_line_ = 0;  // of the innermost node that failed
};

}  // namespace nibble::text::jinja
