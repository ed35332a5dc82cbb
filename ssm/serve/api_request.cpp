#include "ssm/serve/api_request.h"

#include <cmath>
#include <limits>
#include <random>

#include "ssm/io/json.h"
#include "ssm/load/chat.h"
#include "ssm/serve/sessions.h"

namespace ssm::serve {
namespace {

using nlohmann::json;

constexpr int64_t kMostTop = 20, kMostStops = 16, kMostPrompts = 1024;
constexpr size_t kLongestName = 256;

template <class... Args>
[[noreturn]] void refuse(const std::string& field, fmt::format_string<Args...> format, Args&&... args) {
  throw ApiError(400, fmt::format(format, std::forward<Args>(args)...), field);
}

// The optional fields of an object; null counts as absent.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  const json* find(const std::string& name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  double number(const std::string& name, double otherwise, double low, double high) const {
    const json* value = find(name);
    if (!value) return otherwise;
    if (!value->is_number()) refuse(name, "{} is not a number", name);
    const auto x = value->get<double>();
    if (!(x >= low && x <= high))
      refuse(name, "{} is {}, expected a number from {} to {}", name, x, low, high);
    return x;
  }
  int64_t integer(const std::string& name, int64_t otherwise, int64_t low, int64_t high) const {
    const json* value = find(name);
    if (!value) return otherwise;
    const bool fits = value->is_number_unsigned()
                          ? value->get<uint64_t>() <= static_cast<uint64_t>(std::max<int64_t>(high, 0))
                          : value->is_number_integer() && value->get<int64_t>() <= high;
    if (!fits || value->get<int64_t>() < low) {
      refuse(name, "{} is {}, expected an integer from {} to {}", name, io::shown(*value), low, high);
    }
    return value->get<int64_t>();
  }
  bool flag(const std::string& name, bool otherwise = false) const {
    const json* value = find(name);
    if (value && !value->is_boolean()) refuse(name, "{} is neither true nor false", name);
    return value ? value->get<bool>() : otherwise;
  }
  std::string text(const std::string& name, const std::string& otherwise = "") const {
    const json* value = find(name);
    if (value && !value->is_string()) refuse(name, "{} is not a string", name);
    if (value && value->get_ref<const std::string&>().size() > kLongestName)
      refuse(name, "{} is too long", name);
    return value ? value->get<std::string>() : otherwise;
  }

 private:
  const json& object_;
};

bool is_id(const json& value) { return value.is_number_integer(); }

// Whether it is a list that is to hold ids: one of nothing else is packed.
bool is_ids(const json& value) {
  return value.is_binary() || (value.is_array() && !value.empty() && is_id(value.front()));
}

std::vector<int32_t> ids_of(const json& list, const std::string& field, const LoadedModel& model) {
  const int64_t vocab = model.usable_vocab();
  const auto refuse_id = [&](const json& value, size_t at) {
    refuse(field, "{} holds {} at position {}, which is no token of a vocabulary of {}", field,
           io::shown(value), at, vocab);
  };
  if (!list.is_binary()) {  // some are none
    for (size_t i = 0; i < list.size(); ++i) {
      if (!is_id(list[i]) || list[i] < 0 || list[i] >= vocab) refuse_id(list[i], i);
    }
    return list;
  }
  std::vector<int32_t> ids = io::unpacked_ids(list);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab) refuse_id(ids[i], i);
  }
  return ids;
}

std::vector<int32_t> encode(const std::string& text, const std::string& field, const LoadedModel& model,
                            bool with_bos) {
  if (!model.tokenizer) refuse(field, "{} is a text, and this model has no tokenizer: give token ids", field);
  std::vector<int32_t> ids = model.tokenizer->encode(text);
  if (with_bos && model.tokenizer->bos()) ids.insert(ids.begin(), *model.tokenizer->bos());
  return ids;
}

// A string, a list of strings, of ids, or of lists of ids.
std::vector<std::vector<int32_t>> prompts_of(const json& body, const std::string& field,
                                             const LoadedModel& model, const ServerOptions& options,
                                             bool with_bos) {
  const json* value = Fields(body).find(field);
  if (!value) refuse(field, "{} is missing", field);
  std::vector<std::vector<int32_t>> prompts;
  const auto add = [&](std::vector<int32_t> ids) {
    if (ids.empty()) refuse(field, "{} {} is empty", field, prompts.size());
    if (std::ssize(ids) > options.max_prompt_tokens) {
      refuse(field, "{} {} has {} tokens, at most {} are taken", field, prompts.size(), ids.size(),
             options.max_prompt_tokens);
    }
    prompts.push_back(std::move(ids));
  };
  if (value->is_string()) {
    add(encode(value->get<std::string>(), field, model, with_bos));
    return prompts;
  }
  if (is_ids(*value)) {
    add(ids_of(*value, field, model));
    return prompts;
  }
  if (!value->is_array() || value->empty()) refuse(field, "{} is neither a text nor a list with one", field);
  if (std::ssize(*value) > kMostPrompts) refuse(field, "{} has more than {} entries", field, kMostPrompts);
  for (const json& one : *value) {
    if (!one.is_string() && !one.is_array() && !one.is_binary())
      refuse(field, "{} mixes texts, ids and other things", field);
    add(one.is_string() ? encode(one.get<std::string>(), field, model, with_bos) : ids_of(one, field, model));
  }
  return prompts;
}

std::vector<std::string> stops_of(const Fields& fields) {
  const json* value = fields.find("stop");
  std::vector<std::string> stops;
  if (!value) return stops;
  const json list = value->is_array() ? *value : json::array({*value});
  if (std::ssize(list) > kMostStops) refuse("stop", "stop has more than {} entries", kMostStops);
  for (const json& stop : list) {
    if (!stop.is_string() || stop.get_ref<const std::string&>().empty() ||
        stop.get_ref<const std::string&>().size() > kLongestName) {
      refuse("stop", "stop holds something else than texts of 1 to {} bytes", kLongestName);
    }
    stops.push_back(stop.get<std::string>());
  }
  return stops;
}

std::vector<std::pair<int32_t, float>> biases_of(const Fields& fields, const LoadedModel& model) {
  const json* value = fields.find("logit_bias");
  std::vector<std::pair<int32_t, float>> biases;
  if (!value) return biases;
  if (!value->is_object()) refuse("logit_bias", "logit_bias is not an object");
  for (const auto& [key, bias] : value->items()) {
    const bool digits =
        !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoll(key) >= model.usable_vocab() || !bias.is_number() ||
        std::abs(bias.get<double>()) > 1000) {
      refuse("logit_bias",
             "logit_bias has a key that is no token, or a value that is not between -1000 and 1000");
    }
    biases.emplace_back(static_cast<int32_t>(std::stoll(key)), bias.get<float>());
  }
  return biases;
}

uint64_t random_seed() {
  static thread_local std::mt19937_64 source{std::random_device{}()};
  return source();
}

// What no model here can do is refused, not ignored.
void refuse_unsupported(const Fields& fields) {
  for (const char* name : {"tools", "functions", "suffix"}) {
    const json* value = fields.find(name);
    if (value && !value->empty() && *value != json("")) refuse(name, "{} is not supported", name);
  }
  const json* format = fields.find("response_format");
  if (format && !(format->is_object() && format->value("type", json()) == "text")) {
    refuse("response_format", "response_format is not supported, but for the type text");
  }
}

// All but the prompt, the new tokens and the logprobs.
Request request_of(const Fields& fields, const LoadedModel& model, const ServerOptions& options) {
  constexpr double kLarge = 1e6;
  Request r;
  SamplingParams& s = r.options.sampling;
  s.temperature = static_cast<float>(fields.number("temperature", 1, 0, kLarge));
  s.top_p = static_cast<float>(fields.number("top_p", 1, 0, 1));
  s.top_k = static_cast<int32_t>(std::max<int64_t>(
      0, fields.integer("top_k", 0, -1, std::numeric_limits<int32_t>::max())));  // -1: off, as elsewhere
  s.min_p = static_cast<float>(fields.number("min_p", 0, 0, 0.999999));
  s.repetition_penalty = static_cast<float>(fields.number("repetition_penalty", 1, 1e-3, 1e3));
  const json* seed = fields.find("seed");
  s.seed = seed ? static_cast<uint64_t>(fields.integer("seed", 0, std::numeric_limits<int64_t>::min(),
                                                       std::numeric_limits<int64_t>::max()))
                : random_seed();
  r.presence_penalty = static_cast<float>(fields.number("presence_penalty", 0, -kLarge, kLarge));
  r.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", 0, -kLarge, kLarge));
  r.logit_bias = biases_of(fields, model);
  r.options.ignore_eos = fields.flag("ignore_eos");
  r.options.stop = stops_of(fields);
  if (!r.options.stop.empty() && !model.tokenizer)
    refuse("stop", "stop needs a tokenizer, and this model has none");
  r.n = fields.integer("n", 1, 1, std::min(options.max_choices, options.max_sequences));
  if (fields.integer("best_of", r.n, 1, 1 << 20) != r.n)
    refuse("best_of", "best_of is not supported, but for n");
  r.user = fields.text("user");
  refuse_unsupported(fields);
  return r;
}

TextRequest common_of(const Fields& fields) {
  TextRequest request;
  request.model = fields.text("model");
  request.stream = fields.flag("stream");
  if (const json* streaming = fields.find("stream_options")) {
    if (!streaming->is_object()) refuse("stream_options", "stream_options is not an object");
    request.usage_at_end = Fields(*streaming).flag("include_usage");
  }
  return request;
}

void check_total(const TextRequest& text, const ServerOptions& options) {
  int64_t choices = 0;
  for (const Request& r : text.requests) choices += r.n;
  if (choices > options.max_sequences + options.max_waiting) {
    refuse("prompt", "{} texts in one request, at most {} are taken", choices,
           options.max_sequences + options.max_waiting);
  }
}

// A session is one text, and what was said of it before cannot be told again.
void check_turn(const TextRequest& text) {
  if (text.requests.size() > 1) refuse("prompt", "a session goes on with one prompt");
  if (text.requests[0].n > 1) refuse("n", "a session goes on with one choice");
  if (text.echo) refuse("echo", "echo is not supported where a session goes on");
}

std::string content_of(const json& message) {
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) return "";
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) refuse("messages", "a message's content is neither a text nor a list of parts");
  std::string text;
  for (const json& part : *content) {
    if (!part.is_object() || part.value("type", json()) != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      refuse("messages", "a message's content has a part that is not a text");
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

}  // namespace

json parse_body(const std::string& body) {
  json value;
  try {
    value = io::parse_json_packing_ids(body, "the request's body");
  } catch (const Error& e) {
    throw ApiError(400, e.what());
  }
  if (!value.is_object()) throw ApiError(400, "the request's body is not a JSON object");
  return value;
}

std::string parse_session_name(const json& body) {
  const Fields fields(body);
  if (!fields.find("session")) return "";
  std::string name = fields.text("session");
  check_session_name(name, "session");
  return name;
}

std::pair<std::string, std::string> parse_new_session(const json& body) {
  const Fields fields(body);
  for (const char* field : {"name", "from"}) {
    if (fields.find(field)) check_session_name(fields.text(field), field);
  }
  return {fields.text("name"), fields.text("from")};
}

TextRequest parse_completion(const json& body, const LoadedModel& model, const ServerOptions& options,
                             std::shared_ptr<SessionTurn> turn) {
  const Fields fields(body);
  TextRequest text = common_of(fields);
  Request common = request_of(fields, model, options);
  text.echo = fields.flag("echo");
  text.logprobs = fields.integer("logprobs", -1, 0, kMostTop);
  common.top_logprobs = text.logprobs;
  common.score_prompt = text.echo && text.logprobs >= 0;
  common.options.max_new_tokens = fields.integer("max_tokens", 16, 0, options.max_new_tokens);
  const bool goes_on = turn && !turn->is_new();
  const json* given = fields.find("prompt");
  std::vector<std::vector<int32_t>> prompts;
  if (goes_on && (!given || *given == "")) {
    prompts.emplace_back();  // the model writes more
  } else {
    prompts = prompts_of(body, "prompt", model, options, options.begins_with_bos && !goes_on);
  }
  for (std::vector<int32_t>& prompt : prompts) {
    text.requests.push_back(common);
    text.requests.back().prompt = std::move(prompt);
  }
  if (turn) {
    check_turn(text);
    turn->write(text.requests[0], std::move(text.requests[0].prompt));
    text.turn = std::move(turn);
  }
  check_total(text, options);
  return text;
}

TextRequest parse_chat(const json& body, const LoadedModel& model, const ServerOptions& options,
                       std::shared_ptr<SessionTurn> turn) {
  const Fields fields(body);
  TextRequest text = common_of(fields);
  text.chat = true;
  Request request = request_of(fields, model, options);
  if (!options.chat.format) refuse("messages", "this model has no tokenizer, so it cannot chat");
  const json* messages = fields.find("messages");
  if (!messages || !messages->is_array() || messages->empty())
    refuse("messages", "messages is not a list with a message");
  nlohmann::ordered_json plain = nlohmann::ordered_json::array();
  for (const json& message : *messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      refuse("messages", "message {} has no role", plain.size());
    }
    plain.push_back({{"role", message["role"]}, {"content", content_of(message)}});
  }
  try {
    if (turn) {
      turn->say(request, plain, options.chat);
    } else {
      text::ChatOptions how;
      how.add_generation_prompt = true;
      request.prompt =
          encode_chat(model, *options.chat.format, options.chat.format->render(plain, how), true);
    }
  } catch (const ApiError&) {
    throw;
  } catch (const Error& e) {
    refuse("messages", "{}", e.what());
  }
  if (std::ssize(request.prompt) > options.max_prompt_tokens) {
    refuse("messages", "messages have {} tokens, at most {} are taken", request.prompt.size(),
           options.max_prompt_tokens);
  }
  const int64_t top = fields.integer("top_logprobs", 0, 0, kMostTop);
  if (fields.flag("logprobs")) text.logprobs = top;
  request.top_logprobs = text.logprobs;
  const int64_t most = options.max_new_tokens, limit = fields.integer("max_tokens", most, 0, most);
  request.options.max_new_tokens = fields.integer("max_completion_tokens", limit, 0, most);
  if (!options.chat.stop.empty()) request.options.stop.push_back(options.chat.stop);
  text.requests.push_back(std::move(request));
  if (turn) {
    check_turn(text);
    text.turn = std::move(turn);
  }
  check_total(text, options);
  return text;
}

EmbeddingRequest parse_embedding(const json& body, const LoadedModel& model, const ServerOptions& options) {
  const Fields fields(body);
  EmbeddingRequest embedding;
  embedding.model = fields.text("model");
  const std::string format = fields.text("encoding_format", "float");
  if (format != "float" && format != "base64")
    refuse("encoding_format", "encoding_format is neither float nor base64");
  embedding.base64 = format == "base64";
  if (fields.integer("dimensions", model.model->hidden_size(), 1, 1 << 30) != model.model->hidden_size()) {
    refuse("dimensions", "dimensions can only be {}", model.model->hidden_size());
  }
  for (std::vector<int32_t>& prompt : prompts_of(body, "input", model, options, options.begins_with_bos)) {
    Request r;
    r.prompt = std::move(prompt);
    r.embed = true;
    r.user = fields.text("user");
    embedding.requests.push_back(std::move(r));
  }
  return embedding;
}

std::vector<int32_t> parse_tokenize(const json& body, const LoadedModel& model,
                                    const ServerOptions& options) {
  const Fields fields(body);
  const bool special = fields.flag("add_special_tokens", true);
  const json* text = nullptr;
  std::string field = "prompt";
  for (const char* name : {"prompt", "content", "text"}) {
    const json* value = fields.find(name);
    if (value && !value->is_string()) refuse(name, "{} is not a string", name);
    if (!value || text) continue;
    text = value;
    field = name;
  }
  if (!text) refuse(field, "{} is missing", field);
  return encode(text->get<std::string>(), field, model, options.begins_with_bos && special);
}

std::vector<int32_t> parse_detokenize(const json& body, const LoadedModel& model) {
  const json* tokens = Fields(body).find("tokens");
  if (!tokens || !(tokens->is_array() || tokens->is_binary())) refuse("tokens", "tokens is not a list");
  if (!model.tokenizer) refuse("tokens", "this model has no tokenizer");
  return ids_of(*tokens, "tokens", model);
}

}  // namespace ssm::serve
