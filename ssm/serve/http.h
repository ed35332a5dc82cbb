// What a handler sees of HTTP: a whole request, and a way to answer it at once or piece by piece.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ssm/core/error.h"

namespace ssm::serve {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method, path, body;
  std::string authorization, host, origin;  // of the headers; empty where absent
  std::string peer;                         // the client's address
};

struct HttpResponse {
  int status = 200;
  std::string type = "application/json";
  std::string body;
  Headers headers = {};
};

// Hears that the client is gone while an answer is being made.
class Gone {
 public:
  virtual ~Gone() = default;
  virtual void on_gone() = 0;
};

class Exchange {
 public:
  virtual ~Exchange() = default;
  // What the request is counted as, once its path is known.
  virtual void set_route(std::string_view route) = 0;
  // Takes the body. By reference: GCC 12 destroys class values that are passed to coroutines twice.
  virtual boost::asio::awaitable<void> respond(HttpResponse& response) = 0;
  // Events of text/event-stream; after the first no respond(). A client that does not take them within the
  // server's patience is closed: the calls then throw.
  virtual boost::asio::awaitable<void> stream(std::string_view events) = 0;
  virtual boost::asio::awaitable<void> end_stream(std::string_view events) = 0;  // the last ones
  // `listener` is told once when the client closes, until the next call with another or null.
  virtual void watch(Gone* listener) = 0;
};

// A failure that the client hears of, in OpenAI's form.
class ApiError : public Error {
 public:
  ApiError(int code, const std::string& message, std::string field = "", Headers extra = {})
      : Error(message), status(code), param(std::move(field)), headers(std::move(extra)) {}
  int status;
  std::string param;  // the field of the request that is at fault
  Headers headers;
};

HttpResponse json_response(std::string body);
HttpResponse error_response(int status, std::string_view message, std::string_view param = "",
                            Headers headers = {});

}  // namespace ssm::serve
