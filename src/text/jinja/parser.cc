#include "text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "text/jinja/builtins.h"
#include "text/jinja/lexer.h"

namespace nibble::text::jinja {
namespace {

constexpr int kMaxNesting = 100;  // brackets and blocks in each other
constexpr int kMaxDepth = 400;    // of an expression's tree: operands of one a + b + c and the like
using Type = Token::Type;

// The depth of the tree below a node.
class ChildDepth {
 public:
  int operator()(const Constant&) { return 0; }
  int operator()(const Name&) { return 0; }
  int operator()(const ListLiteral& node) { return Of(node.items); }
  int operator()(const DictLiteral& node) {
    int depth = 0;
    for (const auto& [key, value] : node.entries) depth = std::max({depth, Of(key), Of(value)});
    return depth;
  }
  int operator()(const Conditional& node) {
    return std::max({Of(node.condition), Of(node.then), Of(node.otherwise)});
  }
  int operator()(const Binary& node) { return std::max(Of(node.left), Of(node.right)); }
  int operator()(const Logical& node) { return std::max(Of(node.left), Of(node.right)); }
  int operator()(const Unary& node) { return Of(node.operand); }
  int operator()(const Comparison& node) {
    int depth = Of(node.first);
    for (const auto& [op, operand] : node.rest) depth = std::max(depth, Of(operand));
    return depth;
  }
  int operator()(const Concatenation& node) { return Of(node.parts); }
  int operator()(const Attribute& node) { return Of(node.object); }
  int operator()(const Subscript& node) { return std::max(Of(node.object), Of(node.index)); }
  int operator()(const SliceIndex& node) {
    return std::max({Of(node.begin), Of(node.end), Of(node.step)});
  }
  int operator()(const CallExpression& node) {
    return std::max(Of(node.callee), Of(node.arguments));
  }
  int operator()(const FilterCall& node) { return std::max(Of(node.input), Of(node.arguments)); }
  int operator()(const TestCall& node) { return std::max(Of(node.input), Of(node.arguments)); }

 private:
  static int Of(const ExpressionPtr& node) { return node ? node->depth : 0; }
  static int Of(const Expressions& nodes) {
    int depth = 0;
    for (const ExpressionPtr& node : nodes) depth = std::max(depth, Of(node));
    return depth;
  }
  static int Of(const CallArguments& arguments) {
    int depth = std::max({Of(arguments.positional), Of(arguments.star), Of(arguments.double_star)});
    for (const auto& [name, value] : arguments.named) depth = std::max(depth, Of(value));
    return depth;
  }
};

template <typename Node>
ExpressionPtr MakeExpression(Node node, int line) {
  const int depth = 1 + ChildDepth()(node);
  return std::make_unique<Expression>(Expression{std::move(node), line, depth});
}

template <typename Node>
Statement MakeStatement(Node node, int line) {
  return Statement{std::move(node), line};
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<SyntaxTree> Run() {
    NIBBLE_ASSIGN(Body body, ParseBody({}));
    unknown_for_certain_.insert(unknown_for_certain_.end(), unknown_.begin(), unknown_.end());
    if (!unknown_for_certain_.empty()) {
      const Unknown& first = unknown_for_certain_.front();
      return Error(first.line, "there is no {} named '{}'", first.what, first.name);
    }
    return SyntaxTree{std::move(body), std::move(names_)};
  }

 private:
  // A filter or test that does not exist. As in jinja2 this is an error of the template unless it
  // stands under a condition, where it is one only when it is reached.
  struct Unknown {
    std::string_view what;
    std::string name;
    int line;
  };

  // Counts nesting for as long as it lives.
  class Nesting {
   public:
    explicit Nesting(int& depth) : depth_(depth) { ++depth_; }
    ~Nesting() { --depth_; }

   private:
    int& depth_;
  };

  template <typename... Args>
  tl::unexpected<nibble::Error> Error(int line, fmt::format_string<Args...> format,
                                      Args&&... args) const {
    return Fail(Code::kInvalidArgument, "line {}: {}", line,
                fmt::format(format, std::forward<Args>(args)...));
  }

  const Token& Current() const { return tokens_[at_]; }
  const Token& Following() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int Line() const { return Current().line; }
  Token Next() {
    Token token = Current();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool At(Type type) const { return Current().type == type; }
  bool AtOperator(std::string_view op) const { return Current().IsOperator(op); }
  bool AtName(std::string_view name) const { return Current().IsName(name); }
  bool AtAnyName(std::initializer_list<std::string_view> names) const {
    return std::any_of(names.begin(), names.end(), [&](auto name) { return AtName(name); });
  }
  bool TakeOperator(std::string_view op) {
    if (!AtOperator(op)) return false;
    Next();
    return true;
  }
  bool TakeName(std::string_view name) {
    if (!AtName(name)) return false;
    Next();
    return true;
  }
  Status ExpectOperator(std::string_view op) {
    if (TakeOperator(op)) return {};
    return Error(Line(), "expected '{}', got {}", op, Describe(Current()));
  }
  Status ExpectName(std::string_view name) {
    if (TakeName(name)) return {};
    return Error(Line(), "expected '{}', got {}", name, Describe(Current()));
  }
  Status Expect(Type type, std::string_view what) {
    if (!At(type)) return Error(Line(), "expected {}, got {}", what, Describe(Current()));
    Next();
    return {};
  }
  Result<std::string> ExpectIdentifier() {
    if (!At(Type::kName)) return Error(Line(), "expected a name, got {}", Describe(Current()));
    return Next().text;
  }

  // ---- Statements
  // --------------------------------------------------------------------------------

  // Up to a block whose tag is one of `ends`; its name is then the current token.
  Result<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    Nesting nesting(depth_);
    if (depth_ > kMaxNesting) return TooDeep();
    Body body;
    while (true) {
      switch (Current().type) {
        case Type::kData: {
          const Token token = Next();
          body.push_back(MakeStatement(Data{TrustedString(token.text)}, token.line));
          break;
        }
        case Type::kVariableBegin: {
          const int line = Next().line;
          NIBBLE_ASSIGN(ExpressionPtr value, ParseTuple());
          NIBBLE_TRY(Expect(Type::kVariableEnd, "'}}'"));
          body.push_back(MakeStatement(Output{std::move(value)}, line));
          break;
        }
        case Type::kBlockBegin:
          Next();
          if (AtAnyName(ends)) return body;
          NIBBLE_TRY(ParseStatement(body));
          NIBBLE_TRY(Expect(Type::kBlockEnd, "'%}'"));
          break;
        default:
          if (ends.size() == 0) return body;
          return Error(Line(), "unexpected end of the template: '{}' is missing",
                       *(ends.end() - 1));
      }
    }
  }

  // "%}", the body, and the end tag, of which the name has been consumed.
  Result<Body> ParseBlockBody(std::string_view end) {
    TakeOperator(":");
    NIBBLE_TRY(Expect(Type::kBlockEnd, "'%}'"));
    NIBBLE_ASSIGN(Body body, ParseBody({end}));
    Next();
    return body;
  }

  Status ParseStatement(Body& out) {
    if (!At(Type::kName))
      return Error(Line(), "expected the name of a tag, got {}", Describe(Current()));
    const int line = Line();
    const std::string tag = Current().text;
    if (tag == "for") return ParseFor(out);
    if (tag == "if") return ParseIf(out);
    if (tag == "print") return ParsePrint(out);
    Next();
    if (tag == "set") return ParseSet(out, line);
    if (tag == "macro") return ParseMacro(out, line);
    if (tag == "call") return ParseCallBlock(out, line);
    if (tag == "filter") return ParseFilterBlock(out, line);
    if (tag == "with") return ParseWith(out, line);
    if (tag == "generation") {
      NIBBLE_ASSIGN(Body body, ParseBlockBody("endgeneration"));
      out.push_back(MakeStatement(Generation{std::move(body)}, line));
      return {};
    }
    if (tag == "break" || tag == "continue") {
      if (loop_depth_ == 0) return Error(line, "'{}' outside of a loop", tag);
      out.push_back(tag == "break" ? MakeStatement(Break{}, line)
                                   : MakeStatement(Continue{}, line));
      return {};
    }
    for (const std::string_view unsupported :
         {"block", "extends", "include", "import", "from", "autoescape"}) {
      if (tag == unsupported) return Error(line, "chat templates cannot use '{}'", tag);
    }
    return Error(line, "unknown tag '{}'", tag);
  }

  // Runs `parse` as the body of a construct of its own, under no condition.
  template <typename Parse>
  auto Unconditional(Parse parse) {
    const size_t before = unknown_.size();
    auto result = parse();
    unknown_for_certain_.insert(unknown_for_certain_.end(),
                                unknown_.begin() + static_cast<ptrdiff_t>(before), unknown_.end());
    unknown_.resize(before);
    return result;
  }

  Status ParseFor(Body& out) {
    return Unconditional([&] { return ParseForInner(out); });
  }

  Status ParseForInner(Body& out) {
    const int line = Next().line;
    ForLoop loop;
    NIBBLE_ASSIGN(loop.target, ParseTarget("in", false));
    NIBBLE_TRY(ExpectName("in"));
    NIBBLE_ASSIGN(loop.iterable, ParseTuple(false, "recursive"));
    if (TakeName("if")) {
      NIBBLE_ASSIGN(loop.condition, ParseExpression());
    }
    loop.recursive = TakeName("recursive");
    TakeOperator(":");
    NIBBLE_TRY(Expect(Type::kBlockEnd, "'%}'"));
    ++loop_depth_;
    const size_t mentions = loop_mentions_;
    auto body = ParseBody({"else", "endfor"});
    --loop_depth_;
    NIBBLE_ASSIGN(loop.body, std::move(body));
    loop.uses_loop = loop_mentions_ != mentions || loop.condition != nullptr;
    if (Next().text == "else") {
      NIBBLE_ASSIGN(loop.otherwise, ParseBlockBody("endfor"));
    }
    out.push_back(MakeStatement(std::move(loop), line));
    return {};
  }

  Status ParseIf(Body& out) {
    const size_t before = unknown_.size();
    const int line = Line();
    If node;
    while (true) {
      Next();  // if, elif
      NIBBLE_ASSIGN(ExpressionPtr condition, ParseTuple(false));
      TakeOperator(":");
      NIBBLE_TRY(Expect(Type::kBlockEnd, "'%}'"));
      NIBBLE_ASSIGN(Body body, ParseBody({"elif", "else", "endif"}));
      node.branches.emplace_back(std::move(condition), std::move(body));
      if (!AtName("elif")) break;
    }
    if (Next().text == "else") {
      NIBBLE_ASSIGN(node.otherwise, ParseBlockBody("endif"));
    }
    unknown_.resize(before);
    out.push_back(MakeStatement(std::move(node), line));
    return {};
  }

  Status ParsePrint(Body& out) {
    Next();
    bool first = true;
    while (!At(Type::kBlockEnd)) {
      if (!first) NIBBLE_TRY(ExpectOperator(","));
      first = false;
      const int line = Line();
      NIBBLE_ASSIGN(ExpressionPtr value, ParseExpression());
      out.push_back(MakeStatement(Output{std::move(value)}, line));
    }
    return {};
  }

  Status ParseSet(Body& out, int line) {
    NIBBLE_ASSIGN(Target target, ParseTarget("", true));
    if (TakeOperator("=")) {
      NIBBLE_ASSIGN(ExpressionPtr value, ParseTuple());
      out.push_back(MakeStatement(Assign{std::move(target), std::move(value)}, line));
      return {};
    }
    AssignBlock block{.target = std::move(target)};
    if (AtOperator("|")) {
      NIBBLE_ASSIGN(block.filter, ParseFilters(nullptr));
    }
    NIBBLE_ASSIGN(block.body, ParseBlockBody("endset"));
    out.push_back(MakeStatement(std::move(block), line));
    return {};
  }

  Result<Parameters> ParseParameters() {
    Parameters parameters;
    NIBBLE_TRY(ExpectOperator("("));
    while (!AtOperator(")")) {
      if (!parameters.names.empty()) NIBBLE_TRY(ExpectOperator(","));
      NIBBLE_ASSIGN(std::string name, ExpectIdentifier());
      if (TakeOperator("=")) {
        NIBBLE_ASSIGN(ExpressionPtr value, ParseExpression());
        parameters.defaults.push_back(std::move(value));
      } else if (!parameters.defaults.empty()) {
        return Error(Line(), "a parameter without default follows one with a default");
      }
      parameters.names.push_back(std::move(name));
    }
    NIBBLE_TRY(ExpectOperator(")"));
    return parameters;
  }

  // The body of a macro or call block, and which special names it reads.
  Status ParseMacroBody(MacroDefinition& macro, std::string_view end) {
    return Unconditional([&]() -> Status {
      const std::set<std::string, std::less<>> outer = std::exchange(names_, {});
      const int outer_loops = std::exchange(loop_depth_, 0);
      auto body = ParseBlockBody(end);
      loop_depth_ = outer_loops;
      macro.uses_caller = names_.contains("caller");
      macro.uses_varargs = names_.contains("varargs");
      macro.uses_kwargs = names_.contains("kwargs");
      names_.insert(outer.begin(), outer.end());
      NIBBLE_ASSIGN(macro.body, std::move(body));
      return {};
    });
  }

  Status ParseMacro(Body& out, int line) {
    MacroDefinition macro;
    NIBBLE_ASSIGN(macro.name, ExpectIdentifier());
    NIBBLE_ASSIGN(macro.parameters, ParseParameters());
    NIBBLE_TRY(ParseMacroBody(macro, "endmacro"));
    out.push_back(MakeStatement(std::move(macro), line));
    return {};
  }

  Status ParseCallBlock(Body& out, int line) {
    CallBlock block;
    if (AtOperator("(")) {
      NIBBLE_ASSIGN(block.body.parameters, ParseParameters());
    }
    NIBBLE_ASSIGN(block.call, ParseExpression());
    if (!std::holds_alternative<CallExpression>(block.call->node)) {
      return Error(line, "'call' needs a call of a macro");
    }
    NIBBLE_TRY(ParseMacroBody(block.body, "endcall"));
    out.push_back(MakeStatement(std::move(block), line));
    return {};
  }

  Status ParseFilterBlock(Body& out, int line) {
    FilterBlock block;
    NIBBLE_ASSIGN(block.filter, ParseFilters(nullptr, true));
    auto body = Unconditional([&] { return ParseBlockBody("endfilter"); });
    NIBBLE_ASSIGN(block.body, std::move(body));
    out.push_back(MakeStatement(std::move(block), line));
    return {};
  }

  Status ParseWith(Body& out, int line) {
    With with;
    while (!At(Type::kBlockEnd)) {
      if (!with.bindings.empty()) NIBBLE_TRY(ExpectOperator(","));
      NIBBLE_ASSIGN(Target target, ParseTarget("", false));
      NIBBLE_TRY(ExpectOperator("="));
      NIBBLE_ASSIGN(ExpressionPtr value, ParseExpression());
      with.bindings.emplace_back(std::move(target), std::move(value));
    }
    auto body = Unconditional([&] { return ParseBlockBody("endwith"); });
    NIBBLE_ASSIGN(with.body, std::move(body));
    out.push_back(MakeStatement(std::move(with), line));
    return {};
  }

  // name | namespace.attribute | (targets) | targets with commas, up to the name `end`.
  Result<Target> ParseTarget(std::string_view end, bool with_namespace) {
    Target tuple{.type = Target::Type::kTuple};
    bool is_tuple = false;
    while (true) {
      const bool at_end = At(Type::kBlockEnd) || AtOperator(")") || (!end.empty() && AtName(end));
      if (at_end && is_tuple) break;
      NIBBLE_ASSIGN(Target part, ParseSingleTarget(with_namespace));
      tuple.parts.push_back(std::move(part));
      if (!TakeOperator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) return std::move(tuple.parts.front());
    return tuple;
  }

  Result<Target> ParseSingleTarget(bool with_namespace) {
    Nesting nesting(depth_);
    if (depth_ > kMaxNesting) return TooDeep();
    if (TakeOperator("(")) {
      NIBBLE_ASSIGN(Target inner, ParseTarget("", with_namespace));
      NIBBLE_TRY(ExpectOperator(")"));
      return inner;
    }
    const int line = Line();
    NIBBLE_ASSIGN(std::string name, ExpectIdentifier());
    for (const std::string_view reserved : {"true", "false", "none", "True", "False", "None"}) {
      if (name == reserved) return Error(line, "cannot assign to '{}'", name);
    }
    if (with_namespace && TakeOperator(".")) {
      NIBBLE_ASSIGN(std::string attribute, ExpectIdentifier());
      names_.insert(name);
      return Target{Target::Type::kNamespaceAttribute, std::move(name), std::move(attribute), {}};
    }
    return Target{.name = std::move(name)};
  }

  // ---- Expressions
  // -------------------------------------------------------------------------------

  tl::unexpected<nibble::Error> TooDeep() const {
    return Error(Line(), "nested deeper than {} levels", kMaxNesting);
  }

  Result<ExpressionPtr> ParseExpression(bool with_conditional = true) {
    Nesting nesting(depth_);
    if (depth_ > kMaxNesting) return TooDeep();
    if (!with_conditional) return ParseOr();
    return ParseConditional();
  }

  Result<ExpressionPtr> ParseConditional() {
    const size_t before = unknown_.size();
    const int line = Line();
    NIBBLE_ASSIGN(ExpressionPtr value, ParseOr());
    while (TakeName("if")) {
      if (value->depth > kMaxDepth) return TooLong();
      Conditional node;
      node.then = std::move(value);
      NIBBLE_ASSIGN(node.condition, ParseOr());
      if (TakeName("else")) {
        NIBBLE_ASSIGN(node.otherwise, ParseExpression());
      }
      unknown_.resize(before);
      value = MakeExpression(std::move(node), line);
    }
    return value;
  }

  tl::unexpected<nibble::Error> TooLong() const {
    return Error(Line(), "an expression is more than {} operations deep", kMaxDepth);
  }

  Result<ExpressionPtr> ParseOr() {
    NIBBLE_ASSIGN(ExpressionPtr left, ParseAnd());
    while (AtName("or")) {
      if (left->depth > kMaxDepth) return TooLong();
      const int line = Next().line;
      NIBBLE_ASSIGN(ExpressionPtr right, ParseAnd());
      left = MakeExpression(Logical{false, std::move(left), std::move(right)}, line);
    }
    return left;
  }

  Result<ExpressionPtr> ParseAnd() {
    NIBBLE_ASSIGN(ExpressionPtr left, ParseNot());
    while (AtName("and")) {
      if (left->depth > kMaxDepth) return TooLong();
      const int line = Next().line;
      NIBBLE_ASSIGN(ExpressionPtr right, ParseNot());
      left = MakeExpression(Logical{true, std::move(left), std::move(right)}, line);
    }
    return left;
  }

  Result<ExpressionPtr> ParseNot() {
    if (!AtName("not")) return ParseComparison();
    Nesting nesting(depth_);
    if (depth_ > kMaxNesting) return TooDeep();
    const int line = Next().line;
    NIBBLE_ASSIGN(ExpressionPtr operand, ParseNot());
    return MakeExpression(Unary{UnaryOperator::kNot, std::move(operand)}, line);
  }

  std::optional<CompareOperator> TakeComparison() {
    static constexpr std::pair<std::string_view, CompareOperator> kOperators[] = {
        {"==", CompareOperator::kEq}, {"!=", CompareOperator::kNe}, {"<", CompareOperator::kLt},
        {"<=", CompareOperator::kLe}, {">", CompareOperator::kGt},  {">=", CompareOperator::kGe}};
    for (const auto& [text, op] : kOperators) {
      if (TakeOperator(text)) return op;
    }
    if (TakeName("in")) return CompareOperator::kIn;
    if (AtName("not") && Following().IsName("in")) {
      Next();
      Next();
      return CompareOperator::kNotIn;
    }
    return std::nullopt;
  }

  Result<ExpressionPtr> ParseComparison() {
    const int line = Line();
    NIBBLE_ASSIGN(ExpressionPtr first, ParseSum());
    Comparison node;
    while (const std::optional<CompareOperator> op = TakeComparison()) {
      NIBBLE_ASSIGN(ExpressionPtr operand, ParseSum());
      node.rest.emplace_back(*op, std::move(operand));
    }
    if (node.rest.empty()) return first;
    node.first = std::move(first);
    return MakeExpression(std::move(node), line);
  }

  Result<ExpressionPtr> ParseSum() {
    NIBBLE_ASSIGN(ExpressionPtr left, ParseConcatenation());
    while (AtOperator("+") || AtOperator("-")) {
      if (left->depth > kMaxDepth) return TooLong();
      const Token token = Next();
      NIBBLE_ASSIGN(ExpressionPtr right, ParseConcatenation());
      const auto op = token.text == "+" ? BinaryOperator::kAdd : BinaryOperator::kSub;
      left = MakeExpression(Binary{op, std::move(left), std::move(right)}, token.line);
    }
    return left;
  }

  // `~` binds tighter than `+`.
  Result<ExpressionPtr> ParseConcatenation() {
    const int line = Line();
    NIBBLE_ASSIGN(ExpressionPtr first, ParseProduct());
    if (!AtOperator("~")) return first;
    Concatenation node;
    node.parts.push_back(std::move(first));
    while (TakeOperator("~")) {
      NIBBLE_ASSIGN(ExpressionPtr part, ParseProduct());
      node.parts.push_back(std::move(part));
    }
    return MakeExpression(std::move(node), line);
  }

  Result<ExpressionPtr> ParseProduct() {
    static constexpr std::pair<std::string_view, BinaryOperator> kOperators[] = {
        {"*", BinaryOperator::kMul},
        {"/", BinaryOperator::kDiv},
        {"//", BinaryOperator::kFloorDiv},
        {"%", BinaryOperator::kMod}};
    NIBBLE_ASSIGN(ExpressionPtr left, ParsePower());
    while (true) {
      if (left->depth > kMaxDepth) return TooLong();
      const auto* op = std::find_if(std::begin(kOperators), std::end(kOperators),
                                    [&](const auto& entry) { return AtOperator(entry.first); });
      if (op == std::end(kOperators)) return left;
      const int line = Next().line;
      NIBBLE_ASSIGN(ExpressionPtr right, ParsePower());
      left = MakeExpression(Binary{op->second, std::move(left), std::move(right)}, line);
    }
  }

  // From the left, unlike Python's.
  Result<ExpressionPtr> ParsePower() {
    NIBBLE_ASSIGN(ExpressionPtr left, ParseUnary(true));
    while (AtOperator("**")) {
      if (left->depth > kMaxDepth) return TooLong();
      const int line = Next().line;
      NIBBLE_ASSIGN(ExpressionPtr right, ParseUnary(true));
      left = MakeExpression(Binary{BinaryOperator::kPow, std::move(left), std::move(right)}, line);
    }
    return left;
  }

  // Filters and tests bind to what a sign stands before as a whole: -x|abs is (-x)|abs.
  Result<ExpressionPtr> ParseUnary(bool with_filters) {
    Nesting nesting(depth_);
    if (depth_ > kMaxNesting) return TooDeep();
    const int line = Line();
    ExpressionPtr node;
    if (AtOperator("-") || AtOperator("+")) {
      const auto op = Next().text == "-" ? UnaryOperator::kNegative : UnaryOperator::kPositive;
      NIBBLE_ASSIGN(ExpressionPtr operand, ParseUnary(false));
      node = MakeExpression(Unary{op, std::move(operand)}, line);
    } else {
      NIBBLE_ASSIGN(node, ParsePrimary());
    }
    NIBBLE_ASSIGN(node, ParsePostfix(std::move(node)));
    if (!with_filters) return node;
    return ParseFiltersAndTests(std::move(node));
  }

  Result<ExpressionPtr> ParsePrimary() {
    const int line = Line();
    switch (Current().type) {
      case Type::kName:
        return ParseNameOrConstant();
      case Type::kString: {
        std::string text;
        while (At(Type::kString)) text += Next().text;
        return MakeExpression(Constant{Value::String(text)}, line);
      }
      case Type::kInteger:
      case Type::kFloat:
        return MakeExpression(Constant{Next().number}, line);
      default:
        break;
    }
    if (TakeOperator("(")) {
      NIBBLE_ASSIGN(ExpressionPtr inner, ParseTuple(true, "", true));
      NIBBLE_TRY(ExpectOperator(")"));
      return inner;
    }
    if (TakeOperator("[")) return ParseList(line);
    if (TakeOperator("{")) return ParseDict(line);
    return Error(line, "unexpected {}", Describe(Current()));
  }

  Result<ExpressionPtr> ParseNameOrConstant() {
    const Token token = Next();
    if (token.text == "true" || token.text == "True") {
      return MakeExpression(Constant{Value(true)}, token.line);
    }
    if (token.text == "false" || token.text == "False") {
      return MakeExpression(Constant{Value(false)}, token.line);
    }
    if (token.text == "none" || token.text == "None") {
      return MakeExpression(Constant{Value(None{})}, token.line);
    }
    names_.insert(token.text);
    if (token.text == "loop") ++loop_mentions_;
    return MakeExpression(Name{token.text}, token.line);
  }

  // An expression, or a tuple of them where commas follow.
  Result<ExpressionPtr> ParseTuple(bool with_conditional = true, std::string_view end = "",
                                   bool in_parentheses = false) {
    const int line = Line();
    ListLiteral tuple{.type = Sequence::Type::kTuple};
    bool is_tuple = false;
    while (true) {
      if (At(Type::kVariableEnd) || At(Type::kBlockEnd) || AtOperator(")") ||
          (!end.empty() && AtName(end))) {
        break;
      }
      NIBBLE_ASSIGN(ExpressionPtr item, ParseExpression(with_conditional));
      tuple.items.push_back(std::move(item));
      if (!TakeOperator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !tuple.items.empty()) return std::move(tuple.items.front());
    if (!is_tuple && !in_parentheses) {
      return Error(line, "expected an expression, got {}", Describe(Current()));
    }
    return MakeExpression(std::move(tuple), line);
  }

  Result<ExpressionPtr> ParseList(int line) {
    ListLiteral list;
    while (!AtOperator("]")) {
      if (!list.items.empty()) NIBBLE_TRY(ExpectOperator(","));
      if (AtOperator("]")) break;
      NIBBLE_ASSIGN(ExpressionPtr item, ParseExpression());
      list.items.push_back(std::move(item));
    }
    NIBBLE_TRY(ExpectOperator("]"));
    return MakeExpression(std::move(list), line);
  }

  Result<ExpressionPtr> ParseDict(int line) {
    DictLiteral dict;
    while (!AtOperator("}")) {
      if (!dict.entries.empty()) NIBBLE_TRY(ExpectOperator(","));
      if (AtOperator("}")) break;
      NIBBLE_ASSIGN(ExpressionPtr key, ParseExpression());
      NIBBLE_TRY(ExpectOperator(":"));
      NIBBLE_ASSIGN(ExpressionPtr value, ParseExpression());
      dict.entries.emplace_back(std::move(key), std::move(value));
    }
    NIBBLE_TRY(ExpectOperator("}"));
    return MakeExpression(std::move(dict), line);
  }

  // .name, .0, [index], (arguments)
  Result<ExpressionPtr> ParsePostfix(ExpressionPtr node) {
    while (true) {
      if (node->depth > kMaxDepth) return TooLong();
      const int line = Line();
      if (TakeOperator(".")) {
        NIBBLE_ASSIGN(node, ParseAttribute(std::move(node), line));
      } else if (TakeOperator("[")) {
        NIBBLE_ASSIGN(node, ParseSubscript(std::move(node), line));
      } else if (AtOperator("(")) {
        NIBBLE_ASSIGN(node, ParseCall(std::move(node)));
      } else {
        return node;
      }
    }
  }

  Result<ExpressionPtr> ParseAttribute(ExpressionPtr object, int line) {
    if (At(Type::kName)) {
      return MakeExpression(Attribute{std::move(object), Next().text}, line);
    }
    if (At(Type::kInteger)) {
      auto index = MakeExpression(Constant{Next().number}, line);
      return MakeExpression(Subscript{std::move(object), std::move(index)}, line);
    }
    return Error(line, "expected a name or number after '.', got {}", Describe(Current()));
  }

  Result<ExpressionPtr> ParseSubscript(ExpressionPtr object, int line) {
    Expressions indices;
    while (!AtOperator("]")) {
      if (!indices.empty()) NIBBLE_TRY(ExpectOperator(","));
      NIBBLE_ASSIGN(ExpressionPtr index, ParseIndex());
      indices.push_back(std::move(index));
    }
    NIBBLE_TRY(ExpectOperator("]"));
    ExpressionPtr index =
        indices.size() == 1
            ? std::move(indices.front())
            : MakeExpression(ListLiteral{std::move(indices), Sequence::Type::kTuple}, line);
    return MakeExpression(Subscript{std::move(object), std::move(index)}, line);
  }

  Result<ExpressionPtr> ParseIndex() {
    const int line = Line();
    SliceIndex slice;
    if (!AtOperator(":")) {
      NIBBLE_ASSIGN(slice.begin, ParseExpression());
      if (!AtOperator(":")) return std::move(slice.begin);
    }
    Next();
    const auto at_end = [&] { return AtOperator("]") || AtOperator(",") || AtOperator(":"); };
    if (!at_end()) {
      NIBBLE_ASSIGN(slice.end, ParseExpression());
    }
    if (TakeOperator(":") && !at_end()) {
      NIBBLE_ASSIGN(slice.step, ParseExpression());
    }
    return MakeExpression(std::move(slice), line);
  }

  Result<CallArguments> ParseCallArguments() {
    CallArguments arguments;
    NIBBLE_TRY(ExpectOperator("("));
    const auto misplaced = [&] {
      return Error(Line(), "arguments of a call are in the wrong order");
    };
    bool first = true;
    while (!AtOperator(")")) {
      if (!first) {
        NIBBLE_TRY(ExpectOperator(","));
        if (AtOperator(")")) break;
      }
      first = false;
      if (TakeOperator("*")) {
        if (arguments.star || arguments.double_star) return misplaced();
        NIBBLE_ASSIGN(arguments.star, ParseExpression());
      } else if (TakeOperator("**")) {
        if (arguments.double_star) return misplaced();
        NIBBLE_ASSIGN(arguments.double_star, ParseExpression());
      } else if (At(Type::kName) && Following().IsOperator("=")) {
        if (arguments.double_star) return misplaced();
        std::string name = Next().text;
        Next();
        NIBBLE_ASSIGN(ExpressionPtr value, ParseExpression());
        arguments.named.emplace_back(std::move(name), std::move(value));
      } else {
        if (arguments.star || arguments.double_star || !arguments.named.empty()) return misplaced();
        NIBBLE_ASSIGN(ExpressionPtr value, ParseExpression());
        arguments.positional.push_back(std::move(value));
      }
    }
    NIBBLE_TRY(ExpectOperator(")"));
    return arguments;
  }

  Result<ExpressionPtr> ParseCall(ExpressionPtr callee) {
    const int line = Line();
    NIBBLE_ASSIGN(CallArguments arguments, ParseCallArguments());
    return MakeExpression(CallExpression{std::move(callee), std::move(arguments)}, line);
  }

  Result<ExpressionPtr> ParseFiltersAndTests(ExpressionPtr node) {
    while (true) {
      if (node->depth > kMaxDepth) return TooLong();
      if (AtOperator("|")) {
        NIBBLE_ASSIGN(node, ParseFilters(std::move(node)));
      } else if (AtName("is")) {
        NIBBLE_ASSIGN(node, ParseTest(std::move(node)));
      } else if (AtOperator("(")) {
        NIBBLE_ASSIGN(node, ParseCall(std::move(node)));
      } else {
        return node;
      }
    }
  }

  Result<std::string> ParseDottedName() {
    NIBBLE_ASSIGN(std::string name, ExpectIdentifier());
    while (TakeOperator(".")) {
      NIBBLE_ASSIGN(std::string part, ExpectIdentifier());
      name += "." + part;
    }
    return name;
  }

  // A chain of filters; the first bar is left out in {% filter name %}.
  Result<ExpressionPtr> ParseFilters(ExpressionPtr input, bool bar_taken = false) {
    while (bar_taken || AtOperator("|")) {
      if (input != nullptr && input->depth > kMaxDepth) return TooLong();
      if (!bar_taken) Next();
      bar_taken = false;
      const int line = Line();
      FilterCall filter;
      NIBBLE_ASSIGN(filter.name, ParseDottedName());
      if (AtOperator("(")) {
        NIBBLE_ASSIGN(filter.arguments, ParseCallArguments());
      }
      if (FindFilter(filter.name) == nullptr) unknown_.push_back({"filter", filter.name, line});
      filter.input = std::move(input);
      input = MakeExpression(std::move(filter), line);
    }
    return input;
  }

  Result<ExpressionPtr> ParseTest(ExpressionPtr input) {
    const int line = Next().line;  // is
    const bool negated = TakeName("not");
    TestCall test;
    NIBBLE_ASSIGN(test.name, ParseDottedName());
    if (AtOperator("(")) {
      NIBBLE_ASSIGN(test.arguments, ParseCallArguments());
    } else if (StartsTestArgument()) {
      if (AtName("is")) return Error(Line(), "tests with 'is' cannot be chained");
      NIBBLE_ASSIGN(ExpressionPtr argument, ParsePrimary());
      NIBBLE_ASSIGN(argument, ParsePostfix(std::move(argument)));
      test.arguments.positional.push_back(std::move(argument));
    }
    if (FindTest(test.name) == nullptr) unknown_.push_back({"test", test.name, line});
    test.input = std::move(input);
    ExpressionPtr node = MakeExpression(std::move(test), line);
    if (negated) node = MakeExpression(Unary{UnaryOperator::kNot, std::move(node)}, line);
    return node;
  }

  bool StartsTestArgument() const {
    switch (Current().type) {
      case Type::kName:
        return !AtAnyName({"else", "or", "and"});
      case Type::kString:
      case Type::kInteger:
      case Type::kFloat:
        return true;
      default:
        return AtOperator("(") || AtOperator("[") || AtOperator("{");
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loop_depth_ = 0;
  size_t loop_mentions_ = 0;
  std::set<std::string, std::less<>> names_;
  std::vector<Unknown> unknown_;  // found so far in the innermost condition
  std::vector<Unknown> unknown_for_certain_;
};

}  // namespace

Result<SyntaxTree> Parse(std::string_view source) {
  NIBBLE_ASSIGN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace nibble::text::jinja
