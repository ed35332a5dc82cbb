// Api: what the server answers, path by path. By the server's thread; long bodies are parsed on another one.
#pragma once

#include <boost/asio/thread_pool.hpp>

#include "ssm/serve/api_response.h"
#include "ssm/serve/engine.h"
#include "ssm/serve/metrics.h"
#include "ssm/serve/sessions.h"

namespace ssm::serve {

class Api {
 public:
  Api(const LoadedModel& model, const ServerOptions& options);

  // Answers; an ApiError or Error becomes an answer too. Other exceptions are the connection's.
  boost::asio::awaitable<void> handle(const HttpRequest& request, Exchange& exchange);

  boost::asio::awaitable<void> deliver() { return engine_.outbox().deliver(); }  // by Outbox; runs beside

  void drain() { draining_ = true; }  // nothing new is taken
  void stop();                        // its threads are gone afterwards, and sessions kept
  Metrics& metrics() { return metrics_; }

 private:
  using Handler = boost::asio::awaitable<void> (Api::*)(const HttpRequest&, Exchange&);
  struct Route {
    const char *method, *path;  // a path that ends in a slash and a star has a name there
    Handler handler;
    bool open;  // without a key
  };
  static const std::vector<Route>& routes();

  void check_allowed(const HttpRequest& request, const Route& route) const;
  boost::asio::awaitable<void> text(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> embeddings(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> create_session(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> list_sessions(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> get_session(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> delete_session(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> page(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> openapi(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> models(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> tokenize(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> detokenize(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> health(const HttpRequest& request, Exchange& exchange);
  boost::asio::awaitable<void> metrics_text(const HttpRequest& request, Exchange& exchange);

  // The result of `work`, which runs on the other thread where it is `long_work`.
  template <class F>
  boost::asio::awaitable<std::invoke_result_t<F>> worked(bool long_work, F work);
  template <class F>
  boost::asio::awaitable<std::invoke_result_t<F>> parsed(const HttpRequest& request, F parse);
  bool parses_long(const HttpRequest& request) const;
  TextRequest parse_text(const HttpRequest& request);
  std::vector<uint64_t> submit(std::vector<Request> requests, const std::shared_ptr<Reply>& reply,
                               const HttpRequest& request, SessionTurn* turn = nullptr);
  boost::asio::awaitable<void> answer(const TextRequest& text, Exchange& exchange,
                                      const std::shared_ptr<Reply>& reply, std::span<const uint64_t> ids);

  const LoadedModel& model_;
  const ServerOptions& options_;
  const SchedulerOptions scheduler_options_;
  Metrics metrics_;
  bool draining_ = false;
  int64_t created_;
  Sessions sessions_;
  Engine engine_;
  boost::asio::thread_pool parser_{1};
};

}  // namespace ssm::serve
