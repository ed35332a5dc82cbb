// Sessions of the server: turns that read only what is new, forks, files, and what becomes of a session whose
// client vanishes or whose file is damaged.
#include <fstream>

#include "server_fixture.h"
#include "ssm/core/rng.h"
#include "ssm/load/chat.h"
#include "ssm/runtime/generate.h"
#include "ssm/text/chat_history.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

const std::string kMore = " Nobody had lived there for years.";

class SessionTest : public ServerTest {
 protected:
  void SetUp() override {
    const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = fs::path(testing::TempDir()) / ("ssm_session_" + name + std::to_string(::getpid()));
  }
  void TearDown() override {
    ServerTest::TearDown();
    fs::remove_all(folder_);
  }
  void start_with_chat(const std::function<void(serve::ServerOptions&)>& change = {}) {
    start([&](serve::ServerOptions& options) {
      options.chat.format =
          std::make_shared<const text::ChatTemplate>(text::built_in_chat_template("plain", {}));
      options.chat.stop = text::ChatHistory(*options.chat.format, *model().tokenizer).stop();
      options.warn = [this](std::string_view line) { warnings_.emplace_back(line); };
      if (change) change(options);
    });
  }
  void start_with_folder() {
    start_with_chat([&](serve::ServerOptions& options) { options.session_dir = folder_; });
  }
  // What a turn writes; its status where that is not 200.
  std::string turn(const std::string& session, const json& prompt, int64_t tokens = 12) const {
    json body{{"session", session}, {"max_tokens", tokens}, {"temperature", 0}, {"ignore_eos", true}};
    if (!prompt.is_null()) body["prompt"] = prompt;
    const Answer answer = complete(body);
    return answer.status == 200 ? answer.object()["choices"][0]["text"].get<std::string>()
                                : std::to_string(answer.status) + " " + answer.body;
  }
  Answer say(const std::string& session, const std::string& text) const {
    return ask("POST", "/v1/chat/completions",
               json{{"session", session},
                    {"messages", {{{"role", "user"}, {"content", text}}}},
                    {"max_tokens", 20},
                    {"temperature", 0}}
                   .dump());
  }
  json session(const std::string& name) const { return ask("GET", "/v1/sessions/" + name).object(); }
  int fork(const std::string& name, const std::string& from) const {
    return ask("POST", "/v1/sessions", json{{"name", name}, {"from", from}}.dump()).status;
  }

  fs::path folder_;
  std::vector<std::string> warnings_;
};

// What the generator writes after each of `prompts`, one conversation.
std::vector<std::string> expected_turns(const std::vector<std::string>& prompts, int64_t tokens = 12) {
  const GenerateOptions options{
      .sampling = {.temperature = 0}, .max_new_tokens = tokens, .stop = {}, .ignore_eos = true};
  Generator generator(model(), 1);
  std::vector<std::string> texts;
  for (const std::string& prompt : prompts) {
    const std::vector<int32_t> ids = model().tokenizer->encode(prompt);
    if (texts.empty()) {
      generator.add(ids);
    } else if (!ids.empty()) {
      generator.extend(0, ids);
    }
    texts.push_back(generator.run(options)[0].text);
  }
  return texts;
}

TEST_F(SessionTest, GoesOnWithOnlyTheNewText) {
  start();
  const std::vector<std::string> expected = expected_turns({kText, kMore, ""});
  EXPECT_EQ(turn("a", kText), expected[0]);
  const json body{
      {"session", "a"}, {"prompt", kMore}, {"max_tokens", 12}, {"temperature", 0}, {"ignore_eos", true}};
  const json second = complete(body).object();
  EXPECT_EQ(second["choices"][0]["text"], expected[1]);
  EXPECT_EQ(second["session"], "a");
  const auto known = std::ssize(model().tokenizer->encode(kText)) + 12 - 1;  // the last one was not read yet
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], known);
  EXPECT_EQ(second["usage"]["prompt_tokens"], known + 1 + std::ssize(model().tokenizer->encode(kMore)));
  EXPECT_EQ(turn("a", nullptr), expected[2]);
  const json about = session("a");
  EXPECT_EQ(about["turns"], 3);
  EXPECT_EQ(about["kind"], "completion");
  EXPECT_EQ(about["text"], kText + expected[0] + kMore + expected[1] + expected[2]);
}

TEST_F(SessionTest, AChatsTurnReadsTheNewMessageAlone) {
  start_with_chat();
  Generator generator(model(), 1);
  const text::ChatTemplate plain = text::built_in_chat_template("plain", {});
  text::ChatHistory history(plain, *model().tokenizer);
  const GenerateOptions options{
      .sampling = {.temperature = 0}, .max_new_tokens = 20, .stop = {history.stop()}, .ignore_eos = false};
  int64_t read = 0;
  for (const std::string text : {"Tell me of the sea.", "And then?", "Who was she?"}) {
    const text::ChatHistory::Turn next = history.say(text);
    const std::vector<int32_t> ids = encode_chat(model(), plain, next.text, next.anew);
    ASSERT_EQ(next.anew, read == 0);
    next.anew ? static_cast<void>(generator.add(ids)) : generator.extend(0, ids);
    const Generated expected = generator.run(options)[0];
    ASSERT_EQ(expected.reason, StopReason::length);  // so that no end of an answer was written
    history.answered(expected.text);
    const json answer = say("c", text).object();
    EXPECT_EQ(answer["choices"][0]["message"]["content"], expected.text);
    EXPECT_EQ(answer["usage"]["prompt_tokens_details"]["cached_tokens"], read);
    read = answer["usage"]["total_tokens"].get<int64_t>() - 1;
  }
  const json about = session("c");
  EXPECT_EQ(about["messages"].size(), 6u);
  EXPECT_EQ(about["messages"][2]["content"], "And then?");
  EXPECT_EQ(about["messages"][5]["role"], "assistant");
}

TEST_F(SessionTest, AnAnswerThatAUserEndedIsReadAsTheTranscriptHasIt) {
  start_with_chat();
  const auto ask_once = [&](const std::string& session, const json& messages, const json& stop) {
    json body{{"messages", messages}, {"max_tokens", 20}, {"temperature", 0}, {"stop", stop}};
    if (!session.empty()) body["session"] = session;
    return ask("POST", "/v1/chat/completions", body.dump()).object();
  };
  const json first = {{"role", "user"}, {"content", "Tell me of the sea."}};
  const json second = {{"role", "user"}, {"content", "And then?"}};
  const std::string free_answer =
      ask_once("", json::array({first}), nullptr)["choices"][0]["message"]["content"];
  const std::string stop = free_answer.substr(free_answer.size() / 2, 3);
  const std::string cut = ask_once("s", json::array({first}), stop)["choices"][0]["message"]["content"];
  ASSERT_LT(cut.size(), free_answer.size());
  const json messages = session("s")["messages"];
  const json whole = ask_once("", json::array({first, messages[1], second}), nullptr);
  const json next = ask_once("s", json::array({second}), nullptr);
  EXPECT_EQ(next["choices"], whole["choices"]);
}

TEST_F(SessionTest, AForkGoesItsOwnWay) {
  start();
  const std::vector<std::string> expected = expected_turns({kText, kMore});
  turn("a", kText);
  EXPECT_EQ(fork("b", "a"), 201);
  EXPECT_NE(turn("b", " It rained."), expected[1]);
  EXPECT_EQ(turn("a", kMore), expected[1]);
  EXPECT_EQ(session("b")["turns"], 2);
  EXPECT_EQ(fork("b", "a"), 409);
  EXPECT_EQ(fork("c", "nobody"), 404);
  EXPECT_EQ(ask("POST", "/v1/sessions", "{}").object()["kind"], "empty");
  EXPECT_EQ(ask("GET", "/v1/sessions").object()["data"].size(), 3u);
}

TEST_F(SessionTest, ALaterServerGoesOnFromItsFolder) {
  const std::vector<std::string> expected = expected_turns({kText, kMore});
  start_with_folder();
  EXPECT_EQ(turn("a", kText), expected[0]);
  EXPECT_EQ(say("c", "Hello").status, 200);
  ask("POST", "/v1/sessions", R"({"name":"empty"})");
  const json before = session("a"), chat = session("c");
  stop();
  start_with_folder();
  EXPECT_EQ(session("a"), before);
  EXPECT_EQ(session("c"), chat);
  EXPECT_EQ(session("empty")["kind"], "empty");
  EXPECT_EQ(turn("a", kMore), expected[1]);
  EXPECT_GT(say("c", "More").object()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  EXPECT_EQ(ask("DELETE", "/v1/sessions/a").status, 200);
  EXPECT_FALSE(fs::exists(folder_ / "a.safetensors"));
  stop();
  start_with_folder();
  EXPECT_EQ(ask("GET", "/v1/sessions/a").status, 404);
  EXPECT_EQ(warnings_, std::vector<std::string>());
  serve::ServerOptions same;
  same.port = 0;
  same.session_dir = folder_;
  EXPECT_THROW(serve::Server(model(), same), Error);
}

TEST_F(SessionTest, StatesBeyondTheirMemoryLieOnDisk) {
  const size_t each = bytes_of(state_layout(StatePool(*model().model, 1)), 0);
  start_with_chat([&](serve::ServerOptions& options) {
    options.session_dir = folder_;
    options.session_bytes = 2 * each;
  });
  const std::vector<std::string> expected = expected_turns({kText, kMore});
  for (const char* name : {"a", "b", "c", "d"}) EXPECT_EQ(turn(name, kText), expected[0]);
  for (const char* name : {"a", "b", "c", "d"}) EXPECT_EQ(turn(name, kMore), expected[1]);
  stop();
  start([&](serve::ServerOptions& options) { options.session_bytes = 2 * each; });
  turn("a", kText);
  turn("b", kText);
  EXPECT_EQ(turn("c", kText).substr(0, 3), "429");
  EXPECT_EQ(ask("DELETE", "/v1/sessions/a").status, 200);
  EXPECT_EQ(turn("c", kText), expected[0]);
}

TEST_F(SessionTest, RefusesWhatMakesNoSense) {
  start_with_chat();
  turn("a", kText);
  say("c", "Hello");
  for (const char* name : {"", ".", "../a", "a/b", "-a", "a b", "\xc3\xa4"}) {
    const Answer answer = complete({{"session", name}, {"prompt", "x"}});
    EXPECT_EQ(answer.status, 400) << name;
    EXPECT_EQ(answer.object()["error"]["param"], "session") << name;
  }
  const std::pair<json, const char*> cases[] = {
      {{{"session", 5}, {"prompt", "x"}}, "session"},
      {{{"session", "c"}, {"prompt", "x"}}, "session"},
      {{{"session", "a"}, {"prompt", {"x", "y"}}}, "prompt"},
      {{{"session", "a"}, {"prompt", "x"}, {"n", 2}}, "n"},
      {{{"session", "a"}, {"prompt", "x"}, {"echo", true}}, "echo"},
      {{{"session", "new"}}, "prompt"},
  };
  for (const auto& [body, field] : cases) {
    const Answer answer = complete(body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.object()["error"]["param"], field) << answer.body;
  }
  EXPECT_EQ(say("a", "x").status, 400);
  EXPECT_EQ(ask("GET", "/v1/sessions/new").status, 404);
  EXPECT_EQ(ask("GET", "/v1/sessions/..%2fa").status, 404);
  EXPECT_EQ(ask("GET", "/v1/sessions/a/b").status, 404);
  EXPECT_EQ(ask("DELETE", "/v1/sessions/nobody").status, 404);
  EXPECT_EQ(ask("PUT", "/v1/sessions/a").status, 405);
  EXPECT_EQ(turn("a", " and").substr(0, 3), expected_turns({kText, " and"})[1].substr(0, 3));
}

TEST_F(SessionTest, AVanishedClientsTextIsKeptAndOneThatNeverBeganIsNot) {
  start([](serve::ServerOptions& options) {
    options.max_sequences = 1;
    options.max_new_tokens = 1 << 30;
  });
  json body{{"session", "a"},     {"prompt", kText},  {"max_tokens", 1 << 30},
            {"ignore_eos", true}, {"temperature", 0}, {"stream", true}};
  ask("POST", "/v1/sessions", R"({"name":"a"})");
  auto client = std::make_unique<Client>(port_);
  client->send(request_text("POST", "/v1/completions", body.dump()));
  client->read_until("data: ");
  EXPECT_EQ(turn("a", kMore).substr(0, 3), "409");
  EXPECT_EQ(ask("DELETE", "/v1/sessions/a").status, 409);
  body["session"] = "b";
  auto waiting = std::make_unique<Client>(port_);
  waiting->send(request_text("POST", "/v1/completions", body.dump()));
  ASSERT_TRUE(becomes("sequences_waiting", 1));
  waiting.reset();
  ASSERT_TRUE(becomes("sequences_waiting", 0));
  client.reset();
  ASSERT_TRUE(becomes("sequences_running", 0));
  for (int i = 0; i < 500 && session("a")["busy"] == true; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(session("a")["turns"], 1);
  EXPECT_EQ(ask("GET", "/v1/sessions/b").status, 404);
  const std::string text = session("a")["text"];
  ASSERT_TRUE(text.starts_with(kText));
  const auto written = session("a")["tokens"].get<int64_t>() - std::ssize(model().tokenizer->encode(kText));
  const std::vector<std::string> expected = expected_turns({kText}, written);
  EXPECT_EQ(text, kText + expected[0]);
}

std::string bytes_of_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(SessionTest, DamagedFilesAreToldOfAndLeftAlone) {
  start_with_folder();
  turn("good", kText);
  say("chat", "Hello");
  stop();
  Rng rng(5);
  int damaged = 0;
  for (const char* name : {"good", "chat"}) {
    const std::string whole = bytes_of_file(folder_ / (std::string(name) + ".safetensors"));
    const auto write = [&](std::string bytes) {
      std::ofstream(folder_ / fmt::format("bad{}.safetensors", damaged++), std::ios::binary) << bytes;
    };
    for (const size_t n : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1})
      write(whole.substr(0, n));
    const std::pair<const char*, const char*> changes[] = {{"\\\"version\\\":1", "\\\"version\\\":9"},
                                                           {"\\\"turns\\\":1", "\\\"turns\\\":-"},
                                                           {"\\\"kind\\\":\\\"c", "\\\"kind\\\":\\\"x"},
                                                           {"\\\"pending\\\":[", "\\\"pending\\\":{"},
                                                           {"layers.0.ssm", "layers.9.ssm"}};
    for (const auto& [from, to] : changes) {
      std::string bytes = whole;
      const size_t at = bytes.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      bytes.replace(at, std::string_view(to).size(), to);
      write(std::move(bytes));
    }
  }
  std::ofstream(folder_ / "good.safetensors.tmp-1-2") << "half";
  start_with_folder();
  EXPECT_EQ(std::ssize(warnings_), damaged);
  for (const std::string& warning : warnings_) EXPECT_NE(warning.find("bad"), std::string::npos) << warning;
  EXPECT_FALSE(fs::exists(folder_ / "good.safetensors.tmp-1-2"));
  EXPECT_EQ(ask("GET", "/v1/sessions").object()["data"].size(), 2u);
  EXPECT_EQ(turn("bad0", kText).substr(0, 3), "409");
  EXPECT_EQ(turn("good", kMore), expected_turns({kText, kMore})[1]);
}

TEST_F(SessionTest, AFolderThatCannotBeWrittenFailsTheTurnAndChangesNothing) {
  start_with_folder();
  turn("a", kText);
  const json before = session("a");
  fs::remove_all(folder_);
  EXPECT_EQ(turn("a", kMore).substr(0, 3), "500");
  EXPECT_EQ(session("a"), before);
  fs::create_directories(folder_);
  EXPECT_EQ(turn("a", kMore), expected_turns({kText, kMore})[1]);
}

}  // namespace
}  // namespace ssm
