#include "ssm/serve/api_response.h"

#include <cmath>
#include <cstring>
#include <random>

#include "ssm/core/clock.h"
#include "ssm/text/utf8.h"

namespace ssm::serve {
namespace {

using nlohmann::ordered_json;

std::string random_id(std::string_view prefix) {
  static thread_local std::mt19937_64 source{std::random_device{}()};
  return fmt::format("{}-{:016x}{:016x}", prefix, source(), source());
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const text::Utf8Step step = text::utf8_step(text, at);
    if (step.code_point < 0) return false;
    at += step.size;
  }
  return true;
}

int64_t characters(std::string_view text) {
  int64_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) at += text::utf8_step(text, at).size;
  return count;
}

std::string event(const ordered_json& value) { return "data: " + dump(value) + "\n\n"; }

ordered_json bytes_json(std::string_view bytes) {
  ordered_json list = ordered_json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

std::string base64_of(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    }
    for (size_t j = 0; j < 4; ++j) {
      text += i + j > bytes.size() ? '=' : kDigits[group >> (18 - 6 * j) & 63];
    }
  }
  return text;
}

}  // namespace

std::string dump(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

TextAnswer::TextAnswer(const TextRequest& request, const LoadedModel& model, std::string model_name)
    : request_(request),
      model_(model),
      model_name_(std::move(model_name)),
      id_(random_id(request.chat ? "chatcmpl" : "cmpl")),
      created_(unix_seconds()),
      choices_each_(static_cast<size_t>(request.requests[0].n)),
      choices_(request.requests.size() * choices_each_) {
  for (size_t r = 0; r < request.requests.size(); ++r) {
    const Request& one = request.requests[r];
    prompt_tokens_ += std::ssize(one.prompt) + (one.from ? one.from->note.tokens : 0);
    if (one.from) cached_tokens_ += one.from->note.tokens - std::ssize(one.from->note.pending);
    if (request.echo && request.logprobs < 0) echo(r, {});
  }
}

// The prompt goes before the text of each of its choices.
void TextAnswer::echo(size_t request, const std::vector<TokenScores>& scores) {
  const std::vector<int32_t>& prompt = request_.requests[request].prompt;
  for (size_t c = 0; c < choices_each_; ++c) {
    Choice& choice = choices_[request * choices_each_ + c];
    if (model_.tokenizer) choice.text += model_.tokenizer->decode(prompt);
    for (size_t i = 0; i < scores.size(); ++i) choice.tokens.push_back({prompt[i], scores[i], i > 0});
  }
}

void TextAnswer::take(const ReplyEvent& e) {
  Choice* choice = &choices_[e.request * choices_each_ + e.choice];
  switch (e.kind) {
    case ReplyEvent::Kind::start:
      cached_tokens_ += e.cached;
      break;
    case ReplyEvent::Kind::prompt:
      echo(e.request, e.prompt_scores);
      break;
    case ReplyEvent::Kind::token:
      choice->text += e.text;
      if (e.id < 0) break;
      ++new_tokens_;
      if (e.scores) choice->tokens.push_back({e.id, *e.scores, true});
      break;
    case ReplyEvent::Kind::end:
      choice->ended = true;
      choice->reason = e.reason;
      break;
    case ReplyEvent::Kind::finish:
      ++finished_;
      if (!e.finished.error.empty()) throw Error(e.finished.error);
      for (size_t c = 0; c < choices_each_; ++c) choices_[e.request * choices_each_ + c].ended = true;
      break;
  }
}

// A token that is a part of a character has no text of its own: its bytes are spelt out, as OpenAI does.
std::string TextAnswer::name_of_token(int32_t id) const {
  if (!model_.tokenizer) return std::to_string(id);
  const std::string_view bytes = model_.tokenizer->bytes_of(id);
  if (is_utf8(bytes)) return std::string(bytes);
  std::string name = "bytes:";
  for (const char c : bytes) name += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return name;
}

ordered_json TextAnswer::completion_logprobs(const Choice& choice, int64_t& offset) const {
  ordered_json tokens = ordered_json::array(), values = tokens, tops = tokens, offsets = tokens;
  for (const Token& token : choice.tokens) {
    const std::string name = name_of_token(token.id);
    tokens.push_back(name);
    offsets.push_back(offset);
    offset += characters(name);
    if (!token.scored) {
      values.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    values.push_back(token.scores.logprob);
    ordered_json top = ordered_json::object();
    for (const ScoredToken& best : token.scores.best) top.emplace(name_of_token(best.id), best.logprob);
    top.emplace(name, token.scores.logprob);
    tops.push_back(std::move(top));
  }
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

ordered_json TextAnswer::chat_logprobs(const Choice& choice) const {
  const auto entry = [&](int32_t id, float logprob) {
    const std::string name = name_of_token(id);
    ordered_json bytes;
    if (model_.tokenizer) bytes = bytes_json(model_.tokenizer->bytes_of(id));
    return ordered_json{{"token", name}, {"logprob", logprob}, {"bytes", bytes}};
  };
  ordered_json content = ordered_json::array();
  for (const Token& token : choice.tokens) {
    ordered_json one = entry(token.id, token.scores.logprob);
    one["top_logprobs"] = ordered_json::array();
    for (const ScoredToken& best : token.scores.best)
      one["top_logprobs"].push_back(entry(best.id, best.logprob));
    content.push_back(std::move(one));
  }
  return {{"content", content}, {"refusal", nullptr}};
}

ordered_json TextAnswer::logprobs(const Choice& choice, int64_t& offset) const {
  if (request_.logprobs < 0) return nullptr;
  return request_.chat ? chat_logprobs(choice) : completion_logprobs(choice, offset);
}

ordered_json TextAnswer::head(bool chunk) const {
  const char* object = !request_.chat ? "text_completion"
                       : chunk        ? "chat.completion.chunk"
                                      : "chat.completion";
  ordered_json head{{"id", id_}, {"object", object}, {"created", created_}, {"model", model_name_}};
  if (request_.turn) head["session"] = request_.turn->name();
  return head;
}

ordered_json TextAnswer::usage() const {
  return {{"prompt_tokens", prompt_tokens_},
          {"completion_tokens", new_tokens_},
          {"total_tokens", prompt_tokens_ + new_tokens_},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens_}}}};
}

ordered_json TextAnswer::finish_reason(const Choice& choice) const {
  const bool stopped = choice.reason == StopReason::eos || choice.reason == StopReason::stop;
  return stopped ? "stop" : "length";
}

ordered_json TextAnswer::whole() const {
  ordered_json answer = head(false);
  answer["choices"] = ordered_json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    int64_t offset = 0;
    ordered_json one{{"index", i}};
    if (request_.chat) {
      one["message"] = {{"role", "assistant"}, {"content", choice.text}};
    } else {
      one["text"] = choice.text;
    }
    one["logprobs"] = logprobs(choice, offset);
    one["finish_reason"] = finish_reason(choice);
    answer["choices"].push_back(std::move(one));
  }
  answer["usage"] = usage();
  return answer;
}

ordered_json TextAnswer::chunk_of(size_t index, Choice& choice) {
  ordered_json one{{"index", index}};
  if (request_.chat) {
    one["delta"] = ordered_json::object();
    if (!choice.begun) one["delta"]["role"] = "assistant";
    if (!choice.begun || !choice.text.empty()) one["delta"]["content"] = choice.text;
  } else {
    one["text"] = choice.text;
  }
  one["logprobs"] = choice.tokens.empty() ? ordered_json() : logprobs(choice, choice.offset);
  one["finish_reason"] = choice.ended ? finish_reason(choice) : ordered_json();
  choice.begun = true;
  choice.told_end = choice.ended;
  choice.text.clear();
  choice.tokens.clear();
  ordered_json chunk = head(true);
  chunk["choices"] = ordered_json::array({std::move(one)});
  if (request_.usage_at_end) chunk["usage"] = nullptr;
  return chunk;
}

std::string TextAnswer::events() {
  std::string text;
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    const bool news = !choice.text.empty() || !choice.tokens.empty() || choice.ended;
    if (news && !choice.told_end) text += event(chunk_of(i, choice));
  }
  return text;
}

std::string TextAnswer::last_events() const {
  std::string text;
  if (request_.usage_at_end) {
    ordered_json chunk = head(true);
    chunk["choices"] = ordered_json::array();
    chunk["usage"] = usage();
    text = event(chunk);
  }
  return text + "data: [DONE]\n\n";
}

ordered_json embedding_json(std::vector<float> embedding, bool base64, size_t index) {
  double square = 0;
  for (const float x : embedding) square += static_cast<double>(x) * static_cast<double>(x);
  const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
  for (float& x : embedding) x = static_cast<float>(x * scale);
  ordered_json value = embedding;
  if (base64) {
    value = base64_of({reinterpret_cast<const char*>(embedding.data()), embedding.size() * sizeof(float)});
  }
  return {{"object", "embedding"}, {"index", index}, {"embedding", std::move(value)}};
}

}  // namespace ssm::serve
