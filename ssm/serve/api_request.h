// Bodies of requests to what the engine takes. Every function throws ApiError (400) naming the field.
#pragma once

#include <nlohmann/json.hpp>

#include "ssm/runtime/scheduler.h"
#include "ssm/serve/http.h"
#include "ssm/serve/options.h"
#include "ssm/serve/session_turn.h"

namespace ssm::serve {

nlohmann::json parse_body(const std::string& body);  // an object

// Of /v1/completions and /v1/chat/completions.
struct TextRequest {
  bool chat = false, stream = false, usage_at_end = false, echo = false;
  std::string model;                  // as the client calls it
  std::vector<Request> requests;      // one a prompt, without listeners; each has `n` choices
  int64_t logprobs = -1;              // as asked: so many beside each token; -1: none
  std::shared_ptr<SessionTurn> turn;  // of the session that the one request goes on from; null: none
};

// The session that a text request names; empty: none.
std::string parse_session_name(const nlohmann::json& body);

TextRequest parse_completion(const nlohmann::json& body, const LoadedModel& model,
                             const ServerOptions& options, std::shared_ptr<SessionTurn> turn = nullptr);
TextRequest parse_chat(const nlohmann::json& body, const LoadedModel& model, const ServerOptions& options,
                       std::shared_ptr<SessionTurn> turn = nullptr);

// The name of a new session and of the one it is forked from; either may be empty.
std::pair<std::string, std::string> parse_new_session(const nlohmann::json& body);

struct EmbeddingRequest {
  std::string model;
  std::vector<Request> requests;
  bool base64 = false;
};
EmbeddingRequest parse_embedding(const nlohmann::json& body, const LoadedModel& model,
                                 const ServerOptions& options);

// /tokenize: the text of `prompt`, `content` or `text`, with a bos token where the model's texts have one and
// `add_special_tokens` is not false. /detokenize: `tokens`.
std::vector<int32_t> parse_tokenize(const nlohmann::json& body, const LoadedModel& model,
                                    const ServerOptions& options);
std::vector<int32_t> parse_detokenize(const nlohmann::json& body, const LoadedModel& model);

}  // namespace ssm::serve
