#include "ssm/serve/server.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <list>

#include "ssm/serve/connection.h"

namespace ssm::serve {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;

struct Server::Parts {
  Parts(const LoadedModel& model, ServerOptions given)
      : options(std::move(given)), api(model, options), acceptor(context), drained(context) {}
  ~Parts() { api.stop(); }  // then the coroutines go with the context, then what they use

  ServerOptions options;
  Api api;
  asio::io_context context{1};
  tcp::acceptor acceptor;
  asio::steady_timer drained;
  std::list<std::weak_ptr<Connection>> connections;
  int64_t open = 0;
  bool stopping = false;

  void listen();
  awaitable<void> accept();
  awaitable<void> serve(std::shared_ptr<Connection> connection);
  awaitable<void> drain();
};

namespace {

// Every stream is a file: as many as the system lets this process have.
void allow_many_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// The calling thread's work is short and clients wait for it: it comes before the engine's threads, which
// take all CPUs for as long as there is work. A system that does not know of slices leaves things as they
// are.
void ask_for_short_slices() {
  constexpr uint64_t kShortest = 100'000;  // ns
  struct {                                 // sched_attr
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{};
  attributes.size = sizeof(attributes);
  attributes.policy = static_cast<uint32_t>(sched_getscheduler(0));
  attributes.nice = getpriority(PRIO_PROCESS, 0);
  attributes.runtime = kShortest;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace

Server::Server(const LoadedModel& model, ServerOptions options)
    : parts_(std::make_unique<Parts>(model, std::move(options))) {
  allow_many_files();
  parts_->listen();
}

Server::~Server() = default;

uint16_t Server::port() const { return parts_->acceptor.local_endpoint().port(); }

void Server::Parts::listen() {
  boost::system::error_code error;
  const auto endpoints = tcp::resolver(context).resolve(options.host, std::to_string(options.port),
                                                        tcp::resolver::passive, error);
  SSM_CHECK(!error, "{}: no such address: {}", options.host, error.message());
  const tcp::endpoint endpoint = *endpoints.begin();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  SSM_CHECK(!error, "cannot listen on {} port {}: {}", options.host, options.port, error.message());
}

awaitable<void> Server::Parts::accept() {
  while (!stopping) {
    auto [error, socket] = co_await acceptor.async_accept(asio::as_tuple(asio::use_awaitable));
    if (stopping) break;
    if (error) {  // no file left, say: later there may be one
      asio::steady_timer pause(context, std::chrono::milliseconds(50));
      co_await pause.async_wait(asio::use_awaitable);
      continue;
    }
    if (open >= options.max_connections) continue;  // closes it
    auto connection = std::make_shared<Connection>(std::move(socket), api, options);
    asio::co_spawn(context, serve(std::move(connection)), asio::detached);
  }
}

awaitable<void> Server::Parts::serve(std::shared_ptr<Connection> connection) {
  const auto place = connections.insert(connections.end(), connection);
  ++open;
  co_await connection->run();
  connections.erase(place);
  if (--open == 0 && stopping) drained.cancel();
}

awaitable<void> Server::Parts::drain() {
  if (std::exchange(stopping, true)) co_return;
  api.drain();
  acceptor.close();
  const auto all = connections;
  for (const auto& place : all) {
    if (const auto connection = place.lock()) connection->close_when_idle();
  }
  if (open > 0) {
    drained.expires_after(duration_of(options.drain_seconds));
    co_await drained.async_wait(asio::as_tuple(asio::use_awaitable));
  }
  context.stop();
}

void Server::run(bool handle_signals) {
  Parts& p = *parts_;
  ask_for_short_slices();
  asio::signal_set signals(p.context);
  if (handle_signals) {
    signals.add(SIGINT);
    signals.add(SIGTERM);
    signals.async_wait([&](const boost::system::error_code& error, int) {
      if (error) return;
      signals.clear();  // the next one ends the process
      asio::co_spawn(p.context, p.drain(), asio::detached);
    });
  }
  asio::co_spawn(p.context, p.accept(), asio::detached);
  asio::co_spawn(p.context, p.api.deliver(), [](const std::exception_ptr& error) {
    if (error) std::rethrow_exception(error);
  });
  p.context.run();
}

void Server::stop() { asio::co_spawn(parts_->context, parts_->drain(), asio::detached); }

}  // namespace ssm::serve
