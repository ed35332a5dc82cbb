// Connection: one client's requests, one after another.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/message.hpp>

#include "ssm/serve/api.h"

namespace ssm::serve {

class Connection : public Exchange, public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, Api& api, const ServerOptions& options);

  boost::asio::awaitable<void> run();  // until either side closes; throws nothing
  void close_when_idle();              // now, or after the answer that is being made
  void close();                        // now

  void set_route(std::string_view route) override { route_ = route; }
  boost::asio::awaitable<void> respond(HttpResponse& response) override;
  boost::asio::awaitable<void> stream(std::string_view events) override;
  boost::asio::awaitable<void> end_stream(std::string_view events) override;
  void watch(Gone* listener) override;

 private:
  boost::asio::awaitable<void> serve();
  boost::asio::awaitable<bool> read_request();  // false: the client has closed, or was refused
  HttpResponse refusal_of(const boost::system::error_code& error) const;
  boost::asio::awaitable<void> watch_socket();
  std::string next_part(std::string_view events);
  boost::asio::awaitable<void> send(std::string_view bytes);
  void note(int status);

  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  Api& api_;
  const ServerOptions& options_;
  HttpRequest request_;
  std::string route_;  // empty: a path that is not known
  bool keep_alive_ = true, old_http_ = false, busy_ = false, closing_ = false;
  bool streaming_ = false, watching_ = false;
  Gone* listener_ = nullptr;
  std::chrono::steady_clock::time_point began_;
};

}  // namespace ssm::serve
