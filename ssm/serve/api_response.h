// What the engine tells of a text request, in OpenAI's JSON: as one object, or as events while it grows.
#pragma once

#include <nlohmann/json.hpp>

#include "ssm/serve/api_request.h"
#include "ssm/serve/reply.h"

namespace ssm::serve {

// Bytes that are no UTF-8 become U+FFFD.
std::string dump(const nlohmann::ordered_json& value);

class TextAnswer {
 public:
  TextAnswer(const TextRequest& request, const LoadedModel& model, std::string model_name);

  // Throws Error where a request failed.
  void take(const ReplyEvent& event);
  bool finished() const { return finished_ == request_.requests.size(); }

  nlohmann::ordered_json whole() const;  // once finished
  std::string events();             // what is new since the last call, as server-sent events; may be empty
  std::string last_events() const;  // usage where it was asked for, and the end

  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t new_tokens() const { return new_tokens_; }
  int64_t cached_tokens() const { return cached_tokens_; }

 private:
  struct Token {
    int32_t id;
    TokenScores scores;
    bool scored;  // false: a text's first token
  };
  struct Choice {
    std::string text;           // not told yet, when streaming
    std::vector<Token> tokens;  // likewise, where logprobs were asked for
    bool begun = false, ended = false, told_end = false;
    StopReason reason = StopReason::length;
    int64_t offset = 0;         // of the next token's text in the choice's
    std::string before, after;  // what stands around the text in an event that has no other news
  };

  void echo(size_t request, const std::vector<TokenScores>& scores);
  std::string name_of_token(int32_t id) const;
  nlohmann::ordered_json logprobs(const Choice& choice, int64_t& offset) const;
  nlohmann::ordered_json completion_logprobs(const Choice& choice, int64_t& offset) const;
  nlohmann::ordered_json chat_logprobs(const Choice& choice) const;
  nlohmann::ordered_json head(bool chunk) const;
  nlohmann::ordered_json usage() const;
  nlohmann::ordered_json finish_reason(const Choice& choice) const;
  nlohmann::ordered_json chunk_of(size_t index, Choice& choice);
  std::string event_of_text(size_t index, Choice& choice);

  const TextRequest& request_;
  const LoadedModel& model_;
  std::string model_name_, id_;
  int64_t created_;
  size_t choices_each_;
  std::vector<Choice> choices_;
  size_t finished_ = 0;
  int64_t prompt_tokens_ = 0, new_tokens_ = 0, cached_tokens_ = 0;
};

// Of unit length.
nlohmann::ordered_json embedding_json(std::vector<float> embedding, bool base64, size_t index);

}  // namespace ssm::serve
