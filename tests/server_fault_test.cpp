// Clients that are slow or send damaged things: others do not notice, and nothing of them stays.
#include <boost/asio/io_context.hpp>

#include "server_fixture.h"
#include "ssm/core/rng.h"
#include "ssm/serve/reply.h"
#include "ssm/text/chat_template.h"

namespace ssm {
namespace {

TEST_F(ServerTest, AClientThatTakesNothingHoldsUpNobodyAndIsGivenUp) {
  start([](serve::ServerOptions& options) {
    options.max_new_tokens = 1 << 30;
    options.write_seconds = 0.5;
  });
  const json endless{
      {"prompt", kText}, {"max_tokens", 1 << 30}, {"ignore_eos", true}, {"logprobs", 20}, {"stream", true}};
  Client deaf(port_, 4096);
  deaf.send(request_text("POST", "/v1/completions", endless.dump()));
  ASSERT_TRUE(becomes("sequences_running", 1));
  EXPECT_EQ(complete({{"prompt", "a"}, {"max_tokens", 20}, {"ignore_eos", true}}).status, 200);
  EXPECT_TRUE(becomes("sequences_running", 0));
  EXPECT_TRUE(becomes("slow_readers_total", 1));
}

TEST(Reply, HoldsABoundedNumberOfEventsAndEndsTheTextBeyond) {
  boost::asio::io_context context;
  serve::Outbox outbox(std::chrono::hours(1));
  const auto reply = std::make_shared<serve::Reply>(context.get_executor(), outbox, 10);
  const std::shared_ptr<Listener> listener = reply->listener(0);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(listener->on_token({0, 5, "a", nullptr}));
  EXPECT_FALSE(reply->overflowed());
  EXPECT_FALSE(listener->on_token({0, 5, "a", nullptr}));
  EXPECT_TRUE(reply->overflowed());
  listener->on_end(0, StopReason::cancelled);  // what ends it is still told
}

TEST_F(ServerTest, ARequestMayComeByteByByteButNotForEver) {
  start([](serve::ServerOptions& options) { options.read_seconds = 1; });
  Client slow(port_), endless(port_);
  const std::string request = request_text("POST", "/v1/completions", R"({"prompt":"a","max_tokens":2})");
  for (const char& byte : request) {
    slow.send({&byte, 1});
    std::this_thread::sleep_for(2ms);
  }
  EXPECT_EQ(read_answer(slow).status, 200);
  endless.send("GET /health HTTP/1.1\r\nX: ");
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < 2s) {
    endless.send("x");
    EXPECT_EQ(ask("GET", "/health").status, 200);
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(endless.read_until(""), "");  // closed, and not answered
}

// A value of the body, at any depth, becomes another or goes.
void damage(json& value, Rng& rng) {
  static const std::vector<json> kOdd{
      nullptr,       true,           -1,         0,          3,        0.5,
      1e308,         INT64_MIN,      UINT64_MAX, "",         "a",      std::string("\0\xc3\xa9", 3),
      json::array(), json::object(), {1, 2},     {{1}, {2}}, {"a", 1}, {{{"type", "text"}, {"text", "a"}}},
      "-x"};
  if (value.is_structured() && !value.empty() && rng.below(5) > 0) {
    auto place = value.begin();
    std::advance(place, rng.below(std::ssize(value)));
    if (rng.below(5) > 0) return damage(*place, rng);
    value.erase(place);
  } else {
    value = kOdd[static_cast<size_t>(rng.below(std::ssize(kOdd)))];
  }
}

TEST_F(ServerTest, DamagedJsonIsAnsweredOrRefusedAndHurtsNobody) {
  start([](serve::ServerOptions& options) {
    options.max_new_tokens = 4;
    options.chat.format =
        std::make_shared<const text::ChatTemplate>(text::built_in_chat_template("plain", {}));
  });
  const json text{{"prompt", kText},
                  {"max_tokens", 4},
                  {"temperature", 0.7},
                  {"top_p", 0.9},
                  {"top_k", 5},
                  {"min_p", 0.1},
                  {"n", 2},
                  {"stop", {"a", "b"}},
                  {"logit_bias", {{"5", 1}}},
                  {"echo", true},
                  {"logprobs", 2},
                  {"seed", 1},
                  {"stream", true},
                  {"stream_options", {{"include_usage", true}}},
                  {"user", "u"}};
  const json chat{{"messages", {{{"role", "user"}, {"content", "Hello"}}}},
                  {"max_completion_tokens", 3},
                  {"logprobs", true},
                  {"top_logprobs", 2},
                  {"session", "chat"}};
  const std::vector<std::pair<std::string, json>> good{
      {"/v1/completions", text},
      {"/v1/completions", {{"prompt", {1, 2, 3}}, {"max_tokens", 2}, {"session", "text"}}},
      {"/v1/chat/completions", chat},
      {"/v1/embeddings", {{"input", {"a", "b"}}, {"encoding_format", "base64"}}},
      {"/v1/sessions", {{"name", "other"}, {"from", "text"}}},
      {"/tokenize", {{"prompt", kText}}},
      {"/detokenize", {{"tokens", {1, 2, 3}}}}};
  const json plain{{"prompt", kText}, {"max_tokens", 4}, {"temperature", 0}};
  const json before = complete(plain).object()["choices"];
  EXPECT_EQ(ask("POST", "/tokenize", std::string(200'000, '[')).status, 400);
  EXPECT_EQ(ask("POST", "/tokenize", R"({"prompt":)" + std::string(200'000, '[')).status, 400);
  Rng rng(12);
  std::map<int, int> statuses;
  for (int i = 0; i < 1000; ++i) {
    auto [path, body] = good[static_cast<size_t>(rng.below(std::ssize(good)))];
    for (int64_t changes = rng.below(4); changes > 0; --changes) damage(body, rng);
    std::string bytes = body.dump();
    for (int64_t changes = rng.below(4) / 3 * rng.below(5); changes > 0; --changes) {
      bytes[static_cast<size_t>(rng.below(std::ssize(bytes)))] = static_cast<char>(rng.below(256));
    }
    const Answer answer = ask("POST", path, bytes);
    ++statuses[answer.status];
    if (answer.status == 200 || answer.status == 201) continue;
    EXPECT_TRUE(answer.status == 400 || answer.status == 404 || answer.status == 409) << bytes;
    EXPECT_TRUE(answer.object()["error"]["message"].is_string()) << answer.body;
  }
  EXPECT_GT(statuses[200], 100);
  EXPECT_GT(statuses[400], 100);
  EXPECT_TRUE(becomes("sequences_running", 0));
  EXPECT_EQ(complete(plain).object()["choices"], before);
}

}  // namespace
}  // namespace ssm
