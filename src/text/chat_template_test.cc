#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "testing/source_folder.h"

namespace nibble::text {
namespace {

namespace json = boost::json;

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::filesystem::path GoldenFolder() { return SourceFolder() / "tests/golden/chat_templates"; }

json::value ReadGolden(std::string_view name) {
  return json::parse(ReadText(GoldenFolder() / std::string(name)));
}

std::string Fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

// The golden renderings were made at this time, in UTC.
RenderOptions GoldenTime() {
  setenv("TZ", "UTC", 1);
  return {.now = 1700000000};
}

const json::object& Trusted() {
  static const json::value renderings = ReadGolden("renderings.json");
  return renderings.at("trusted").as_object();
}

Result<RenderedPrompt> Render(std::string_view source, const json::object& variables) {
  NIBBLE_ASSIGN(const ChatTemplate chat_template, ChatTemplate::Compile(source));
  return chat_template.Render(variables, Trusted(), GoldenTime());
}

std::string Text(std::string_view source, const json::object& variables = {}) {
  const auto prompt = Render(source, variables);
  return prompt ? prompt->text : "error: " + prompt.error().message();
}

std::string ErrorOf(std::string_view source, const json::object& variables = {}) {
  const auto prompt = Render(source, variables);
  EXPECT_FALSE(prompt) << prompt->text;
  return prompt ? "" : prompt.error().message();
}

// The text of one template for every conversation, against jinja2's.
void ExpectGoldenHashes(const std::string& name, const std::string& source) {
  const json::value renderings = ReadGolden("renderings.json");
  const json::value conversations = ReadGolden("conversations.json");
  const json::array& hashes = renderings.at("hashes").at(name).as_array();
  ASSERT_EQ(hashes.size(), conversations.as_array().size());
  const auto chat_template = ChatTemplate::Compile(source);
  ASSERT_TRUE(chat_template) << chat_template.error().message();
  for (size_t i = 0; i < hashes.size(); ++i) {
    const auto prompt =
        chat_template->Render(conversations.as_array()[i].as_object(), Trusted(), GoldenTime());
    const std::string got = prompt ? Fnv1a(prompt->text) : "error";
    ASSERT_EQ(got, std::string(hashes[i].as_string()))
        << name << ", conversation " << i << ": tools/make_template_goldens.py --show " << name
        << " " << i << " prints what jinja2 renders; here:\n"
        << (prompt ? prompt->text : prompt.error().message());
  }
}

// ---- Against jinja2 ----

TEST(ChatTemplate, OwnTemplatesRenderAsInJinja2) {
  size_t templates = 0;
  for (const auto& file : std::filesystem::directory_iterator(GoldenFolder() / "templates")) {
    ExpectGoldenHashes(file.path().stem(), ReadText(file.path()));
    ++templates;
  }
  EXPECT_GE(templates, 7u);
}

TEST(ChatTemplate, PublishedTemplatesRenderAsInJinja2) {
  const std::filesystem::path folder = SharedFolder() / "data/tokenizers";
  for (const std::string name : {"qwen3", "deepseek_v3"}) {
    const auto path = folder / name / "tokenizer_config.json";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
    const json::value config = json::parse(ReadText(path));
    ExpectGoldenHashes(name, std::string(config.at("chat_template").as_string()));
  }
}

TEST(ChatTemplate, FullTextsOfSomeRenderings) {
  const json::value renderings = ReadGolden("renderings.json");
  const json::value conversations = ReadGolden("conversations.json");
  for (const json::value& full : renderings.at("full").as_array()) {
    const std::string name(full.at("template").as_string());
    const auto& conversation = conversations.as_array()[full.at("index").to_number<size_t>()];
    EXPECT_EQ(
        Text(ReadText(GoldenFolder() / "templates" / (name + ".jinja")), conversation.as_object()),
        std::string(full.at("text").as_string()))
        << name;
  }
}

TEST(ChatTemplate, ExpressionsRenderAsInJinja2) {
  const json::value golden = ReadGolden("expressions.json");
  for (const json::value& item : golden.at("cases").as_array()) {
    const std::string source(item.at("template").as_string());
    const auto prompt = Render(source, golden.at("variables").as_object());
    if (item.at("text").is_null()) {
      EXPECT_FALSE(prompt) << source << "\nrendered: " << prompt->text;
    } else {
      ASSERT_TRUE(prompt) << source << "\n" << prompt.error().message();
      EXPECT_EQ(prompt->text, std::string(item.at("text").as_string())) << source;
    }
  }
}

// ---- Marks ----

// The prompt with the caller's ranges in «».
std::string Marked(std::string_view source, const json::object& variables) {
  const auto prompt = Render(source, variables);
  if (!prompt) return prompt.error().message();
  std::string out;
  size_t at = 0;
  for (const TextRange& range : prompt->untrusted) {
    EXPECT_LE(at, range.begin);
    EXPECT_LT(range.begin, range.end);
    out += prompt->text.substr(at, range.begin - at) + "«" +
           prompt->text.substr(range.begin, range.end - range.begin) + "»";
    at = range.end;
  }
  EXPECT_LE(at, prompt->text.size());
  return out + prompt->text.substr(at);
}

TEST(ChatTemplate, MarksSurviveEveryOperation) {
  const json::object v = {{"u", "ab cd"},      {"role", "user"}, {"l", {"x", "y"}},
                          {"d", {{"k", "v"}}}, {"n", 7},         {"t", "  pad "}};
  EXPECT_EQ(Marked("<{{ u }}>", v), "<«ab cd»>");
  EXPECT_EQ(Marked("{{ bos_token + role + eos_token }}", v), "<|begin_of_text|>«user»<|im_end|>");
  EXPECT_EQ(Marked("{{ '<' + u + '>' }}{{ '[' ~ u ~ n ~ ']' }}", v), "<«ab cd»>[«ab cd»7]");
  EXPECT_EQ(Marked("{{ u[1:3] }}|{{ ('<' + u)[:3] }}|{{ u[::-1] }}|{{ u[0] }}", v),
            "«b »|<«ab»|«dc ba»|«a»");
  EXPECT_EQ(Marked("{{ t.strip() }}|{{ ('<' + t) | trim }}|{{ t.lstrip(' ') }}", v),
            "«pad»|<«  pad»|«pad »");
  EXPECT_EQ(Marked("{{ u.replace(' ', '_') }}|{{ 'x-y' | replace('-', u) }}", v),
            "«ab»_«cd»|x«ab cd»y");
  EXPECT_EQ(Marked("{{ u | upper }}{{ u.title() }}{{ ('<a>' + role) | upper }}", v),
            "«AB CDAb Cd»<A>«USER»");
  EXPECT_EQ(
      Marked("{{ u.split(' ')[1] }}|{{ ('a|' + u).split('|')[1] }}|{{ u.partition(' ')[2] }}", v),
      "«cd»|«ab cd»|«cd»");
  EXPECT_EQ(Marked("{{ l | join(', ') }}|{{ '-'.join(l) }}|{{ [u, 'own'] | join(u[0]) }}", v),
            "«x», «y»|«x»-«y»|«ab cda»own");
  EXPECT_EQ(Marked("{{ d | tojson }}|{{ d }}|{{ l | tojson(indent=1) }}", v),
            "{\"«k»\": \"«v»\"}|{'«k»': '«v»'}|[\n \"«x»\",\n \"«y»\"\n]");
  EXPECT_EQ(Marked("{% for k, w in d.items() %}{{ k }}={{ w }}{% endfor %}", v), "«k»=«v»");
  EXPECT_EQ(Marked("{{ '%s!' % u }}|{{ '{}!'.format(u) }}|{{ '%5s' | format(l[0]) }}", v),
            "«ab cd»!|«ab cd»!|    «x»");
  EXPECT_EQ(Marked("{% set x %}<{{ u }}>{% endset %}{{ x | upper }}", v), "<«AB CD»>");
  EXPECT_EQ(Marked("{% macro m(a) %}({{ a }}){% endmacro %}{{ m(u) }}", v), "(«ab cd»)");
  EXPECT_EQ(Marked("{{ u | indent(2, true) }}|{{ u | truncate(4, true, '..', 0) }}|{{ u | e }}", v),
            "  «ab cd»|«ab»..|«ab cd»");
  EXPECT_EQ(Marked("{{ u * 2 }}|{{ u | list | first }}|{{ u | reverse }}|{{ l | sort | last }}", v),
            "«ab cdab cd»|«a»|«dc ba»|«y»");
}

// Every message of this conversation is written in letters that no template contains.
TEST(ChatTemplate, NoCallerTextOutsideTheMarks) {
  const json::value conversations = ReadGolden("conversations.json");
  const std::string letter = "\u4e2d";
  const auto disguise = [&](auto&& self, json::value& value, bool keep) -> void {
    if (value.is_string() && !keep) {
      std::string text;
      for (const char c : value.get_string())
        text += c == '\n' || c == ' ' ? std::string(1, c) : letter;
      value = text;
    } else if (value.is_array()) {
      for (json::value& item : value.get_array()) self(self, item, false);
    } else if (value.is_object()) {
      for (auto& [key, item] : value.get_object()) {
        self(self, item, key == "role" || key == "type" || key == "reasoning_effort");
      }
    }
  };
  for (const auto& file : std::filesystem::directory_iterator(GoldenFolder() / "templates")) {
    const auto chat_template = ChatTemplate::Compile(ReadText(file.path()));
    ASSERT_TRUE(chat_template) << chat_template.error().message();
    size_t rendered = 0;
    for (json::value conversation : conversations.as_array()) {
      disguise(disguise, conversation, false);
      const auto prompt = chat_template->Render(conversation.as_object(), Trusted(), GoldenTime());
      if (!prompt) continue;
      ++rendered;
      std::string trusted;
      size_t at = 0;
      for (const TextRange& range : prompt->untrusted) {
        trusted += prompt->text.substr(at, range.begin - at);
        at = range.end;
      }
      trusted += prompt->text.substr(at);
      EXPECT_EQ(trusted.find(letter), std::string::npos) << file.path() << "\n" << trusted;
      EXPECT_EQ(trusted.find("\\u4e2d"), std::string::npos) << file.path() << "\n" << trusted;
    }
    EXPECT_GT(rendered, 100u) << file.path();
  }
}

// ---- Errors ----

TEST(ChatTemplate, ErrorsNameTheLine) {
  EXPECT_EQ(ErrorOf("a\nb {{ 'x' + 1 }}"),
            "chat template: line 2: '+' does not work between 'str' and 'int'");
  EXPECT_EQ(ErrorOf("\n\n{% if true %}\n{{ raise_exception('no ' ~ 'way') }}{% endif %}"),
            "chat template: line 4: no way");
  EXPECT_EQ(ErrorOf("{{ missing.x }}"), "chat template: line 1: 'missing' is undefined");
  EXPECT_EQ(ErrorOf("{{ messages[0].x.y }}", {{"messages", {{{"a", 1}}}}}),
            "chat template: line 1: 'dict object' has no attribute 'x'");
  EXPECT_EQ(ErrorOf("x\n{% for a in b %}"),
            "chat template: line 2: unexpected end of the template: 'endfor' is missing");
  EXPECT_EQ(ErrorOf("\n{{ (1 }}"), "chat template: line 2: unexpected '}', expected ')'");
  EXPECT_EQ(ErrorOf("\n\n{% include 'x' %}"),
            "chat template: line 3: chat templates cannot use 'include'");
  EXPECT_EQ(ErrorOf("{{ 1 | nope }}"), "chat template: line 1: there is no filter named 'nope'");
  EXPECT_EQ(ErrorOf("{{ 'abc"), "chat template: line 1: a string is not closed");
  EXPECT_EQ(ErrorOf("\xff"), "chat template: line 1: the template is not valid UTF-8");
}

// ---- Limits ----

TEST(ChatTemplate, EndsWhateverTheTemplate) {
  const json::object v = {{"u", std::string(100000, 'x')}};
  for (const std::string_view source : {
           "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
           "{{ range(100001) }}",
           "{{ 'x' * 1000000000000 }}",
           "{{ [1] * 1000000000 }}",
           "{% set n = namespace(s='x') %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% "
           "endfor %}",
           "{% set n = namespace(s=[1]) %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% "
           "endfor %}",
           "{% set n = namespace(s=1) %}{% for i in range(300) %}{% set n.s = [n.s] %}{% endfor %}",
           "{% set n = namespace(s=1) %}{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% "
           "endfor %}{{ n.s }}",
           "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
           "{% macro f(x) %}{{ x }}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}",
           "{% for a in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
           "{% for i in range(100000) %}{{ u }}{% endfor %}",
           "{% for i in range(100000) %}{% set x = u | upper %}{% endfor %}",
           "{% for i in range(100000) %}{% if 'y' in u %}{% endif %}{% endfor %}",
           "{{ '%99999999999s' % 'x' }}",
           "{{ '{:99999999999}'.format('x') }}",
           "{{ 'x' | center(100000000000) }}",
           "{{ 'x\\ny' | indent(100000000000) }}",
           "{{ u.replace('', u) }}",
           "{{ u.replace('x', u) }}",
           "{{ [1] | tojson(indent=100000000000) }}",
           "{{ 2 ** 100000 }}",
           "{{ [1] | batch(1000000000, 0) | list }}",
           "{{ [1] | slice(1000000000) | list }}",
       }) {
    const auto prompt = Render(source, v);
    EXPECT_FALSE(prompt) << source;
    if (!prompt) {
      EXPECT_EQ(prompt.error().code(), Code::kInvalidArgument) << source;
    }
  }
}

TEST(ChatTemplate, DeepSourceIsRefused) {
  const std::string many(100000, '(');
  EXPECT_FALSE(ChatTemplate::Compile("{{ " + many + "1" + std::string(100000, ')') + " }}"));
  EXPECT_FALSE(ChatTemplate::Compile("{{ " + std::string(100000, '[')));
  std::string sum = "{{ 1", nots = "{{ ", minus = "{{ ", ifs, attributes = "{{ a", filters = "{{ 1";
  for (int i = 0; i < 100000; ++i) {
    sum += " + 1";
    nots += "not ";
    minus += "-";
    ifs += "{% if true %}";
    attributes += ".b";
    filters += "|abs";
  }
  EXPECT_FALSE(ChatTemplate::Compile(sum + " }}"));
  EXPECT_FALSE(ChatTemplate::Compile(nots + "1 }}"));
  EXPECT_FALSE(ChatTemplate::Compile(minus + "1 }}"));
  EXPECT_FALSE(ChatTemplate::Compile(ifs));
  EXPECT_FALSE(ChatTemplate::Compile(attributes + " }}"));
  EXPECT_FALSE(ChatTemplate::Compile(filters + " }}"));
}

TEST(ChatTemplate, LongConversationsStayWithinTheLimits) {
  json::array messages;
  for (int i = 0; i < 2000; ++i) {
    messages.push_back(
        {{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", std::string(2000, 'a')}});
  }
  const json::object v = {
      {"messages", messages}, {"tools", nullptr}, {"add_generation_prompt", true}};
  const auto prompt = Render(ReadText(GoldenFolder() / "templates/chatml_tools.jinja"), v);
  ASSERT_TRUE(prompt) << prompt.error().message();
  EXPECT_GT(prompt->text.size(), 4000000u);
}

// ---- The rest ----

TEST(ChatTemplate, MentionsNamesThatAreRead) {
  const auto chat_template = ChatTemplate::Compile(
      "{% if tools %}{{ tools[0].name }}{% endif %}{% set own = 1 %}{# documents #} strftime_now");
  ASSERT_TRUE(chat_template);
  EXPECT_TRUE(chat_template->Mentions("tools"));
  EXPECT_FALSE(chat_template->Mentions("name"));
  EXPECT_FALSE(chat_template->Mentions("own"));
  EXPECT_FALSE(chat_template->Mentions("documents"));
  EXPECT_FALSE(chat_template->Mentions("strftime_now"));
}

TEST(ChatTemplate, VariablesReplaceSpecialTokens) {
  EXPECT_EQ(Marked("{{ bos_token }}{{ eos_token }}", {{"bos_token", "<s>"}}), "«<s>»<|im_end|>");
}

}  // namespace
}  // namespace nibble::text
