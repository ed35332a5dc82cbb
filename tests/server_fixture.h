// A server in this process on a port of its own, and clients that send bytes as they are.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "ssm/serve/server.h"

namespace ssm {

using nlohmann::json;
using namespace std::chrono_literals;

inline LoadedModel bundled_model() {
  LoadOptions options;
  options.compute = DType::f32;
  return load_model(std::filesystem::path(SSM_SOURCE_DIR) / "models/tale-10m", options);
}

inline const LoadedModel& model() {
  static const LoadedModel loaded = bundled_model();
  return loaded;
}

// A client's socket; bytes as they are.
class Client {
 public:
  // receive_buffer: bytes that the system takes before anybody reads; 0: as many as it likes.
  explicit Client(uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval patience{60, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    SSM_CHECK(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "cannot connect");
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void send(std::string_view bytes) const { ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  // Up to `marker` included, or all until the server closes.
  std::string read_until(std::string_view marker) {
    for (;;) {
      const size_t at = marker.empty() ? std::string::npos : buffer_.find(marker);
      if (at != std::string::npos) return take(at + marker.size());
      if (!more()) return take(buffer_.size());
    }
  }
  std::string read_bytes(size_t count) {
    while (buffer_.size() < count && more()) {
    }
    return take(std::min(count, buffer_.size()));
  }

 private:
  bool more() {
    char bytes[4096];
    const ssize_t n = ::recv(fd_, bytes, sizeof(bytes), 0);
    if (n > 0) buffer_.append(bytes, static_cast<size_t>(n));
    return n > 0;
  }
  std::string take(size_t count) {
    std::string out = buffer_.substr(0, count);
    buffer_.erase(0, count);
    return out;
  }

  int fd_;
  std::string buffer_;
};

struct Answer {
  int status = 0;
  std::string headers, body;
  json object() const { return json::parse(body); }
};

inline Answer read_answer(Client& client) {
  Answer answer;
  answer.headers = client.read_until("\r\n\r\n");
  if (answer.headers.size() < 12) return answer;  // closed
  answer.status = std::atoi(answer.headers.c_str() + 9);
  const size_t length = answer.headers.find("Content-Length: ");
  if (length != std::string::npos) {
    answer.body = client.read_bytes(static_cast<size_t>(std::atoll(answer.headers.c_str() + length + 16)));
    return answer;
  }
  for (;;) {  // chunks
    const auto size = std::strtoull(client.read_until("\r\n").c_str(), nullptr, 16);
    answer.body += client.read_bytes(size);
    client.read_until("\r\n");
    if (size == 0) return answer;
  }
}

inline std::string request_text(const std::string& method, const std::string& path, const std::string& body,
                                const std::string& headers = "") {
  return fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\n{}Content-Length: {}\r\n\r\n{}", method, path,
                     headers, body.size(), body);
}

class ServerTest : public testing::Test {
 protected:
  void start(const std::function<void(serve::ServerOptions&)>& change = {}) {
    serve::ServerOptions options;
    options.port = 0;
    options.model_name = "tale";
    options.max_sequences = 8;
    options.prefix_cache_bytes = size_t{64} << 20;
    options.log = [this](std::string_view line) { log_ += std::string(line) + "\n"; };
    if (change) change(options);
    server_ = std::make_unique<serve::Server>(model(), options);
    port_ = server_->port();
    thread_ = std::thread([this] { server_->run(); });
  }
  void stop() {
    if (!server_) return;
    server_->stop();
    thread_.join();
    server_.reset();
  }
  void TearDown() override { stop(); }

  Answer ask(const std::string& method, const std::string& path, const std::string& body = "",
             const std::string& headers = "") const {
    Client client(port_);
    client.send(request_text(method, path, body, headers));
    return read_answer(client);
  }
  Answer complete(const json& body) const { return ask("POST", "/v1/completions", body.dump()); }
  double metric(const std::string& name) const {
    const std::string text = "\n" + ask("GET", "/metrics").body;
    const size_t at = text.find("\nssm_" + name + " ");
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + name.size() + 6);
  }
  // Waits until a metric has a value; false when it takes too long.
  bool becomes(const std::string& name, double value) const {
    for (int i = 0; i < 3000; ++i, std::this_thread::sleep_for(10ms)) {
      if (metric(name) == value) return true;
    }
    return false;
  }

  std::unique_ptr<serve::Server> server_;
  std::thread thread_;
  uint16_t port_ = 0;
  std::string log_;
};

inline const std::string kText = "Once upon a time there was a house by the sea";

}  // namespace ssm
