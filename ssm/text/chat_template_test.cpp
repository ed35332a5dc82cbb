// Chat templates against Transformers' jinja2 (scripts/make_chat_goldens.py), what is refused, hostile ones,
// where templates are found, which part of a conversation is learned, and turns that read only what is new.
#include "ssm/text/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>

#include "ssm/core/error.h"
#include "ssm/core/test_folder.h"
#include "ssm/text/chat_history.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

const fs::path kGoldens = fs::path(SSM_SOURCE_DIR) / "tests/goldens/chat";

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
}

const Json& golden() {
  static const Json json = Json::parse(text_of(kGoldens / "golden.json"));
  return json;
}

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string render(std::string_view source, const Json& variables = Json::object()) {
  return jinja::Template(source, "t").render(variables).text;
}
std::string refusal(std::string_view source, const Json& variables = Json::object()) {
  return error_of([&] { render(source, variables); });
}

Json message(const char* role, const char* content) { return {{"role", role}, {"content", content}}; }

TEST(Jinja, SnippetsEqualPythons) {
  const Json variables = Json::parse(text_of(kGoldens / "variables.json"));
  for (const Json& snippet : golden()["snippets"]) {
    const auto source = snippet["template"].get<std::string>();
    if (snippet.contains("error")) {
      EXPECT_NE(refusal(source, variables), "") << source << "\n" << snippet["error"];
    } else {
      EXPECT_EQ(error_of([&] {
                  EXPECT_EQ(render(source, variables), snippet["text"].get<std::string>()) << source;
                }),
                "")
          << source;
    }
  }
}

TEST(Jinja, ErrorsNameTheTemplateTheLineAndWhatIsNotSupported) {
  EXPECT_EQ(refusal("a\n{% include 'x' %}"), "t:2: the tag \"include\" is not supported");
  EXPECT_EQ(refusal("\n\n{{ 1 | pprint }}"), "t:3: the filter \"pprint\" is not supported");
  EXPECT_EQ(refusal("{{ 1 is escaped }}"), "t:1: the test \"escaped\" is not supported");
  EXPECT_EQ(refusal("{{ 'a'.encode() }}"), "t:1: the method \"encode\" of a str is not supported");
  EXPECT_EQ(refusal("{{ '%s' % 1 }}"), "t:1: formatting a str with \"%\" is not supported");
  EXPECT_EQ(refusal("{% for i in [1] recursive %}{% endfor %}"),
            "t:1: \"recursive\" loops are not supported");
  EXPECT_EQ(refusal("{{ f(*x) }}"), "t:1: \"*\" before an argument is not supported");
  EXPECT_EQ(refusal("{% for i in [1] %}{{ loop.cycle(1) }}{% endfor %}"),
            "t:1: \"loop.cycle()\" is not supported");
  EXPECT_EQ(refusal("{% set x %}{% generation %}{% endgeneration %}{% endset %}"),
            "t:1: \"generation\" inside of a macro or another block's text is not supported");
  EXPECT_EQ(refusal("x\n{{ raise_exception('no tools') }}"), "t:2: the template refuses this: no tools");
  EXPECT_EQ(refusal("x\n{{ a.b }}"), "t:2: \"a\" is undefined");
  EXPECT_EQ(refusal("{{ cycler(1) }}"), "t:1: \"cycler\" is undefined");
  EXPECT_EQ(refusal("{{ strftime_now('%Y') }}"), "t:1: \"strftime_now\" is undefined");
  EXPECT_EQ(refusal("{% if x %}\n{% for y in x %}\n{% endif %}"), "t:3: \"endif\" without its beginning");
  EXPECT_EQ(refusal("\n{% if x %}"), "t:2: no \"endif\" follows");
  EXPECT_EQ(refusal("{{ d.items }}", {{"d", Json::object()}}),
            "t:1: \"items\" is a method of a dict, and not called here");
  EXPECT_EQ(refusal("{% set g = [1] | map('string') %}{{ g | list }}{{ g | list }}"),
            "t:1: a generator is read twice; | list makes it a list");
}

TEST(Jinja, TimeIsGivenOrNotThere) {
  std::tm now{};
  now.tm_year = 126;
  now.tm_mon = 10;
  now.tm_mday = 2;
  const jinja::Template dated("{{ strftime_now('%d %b %Y, %-d') if strftime_now is defined else 'none' }}",
                              "t");
  EXPECT_EQ(dated.render(Json::object(), now).text, "02 Nov 2026, 2");
  EXPECT_EQ(dated.render(Json::object()).text, "none");
  const jinja::Template odd("{{ strftime_now('%Q') }}", "t");
  EXPECT_EQ(error_of([&] { odd.render(Json::object(), now); }),
            "t:1: strftime_now: the format \"%Q\" is not supported");
}

TEST(Jinja, HostileTemplatesEndSoon) {
  EXPECT_NE(refusal("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}"), "");
  EXPECT_NE(refusal("{{ " + std::string(100000, '-') + "1 }}"), "");
  EXPECT_NE(refusal("{{ " + std::string(5000, '[') + std::string(5000, ']') + " }}"), "");
  std::string chain = "1", nested, attributes = "x", nots;
  for (int i = 0; i < 50000; ++i) chain += "+1";
  for (int i = 0; i < 5000; ++i) nested += "{% if 1 %}";
  for (int i = 0; i < 50000; ++i) attributes += ".a";
  for (int i = 0; i < 50000; ++i) nots += "not ";
  EXPECT_NE(refusal("{{ " + chain + " }}"), "");
  EXPECT_NE(refusal(nested), "");
  EXPECT_NE(refusal("{{ " + attributes + " }}"), "");
  EXPECT_NE(refusal("{{ " + nots + "1 }}"), "");
  EXPECT_NE(refusal("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "");
  EXPECT_NE(refusal("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), "");
  EXPECT_NE(refusal("{{ range(10 ** 12) | length }}"), "");
  EXPECT_NE(refusal("{{ 'x' * 10 ** 12 }}"), "");
  EXPECT_NE(refusal("{{ [0] * 10 ** 12 }}"), "");
  EXPECT_NE(refusal("{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s "
                    "%}{% endfor %}"),
            "");
  EXPECT_NE(
      refusal("{% set n = namespace(s=1) %}{% for i in range(9999) %}{% set n.s = [n.s] %}{% endfor %}"), "");
  EXPECT_NE(refusal("{% set n = namespace() %}{% set n.n = n %}"), "");
  EXPECT_NE(refusal("{{ 9223372036854775807 + 1 }}"), "");
  EXPECT_NE(refusal("{{ -9223372036854775807 - 2 }}{{ 3 ** 99 }}"), "");
  EXPECT_NE(refusal(std::string((1 << 20) + 1, 'x')), "");
  EXPECT_EQ(render("{{ 1 ** 999999999999 }} {{ (-1) ** 999999999999 }}"), "1 -1");
}

TEST(Jinja, TruncatedTemplatesAreErrorsOrTexts) {
  for (const auto& entry : fs::directory_iterator(kGoldens)) {
    if (entry.path().extension() != ".jinja") continue;
    const std::string whole = text_of(entry.path());
    for (size_t n = 0; n < whole.size(); ++n) {
      const ChatOptions prompt{.tools = {}, .add_generation_prompt = true, .now = {}};
      error_of([&] {
        ChatTemplate(whole.substr(0, n), "t", {}).render(Json::array({message("user", "hi")}), prompt);
      });
    }
  }
}

TEST(ChatTemplate, EqualsTransformersOnTemplatesOfEveryKind) {
  const auto tokens = golden()["tokens"].get<SpecialTokens>();
  int texts = 0, refused = 0;
  for (const auto& [name, cases] : golden()["conversations"].items()) {
    const ChatTemplate chat(text_of(kGoldens / (name + ".jinja")), name, tokens);
    for (const Json& c : cases) {
      const std::string what = name + ": " + c["name"].get<std::string>();
      const ChatOptions options{.tools = c["tools"], .add_generation_prompt = c["prompt"], .now = {}};
      std::string text;
      const std::string error = error_of([&] { text = chat.render(c["messages"], options); });
      if (c.contains("error")) {
        EXPECT_NE(error, "") << what << ": " << c["error"];
        ++refused;
        continue;
      }
      EXPECT_EQ(error, "") << what;
      EXPECT_EQ(text, c["text"].get<std::string>()) << what;
      ++texts;
      if (!c.contains("generated") || c["generated"].empty()) continue;
      std::vector<std::string> learned;
      for (const ChatPiece& piece : chat.pieces(c["messages"], options)) {
        if (piece.learn) learned.push_back(piece.text);
      }
      EXPECT_EQ(Json(learned), c["generated"]) << what;
    }
  }
  EXPECT_GT(texts, 70);
  EXPECT_GT(refused, 10);
}

std::string marked(const ChatTemplate& chat, const Json& messages) {
  std::string text;
  for (const ChatPiece& piece : chat.pieces(messages))
    text += piece.learn ? "<" + piece.text + ">" : piece.text;
  return text;
}

const Json kTwoTurns{message("system", "S"), message("user", "a"), message("assistant", "b"),
                     message("user", "c"), message("assistant", "d")};

TEST(ChatTemplate, BuiltInOnes) {
  const SpecialTokens tokens{{"bos_token", "[s]"}, {"eos_token", "[/s]"}};
  const auto built_in = [&](const char* name) { return built_in_chat_template(name, tokens); };
  EXPECT_EQ(
      marked(built_in("chatml"), kTwoTurns),
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<b<|im_end|>>\n"
      "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<d<|im_end|>>\n");
  EXPECT_EQ(marked(built_in("mistral"), kTwoTurns), "[s][INST]S\n\na[/INST]<b[/s]>[INST]c[/INST]<d[/s]>");
  EXPECT_EQ(marked(built_in("plain"), kTwoTurns),
            "System: S\nUser: a\nAssistant:< b\nUser:> c\nAssistant:< d[/s]>");
  const ChatOptions prompt{.tools = {}, .add_generation_prompt = true, .now = {}};
  const Json question = Json::array({message("user", "q")});
  EXPECT_EQ(built_in("chatml").render(question, prompt),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(built_in("mistral").render(question, prompt), "[s][INST]q[/INST]");
  EXPECT_EQ(built_in("plain").render(question, prompt), "User: q\nAssistant:");
  EXPECT_NE(error_of([&] { built_in("mistral").render(Json::array({message("assistant", "x")})); }), "");
  EXPECT_NE(error_of([&] { built_in("plain").render(Json::array({message("tool", "x")})); }), "");
}

TEST(ChatTemplate, WhatIsLearnedWithoutGenerationBlocks) {
  const SpecialTokens tokens{{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  const ChatTemplate zephyr(text_of(kGoldens / "zephyr.jinja"), "zephyr", tokens);
  EXPECT_EQ(marked(zephyr, kTwoTurns),
            "<|system|>\nS</s>\n<|user|>\na</s>\n<|assistant|>\n<b</s>\n><|user|>\nc</s>\n<|assistant|>\n<d</"
            "s>\n>");
  // The system message moves to the last question: where answers stand cannot be told.
  const ChatTemplate mistral(text_of(kGoldens / "mistral.jinja"), "mistral", tokens);
  const std::string error = error_of([&] { mistral.pieces(kTwoTurns); });
  EXPECT_NE(error.find("it needs generation blocks"), error.npos) << error;
  const Json plain_turns(Json::array_t(kTwoTurns.begin() + 1, kTwoTurns.end()));
  EXPECT_EQ(marked(mistral, plain_turns), "<s>[INST] a[/INST]< b</s>>[INST] c[/INST]< d</s>>");
}

TEST(ChatTemplate, RefusesWhatAreNoMessages) {
  const ChatTemplate chat = built_in_chat_template("plain", {});
  EXPECT_EQ(error_of([&] { chat.render(Json::array()); }), "messages: not a list of messages");
  EXPECT_EQ(error_of([&] {
              chat.render(Json::array({message("user", "a"), "b"}));
            }),
            "messages[1]: not an object");
  EXPECT_EQ(error_of([&] {
              chat.render(Json::array({{{"content", "x"}}}));
            }),
            "messages[0]: no field \"role\"");
  EXPECT_EQ(error_of([&] {
              chat.render(Json::array({{{"role", 1}, {"content", "x"}}}));
            }),
            "messages[0]: field \"role\" is not a string");
  EXPECT_EQ(error_of([&] {
              chat.render(Json::array({{{"role", "user"}}}));
            }),
            "messages[0]: no field \"content\"");
  EXPECT_EQ(error_of([&] { chat.pieces(Json::array({message("user", "a")})); }),
            "messages: none of them is the assistant's");
}

TEST(ChatTemplate, IsFoundInTheModelsFolder) {
  test::TempFolder folder;
  const auto open = [&](const std::string& choice = "") {
    return open_chat_template({folder.path()}, nullptr, choice);
  };
  EXPECT_EQ(open().name(), "plain");
  EXPECT_FALSE(chat_template_source(folder.path()));
  write(
      folder / "tokenizer_config.json",
      R"({"eos_token":{"content":"<end>"},"chat_template":[{"name":"default","template":"one {{ eos_token }}"},)"
      R"({"name":"tool_use","template":"two"}]})");
  const Json question = Json::array({message("user", "q")});
  EXPECT_EQ(open().render(question), "one <end>");
  EXPECT_EQ(open("tool_use").render(question), "two");
  EXPECT_NE(error_of([&] { open("rag"); }).find("it has default, tool_use"), std::string::npos);
  EXPECT_EQ(open("chatml").render(question), "<|im_start|>user\nq<|im_end|>\n");
  write(folder / "chat_template.json", R"({"chat_template":"three"})");
  EXPECT_EQ(open().render(question), "three");
  write(folder / "chat_template.jinja", "four");
  EXPECT_EQ(open().render(question), "four");
  EXPECT_TRUE(chat_template_source(folder.path()));
  write(folder / "mine.jinja", "five {{ nosuch | pprint }}");
  const std::string mine = folder / "mine.jinja";
  EXPECT_EQ(error_of([&] { open(mine); }), mine + ":1: the filter \"pprint\" is not supported");
  write(folder / "tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_NE(error_of([&] { open("tool_use"); }), "");
}

// A tokenizer of bytes, but for the marks of ChatML.
std::unique_ptr<Tokenizer> byte_tokenizer() {
  Json vocab;
  for (int b = 33; b < 127; ++b) vocab[std::string(1, static_cast<char>(b))] = b;
  vocab["Ġ"] = 32;
  vocab["Ċ"] = 10;
  const Json json{
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"added_tokens",
       {{{"id", 200},
         {"content", "<|im_end|>"},
         {"special", true},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false}}}}};
  return parse_tokenizer_json(json.dump(), "bytes");
}

TEST(ChatHistory, ATurnReadsOnlyWhatIsNew) {
  const auto tokenizer = byte_tokenizer();
  const ChatTemplate chat = built_in_chat_template("chatml", {});
  ChatHistory history(chat, *tokenizer, "S");
  EXPECT_EQ(history.stop(), "<|im_end|>");
  ChatHistory::Turn turn = history.say("a");
  EXPECT_TRUE(turn.anew);
  EXPECT_EQ(turn.text,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
  history.answered(" b \n");
  turn = history.say("c");
  EXPECT_FALSE(turn.anew);
  EXPECT_EQ(turn.text, "<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n");
  history.answered("d", history.stop());  // it wrote <|im_end|> itself
  EXPECT_EQ(history.close(), "\n<|im_start|>user");
  EXPECT_EQ(history.say("e").text, "\ne<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatHistory, GoesOnFromWhatWasRemembered) {
  const auto tokenizer = byte_tokenizer();
  const ChatTemplate chat = built_in_chat_template("chatml", {});
  ChatHistory first(chat, *tokenizer);
  EXPECT_TRUE(
      first.say_all({{{"role", "system"}, {"content", "S"}}, {{"role", "user"}, {"content", "a"}}}).anew);
  first.answered("b", "<|im_end|>");
  ChatHistory later(chat, *tokenizer);
  later.go_on(first.past());
  const ChatHistory::Turn turn = later.say("c");
  EXPECT_FALSE(turn.anew);
  EXPECT_EQ(turn.text, first.say("c").text);
  EXPECT_EQ(turn.text, "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n");
  later.answered("d", "!");  // which no template writes there: the state is of no use
  EXPECT_TRUE(later.say("e").anew);
}

TEST(ChatHistory, PlainAnswersEndWithTheNextName) {
  const auto tokenizer = byte_tokenizer();
  const ChatTemplate chat = built_in_chat_template("plain", {{"eos_token", "<|im_end|>"}});
  ChatHistory history(chat, *tokenizer);
  EXPECT_EQ(history.stop(), "\nUser:");
  EXPECT_EQ(history.say("a").text, "User: a\nAssistant:");
  history.answered(" b", history.stop());
  EXPECT_EQ(history.say("c").text, " c\nAssistant:");
  history.answered(" d");
  EXPECT_EQ(history.close(), "\nUser:");
  ChatHistory other(chat, *tokenizer);
  other.resume();
  EXPECT_EQ(other.say("e").text, " e\nAssistant:");
  other.answered(" f");
  const ChatHistory::Turn turn = other.say("g");
  EXPECT_FALSE(turn.anew);
  EXPECT_EQ(turn.text, "\nUser: g\nAssistant:");
}

TEST(ChatHistory, ATemplateThatRewritesTheBeginningIsReadAnew) {
  const auto tokenizer = byte_tokenizer();
  const ChatTemplate chat(text_of(kGoldens / "mistral.jinja"), "mistral",
                          {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  ChatHistory history(chat, *tokenizer, "S");
  EXPECT_EQ(history.say("a").text, "<s>[INST] S\n\na[/INST]");
  history.answered(" b");
  const ChatHistory::Turn turn = history.say("c");
  EXPECT_TRUE(turn.anew);
  EXPECT_EQ(turn.text, "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST]");
  ChatHistory without(chat, *tokenizer);
  without.say("a");
  without.answered(" b");
  EXPECT_EQ(without.say("c").text, "</s>[INST] c[/INST]");
  without.resume();
  EXPECT_EQ(without.say("c").text, " c[/INST]");
}

TEST(ChatHistory, AMessageThatIsRefusedChangesNothing) {
  const auto tokenizer = byte_tokenizer();
  const ChatTemplate chat(
      "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad') }}{% endif %}"
      "[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}",
      "t", {});
  ChatHistory history(chat, *tokenizer);
  EXPECT_NE(error_of([&] { history.say("bad"); }), "");
  EXPECT_EQ(history.say("a").text, "[a][");
  history.answered("b");
  EXPECT_NE(error_of([&] { history.say("bad"); }), "");
  EXPECT_EQ(history.say("c").text, "][c][");
}

TEST(ChatTemplate, CodestralsTokensStandWhereItsTokenizerPutsThem) {
  const fs::path model = fs::path(SSM_SOURCE_DIR) / "../shared/tokenizers/codestral-mamba/tokenizer.model.v3";
  std::error_code error;
  if (!fs::exists(model, error)) GTEST_SKIP() << model << " is not there";
  const auto tokenizer = open_tokenizer(model);
  const ChatTemplate chat = open_chat_template({model.parent_path()}, tokenizer.get());
  EXPECT_EQ(chat.name(), "mistral");
  std::vector<int32_t> expected{*tokenizer->bos(), *tokenizer->find("[INST]")};
  for (const int32_t id : tokenizer->encode("Say hello")) expected.push_back(id);
  expected.push_back(*tokenizer->find("[/INST]"));
  const ChatOptions prompt{.tools = {}, .add_generation_prompt = true, .now = {}};
  EXPECT_EQ(tokenizer->encode(chat.render(Json::array({message("user", "Say hello")}), prompt)), expected);
}

}  // namespace
}  // namespace ssm::text
