#include "ssm/serve/api.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include "ssm/core/clock.h"
#include "ssm/serve/embedded.h"

namespace ssm::serve {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using nlohmann::ordered_json;

constexpr size_t kLongBody = 4096;    // bytes: parsed on another thread from there on
constexpr size_t kMaxEvents = 16384;  // of one reply that wait for its client
constexpr const char* kRetryAfter = "1";

double seconds_since(Reply::Clock::time_point start) {
  return std::chrono::duration<double>(Reply::Clock::now() - start).count();
}

// In time that does not depend on where they differ.
bool same_secret(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |=
        static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  }
  return difference == 0;
}

// "http://name:port" or "name:port" to "name".
std::string_view host_name(std::string_view text) {
  if (const size_t scheme = text.find("://"); scheme != std::string_view::npos)
    text.remove_prefix(scheme + 3);
  if (text.starts_with('[')) return text.substr(0, std::min(text.find(']'), text.size() - 1) + 1);
  return text.substr(0, text.find(':'));
}

std::string_view path_of(const HttpRequest& request) {
  return std::string_view(request.path).substr(0, request.path.find('?'));
}

bool is_chat(const HttpRequest& request) { return request.path.starts_with("/v1/chat/"); }

std::string last_part(std::string_view path) { return std::string(path.substr(path.rfind('/') + 1)); }

// A star at the pattern's end stands for one name.
bool matches(std::string_view path, std::string_view pattern) {
  if (!pattern.ends_with('*')) return path == pattern;
  pattern.remove_suffix(1);
  return path.size() > pattern.size() && path.starts_with(pattern) &&
         path.find('/', pattern.size()) == std::string_view::npos;
}

SchedulerOptions scheduler_options(const ServerOptions& options) {
  SchedulerOptions s;
  s.slots = options.max_sequences;
  s.max_waiting = options.max_waiting;
  s.cache_bytes = options.prefix_cache_bytes;
  s.cache_dtype = options.prefix_cache_dtype;
  return s;
}

// Ends the requests of an answer, however it ends.
class RequestGuard : public Gone {
 public:
  RequestGuard(Engine& engine, Reply& reply, std::span<const uint64_t> ids, Exchange& exchange)
      : engine_(engine), reply_(reply), ids_(ids), exchange_(exchange) {
    exchange_.watch(this);
  }
  ~RequestGuard() override {
    exchange_.watch(nullptr);
    reply_.close();
    engine_.cancel(ids_);
  }
  RequestGuard(const RequestGuard&) = delete;
  RequestGuard& operator=(const RequestGuard&) = delete;
  void on_gone() override {
    reply_.close();
    engine_.cancel(ids_);
  }

 private:
  Engine& engine_;
  Reply& reply_;
  std::span<const uint64_t> ids_;
  Exchange& exchange_;
};

std::string embeddings_json(const EmbeddingRequest& request, std::vector<std::vector<float>> embeddings,
                            int64_t tokens, const std::string& model) {
  ordered_json data = ordered_json::array();
  for (size_t i = 0; i < embeddings.size(); ++i) {
    data.push_back(embedding_json(std::move(embeddings[i]), request.base64, i));
  }
  return dump({{"object", "list"},
               {"data", std::move(data)},
               {"model", model},
               {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}});
}

}  // namespace

HttpResponse json_response(std::string body) {
  HttpResponse response;
  response.body = std::move(body);
  return response;
}

HttpResponse error_response(int status, std::string_view message, std::string_view param, Headers headers) {
  const char* type = status == 401   ? "authentication_error"
                     : status == 403 ? "permission_error"
                     : status == 429 ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  ordered_json error{{"message", message}, {"type", type}, {"param", nullptr}, {"code", nullptr}};
  if (!param.empty()) error["param"] = param;
  if (status == 401) error["code"] = "invalid_api_key";
  HttpResponse response = json_response(dump({{"error", error}}));
  response.status = status;
  response.headers = std::move(headers);
  return response;
}

Api::Api(const LoadedModel& model, const ServerOptions& options)
    : model_(model),
      options_(options),
      scheduler_options_(scheduler_options(options)),
      created_(unix_seconds()),
      sessions_(model, options),
      engine_(model, scheduler_options_, duration_of(options.stream_seconds)) {}

void Api::stop() {
  engine_.stop();
  sessions_.stop();
  parser_.stop();
  parser_.join();
}

const std::vector<Api::Route>& Api::routes() {
  static const std::vector<Route> all{
      {"POST", "/v1/completions", &Api::text, false},
      {"POST", "/v1/chat/completions", &Api::text, false},
      {"POST", "/v1/embeddings", &Api::embeddings, false},
      {"GET", "/v1/models", &Api::models, false},
      {"GET", "/v1/sessions", &Api::list_sessions, false},
      {"POST", "/v1/sessions", &Api::create_session, false},
      {"GET", "/v1/sessions/*", &Api::get_session, false},
      {"DELETE", "/v1/sessions/*", &Api::delete_session, false},
      {"POST", "/tokenize", &Api::tokenize, false},
      {"POST", "/detokenize", &Api::detokenize, false},
      {"GET", "/health", &Api::health, true},
      {"GET", "/metrics", &Api::metrics_text, false},
      {"GET", "/", &Api::page, true},
      {"GET", "/openapi.json", &Api::openapi, true},
  };
  return all;
}

// A page of another site must not use this server through somebody's browser.
void Api::check_allowed(const HttpRequest& request, const Route& route) const {
  const std::string_view host = host_name(request.host);
  const auto known = [&](std::string_view name) {
    return name == "localhost" || name == "127.0.0.1" || name == "[::1]" || name == options_.host ||
           std::find(options_.hosts.begin(), options_.hosts.end(), name) != options_.hosts.end();
  };
  if (!request.origin.empty() && (host_name(request.origin) != host || !known(host))) {
    throw ApiError(403, "a page of another origin may not use this server");
  }
  const bool loopback =
      options_.host == "127.0.0.1" || options_.host == "::1" || options_.host == "localhost";
  if (loopback && !request.host.empty() && !known(host)) {
    throw ApiError(403, fmt::format("this server does not answer to the name {:?}", std::string(host)));
  }
  if (options_.api_key.empty() || route.open) return;
  constexpr std::string_view kBearer = "Bearer ";
  const std::string_view given = request.authorization;
  if (!given.starts_with(kBearer) || !same_secret(given.substr(kBearer.size()), options_.api_key)) {
    throw ApiError(401, "the API key is missing or wrong", "", {{"WWW-Authenticate", "Bearer"}});
  }
}

awaitable<void> Api::handle(const HttpRequest& request, Exchange& exchange) {
  std::optional<HttpResponse> error;
  try {
    const Route* found = nullptr;
    std::string methods;
    for (const Route& route : routes()) {
      if (!matches(path_of(request), route.path)) continue;
      exchange.set_route(route.path);
      methods += (methods.empty() ? "" : ", ") + std::string(route.method);
      const bool head = request.method == "HEAD" && std::string_view(route.method) == "GET";
      if (request.method == route.method || head) found = &route;
    }
    if (methods.empty()) throw ApiError(404, "no such path");
    if (!found) throw ApiError(405, fmt::format("this path takes {}", methods), "", {{"Allow", methods}});
    check_allowed(request, *found);
    co_await (this->*found->handler)(request, exchange);
  } catch (const ApiError& e) {
    error = error_response(e.status, e.what(), e.param, e.headers);
  } catch (const Busy& e) {
    error = error_response(429, e.what(), "", {{"Retry-After", kRetryAfter}});
  } catch (const Error& e) {
    error = error_response(500, e.what());
  } catch (const std::bad_alloc&) {
    error = error_response(503, "not enough memory");
  }
  if (error) co_await exchange.respond(*error);
}

template <class F>
awaitable<std::invoke_result_t<F>> Api::worked(bool long_work, F work) {
  if (!long_work) co_return work();
  co_return co_await asio::co_spawn(
      parser_, [&]() -> awaitable<std::invoke_result_t<F>> { co_return work(); }, asio::use_awaitable);
}

template <class F>
awaitable<std::invoke_result_t<F>> Api::parsed(const HttpRequest& request, F parse) {
  return worked(request.body.size() >= kLongBody, std::move(parse));
}

std::vector<uint64_t> Api::submit(std::vector<Request> requests, const std::shared_ptr<Reply>& reply,
                                  const HttpRequest& http, SessionTurn* turn) {
  if (draining_) throw ApiError(503, "the server is about to stop", "", {{"Retry-After", kRetryAfter}});
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].listener = turn ? turn->listener(reply->listener(i)) : reply->listener(i);
    requests[i].user = http.peer + ' ' + requests[i].user;
  }
  return engine_.submit(std::move(requests));
}

TextRequest Api::parse_text(const HttpRequest& request) {
  const nlohmann::json body = parse_body(request.body);
  const std::string session = parse_session_name(body);
  const std::shared_ptr<SessionTurn> turn = session.empty() ? nullptr : sessions_.begin(session);
  return is_chat(request) ? parse_chat(body, model_, options_, turn)
                          : parse_completion(body, model_, options_, turn);
}

// Of a session the state may have to be read from disk, and a chat is written anew.
bool Api::parses_long(const HttpRequest& request) const {
  if (request.body.size() >= kLongBody) return true;
  const bool quick = options_.session_dir.empty() && !is_chat(request);
  return !quick && request.body.find("\"session\"") != std::string::npos;
}

awaitable<void> Api::text(const HttpRequest& request, Exchange& exchange) {
  const TextRequest text = co_await worked(parses_long(request), [&] { return parse_text(request); });
  const auto reply =
      std::make_shared<Reply>(co_await asio::this_coro::executor, engine_.outbox(), kMaxEvents);
  const std::vector<uint64_t> ids = submit(text.requests, reply, request, text.turn.get());
  const RequestGuard guard(engine_, *reply, ids, exchange);
  co_await answer(text, exchange, reply, ids);
}

awaitable<void> Api::answer(const TextRequest& text, Exchange& exchange, const std::shared_ptr<Reply>& reply,
                            std::span<const uint64_t> ids) {
  const auto start = Reply::Clock::now();
  auto deadline = start + duration_of(options_.request_seconds);
  TextAnswer answer(text, model_, text.model.empty() ? options_.model_name : text.model);
  auto last_token = start;
  bool begun = false;
  std::string failure, news;
  while (!answer.finished() && failure.empty()) {
    const std::vector<ReplyEvent> events = co_await reply->next(deadline);
    if (reply->closed()) {
      ++metrics_.vanished_clients;
      throw boost::system::system_error(asio::error::connection_reset);
    }
    if (events.empty()) {  // too long: what there is is the answer
      engine_.cancel(ids);
      deadline = Reply::Clock::time_point::max();
      continue;
    }
    const int64_t before = answer.new_tokens();
    try {
      for (const ReplyEvent& event : events) answer.take(event);
    } catch (const Error& e) {
      if (!text.stream) throw;
      failure = e.what();
    }
    if (const int64_t count = answer.new_tokens() - before; count > 0) {
      const double passed = seconds_since(last_token);
      if (before == 0) {
        metrics_.first_token.add(passed);
      } else {
        metrics_.between_tokens.add(passed / static_cast<double>(count), count);
      }
      last_token = Reply::Clock::now();
    }
    if (reply->overflowed()) {
      ++metrics_.slow_readers;
      throw boost::system::system_error(asio::error::timed_out);
    }
    if (text.stream && failure.empty()) news = answer.events();
    if (!news.empty() && !answer.finished()) {
      co_await exchange.stream(news);
      news.clear();
      begun = true;
    }
  }
  metrics_.request.add(seconds_since(start));
  if (!text.stream) {
    HttpResponse response = json_response(dump(answer.whole()));
    co_await exchange.respond(response);
    co_return;
  }
  if (!failure.empty() && !begun) throw Error(failure);
  news += failure.empty() ? answer.last_events() : "data: " + error_response(500, failure).body + "\n\n";
  co_await exchange.end_stream(news);
}

awaitable<void> Api::embeddings(const HttpRequest& request, Exchange& exchange) {
  const EmbeddingRequest embedding =
      co_await parsed(request, [&] { return parse_embedding(parse_body(request.body), model_, options_); });
  const auto reply =
      std::make_shared<Reply>(co_await asio::this_coro::executor, engine_.outbox(), kMaxEvents);
  const std::vector<uint64_t> ids = submit(embedding.requests, reply, request);
  const RequestGuard guard(engine_, *reply, ids, exchange);
  std::vector<std::vector<float>> embeddings(embedding.requests.size());
  int64_t tokens = 0;
  for (const Request& r : embedding.requests) tokens += std::ssize(r.prompt);
  for (size_t left = embeddings.size(); left > 0;) {
    const std::vector<ReplyEvent> events = co_await reply->next(Reply::Clock::time_point::max());
    if (reply->closed()) throw boost::system::system_error(asio::error::connection_reset);
    for (const ReplyEvent& event : events) {
      if (event.kind != ReplyEvent::Kind::finish) continue;
      if (!event.finished.error.empty()) throw Error(event.finished.error);
      embeddings[event.request] = event.finished.embedding;
      --left;
    }
  }
  const std::string name = embedding.model.empty() ? options_.model_name : embedding.model;
  HttpResponse response = json_response(embeddings_json(embedding, std::move(embeddings), tokens, name));
  co_await exchange.respond(response);
}

// All that may wait for a disk is done on the other thread.
awaitable<void> Api::create_session(const HttpRequest& request, Exchange& exchange) {
  const ordered_json session = co_await worked(true, [&] {
    const auto [name, from] = parse_new_session(parse_body(request.body));
    return sessions_.create(name, from);
  });
  HttpResponse response = json_response(dump(session));
  response.status = 201;
  co_await exchange.respond(response);
}

awaitable<void> Api::list_sessions(const HttpRequest&, Exchange& exchange) {
  HttpResponse response = json_response(co_await worked(true, [&] { return dump(sessions_.list()); }));
  co_await exchange.respond(response);
}

awaitable<void> Api::get_session(const HttpRequest& request, Exchange& exchange) {
  HttpResponse response =
      json_response(co_await worked(true, [&] { return dump(sessions_.get(last_part(path_of(request)))); }));
  co_await exchange.respond(response);
}

awaitable<void> Api::delete_session(const HttpRequest& request, Exchange& exchange) {
  const std::string name = last_part(path_of(request));
  const bool deleted = co_await worked(true, [&] {
    sessions_.remove(name);
    return true;
  });
  HttpResponse response = json_response(dump({{"id", name}, {"object", "session"}, {"deleted", deleted}}));
  co_await exchange.respond(response);
}

// Whatever a text holds, the page loads nothing and talks to this server alone.
awaitable<void> Api::page(const HttpRequest&, Exchange& exchange) {
  HttpResponse response = json_response(std::string(kPage));
  response.type = "text/html; charset=utf-8";
  response.headers = {{"Content-Security-Policy",
                       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                       "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                       "frame-ancestors 'none'"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}};
  co_await exchange.respond(response);
}

awaitable<void> Api::openapi(const HttpRequest&, Exchange& exchange) {
  HttpResponse response = json_response(std::string(kOpenApi));
  co_await exchange.respond(response);
}

awaitable<void> Api::models(const HttpRequest&, Exchange& exchange) {
  const ordered_json model{
      {"id", options_.model_name}, {"object", "model"}, {"created", created_}, {"owned_by", "ssm"}};
  HttpResponse response = json_response(dump({{"object", "list"}, {"data", ordered_json::array({model})}}));
  co_await exchange.respond(response);
}

awaitable<void> Api::tokenize(const HttpRequest& request, Exchange& exchange) {
  const std::vector<int32_t> ids =
      co_await parsed(request, [&] { return parse_tokenize(parse_body(request.body), model_, options_); });
  HttpResponse response = json_response(dump({{"tokens", ids}, {"count", ids.size()}}));
  co_await exchange.respond(response);
}

awaitable<void> Api::detokenize(const HttpRequest& request, Exchange& exchange) {
  const std::string text = co_await parsed(request, [&] {
    return model_.need_tokenizer().decode(parse_detokenize(parse_body(request.body), model_));
  });
  HttpResponse response = json_response(dump({{"prompt", text}, {"content", text}}));
  co_await exchange.respond(response);
}

awaitable<void> Api::health(const HttpRequest&, Exchange& exchange) {
  if (draining_) throw ApiError(503, "the server is about to stop");
  HttpResponse response = json_response(R"({"status":"ok"})");
  co_await exchange.respond(response);
}

awaitable<void> Api::metrics_text(const HttpRequest&, Exchange& exchange) {
  HttpResponse response = json_response(metrics_.text(engine_.stats(), scheduler_options_));
  response.type = "text/plain; version=0.0.4";
  co_await exchange.respond(response);
}

}  // namespace ssm::serve
