// Server: HTTP/1.1 on a socket. One thread runs all connections as coroutines: a stream costs no thread.
#pragma once

#include <memory>

#include "ssm/load/load_model.h"
#include "ssm/serve/options.h"

namespace ssm::serve {

class Server {
 public:
  // Listens at once; throws Error naming the address where it cannot. `model` outlives the server.
  Server(const LoadedModel& model, ServerOptions options);
  ~Server();

  uint16_t port() const;

  // Serves until stop(), or SIGINT or SIGTERM where asked for: then no connection is taken any more, what
  // runs may finish within drain_seconds, and run() returns. A second signal ends the process.
  void run(bool handle_signals = false);
  void stop();  // by any thread

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace ssm::serve
