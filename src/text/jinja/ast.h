// The syntax tree of a template. Nodes are plain data, made by the parser, read by the interpreter.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::text::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Expressions = std::vector<ExpressionPtr>;
using Body = std::vector<Statement>;

// ---- Expressions ----

struct Constant {
  Value value;
};
struct Name {
  std::string name;
};
struct ListLiteral {
  Expressions items;
  Sequence::Type type = Sequence::Type::kList;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
struct Conditional {  // a if condition else b
  ExpressionPtr condition;
  ExpressionPtr then;
  ExpressionPtr otherwise;  // may be null: undefined
};
enum class BinaryOperator { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
struct Binary {
  BinaryOperator op;
  ExpressionPtr left;
  ExpressionPtr right;
};
struct Logical {
  bool is_and;
  ExpressionPtr left;
  ExpressionPtr right;
};
enum class UnaryOperator { kNot, kNegative, kPositive };
struct Unary {
  UnaryOperator op;
  ExpressionPtr operand;
};
enum class CompareOperator { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };
struct Comparison {  // a < b <= c ...
  ExpressionPtr first;
  std::vector<std::pair<CompareOperator, ExpressionPtr>> rest;
};
struct Concatenation {  // a ~ b ~ c
  Expressions parts;
};
struct Attribute {  // object.name
  ExpressionPtr object;
  std::string name;
};
struct Subscript {  // object[index]
  ExpressionPtr object;
  ExpressionPtr index;
};
struct SliceIndex {  // begin:end:step, each may be null
  ExpressionPtr begin;
  ExpressionPtr end;
  ExpressionPtr step;
};
struct CallArguments {
  Expressions positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star;         // *args
  ExpressionPtr double_star;  // **kwargs
};
struct CallExpression {
  ExpressionPtr callee;
  CallArguments arguments;
};
struct FilterCall {
  ExpressionPtr input;  // null: the body of a filter or set block
  std::string name;
  CallArguments arguments;
};
struct TestCall {
  ExpressionPtr input;
  std::string name;
  CallArguments arguments;
};

struct Expression {
  std::variant<Constant, Name, ListLiteral, DictLiteral, Conditional, Binary, Logical, Unary,
               Comparison, Concatenation, Attribute, Subscript, SliceIndex, CallExpression,
               FilterCall, TestCall>
      node;
  int line = 1;
  int depth = 1;  // of the tree, bounded by the parser
};

// ---- Statements ----

// What `set` and `for` assign to.
struct Target {
  enum class Type { kName, kNamespaceAttribute, kTuple };
  Type type = Type::kName;
  std::string name;
  std::string attribute;      // kNamespaceAttribute: name.attribute
  std::vector<Target> parts;  // kTuple
};

struct Data {
  StringPtr text;
};
struct Output {
  ExpressionPtr value;
};
struct ForLoop {
  Target target;
  ExpressionPtr iterable;
  ExpressionPtr condition;  // may be null
  bool recursive = false;
  bool uses_loop = false;  // the body mentions `loop`
  Body body;
  Body otherwise;
};
struct If {
  std::vector<std::pair<ExpressionPtr, Body>> branches;
  Body otherwise;
};
struct Assign {
  Target target;
  ExpressionPtr value;
};
struct AssignBlock {
  Target target;
  ExpressionPtr filter;  // a chain of FilterCalls, may be null
  Body body;
};
struct Parameters {
  std::vector<std::string> names;
  Expressions defaults;  // of the last names
};
struct MacroDefinition {
  std::string name;
  Parameters parameters;
  Body body;
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
};
struct CallBlock {
  MacroDefinition body;  // what caller() renders
  ExpressionPtr call;
};
struct FilterBlock {
  ExpressionPtr filter;
  Body body;
};
struct With {
  std::vector<std::pair<Target, ExpressionPtr>> bindings;
  Body body;
};
struct Generation {  // marks what the assistant wrote; renders its body
  Body body;
};
struct Break {};
struct Continue {};

struct Statement {
  std::variant<Data, Output, ForLoop, If, Assign, AssignBlock, MacroDefinition, CallBlock,
               FilterBlock, With, Generation, Break, Continue>
      node;
  int line = 1;
};

}  // namespace nibble::text::jinja
