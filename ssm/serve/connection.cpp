#include "ssm/serve/connection.h"

#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <cerrno>
#include <sstream>

namespace ssm::serve {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::awaitable;

namespace {

constexpr uint32_t kMaxHeader = 16384;
constexpr int kSendBuffer = 128 << 10;  // bytes

void set_headers(auto& message, const Headers& headers) {
  message.set("X-Content-Type-Options", "nosniff");
  for (const auto& [name, value] : headers) message.set(name, value);
}

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, Api& api, const ServerOptions& options)
    : stream_(std::move(socket)), api_(api), options_(options) {
  boost::system::error_code ignored;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
  stream_.socket().non_blocking(true, ignored);
  // What the system keeps for a client that does not read, else megabytes each.
  stream_.socket().set_option(asio::socket_base::send_buffer_size(kSendBuffer), ignored);
  const auto peer = stream_.socket().remote_endpoint(ignored);
  request_.peer = ignored ? "" : peer.address().to_string();
}

awaitable<void> Connection::run() {
  const auto self = shared_from_this();
  ++api_.metrics().connections;
  try {
    co_await serve();
  } catch (const boost::system::system_error&) {  // the client is gone, or too slow
  } catch (const std::exception& e) {
    if (options_.log) options_.log(fmt::format("a connection failed: {}", e.what()));
  }
  close();
  --api_.metrics().connections;
}

void Connection::close() {
  boost::system::error_code ignored;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
  stream_.socket().close(ignored);
}

void Connection::close_when_idle() {
  closing_ = true;
  if (!busy_) close();
}

awaitable<void> Connection::serve() {
  while (keep_alive_ && !closing_) {
    if (!co_await read_request()) co_return;
    busy_ = true;
    began_ = std::chrono::steady_clock::now();
    stream_.expires_never();
    co_await api_.handle(request_, *this);
    busy_ = false;
  }
  // A client that still sends must be able to read the answer before the connection is reset.
  boost::system::error_code ignored;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
}

// The answer to what could not be read.
HttpResponse Connection::refusal_of(const boost::system::error_code& error) const {
  if (error == http::error::header_limit) return error_response(431, "the request's header is too large");
  if (error == http::error::body_limit) {
    return error_response(
        413, fmt::format("the request is too large: at most {} bytes are taken", options_.max_body_bytes));
  }
  return error_response(400, fmt::format("damaged HTTP: {}", error.message()));
}

awaitable<bool> Connection::read_request() {
  route_.clear();
  http::request_parser<http::string_body> parser;
  parser.header_limit(kMaxHeader);
  parser.body_limit(options_.max_body_bytes);
  stream_.expires_after(duration_of(options_.idle_seconds));
  if (buffer_.size() == 0) {  // nothing of it is here yet
    const auto [error, n] =
        co_await stream_.async_read_some(buffer_.prepare(4096), asio::as_tuple(asio::use_awaitable));
    if (error) co_return false;
    buffer_.commit(n);
  }
  stream_.expires_after(duration_of(options_.read_seconds));
  const auto [error, n] =
      co_await http::async_read(stream_, buffer_, parser, asio::as_tuple(asio::use_awaitable));
  if (error == http::error::end_of_stream || error == http::error::partial_message) co_return false;
  // A client that is gone or was too slow hears nothing: its socket is closed.
  if (error && error.category() != boost::system::error_code(http::error::bad_method).category())
    co_return false;
  if (error) {
    keep_alive_ = false;
    HttpResponse refusal = refusal_of(error);
    co_await respond(refusal);
    co_return false;
  }
  const auto& message = parser.get();
  const auto header = [&](http::field field) { return std::string(message[field]); };
  request_.method = std::string(message.method_string());
  request_.path = std::string(message.target());
  request_.authorization = header(http::field::authorization);
  request_.host = header(http::field::host);
  request_.origin = header(http::field::origin);
  request_.body = std::move(parser.get().body());
  keep_alive_ = message.keep_alive();
  old_http_ = message.version() < 11;
  co_return true;
}

void Connection::note(int status) {
  const bool known = !route_.empty();
  const std::string path = known ? route_ : "other";
  ++api_.metrics().responses[{path, status}];
  if (!options_.log) return;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began_;
  options_.log(fmt::format("{} {} {} {:.3f} s", known ? request_.method : "-", path, status,
                           busy_ ? took.count() : 0));
}

awaitable<void> Connection::respond(HttpResponse& response) {
  if (streaming_)
    throw boost::system::system_error(asio::error::connection_aborted);  // cannot be told any more
  watch(nullptr);
  http::response<http::string_body> message(static_cast<http::status>(response.status), old_http_ ? 10 : 11);
  message.set(http::field::content_type, response.type);
  set_headers(message, response.headers);
  message.keep_alive(keep_alive_ && !closing_);
  if (request_.method == "HEAD") {
    message.content_length(response.body.size());
  } else {
    message.body() = std::move(response.body);
    message.prepare_payload();
  }
  stream_.expires_after(duration_of(options_.write_seconds));
  co_await http::async_write(stream_, message, asio::use_awaitable);
  note(response.status);
}

// Events as they go over the wire; before the first ones the answer's header.
std::string Connection::next_part(std::string_view events) {
  std::string part;
  if (!std::exchange(streaming_, true)) {
    http::response<http::empty_body> message(http::status::ok, old_http_ ? 10 : 11);
    message.set(http::field::content_type, "text/event-stream");
    message.set(http::field::cache_control, "no-store");
    set_headers(message, {});
    if (old_http_) keep_alive_ = false;  // the end of the connection is the end of the stream
    message.chunked(!old_http_);
    message.keep_alive(keep_alive_ && !closing_);
    std::ostringstream header;
    header << message.base();
    part = header.str();
  }
  part += old_http_ ? std::string(events) : fmt::format("{:x}\r\n{}\r\n", events.size(), events);
  return part;
}

// What a socket takes at once needs neither a timer nor another turn of the loop.
awaitable<void> Connection::send(std::string_view bytes) {
  boost::system::error_code error;
  const size_t sent = stream_.socket().write_some(asio::buffer(bytes), error);
  if (error && error != asio::error::would_block) throw boost::system::system_error(error);
  if (sent == bytes.size()) co_return;
  stream_.expires_after(duration_of(options_.write_seconds));
  const auto [failed, n] = co_await asio::async_write(stream_, asio::buffer(bytes.substr(sent)),
                                                      asio::as_tuple(asio::use_awaitable));
  if (failed == beast::error::timeout) ++api_.metrics().slow_readers;
  if (failed) throw boost::system::system_error(failed);
  stream_.expires_never();
}

awaitable<void> Connection::stream(std::string_view events) {
  const std::string part = next_part(events);
  co_await send(part);
}

awaitable<void> Connection::end_stream(std::string_view events) {
  watch(nullptr);
  const std::string part = next_part(events) + (old_http_ ? "" : "0\r\n\r\n");
  co_await send(part);
  streaming_ = false;
  note(200);
}

void Connection::watch(Gone* listener) {
  listener_ = listener;
  if (!listener || watching_) return;
  watching_ = true;
  asio::co_spawn(
      stream_.get_executor(), [self = shared_from_this()] { return self->watch_socket(); }, asio::detached);
}

// Waits for the client's next byte, or its end; of an earlier request's last byte it may hear late.
awaitable<void> Connection::watch_socket() {
  asio::ip::tcp::socket& socket = stream_.socket();
  for (;;) {
    const auto [error] =
        co_await socket.async_wait(asio::ip::tcp::socket::wait_read, asio::as_tuple(asio::use_awaitable));
    if (error == asio::error::operation_aborted || !socket.is_open()) break;
    char byte = 0;
    const ssize_t n = ::recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) continue;
    if (n <= 0 && listener_) std::exchange(listener_, nullptr)->on_gone();
    break;  // gone, or its next request is here already
  }
  watching_ = false;
}

}  // namespace ssm::serve
