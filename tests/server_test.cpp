// The server over real sockets: what it answers, and what hostile and vanishing clients can do to it.
#include "server_fixture.h"
#include "ssm/core/rng.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/score.h"

namespace ssm {
namespace {

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

TEST_F(ServerTest, TokensOfAMomentGoOutTogetherTheFirstAndTheEndAtOnce) {
  json body{{"prompt", kText}, {"max_tokens", 200}, {"seed", 3}, {"ignore_eos", true}};
  std::string texts[2];
  size_t events[2] = {};
  for (const bool together : {false, true}) {
    start([&](serve::ServerOptions& options) { options.stream_seconds = together ? 600 : 0; });
    texts[together] = complete(body).object()["choices"][0]["text"];
    body["stream"] = true;
    const std::string answer = complete(body).body;
    body["stream"] = false;
    std::string text;
    for (size_t at = 0; (at = answer.find("data: {", at)) != std::string::npos; ++events[together]) {
      const std::string data = answer.substr(at + 6, answer.find("\n\n", at) - at - 6);
      text += json::parse(data)["choices"][0]["text"].get<std::string>();
      at += data.size();
    }
    EXPECT_EQ(text, texts[together]);
    stop();
  }
  EXPECT_EQ(texts[0], texts[1]);
  // What is hindered on its way may go with the next, but never waits for the interval to pass.
  EXPECT_GT(events[0], 3u);
  EXPECT_LE(events[1], 3u);
}

TEST_F(ServerTest, WhatStillRunsWhenTheTimeToDrainIsOverIsDropped) {
  start([](serve::ServerOptions& options) { options.drain_seconds = 0.05; });
  Client client(port_);
  client.send(request_text("POST", "/v1/completions",
                           R"({"prompt":"a","max_tokens":4096,"ignore_eos":true,"stream":true})"));
  client.read_until("data: ");
  stop();
  EXPECT_EQ(client.read_until("").find("[DONE]"), std::string::npos);
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
