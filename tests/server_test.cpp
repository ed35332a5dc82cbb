// The server over real sockets: what it answers, and what hostile and vanishing clients can do to it.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "ssm/core/rng.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/score.h"
#include "ssm/serve/server.h"

namespace ssm {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

LoadedModel bundled_model() {
  LoadOptions options;
  options.compute = DType::f32;
  return load_model(std::filesystem::path(SSM_SOURCE_DIR) / "models/tale-8m", options);
}

const LoadedModel& model() {
  static const LoadedModel loaded = bundled_model();
  return loaded;
}

// A client's socket; bytes as they are.
class Client {
 public:
  explicit Client(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval patience{60, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    SSM_CHECK(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "cannot connect");
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void send(std::string_view bytes) const { ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  // Up to `marker` included, or all until the server closes.
  std::string read_until(std::string_view marker) {
    for (;;) {
      const size_t at = marker.empty() ? std::string::npos : buffer_.find(marker);
      if (at != std::string::npos) return take(at + marker.size());
      if (!more()) return take(buffer_.size());
    }
  }
  std::string read_bytes(size_t count) {
    while (buffer_.size() < count && more()) {
    }
    return take(std::min(count, buffer_.size()));
  }

 private:
  bool more() {
    char bytes[4096];
    const ssize_t n = ::recv(fd_, bytes, sizeof(bytes), 0);
    if (n > 0) buffer_.append(bytes, static_cast<size_t>(n));
    return n > 0;
  }
  std::string take(size_t count) {
    std::string out = buffer_.substr(0, count);
    buffer_.erase(0, count);
    return out;
  }

  int fd_;
  std::string buffer_;
};

struct Answer {
  int status = 0;
  std::string headers, body;
  json object() const { return json::parse(body); }
};

Answer read_answer(Client& client) {
  Answer answer;
  answer.headers = client.read_until("\r\n\r\n");
  if (answer.headers.size() < 12) return answer;  // closed
  answer.status = std::atoi(answer.headers.c_str() + 9);
  const size_t length = answer.headers.find("Content-Length: ");
  if (length != std::string::npos) {
    answer.body = client.read_bytes(static_cast<size_t>(std::atoll(answer.headers.c_str() + length + 16)));
    return answer;
  }
  for (;;) {  // chunks
    const auto size = std::strtoull(client.read_until("\r\n").c_str(), nullptr, 16);
    answer.body += client.read_bytes(size);
    client.read_until("\r\n");
    if (size == 0) return answer;
  }
}

std::string request_text(const std::string& method, const std::string& path, const std::string& body,
                         const std::string& headers = "") {
  return fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\n{}Content-Length: {}\r\n\r\n{}", method, path,
                     headers, body.size(), body);
}

class ServerTest : public testing::Test {
 protected:
  void start(const std::function<void(serve::ServerOptions&)>& change = {}) {
    serve::ServerOptions options;
    options.port = 0;
    options.model_name = "tale";
    options.max_sequences = 8;
    options.prefix_cache_bytes = size_t{64} << 20;
    options.log = [this](std::string_view line) { log_ += std::string(line) + "\n"; };
    if (change) change(options);
    server_ = std::make_unique<serve::Server>(model(), options);
    port_ = server_->port();
    thread_ = std::thread([this] { server_->run(); });
  }
  void stop() {
    if (!server_) return;
    server_->stop();
    thread_.join();
    server_.reset();
  }
  void TearDown() override { stop(); }

  Answer ask(const std::string& method, const std::string& path, const std::string& body = "",
             const std::string& headers = "") const {
    Client client(port_);
    client.send(request_text(method, path, body, headers));
    return read_answer(client);
  }
  Answer complete(const json& body) const { return ask("POST", "/v1/completions", body.dump()); }
  double metric(const std::string& name) const {
    const std::string text = "\n" + ask("GET", "/metrics").body;
    const size_t at = text.find("\nssm_" + name + " ");
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + name.size() + 6);
  }
  // Waits until a metric has a value; false when it takes too long.
  bool becomes(const std::string& name, double value) const {
    for (int i = 0; i < 3000; ++i, std::this_thread::sleep_for(10ms)) {
      if (metric(name) == value) return true;
    }
    return false;
  }

  std::unique_ptr<serve::Server> server_;
  std::thread thread_;
  uint16_t port_ = 0;
  std::string log_;
};

const std::string kText = "Once upon a time there was a house by the sea";

TEST_F(ServerTest, WritesWhatTheGeneratorWritesWholeAndStreamed) {
  start();
  Generator generator(model(), 1);
  generator.add(model().tokenizer->encode(kText));
  const Generated expected = generator.run({.sampling = {.temperature = 0.7f, .seed = 9},
                                            .max_new_tokens = 30,
                                            .stop = {},
                                            .ignore_eos = true})[0];
  json body{{"prompt", kText}, {"max_tokens", 30}, {"temperature", 0.7}, {"seed", 9}, {"ignore_eos", true}};
  EXPECT_EQ(complete(body).object()["choices"][0]["text"], expected.text);
  body["stream"] = true;
  const std::string events = complete(body).body;
  std::string text;
  size_t at = 0;
  for (size_t end; (end = events.find("\n\n", at)) != std::string::npos; at = end + 2) {
    ASSERT_EQ(events.substr(at, 6), "data: ");
    const std::string data = events.substr(at + 6, end - at - 6);
    if (data != "[DONE]") text += json::parse(data)["choices"][0]["text"].get<std::string>();
  }
  EXPECT_EQ(text, expected.text);
  EXPECT_TRUE(events.ends_with("data: [DONE]\n\n"));
}

TEST_F(ServerTest, ScoresAPromptAsScoreDoesWithNeighboursToo) {
  start();
  std::vector<int32_t> ids = model().tokenizer->encode(kText);
  Rng rng(4);
  while (ids.size() < 300) ids.push_back(static_cast<int32_t>(rng.below(model().usable_vocab())));
  const json body{{"prompt", {ids, {1, 2, 3}, ids}}, {"echo", true}, {"logprobs", 1}, {"max_tokens", 1}};
  const json choices = complete(body).object()["choices"];
  ASSERT_EQ(choices.size(), 3u);
  for (const size_t c : {size_t{0}, size_t{2}}) {
    const json& logprobs = choices[c]["logprobs"];
    ASSERT_EQ(logprobs["token_logprobs"].size(), ids.size() + 1);
    int32_t best = -1;
    score(model(), ids, [&](const TokenScore& s) {
      const auto i = static_cast<size_t>(s.position);
      if (i > 0) {
        const auto value = logprobs["token_logprobs"][i].get<float>();
        EXPECT_EQ(value, s.logprob);
        float top = -1e30f;
        for (const auto& [name, logprob] : logprobs["top_logprobs"][i].items())
          top = std::max(top, logprob.get<float>());
        EXPECT_EQ(value == top, best == ids[i]);
      }
      best = s.argmax;
    });
  }
}

TEST_F(ServerTest, RefusesWhatMakesNoSenseAndNamesTheField) {
  start();
  const std::pair<json, const char*> cases[] = {
      {json::object(), "prompt"},
      {{{"prompt", ""}}, "prompt"},
      {{{"prompt", json::array()}}, "prompt"},
      {{{"prompt", {1, -1}}}, "prompt"},
      {{{"prompt", {1, 1 << 30}}}, "prompt"},
      {{{"prompt", {1, 18446744073709551615u}}}, "prompt"},
      {{{"prompt", {1, "a"}}}, "prompt"},
      {{{"prompt", 5}}, "prompt"},
      {{{"prompt", "a"}, {"max_tokens", -1}}, "max_tokens"},
      {{{"prompt", "a"}, {"max_tokens", 1e30}}, "max_tokens"},
      {{{"prompt", "a"}, {"max_tokens", 18446744073709551615u}}, "max_tokens"},
      {{{"prompt", "a"}, {"n", 1000}}, "n"},
      {{{"prompt", "a"}, {"temperature", -1}}, "temperature"},
      {{{"prompt", "a"}, {"temperature", "hot"}}, "temperature"},
      {{{"prompt", "a"}, {"top_p", 1.5}}, "top_p"},
      {{{"prompt", "a"}, {"logprobs", 21}}, "logprobs"},
      {{{"prompt", "a"}, {"stop", {1}}}, "stop"},
      {{{"prompt", "a"}, {"stop", ""}}, "stop"},
      {{{"prompt", "a"}, {"stream", 1}}, "stream"},
      {{{"prompt", "a"}, {"logit_bias", {{"x", 1}}}}, "logit_bias"},
      {{{"prompt", "a"}, {"logit_bias", {{"99999999", 1}}}}, "logit_bias"},
      {{{"prompt", "a"}, {"suffix", "b"}}, "suffix"},
      {{{"prompt", "a"}, {"response_format", {{"type", "json_object"}}}}, "response_format"},
  };
  for (const auto& [body, field] : cases) {
    const Answer answer = complete(body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.object()["error"]["param"], field) << answer.body;
  }
  for (const char* body :
       {"", "{", "[1]", "null", "{\"prompt\":\"a\",\"prompt\":\"b\"}", "\xff\xfe", "{\"prompt\":NaN}"}) {
    EXPECT_EQ(ask("POST", "/v1/completions", body).status, 400) << body;
  }
  EXPECT_EQ(ask("POST", "/v1/completions", std::string(100'000, '[')).status, 400);
  EXPECT_EQ(ask("GET", "/v1/completions").status, 405);
  EXPECT_EQ(ask("GET", "/v1/nothing").status, 404);
  EXPECT_EQ(
      ask("POST", "/v1/chat/completions", R"({"messages":[{"content":"a"}]})").object()["error"]["param"],
      "messages");
  EXPECT_EQ(complete({{"prompt", "a"}, {"model", "any name"}, {"max_tokens", 1}}).status, 200);
}

TEST_F(ServerTest, AsksForItsKeyAndForItsName) {
  start([](serve::ServerOptions& options) { options.api_key = "secret"; });
  EXPECT_EQ(ask("GET", "/v1/models").status, 401);
  EXPECT_EQ(ask("GET", "/v1/models", "", "Authorization: Bearer secre\r\n").status, 401);
  EXPECT_EQ(ask("GET", "/v1/models", "", "Authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(ask("GET", "/health").status, 200);
  const std::string key = "Authorization: Bearer secret\r\n";
  EXPECT_EQ(ask("GET", "/v1/models", "", key + "Origin: http://elsewhere.example\r\n").status, 403);
  EXPECT_EQ(ask("GET", "/v1/models", "", key + "Origin: http://localhost\r\n").status, 200);
  Client client(port_);
  client.send("GET /v1/models HTTP/1.1\r\nHost: rebound.example\r\n" + key + "\r\n");
  EXPECT_EQ(read_answer(client).status, 403);
}

TEST_F(ServerTest, AnswersManyRequestsOnOneConnectionEvenSentAtOnce) {
  start();
  Client client(port_);
  const std::string body = R"({"prompt":"a","max_tokens":3})";
  std::string all;
  for (int i = 0; i < 5; ++i) all += request_text("POST", "/v1/completions", body);
  client.send(all);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(read_answer(client).status, 200);
  client.send(request_text("GET", "/health", ""));
  EXPECT_EQ(read_answer(client).status, 200);
}

TEST_F(ServerTest, DamagedHttpHurtsNobody) {
  start([](serve::ServerOptions& options) {
    options.max_body_bytes = 1000;
    options.read_seconds = 0.3;
  });
  const auto first_status = [&](const std::string& bytes) {
    Client client(port_);
    client.send(bytes);
    return read_answer(client).status;
  };
  EXPECT_EQ(first_status("GARBAGE\r\n\r\n"), 400);
  EXPECT_EQ(first_status("POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n"), 400);
  EXPECT_EQ(first_status("POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"), 413);
  EXPECT_EQ(first_status(request_text("POST", "/v1/completions", std::string(2000, ' '))), 413);
  EXPECT_EQ(first_status("GET /health HTTP/1.1\r\nX: " + std::string(50'000, 'x') + "\r\n\r\n"), 431);
  EXPECT_EQ(first_status("POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"),
            0);  // too slow: closed
  Rng rng(8);
  const std::string good = request_text("POST", "/v1/completions", R"({"prompt":"a","max_tokens":1})");
  for (int i = 0; i < 300; ++i) {
    std::string bytes = good;
    for (int64_t changes = 1 + rng.below(4); changes > 0; --changes) {
      bytes[static_cast<size_t>(rng.below(std::ssize(bytes)))] = static_cast<char>(rng.below(256));
    }
    Client client(port_);
    client.send(bytes.substr(0, static_cast<size_t>(rng.below(std::ssize(bytes) + 1))));
  }
  EXPECT_EQ(ask("GET", "/health").status, 200);
  EXPECT_TRUE(becomes("sequences_running", 0));
}

TEST_F(ServerTest, AClientThatVanishesEndsItsText) {
  start([](serve::ServerOptions& options) { options.max_new_tokens = 1 << 30; });
  const json endless{{"prompt", kText}, {"max_tokens", 1 << 30}, {"ignore_eos", true}};
  for (const bool stream : {true, false}) {
    json body = endless;
    body["stream"] = stream;
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 6; ++i) {
      clients.push_back(std::make_unique<Client>(port_));
      clients.back()->send(request_text("POST", "/v1/completions", body.dump()));
    }
    ASSERT_TRUE(becomes("sequences_running", 6));
    clients.clear();
    EXPECT_TRUE(becomes("sequences_running", 0));
  }
  EXPECT_TRUE(becomes("vanished_clients_total", 12));
}

TEST_F(ServerTest, MoreThanMayWaitGets429AndASlowTextEndsInTime) {
  start([](serve::ServerOptions& options) {
    options.max_sequences = 1;
    options.max_waiting = 1;
    options.max_new_tokens = 1 << 30;
    options.request_seconds = 1.5;
  });
  const json endless{{"prompt", kText}, {"max_tokens", 1 << 30}, {"ignore_eos", true}};
  Client first(port_), second(port_);
  first.send(request_text("POST", "/v1/completions", endless.dump()));
  ASSERT_TRUE(becomes("sequences_running", 1));
  second.send(request_text("POST", "/v1/completions", endless.dump()));
  ASSERT_TRUE(becomes("sequences_waiting", 1));
  const Answer third = complete(endless);
  EXPECT_EQ(third.status, 429);
  EXPECT_NE(third.headers.find("Retry-After: "), std::string::npos);
  EXPECT_EQ(third.object()["error"]["type"], "rate_limit_error");
  EXPECT_EQ(complete({{"prompt", {"a", "b", "c"}}}).status, 400);  // never fits
  EXPECT_EQ(read_answer(first).object()["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(read_answer(second).status, 200);
  EXPECT_TRUE(becomes("sequences_running", 0));
}

TEST_F(ServerTest, AStopLetsFinishWhatRunsAndLogsNoText) {
  start();
  const json body{{"prompt", kText}, {"max_tokens", 200}, {"ignore_eos", true}};
  Client client(port_), idle(port_);
  client.send(request_text("POST", "/v1/completions", body.dump()));
  ASSERT_TRUE(becomes("sequences_running", 1));
  stop();
  const Answer answer = read_answer(client);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.object()["usage"]["completion_tokens"], 200);
  EXPECT_EQ(idle.read_until(""), "");
  EXPECT_NE(log_.find("POST /v1/completions 200"), std::string::npos) << log_;
  EXPECT_EQ(log_.find("upon"), std::string::npos);
}

TEST_F(ServerTest, ASecondTurnBeginsWhereTheFirstEnded) {
  start();
  const std::string text = model().tokenizer->decode(std::vector<int32_t>(model().tokenizer->encode(kText)));
  const json first = complete({{"prompt", text}, {"max_tokens", 1}}).object();
  const json next = complete({{"prompt", text + " where"}, {"max_tokens", 1}}).object();
  EXPECT_EQ(next["usage"]["prompt_tokens_details"]["cached_tokens"], first["usage"]["prompt_tokens"]);
  EXPECT_TRUE(becomes("prefix_cache_hits_total", 1));
}

}  // namespace
}  // namespace ssm
